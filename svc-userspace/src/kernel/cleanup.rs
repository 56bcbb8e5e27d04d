//! Detaches and removes everything this project put on a node, and nothing else. Repeating it finds nothing to do.

use std::{collections::BTreeSet, fs, io, path::Path};

use svc_common::Interface;

use super::{
    attach::{self, Direction},
    clsact,
    error::KernelError,
    maps,
    pins::{self, Layout},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CleanupReport {
    /// Programs detached, as `where: program or pin`.
    pub detached: Vec<String>,
    /// Paths of pinned maps and programs, and of directories.
    pub pins: Vec<String>,
    /// The nf_tables table.
    pub masquerade: bool,
    /// Ports that were reserved for masquerading are not any more.
    pub reserved_ports: bool,
    /// What could not be undone, and what to do about it.
    pub problems: Vec<String>,
}

impl CleanupReport {
    /// True if there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.detached.is_empty()
            && self.pins.is_empty()
            && !self.masquerade
            && !self.reserved_ports
            && self.problems.is_empty()
    }
}

/// Removes all layouts up to this release's below `bpffs`, our clsact filters and our nf_tables table in the network
/// namespace of the calling thread. Refused while an agent runs.
pub fn cleanup(bpffs: &Path) -> Result<CleanupReport, KernelError> {
    let mut report = CleanupReport::default();
    let lock = if bpffs.exists() {
        pins::require_bpffs(bpffs)?;
        Some(pins::Lock::take(bpffs)?)
    } else {
        None
    };
    pins::refuse_newer(bpffs)?;

    let mut indexes: BTreeSet<u32> = interface_indexes();
    let current = Layout::current(bpffs);
    if current.map("INTERFACES").exists() {
        maps::each_entry(&current, "INTERFACES", &mut |index: u32, _: Interface| {
            indexes.insert(index);
        })?;
    }
    for index in indexes {
        for direction in Direction::BOTH {
            let removed = clsact::remove(index, direction).map_err(|error| KernelError::Interface {
                name: index.to_string(),
                index,
                program: direction.program(super::LinkLayer::Ethernet),
                error,
                remedy: "`tc filter show` lists what is attached",
            })?;
            report
                .detached
                .extend(removed.map(|name| format!("clsact {} of interface {index}: {name}", direction.name())));
        }
    }
    match super::masquerade::restore_ports(&current) {
        Ok(restored) => report.reserved_ports = restored,
        // It must not keep everything else where it is.
        Err(error) => report.problems.push(format!("ports for masquerading stay reserved: {error}")),
    }
    for version in pins::layouts(bpffs)? {
        remove_layout(&bpffs.join(format!("layout-{version}")), &mut report)?;
    }
    report.masquerade = crate::masquerade::remove()?;
    if lock.is_some() {
        // Only ours and empty is removed: the directory may be the mount itself, or hold what others pinned.
        match fs::remove_dir(bpffs) {
            Ok(()) => report.pins.push(bpffs.display().to_string()),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy)
                    || error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(KernelError::Pin { path: bpffs.to_owned(), action: "remove it", error }),
        }
    }
    Ok(report)
}

/// Links first, so that no program runs while its maps disappear from sight.
fn remove_layout(root: &Path, report: &mut CleanupReport) -> Result<(), KernelError> {
    for (name, path) in pins::entries(&root.join("links"))? {
        if attach::unpin(&path)? {
            report.detached.push(format!("link {name}"));
        }
    }
    for directory in ["programs", "maps"] {
        for (_, path) in pins::entries(&root.join(directory))? {
            if attach::remove_pin(&path)? {
                report.pins.push(path.display().to_string());
            }
        }
    }
    for path in [root.join("links"), root.join("programs"), root.join("maps"), root.to_owned()] {
        match fs::remove_dir(&path) {
            Ok(()) => report.pins.push(path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(KernelError::Pin { path, action: "remove it", error }),
        }
    }
    Ok(())
}

/// Every interface of this network namespace.
fn interface_indexes() -> BTreeSet<u32> {
    match nix::net::if_::if_nameindex() {
        Ok(list) => list.iter().map(nix::net::if_::Interface::index).collect(),
        Err(error) => {
            tracing::warn!(%error, "interfaces cannot be listed; only those in INTERFACES are cleaned");
            BTreeSet::new()
        }
    }
}
