//! What must hold before the agent touches the kernel: kernel version, capabilities, bpffs, cgroup v2. Each failure names
//! its remedy. It only looks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::error::Hinted;
use crate::kernel::check::{self, Finding, Verdict};

/// Refuses a machine that lacks something nothing can stand in for.
pub fn check(bpffs: &Path, cgroup: Option<&Path>) -> Result<(), Hinted> {
    refuse(check::run(bpffs, cgroup))
}

fn refuse(findings: Vec<Finding>) -> Result<(), Hinted> {
    match findings.into_iter().find(|finding| finding.verdict == Verdict::Missing) {
        Some(Finding { what, consequence, remedy, .. }) => Err(Hinted::new(format!("{what}: {consequence}"), remedy)),
        None => Ok(()),
    }
}

/// The cgroup v2 directory for socket hooks: the named one, else the first cgroup2 mount of /proc/self/mounts.
pub fn cgroup(named: Option<&Path>) -> Result<PathBuf, Hinted> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    cgroup_mount(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()).ok_or_else(|| {
        Hinted::new(
            "no cgroup v2 hierarchy is mounted, so connections of this host's processes cannot be translated",
            "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup, name it with --cgroup, or use --socket-lb=off",
        )
    })
}

/// Mount point of the first cgroup2 in a mount table; blanks in paths are escaped there as `\\040` (proc_mounts(5)).
pub fn cgroup_mount(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut fields| {
        let mount = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(mount.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thing_missing_is_the_error_and_what_is_only_degraded_is_not() {
        let finding = |what: &str, verdict| Finding {
            what: what.to_owned(),
            verdict,
            consequence: "it matters".to_owned(),
            remedy: "do something".to_owned(),
        };
        assert!(refuse(vec![finding("a", Verdict::Ok), finding("b", Verdict::Degraded)]).is_ok());
        let error = refuse(vec![finding("b", Verdict::Degraded), finding("c", Verdict::Missing)]);
        assert_eq!(error.err().map(|error| error.to_string()), Some("c: it matters".to_owned()));
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/my\\040unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/my unified")));
        assert_eq!(cgroup_mount("proc /proc proc rw 0 0\n"), None);
    }
}
