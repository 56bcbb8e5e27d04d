//! What must hold before the agent touches the kernel: kernel version, capabilities, bpffs, cgroup v2. Each failure names
//! its remedy. It only looks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::error::Hinted;

/// Oldest kernel that works: 5.15.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks kernel, capabilities and bpffs, in this order.
pub fn check(bpffs: &Path) -> Result<(), Hinted> {
    kernel(&release())?;
    capabilities(effective_capabilities())?;
    mounted_bpffs(bpffs)
}

/// Release of the running kernel (`6.18.5`).
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Refuses kernels older than [`OLDEST_KERNEL`]. A release that cannot be read as numbers is accepted.
pub fn kernel(release: &str) -> Result<(), Hinted> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        return Ok(());
    };
    if (major, minor) >= OLDEST_KERNEL {
        return Ok(());
    }
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    Err(Hinted::new(
        format!("kernel {release} is too old: {oldest_major}.{oldest_minor} or newer is needed"),
        "boot a newer kernel; `svc check` shows what each version offers",
    ))
}

/// Effective capabilities of this process, a bit for each; none if they cannot be read.
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Names what is missing of CAP_BPF, CAP_PERFMON (or CAP_SYS_ADMIN for both) and CAP_NET_ADMIN.
pub fn capabilities(effective: u64) -> Result<(), Hinted> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let admin = has(CAP_SYS_ADMIN);
    let needed = [
        ("CAP_BPF", admin || has(CAP_BPF)),
        ("CAP_PERFMON", admin || has(CAP_PERFMON)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ];
    let missing: Vec<_> = needed.iter().filter(|(_, has)| !has).map(|&(name, _)| name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Hinted::new(
        format!("this process lacks {}", missing.join(", ")),
        "run it as root, or add these to securityContext.capabilities of the container",
    ))
}

/// Refuses a directory that is not, and would not be made, on a bpffs.
pub fn mounted_bpffs(bpffs: &Path) -> Result<(), Hinted> {
    if has_type(bpffs, BPF_FS_MAGIC) {
        return Ok(());
    }
    Err(Hinted::new(
        format!("{} is not on a bpffs, so nothing can be pinned there", bpffs.display()),
        "mount it: mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's /sys/fs/bpf), or name another with \
         --bpffs",
    ))
}

/// The cgroup v2 directory for socket hooks: the named one, else the first cgroup2 mount of /proc/self/mounts.
pub fn cgroup(named: Option<&Path>) -> Result<PathBuf, Hinted> {
    match named {
        Some(path) if path.is_dir() && has_type(path, CGROUP2_SUPER_MAGIC) => Ok(path.to_owned()),
        Some(path) => Err(Hinted::new(
            format!("--cgroup {} is not a cgroup v2 directory", path.display()),
            "name a directory of the cgroup2 mount (`findmnt -t cgroup2`), or use --socket-lb=off",
        )),
        None => {
            cgroup_mount(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()).ok_or_else(|| {
                Hinted::new(
                    "no cgroup v2 hierarchy is mounted, so connections of this host's processes cannot be translated",
                    "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup, name it with --cgroup, or use --socket-lb=off",
                )
            })
        }
    }
}

/// Mount point of the first cgroup2 in a mount table; blanks in paths are escaped there as `\040` (proc_mounts(5)).
pub fn cgroup_mount(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut fields| {
        let mount = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(mount.replace("\\040", " ")))
    })
}

/// True if the path, or the nearest directory above it that exists, is of this file system type.
fn has_type(path: &Path, magic: FsType) -> bool {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find_map(|path| statfs(path).ok()).is_some_and(|found| found.filesystem_type() == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_refused_by_its_number() {
        for (release, works) in [
            ("5.14.21-default", false),
            ("4.19.0", false),
            ("5.15.0-91-generic", true),
            ("6.18.5", true),
            ("10.0", true),
            ("odd", true),
        ] {
            assert_eq!(kernel(release).is_ok(), works, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let message = |effective| capabilities(effective).err().map(|error| error.to_string());
        assert_eq!(message(u64::MAX), None);
        assert_eq!(message(1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_NET_ADMIN), None);
        assert_eq!(message(1 << CAP_SYS_ADMIN), Some("this process lacks CAP_NET_ADMIN".to_owned()));
        assert_eq!(message(0), Some("this process lacks CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN".to_owned()));
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/my\\040unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/my unified")));
        assert_eq!(cgroup_mount("proc /proc proc rw 0 0\n"), None);
    }
}
