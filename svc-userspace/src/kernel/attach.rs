//! The classifiers of one interface: TCX links that are pinned, or clsact filters on kernels before 6.6.
//!
//! At ingress ours run first and at egress last, so that netfilter, the CNI and other classifiers see one flow,
//! client ↔ backend, in between.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    InterfaceSpec, LinkLayer, clsact,
    error::KernelError,
    links::{self, LinkTarget, TCX_EGRESS, TCX_INGRESS},
    load::Programs,
    pins::Layout,
    sys, xdp,
};

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Last part of the name of a link's pin.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => TCX_INGRESS,
            Self::Egress => TCX_EGRESS,
        }
    }

    /// The program for a link layer.
    pub(super) fn program(self, link: LinkLayer) -> &'static str {
        match (self, link) {
            (Self::Ingress, LinkLayer::Ethernet) => "svc_ingress",
            (Self::Egress, LinkLayer::Ethernet) => "svc_egress",
            (Self::Ingress, LinkLayer::None) => "svc_ingress_l3",
            (Self::Egress, LinkLayer::None) => "svc_egress_l3",
        }
    }
}

/// Name of the pin of an interface's link.
fn pin_name(index: u32, direction: Direction) -> String {
    format!("{index}-{}", direction.name())
}

/// Interface index and direction in the name of a pin; `None` for a cgroup's.
pub(super) fn parse_pin(name: &str) -> Option<(u32, Direction)> {
    let (index, direction) = name.split_once('-')?;
    let direction = Direction::BOTH.into_iter().find(|candidate| candidate.name() == direction)?;
    Some((index.parse().ok()?, direction))
}

/// Attaches both programs, or updates them in place. Egress first: replies are translated before requests are.
pub(super) fn attach(
    layout: &Layout,
    programs: &Programs,
    tcx: bool,
    interface: &InterfaceSpec,
) -> Result<(), KernelError> {
    for direction in [Direction::Egress, Direction::Ingress] {
        let name = direction.program(interface.link);
        let program = programs.get(name).ok_or_else(|| KernelError::Object(format!("program {name} is not loaded")))?;
        let path = layout.link(&pin_name(interface.index, direction));
        let failed = |error| interface_error(interface, name, error);
        if tcx {
            attach_tcx(&path, program, interface, direction, name)?;
            // Left by an agent that ran with another kernel or another option.
            clsact::remove(interface.index, direction).map_err(failed)?;
        } else {
            clsact::attach(interface.index, direction, program.as_fd(), name).map_err(failed)?;
            unpin(&path)?;
        }
    }
    Ok(())
}

/// Programs of an interface that are not attached to it.
pub(super) fn missing(
    layout: &Layout,
    programs: &Programs,
    tcx: bool,
    interface: &InterfaceSpec,
) -> Result<Vec<&'static str>, KernelError> {
    let mut missing = Vec::new();
    for direction in Direction::BOTH {
        let name = direction.program(interface.link);
        let Some(program) = programs.get(name) else { continue };
        let is_there = if tcx {
            let target = LinkTarget::Tcx { index: interface.index, attach_type: direction.attach_type() };
            links::has(&layout.link(&pin_name(interface.index, direction)), target, program)
        } else {
            let found =
                clsact::find(interface.index, direction).map_err(|error| interface_error(interface, name, error))?;
            let wanted = sys::object_id(program.as_fd()).map_err(|error| interface_error(interface, name, error))?;
            found.is_some_and(|found| found.program == wanted)
        };
        if !is_there {
            missing.push(name);
        }
    }
    Ok(missing)
}

fn attach_tcx(
    path: &Path,
    program: &OwnedFd,
    interface: &InterfaceSpec,
    direction: Direction,
    name: &'static str,
) -> Result<(), KernelError> {
    let failed = |error| interface_error(interface, name, error);
    let wanted = LinkTarget::Tcx { index: interface.index, attach_type: direction.attach_type() };
    if let Some(link) = adopt(path, wanted)? {
        return links::update(link.as_fd(), program.as_fd()).map_err(failed);
    }
    let link = links::create_tcx(program.as_fd(), interface.index, direction.attach_type()).map_err(failed)?;
    sys::object_pin(link.as_fd(), path).map_err(|error| KernelError::Pin {
        path: path.to_owned(),
        action: "pin the link",
        error,
    })
}

