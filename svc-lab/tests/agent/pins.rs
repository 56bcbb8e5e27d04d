//! What agents pin: who may have a directory of pins, what stays in it, and what cleaning up leaves.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{ExitStatus, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use svc_lab::{Manifests, Node, Source, until};

use crate::shop::{PATIENCE, SMALL, Shop, eventually, is_silent, service, works};

/// Everything below a node's pin directory; nothing if there is none.
fn pins(node: &Node) -> Result<BTreeSet<String>> {
    fn walk(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            }
            found.insert(path.display().to_string());
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    // Cleaning up removes the directory, too.
    if node.bpffs.exists() {
        walk(&node.bpffs, &mut found)?;
    }
    Ok(found)
}

#[test]
fn a_pod_that_came_late_is_served_and_one_that_went_leaves_no_pins() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let before = pins(shop.node())?;
    let late = shop.lab.pod(1, "late")?;
    shop.lab.serve(&late, 8080)?;
    // UDP of pods goes through the programs of their interfaces.
    eventually("programs on the new interface", || works(&late, 1, &["a"]))?;
    manifests.write("web", &service(1).with(&[&late]))?;
    eventually("the late pod as a backend", || works(&shop.client, 1, &["late"]))?;
    let with = pins(shop.node())?;
    assert!(with.is_superset(&before) && with.len() > before.len(), "{with:?}");
    drop(late);
    shop.lab.remove_pod("late")?;
    eventually("the pins to go", || {
        let now = pins(shop.node())?;
        ensure!(now == before, "left: {:?}", now.difference(&before).collect::<Vec<_>>());
        Ok(())
    })
}

/// Runs `svc agent` to its end, which must come by itself.
fn refused(node: &Node, bpffs: &Path, manifests: &Manifests) -> Result<(ExitStatus, String)> {
    let mut command = node.command(svc_lab::svc_program()?)?;
    command.args(["agent", "--node-name", "node1", "--uplink", "eth0", "--manifests"]).arg(manifests.path());
    command.arg("--bpffs").arg(bpffs).arg("--cgroup").arg(node.cgroup());
    command.args(["--metrics-address", "127.0.0.1:20249", "--healthz-address", "127.0.0.1:20256"]).args(SMALL);
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let ended = until("the agent's refusal", PATIENCE, || match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ended?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn an_agent_without_a_bpffs_or_next_to_another_one_says_so_and_ends() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;

    let plain = shop.lab.directory().join("plain");
    fs::create_dir(&plain)?;
    let (status, text) = refused(shop.node(), &plain, &manifests)?;
    assert!(!status.success());
    let expected = format!("error: cannot start the agent: caused by bpffs is not mounted at {}", plain.display());
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("hint: mount -t bpf bpf /sys/fs/bpf"), "{text}");

    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let (status, text) = refused(shop.node(), &shop.node().bpffs, &manifests)?;
    assert!(!status.success());
    let expected = format!("{} is in use by another agent", shop.node().bpffs.display());
    assert!(text.contains(&expected), "{text}");
    assert!(agent.has_ended()?.is_none());
    works(&shop.client, 1, &["a"])
}

#[test]
fn cleanup_removes_everything_and_finds_nothing_the_second_time() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut programs = Vec::new();
    for path in pins(shop.node())?.into_iter().filter(|path| path.contains("/programs/svc_")) {
        let shown: Value =
            serde_json::from_str(&shop.node().exec("bpftool", &["-j", "prog", "show", "pinned", &path])?)?;
        programs.push(shown["id"].as_u64().with_context(|| format!("no id in {shown}"))?.to_string());
    }
    assert!(programs.len() >= 12, "{programs:?}");
    let tables = || shop.node().exec("nft", &["list", "tables"]);
    assert!(tables()?.contains("table inet svc"));
    agent.terminate()?;
    works(&shop.client, 1, &["a"])?;
    let first = shop.lab.svc(1, &["cleanup"])?;
    assert!(first.starts_with("Detached ") && first.contains("nftables"), "{first}");
    assert_eq!(pins(shop.node())?, BTreeSet::new());
    assert!(!tables()?.contains("table inet svc"));
    // A program that is attached anywhere would live on.
    eventually("the programs to be freed", || {
        let alive: Vec<_> =
            programs.iter().filter(|id| shop.node().exec("bpftool", &["prog", "show", "id", id]).is_ok()).collect();
        ensure!(alive.is_empty(), "alive: {alive:?}");
        Ok(())
    })?;
    is_silent(&shop.client, 1)?;
    let second = shop.lab.svc(1, &["cleanup"])?;
    assert!(second.starts_with("Nothing to remove"), "{second}");
    agent.start()?;
    agent.wait_ready()?;
    works(&shop.client, 1, &["a"])
}
