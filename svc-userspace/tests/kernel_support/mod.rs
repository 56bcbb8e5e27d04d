//! A place for one test: a network namespace of its own, a directory on bpffs and a cgroup, all gone when it ends,
//! however it ends.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use svc_userspace::{
    kernel::{AttachMode, Options},
    tables::Capacity,
};

const BPFFS: &str = "/sys/fs/bpf";

/// Directories of one test.
pub(crate) struct Place {
    pub(crate) bpffs: PathBuf,
    pub(crate) cgroup: PathBuf,
}

impl Place {
    pub(crate) fn options(&self) -> Options {
        Options {
            bpffs: self.bpffs.clone(),
            cgroup: Some(self.cgroup.clone()),
            capacity: Capacity {
                services: 64,
                backends: 128,
                frontends_v4: 32,
                frontends_v6: 16,
                slots: 1000,
                source_ranges: 16,
            },
            flows: 1024,
            growth_limit: 1 << 30,
            config_flags: svc_common::config::CONFIG_SOCKET_HOST,
            programs_masquerade: false,
            xdp: svc_userspace::kernel::Xdp::Off,
            service_cidrs: Vec::new(),
            attach: AttachMode::Auto,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.bpffs);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            remove(&entry.path());
        }
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}

/// Runs a test in a network namespace of its own.
pub(crate) fn in_place(test: impl FnOnce(&Place) + Send + 'static) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("svc-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    mount_bpffs();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip", &["link", "set", "lo", "up"]);
        let cgroup = cgroup2().join(&name);
        fs::create_dir(&cgroup).expect("make a cgroup");
        let place = Place { bpffs: Path::new(BPFFS).join(&name), cgroup };
        fs::create_dir(&place.bpffs).expect("make a directory on bpffs");
        test(&place);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount_bpffs() {
    static MOUNT: std::sync::Once = std::sync::Once::new();
    MOUNT.call_once(|| {
        let mounted = statfs(BPFFS).is_ok_and(|kind| kind.filesystem_type() == BPF_FS_MAGIC);
        if !mounted {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).expect("these tests need root");
        }
    });
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup v2 is mounted");
    PathBuf::from(line.split(' ').nth(1).expect("a mount point"))
}

/// Runs a command and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the tool is installed");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The BPF object under test.
pub(crate) fn object() -> Vec<u8> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.build/ebpf/svc.o");
    let path = std::env::var_os("SVC_EBPF_OBJECT").map_or(default, PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: build it with `cargo xtask build`", path.display()))
}
