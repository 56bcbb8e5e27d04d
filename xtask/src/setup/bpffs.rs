//! The BPF file system, where the agent pins its maps and links.

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::process::{is_root, step};

/// Where everybody expects it.
pub(crate) const PATH: &str = "/sys/fs/bpf";

/// Mounts it if it is not mounted. It stays mounted until the next boot.
pub(crate) fn ensure() -> Result<()> {
    if statfs(PATH).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    let by_hand = format!("mount -t bpf bpf {PATH}");
    if !is_root() {
        bail!("the BPF file system is not mounted, and only root may do it: {by_hand}");
    }
    step(format!("mounting the BPF file system: {by_hand}"));
    mount(Some("bpf"), PATH, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("`{by_hand}` failed: a kernel with BPF and a writable /sys are needed"))
}