fn interface_error(interface: &InterfaceSpec, program: &'static str, error: io::Error) -> KernelError {
    let remedy = match error.raw_os_error() {
        Some(libc::ENODEV) => "the interface is gone",
        Some(libc::EPERM | libc::EACCES) => "run with the capabilities BPF and NET_ADMIN",
        Some(libc::ERANGE) => "too many programs are attached, `bpftool net` lists them",
        _ => "`bpftool net` and `tc filter show` list what is attached",
    };
    KernelError::Interface { name: interface.name.clone(), index: interface.index, program, error, remedy }
}

/// Detaches from an interface, whichever way it was attached.
pub(super) fn detach(layout: &Layout, index: u32) -> Result<(), KernelError> {
    for direction in Direction::BOTH {
        unpin(&layout.link(&pin_name(index, direction)))?;
        match clsact::remove(index, direction) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                return Err(KernelError::Interface {
                    name: index.to_string(),
                    index,
                    program: direction.program(LinkLayer::Ethernet),
                    error,
                    remedy: "`tc filter show` lists what is attached",
                });
            }
        }
    }
    Ok(())
}

/// Opens a pinned link if it is attached where it should be; anything else under that name is removed.
pub(super) fn adopt(path: &Path, wanted: LinkTarget) -> Result<Option<OwnedFd>, KernelError> {
    if !path.exists() {
        return Ok(None);
    }
    if let Ok(link) = sys::object_get(path)
        && links::info(link.as_fd()).is_ok_and(|info| info.target == wanted)
    {
        return Ok(Some(link));
    }
    unpin(path)?;
    Ok(None)
}

/// Detaches a pinned link and removes its pin; true if there was one. A pin that is no link is removed as well.
pub(super) fn unpin(path: &Path) -> Result<bool, KernelError> {
    if let Ok(link) = sys::object_get(path)
        && links::info(link.as_fd()).is_ok_and(|info| info.target != LinkTarget::Other)
        && let Err(error) = links::detach(link.as_fd())
    {
        // An interface or a cgroup that is gone took its links along; whatever else it is, the pin's end detaches too.
        tracing::debug!(pin = %path.display(), %error, "the link was detached already");
    }
    remove_pin(path)
}

/// Removes a pin; true if there was one.
pub(super) fn remove_pin(path: &Path) -> Result<bool, KernelError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(KernelError::Pin { path: path.to_owned(), action: "remove it", error }),
    }
}

/// Removes the pins of links whose interface is gone; all of them if they belong to another network namespace, where
/// the same index is another interface.
pub(super) fn remove_stale(layout: &Layout, same_namespace: bool) -> Result<(), KernelError> {
    for (name, path) in layout.links()? {
        let Some(index) = parse_pin(&name).map(|(index, _)| index).or_else(|| xdp::parse_pin(&name)) else { continue };
        let attached = match sys::object_get(&path).and_then(|link| links::info(link.as_fd())) {
            Ok(info) => matches!(
                info.target,
                LinkTarget::Tcx { index: found, .. } | LinkTarget::Xdp { index: found } if found == index
            ),
            // What cannot be opened as a link is none; anything else says nothing about it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::ENOENT)) => false,
            Err(error) => {
                tracing::warn!(pin = %path.display(), %error, "a link cannot be read; it stays as it is");
                continue;
            }
        };
        if !(attached && same_namespace) {
            tracing::info!(pin = %path.display(), "removed the link of an interface that is gone");
            unpin(&path)?;
        }
    }
    Ok(())
}

/// True if the kernel knows TCX: it then looks for interface 0 and misses it, and otherwise refuses the attach type.
pub(super) fn has_tcx(program: BorrowedFd<'_>) -> bool {
    matches!(links::create_tcx(program, 0, TCX_INGRESS), Err(error) if error.raw_os_error() == Some(libc::ENODEV))
}
