//! The `svc` binary as people and scripts meet it: help, errors, exit codes.

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs `svc` without any `SVC_…` of the environment.
fn svc(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svc"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SVC_") {
            command.env_remove(name);
        }
    }
    command.args(args).output().expect("svc runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts one `error:` line and one `hint:` line, exit code 1, and returns both.
fn failure(output: &Output) -> (String, String) {
    let text = stderr(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("WARN")).collect();
    assert_eq!(output.status.code(), Some(1), "{text}");
    match lines.as_slice() {
        [error, hint] if error.starts_with("error: ") && hint.starts_with("hint: ") => {
            ((*error).to_owned(), (*hint).to_owned())
        }
        [error] if error.starts_with("error: ") => ((*error).to_owned(), String::new()),
        _ => panic!("not one error and at most one hint:\n{text}"),
    }
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn help_has_every_command_examples_and_what_each_reads() {
    let output = svc(&["--help"]);
    assert!(output.status.success());
    let help = stdout(&output);
    for word in ["agent", "status", "services", "backends", "flows", "explain", "check", "cleanup"] {
        assert!(help.contains(&format!("\n  {word}")), "{word} in\n{help}");
    }
    for part in ["Examples:", "What each command reads:", "Exit codes:", "--bpffs <DIR>", "[default: /sys/fs/bpf/svc]"]
    {
        assert!(help.contains(part), "{part} in\n{help}");
    }
}

#[test]
fn every_option_of_the_agent_is_in_its_help_with_its_environment_variable() {
    let help = stdout(&svc(&["agent", "--help"]));
    for option in [
        "node-name",
        "manifests",
        "kubeconfig",
        "uplink",
        "pod-interfaces",
        "nodeport-addresses",
        "socket-lb",
        "masquerade",
        "xdp",
        "external-ips",
        "bpffs",
        "cgroup",
        "metrics-address",
        "healthz-address",
        "flows",
        "services",
        "backends",
        "frontends",
        "slots",
        "dns",
        "dns-clients",
        "log-format",
    ] {
        assert!(help.contains(&format!("--{option}")), "--{option} in\n{help}");
        let variable = format!("SVC_{}", option.replace('-', "_").to_uppercase());
        let variable = if option == "bpffs" { "SVC_BPFFS".to_owned() } else { variable };
        assert!(help.contains(&format!("[env: {variable}=]")), "{variable} in\n{help}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_would_be_right() {
    let cases: [(&[&str], &str); 9] = [
        (&["agent"], "--node-name <NAME>"),
        (&["pods"], "unrecognized subcommand"),
        (&["explain", "10.0.0.1"], "<DESTINATION>"),
        (&["explain", "10.0.0.1", "10.96.0.1:80/icmp"], "the protocol is tcp, udp or sctp"),
        (&["agent", "--node-name", "n", "--xdp", "offload"], "[possible values: auto, native, generic, off]"),
        (&["agent", "--node-name", "n", "--nodeport-addresses", "eth0"], "neither `primary` nor a prefix"),
        (&["agent", "--node-name", "n", "--manifests", "a", "--kubeconfig", "b"], "cannot be used with"),
        (&["flows", "--source", "x"], "write ADDRESS, ADDRESS:PORT"),
        (&["backends", "a/b/c"], "write NAME or NAMESPACE/NAME"),
    ];
    for (args, expected) in cases {
        let output = svc(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn commands_that_read_say_when_nothing_is_pinned() {
    let dir = tempfile::tempdir().expect("a directory");
    let bpffs = dir.path().to_str().expect("a path");
    for command in ["status", "services", "backends", "flows"] {
        for format in ["table", "wide", "json"] {
            let output = svc(&[command, "--bpffs", bpffs, "-o", format]);
            let (error, _) = failure(&output);
            assert!(error.contains(bpffs), "{command}: {error}");
            assert!(stdout(&output).is_empty(), "{command}: data beside an error");
        }
    }
}

#[test]
fn an_agent_without_a_bpffs_names_the_directory_and_the_mount() {
    if !root() {
        eprintln!("skipped: without root the missing capability is reported first");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let bpffs = dir.path().join("svc");
    let output = agent(dir.path(), &bpffs, &[]);
    let (error, hint) = failure(&output);
    assert!(error.starts_with("error: cannot start the agent: caused by bpffs is not mounted at "), "{error}");
    assert!(error.contains(bpffs.to_str().expect("a path")), "{error}");
    assert_eq!(hint, "hint: mount -t bpf bpf /sys/fs/bpf");
}

#[test]
fn an_agent_with_a_wrong_cgroup_names_it() {
    if !root() {
        eprintln!("skipped: without root the missing capability is reported first");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let cgroup = dir.path().join("none");
    let mount = svc_bpffs();
    let output = agent(dir.path(), &mount.path, &["--cgroup", cgroup.to_str().expect("a path")]);
    let (error, hint) = failure(&output);
    assert!(error.contains(cgroup.to_str().expect("a path")), "{error}");
    assert!(hint.contains("--cgroup") || hint.contains("--socket-lb"), "{hint}");
}

#[test]
fn a_process_without_capabilities_is_told_which() {
    if !root() {
        eprintln!("skipped: needs root to give capabilities up");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // `setpriv` of util-linux drops everything; nothing else of the process changes.
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", env!("CARGO_BIN_EXE_svc")])
        .args(["agent", "--node-name", "n1", "--manifests"])
        .arg(dir.path())
        .output()
        .expect("setpriv runs");
    let (error, hint) = failure(&output);
    assert!(error.contains("NET_ADMIN") && error.contains("BPF"), "{error}");
    assert!(hint.contains("securityContext.capabilities"), "{hint}");
}

#[test]
fn check_reports_this_machine_as_data() {
    let output = svc(&["check", "-o", "json", "--bpffs", "/nonexistent/svc"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = findings.as_array().expect("an array");
    let missing = findings.iter().any(|finding| finding["verdict"] == "missing");
    assert_eq!(output.status.code(), Some(i32::from(missing)));
    assert!(missing, "no bpffs is at /nonexistent");
    for field in ["what", "verdict", "consequence", "remedy"] {
        assert!(findings.iter().all(|finding| finding[field].is_string()), "{field}");
    }
}

fn agent(manifests: &Path, bpffs: &Path, more: &[&str]) -> Output {
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    let (manifests, bpffs) = (path(manifests), path(bpffs));
    let args = ["agent", "--node-name", "n1", "--manifests", &manifests, "--bpffs", &bpffs];
    svc(&[&args[..], more].concat())
}

/// A bpffs of its own, unmounted at the end.
struct Mount {
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn svc_bpffs() -> Mount {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_owned();
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpf"), &path, Some("bpf"), nix::mount::MsFlags::empty(), none).expect("a bpffs");
    Mount { path, _dir: dir }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
