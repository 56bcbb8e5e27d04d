//! The XDP program on uplinks, by links that are pinned. Where it cannot be attached, packets go through the classifiers, which
//! do all that it does.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use svc_common::Scope;

use super::{
    InterfaceSpec, LinkLayer,
    attach::{adopt, unpin},
    error::KernelError,
    links::{self, LinkTarget},
    load::Programs,
    pins::Layout,
    sys,
};

/// Names of the programs for native and for generic XDP.
pub(super) const PROGRAMS: [&str; 2] = ["svc_xdp", "svc_xdp_skb"];

/// Where flows from outside to other nodes are forwarded before the stack sees them (`--xdp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xdp {
    /// In the driver of every uplink that has native XDP
    Auto,
    /// The same, and a warning where an uplink has none
    Native,
    /// In the kernel's generic XDP: for tests, it is no faster than without
    Generic,
    /// Nowhere
    #[default]
    Off,
}

/// `XDP_FLAGS_*` (include/uapi/linux/if_link.h), and the last part of the name of the link's pin.
const NATIVE: (u32, &str) = (1 << 2, "xdp");
const GENERIC: (u32, &str) = (1 << 1, "xdp-generic");

impl Xdp {
    /// The program that is attached.
    pub(super) fn program(self) -> &'static str {
        PROGRAMS[usize::from(self == Self::Generic)]
    }
}

/// Index of the interface in the name of a pin, if it is one of these.
pub(super) fn parse_pin(name: &str) -> Option<u32> {
    let (index, kind) = name.split_once('-')?;
    [NATIVE.1, GENERIC.1].contains(&kind).then(|| index.parse().ok())?
}

/// What became of an interface.
pub(super) enum Outcome {
    /// It is to have no program.
    NotWanted,
    /// It has it.
    Attached,
    /// It should have it; packets go through tc.
    Refused(io::Error),
}

/// Attaches the program to an uplink, or replaces it atomically, and removes it from everything else.
pub(super) fn attach(
    layout: &Layout,
    programs: &Programs,
    mode: Xdp,
    interface: &InterfaceSpec,
) -> Result<Outcome, KernelError> {
    let is_uplink = interface.entry.scope == Scope::Outside as u8 && interface.link == LinkLayer::Ethernet;
    let wanted = match mode {
        Xdp::Off => None,
        Xdp::Auto | Xdp::Native => Some(NATIVE),
        Xdp::Generic => Some(GENERIC),
    };
    let wanted = wanted.filter(|_| is_uplink).zip(programs.get(mode.program()));
    for kind in [NATIVE, GENERIC] {
        if wanted.is_none_or(|(wanted, _)| wanted != kind) {
            unpin(&layout.link(&format!("{}-{}", interface.index, kind.1)))?;
        }
    }
    let Some(((flags, name), program)) = wanted else { return Ok(Outcome::NotWanted) };
    let path = layout.link(&format!("{}-{name}", interface.index));
    let attached = match adopt(&path, LinkTarget::Xdp { index: interface.index })? {
        Some(link) => links::update(link.as_fd(), program.as_fd()),
        None => create(program, interface.index, flags, &path),
    };
    Ok(match attached {
        Ok(()) => Outcome::Attached,
        Err(error) => Outcome::Refused(error),
    })
}

/// Whether the program is attached to an interface that should have it.
pub(super) fn is_attached(layout: &Layout, programs: &Programs, mode: Xdp, index: u32) -> bool {
    let name = if mode == Xdp::Generic { GENERIC.1 } else { NATIVE.1 };
    let program = programs.get(mode.program());
    program
        .is_none_or(|program| links::has(&layout.link(&format!("{index}-{name}")), LinkTarget::Xdp { index }, program))
}

fn create(program: &OwnedFd, index: u32, flags: u32, path: &std::path::Path) -> io::Result<()> {
    let link = links::create_xdp(program.as_fd(), index, flags)?;
    sys::object_pin(link.as_fd(), path)
}

/// Says that an uplink stays without, and why.
pub(super) fn report(mode: Xdp, interface: &InterfaceSpec, error: &io::Error) {
    let name = &interface.name;
    let reason = match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is there: `bpftool net` lists it",
        Some(libc::EOPNOTSUPP) if mode == Xdp::Auto => {
            tracing::info!(interface = %name, "the driver has no native XDP; packets go through tc");
            return;
        }
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP",
        Some(libc::ERANGE | libc::EINVAL) => {
            "the driver refuses it as the interface is set up: MTU, queues or offloads"
        }
        Some(libc::ENOSPC | libc::ENOMEM) => "the driver has too few queues",
        _ => "`bpftool net` lists what is attached",
    };
    tracing::warn!(interface = %name, "XDP is not attached, packets go through tc: {error}: {reason}");
}

/// Detaches from an interface, which may be gone already.
pub(super) fn detach(layout: &Layout, index: u32) -> Result<(), KernelError> {
    for (_, name) in [NATIVE, GENERIC] {
        unpin(&layout.link(&format!("{index}-{name}")))?;
    }
    Ok(())
}
