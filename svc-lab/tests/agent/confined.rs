//! An agent in a container as `deploy/overlays/confined` describes it: four capabilities, its seccomp profile, a root file system
//! that cannot be written to.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{Request, Service, Source};

use crate::shop::{NODE_PORT, SMALL, Shop, eventually, progress, vips, works};

/// A bundle for crun, and its end.
struct Container {
    state: PathBuf,
    script: PathBuf,
    name: String,
}

impl Container {
    /// `script` runs `svc agent` in a container, and everything else as it is.
    fn prepare(directory: &Path, name: &str) -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut profile: Value = serde_json::from_str(&fs::read_to_string(workspace.join("deploy/seccomp/svc.json"))?)?;
        for rule in profile["syscalls"].as_array_mut().context("a profile has rules")? {
            rule.as_object_mut().context("a rule")?.remove("comment");
        }
        let (bundle, root) = (directory.join("bundle"), directory.join("root"));
        fs::create_dir_all(&bundle)?;
        fs::create_dir_all(&root)?;
        let capabilities = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"];
        // The script fills in the arguments.
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": "ARGUMENTS", "env": [], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": root, "readonly": true},
            "mounts": [],
            "linux": {"namespaces": [{"type": "mount"}], "seccomp": profile},
        });
        fs::write(bundle.join("template.json"), config.to_string())?;
        let (svc, state) = (svc_lab::svc_program()?, directory.join("state"));
        let script = directory.join("svc");
        let text = format!(
            r#"#!/bin/sh -e
svc='{svc}'
[ "$1" = agent ] || exec "$svc" "$@"
list="\"$svc\""
for word in "$@"; do list="$list, \"$word\""; done
sed "s|\"ARGUMENTS\"|[$list]|" '{bundle}/template.json' > '{bundle}/config.json'
exec unshare --mount sh -ec '
    # crun takes no cgroup v2 with controllers beside v1, and has nothing to do with either here.
    controllers=/sys/fs/cgroup/unified/cgroup.controllers
    [ ! -e $controllers ] || mount --bind /dev/null $controllers
    mount --rbind / "{root}"
    exec crun --root "{state}" --cgroup-manager=disabled run --bundle "{bundle}" {name}'
"#,
            svc = svc.display(),
            bundle = bundle.display(),
            root = root.display(),
            state = state.display(),
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self { state, script, name: name.to_owned() })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // After a failure the agent lives on without its parent.
        let mut end = Command::new("crun");
        let _ = end.arg("--root").arg(&self.state).args(["delete", "--force", &self.name]).output();
    }
}

#[test]
fn a_confined_agent_does_all_that_another_one_does() -> Result<()> {
    if Command::new("crun").arg("--version").output().is_err() {
        eprintln!("not run: there is no crun here, which `cargo xtask setup` installs");
        return Ok(());
    }
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let web = Service::new("shop", "web-1", &vips(1)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &web.with(&[&shop.a]))?;
    let container = Container::prepare(shop.lab.directory(), &format!("svc-{}", shop.node().namespace()))?;
    let options = [&SMALL[..], &["--repair-interval", "1", "--xdp", "generic"]].concat();
    let mut agent = shop.lab.agent(1, Source::Manifests(manifests.path()), &options)?;
    agent.set_program(&container.script);
    agent.start()?;
    agent.wait_ready()?;
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.id().context("it runs")?))?;
    let status = fs::read_to_string(format!("/proc/{}/status", children.trim()))?;
    ensure!(status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"), "{status}");

    works(&shop.client, 1, &["a"])?;
    works(shop.node(), 1, &["a"])?;
    shop.lab.outside().ask(&Request::tcp((shop.node().addresses.v4, NODE_PORT)))?;
    let mut udp = shop.node().steady(&Request::udp((vips(1)[0], 80)), 5, &shop.lab.logs().join("udp.log"))?;
    manifests.write("web", &web.with(&[&shop.b]))?;
    progress(&mut udp, Some("b"), 5)?;
    drop(udp);
    let late = shop.lab.pod(1, "late")?;
    eventually("programs on the interface of a late pod", || works(&late, 1, &["b"]))?;
    eventually("a comparison", || {
        let metrics = agent.metrics()?;
        ensure!(metrics.lines().any(|line| line.starts_with("svc_repair_passes_total ") && !line.ends_with(" 0")));
        ensure!(!metrics.contains("svc_repair_problem{"), "{metrics}");
        Ok(())
    })?;
    agent.terminate()?;
    works(&shop.client, 1, &["b"])?;

    agent.start()?;
    agent.wait_ready()?;
    works(&shop.client, 1, &["b"])?;
    agent.terminate()?;
    Ok(())
}
