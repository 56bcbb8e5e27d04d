//! The agent as a process, in a network namespace of its own: what it leaves behind, and what the next one makes of it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A bpffs, a cgroup and a directory of manifests, removed at the end with everything attached.
struct Place {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Place {
    /// `None`, with the reason on standard error, where the test cannot run.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        if svc_userspace::kernel::object::object().is_empty() {
            eprintln!("skipped: no kernel object is embedded; `cargo xtask build` makes it");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["bpf", "manifests"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let none: Option<&str> = None;
        mount(Some("bpf"), &dir.path().join("bpf"), Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let root = svc_userspace::cli::preflight::cgroup_mount(&mounts).expect("cgroup v2 is mounted");
        let cgroup = root.join(dir.path().file_name().expect("a name"));
        fs::create_dir(&cgroup).expect("a cgroup");
        Some(Self { dir, cgroup })
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf/svc")
    }

    fn manifest(&self) -> PathBuf {
        self.dir.path().join("manifests/services.yaml")
    }

    /// Writes Services `s1`, `s2`, … with one cluster IP and one endpoint each.
    fn write_services(&self, numbers: &[u8]) {
        let service = |number: &u8| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: ns}}\n\
                 spec:\n  clusterIP: 10.96.0.{number}\n  clusterIPs: [10.96.0.{number}]\n  ipFamilies: [IPv4]\n  \
                 ports: [{{port: 80, protocol: TCP}}]\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: s{number}, namespace: ns, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
                 addressType: IPv4\nports: [{{port: 8080, protocol: TCP}}]\n\
                 endpoints: [{{addresses: [10.1.0.{number}], nodeName: n1}}]\n"
            )
        };
        // Renamed into place, so that no agent reads half of it.
        let temporary = self.dir.path().join("services.new");
        fs::write(&temporary, numbers.iter().map(service).collect::<String>()).expect("a manifest");
        fs::rename(temporary, self.manifest()).expect("a manifest");
    }

    fn agent_command(&self) -> Command {
        // `unshare` becomes the agent, so its pid is the agent's.
        let mut command = Command::new("unshare");
        command.args(["--net", "--", env!("CARGO_BIN_EXE_svc"), "agent", "--node-name", "n1", "--uplink", "lo"]);
        command.arg("--manifests").arg(self.dir.path().join("manifests"));
        command.arg("--bpffs").arg(self.bpffs()).arg("--cgroup").arg(&self.cgroup);
        command
    }

    fn start(&self) -> Agent {
        Agent(self.agent_command().stderr(Stdio::null()).spawn().expect("the agent starts"))
    }

    /// Runs `svc` in a network namespace of its own: clean-up must not touch this machine's, nor a test ask its agent.
    fn svc(&self, args: &[&str]) -> Output {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", env!("CARGO_BIN_EXE_svc")]).args(args);
        command.arg("--bpffs").arg(self.bpffs()).output().expect("svc runs")
    }

    fn json(&self, command: &str) -> Option<Value> {
        let output = self.svc(&[command, "-o", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Names of the Services that have a frontend.
    fn services(&self) -> Vec<String> {
        let rows = self.json("services").unwrap_or_default();
        let rows = rows.as_array().into_iter().flatten().filter(|row| row["frontends"][0].is_object());
        rows.filter_map(|row| row["name"].as_str()).map(str::to_owned).collect()
    }

    fn synced(&self) -> bool {
        self.json("status").is_some_and(|status| status["synced"] == true)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.svc(&["cleanup"]);
        let bpf = self.dir.path().join("bpf");
        if let Err(error) = umount2(&bpf, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", bpf.display());
        }
        if let Err(error) = fs::remove_dir(&self.cgroup) {
            eprintln!("{}: {error}", self.cgroup.display());
        }
    }
}

/// An agent that does not outlive its test.
struct Agent(Child);

impl Agent {
    /// Exit code, `None` if a signal ended it.
    fn end(mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(self.0.id().try_into().expect("a pid"));
        kill(pid, signal).expect("the agent runs");
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}: not within a minute");
        std::thread::yield_now();
    }
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_programmed_outlives_the_agent_and_the_next_one_applies_the_difference() {
    let Some(place) = Place::new() else { return };
    place.write_services(&[1, 2]);
    let agent = place.start();
    until("the first agent programs", || place.synced());
    assert_eq!(place.services(), ["s1", "s2"]);
    let ids = |place: &Place| place.json("services").expect("services")[1]["id"].clone();
    let id = ids(&place);

    assert_eq!(agent.end(Signal::SIGKILL), None);
    assert!(place.synced(), "killed, and still complete");
    assert_eq!(place.services(), ["s1", "s2"]);
    let agent_state = place.json("status").expect("status")["agent"]["state"].clone();
    assert_eq!(agent_state, "unreachable");

    place.write_services(&[2, 3]);
    let agent = place.start();
    until("the second agent applies the difference", || place.services() == ["s2", "s3"]);
    let row = place.json("services").expect("services")[0].clone();
    assert_eq!((row["name"].as_str(), &row["id"]), (Some("s2"), &id), "what did not change keeps its id");

    assert_eq!(agent.end(Signal::SIGTERM), Some(0));
    assert_eq!(place.services(), ["s2", "s3"]);
}

#[test]
fn two_agents_do_not_share_their_pins_and_cleanup_waits_for_the_agent() {
    let Some(place) = Place::new() else { return };
    place.write_services(&[1]);
    let agent = place.start();
    until("the agent programs", || place.synced());

    let second = place.agent_command().output().expect("it runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(error_of(&second).contains("is in use by another agent"), "{}", error_of(&second));
    let cleanup = place.svc(&["cleanup"]);
    assert_eq!(cleanup.status.code(), Some(1));
    assert!(error_of(&cleanup).contains("is in use by another agent"), "{}", error_of(&cleanup));
    assert_eq!(place.services(), ["s1"]);

    assert_eq!(agent.end(Signal::SIGINT), Some(0));
    assert!(place.svc(&["cleanup"]).status.success());
    let status = place.svc(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(error_of(&status).contains("no dataplane is pinned below"), "{}", error_of(&status));
    let again = place.svc(&["cleanup"]);
    assert!(again.status.success() && String::from_utf8_lossy(&again.stdout).starts_with("Nothing to remove"));
}

#[test]
fn a_manifest_directory_that_is_not_there_ends_the_agent_with_its_name() {
    let Some(place) = Place::new() else { return };
    fs::remove_dir(place.dir.path().join("manifests")).expect("an empty directory");
    let output = place.agent_command().output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let error = error_of(&output);
    let line = error.lines().find(|line| line.starts_with("error: ")).expect("an error line");
    assert!(line.contains("manifests") && line.contains("create the directory or correct --manifests"), "{line}");
}
