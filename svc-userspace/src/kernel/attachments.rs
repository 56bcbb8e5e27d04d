//! What is attached where, read from the pinned links and the clsact filters: for people, never for decisions.

use std::{collections::BTreeMap, os::fd::AsFd, path::PathBuf};

use super::{
    attach::{self, Direction},
    clsact,
    error::KernelError,
    links::{self, LinkTarget},
    pins::{self, Layout},
    sys,
    view::Attachment,
    xdp,
};

/// Attachments of all pinned links, and of our clsact filters on these interfaces of this network namespace.
pub(super) fn read(layout: &Layout, interfaces: impl Iterator<Item = u32>) -> Result<Vec<Attachment>, KernelError> {
    let programs = program_names(layout)?;
    let mut found = Vec::new();
    let mut cgroups = Cgroups::default();
    for (pin, path) in layout.links()? {
        // A pin may vanish while we look, and a link may hang in the air: neither is attached to anything.
        let Ok(info) = sys::object_get(&path).and_then(|link| links::info(link.as_fd())) else { continue };
        let fallback = || match attach::parse_pin(&pin) {
            Some((_, direction)) => format!("svc_{}", direction.name()),
            None if xdp::parse_pin(&pin).is_some() => xdp::PROGRAMS[0].to_owned(),
            None => pin.clone(),
        };
        let program = programs.get(&info.program).cloned().unwrap_or_else(fallback);
        match info.target {
            LinkTarget::Tcx { index: 0, .. }
            | LinkTarget::Xdp { index: 0 }
            | LinkTarget::Cgroup { id: 0, .. }
            | LinkTarget::Other => {}
            LinkTarget::Xdp { index } => {
                found.push(Attachment { program, how: "xdp", to: interface_name(index) });
            }
            LinkTarget::Tcx { index, .. } => {
                found.push(Attachment { program, how: "tcx", to: interface_name(index) });
            }
            LinkTarget::Cgroup { id, .. } => {
                found.push(Attachment { program, how: "cgroup", to: cgroups.path(id) });
            }
        }
    }
    for index in interfaces {
        for direction in Direction::BOTH {
            // Without permission, or without rtnetlink, there is nothing to tell.
            if let Ok(Some(filter)) = clsact::find(index, direction) {
                found.push(Attachment { program: filter.name, how: "clsact", to: interface_name(index) });
            }
        }
    }
    found.sort_by(|a, b| (a.how, &a.to, &a.program).cmp(&(b.how, &b.to, &b.program)));
    Ok(found)
}

fn program_names(layout: &Layout) -> Result<BTreeMap<u32, String>, KernelError> {
    let mut names = BTreeMap::new();
    for (name, path) in pins::entries(&layout.root.join("programs"))? {
        if let Ok(id) = sys::object_get(&path).and_then(|program| sys::object_id(program.as_fd())) {
            names.insert(id, name);
        }
    }
    Ok(names)
}

fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        // nix 0.31 reports an interface that does not exist as an empty name.
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| index.to_string())
}

/// Paths of cgroups by id: found by walking the hierarchy, which is done once for all links of one cgroup.
#[derive(Default)]
struct Cgroups {
    known: BTreeMap<u64, String>,
}

impl Cgroups {
    fn path(&mut self, id: u64) -> String {
        self.known.entry(id).or_insert_with(|| find_cgroup(id).unwrap_or_else(|| format!("cgroup {id}"))).clone()
    }
}

fn find_cgroup(id: u64) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let mut waiting = vec![PathBuf::from(super::cgroup::mounted_cgroup2()?)];
    while let Some(directory) = waiting.pop() {
        if directory.metadata().is_ok_and(|metadata| metadata.ino() == id) {
            return Some(directory.display().to_string());
        }
        let Ok(entries) = directory.read_dir() else { continue };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(directories.map(|entry| entry.path()));
    }
    None
}
