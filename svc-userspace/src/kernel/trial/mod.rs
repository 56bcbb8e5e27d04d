//! The ingress program once more, over the live Services and interfaces, with flows, bindings and counters of its own: what
//! a packet would meet, asked without a trace. Only the flow it belongs to, if there is one, is copied from the live tables.
//!
//! It never writes to a map of the dataplane.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use aya::{Ebpf, EbpfLoader, maps::Array, programs::SchedClassifier};
use svc_common::Reason;

use super::{
    error::{KernelError, chain},
    load::MAPS,
    pins::Layout,
    sys,
    view::FlowEntry,
};
use crate::model::Protocol;

mod bytes;
mod question;

use question::Question;

/// Maps that packets and sockets write. The trial has its own; all others are the dataplane's.
const OWN: [&str; 14] = [
    "FLOWS_V4",
    "FLOWS_V6",
    "AFFINITY_V4",
    "AFFINITY_V6",
    "FRAGMENTS_V4",
    "FRAGMENTS_V6",
    "SOCKETS_V4",
    "SOCKETS_V6",
    "PEERS_V4",
    "PEERS_V6",
    "STATS_SERVICE",
    "STATS_BACKEND",
    "DROPS",
    "UNUSUAL",
];
/// Entries of the trial's own tables; no reason is beyond it, and counters beyond it are not wanted.
const OWN_ENTRIES: u32 = 256;
/// The program that decides. Devices without a link header have another one around the same logic.
const PROGRAM: &str = "svc_ingress";

/// The first packet of a connection, or of a datagram flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it; port in *host order*.
    pub source: SocketAddr,
    /// Where to, of the same family; port in *host order*.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Index of the interface it comes in by.
    pub interface: u32,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passes as it is.
    Pass,
    /// Its destination is rewritten.
    Forward(Box<Forward>),
    /// Its sender is told that nobody serves it.
    Refuse(Reason),
    /// It ends here.
    Drop(Reason),
}

/// How a packet goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The entry of the flow at ingress; its idle time is that of the live one.
    pub flow: FlowEntry,
    /// The flow is there already; else the packet would open it.
    pub exists: bool,
}

/// An outcome, and what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What became of the packet.
    pub outcome: Outcome,
    /// Tag of the program that decided (`bpftool prog show`).
    pub tag: String,
    /// The pinned program has the same tag: instruction by instruction it is the one that packets meet.
    pub loaded: bool,
}

/// Why nothing was tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The programs or maps do not load.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Source and destination differ in family.
    #[error("{0} and {1} are of different families: a packet has both addresses from one")]
    Families(IpAddr, IpAddr),
    /// The kernel does not run the program.
    #[error("the kernel does not try a packet: {0}: run as root, in the network namespace of the agent")]
    Run(String),
}

/// Tries a packet on the dataplane of a layout.
pub(super) fn run(object: &[u8], layout: &Layout, packet: &Packet) -> Result<Trial, TrialError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        if OWN.contains(&name) {
            loader.map_max_entries(name, OWN_ENTRIES);
        } else {
            loader.map_pin_path(name, layout.map(name));
        }
    }
    let refused = |error: &dyn std::error::Error| KernelError::Load { message: chain(error) };
    let mut ebpf = loader.load(object).map_err(|error| refused(&error))?;
    look_everything_up(&mut ebpf)?;
    let program = classifier(&mut ebpf)?;
    program.load().map_err(|error| refused(&error))?;
    let unread = |error: std::io::Error| TrialError::Run(error.to_string());
    let tag = sys::program_tag(program.fd().map_err(|error| refused(&error))?.as_fd()).map_err(unread)?;
    let pinned = sys::object_get(&layout.program(PROGRAM)).and_then(|pinned| sys::program_tag(pinned.as_fd()));
    let outcome = match (packet.source.ip(), packet.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Question::new(&mut ebpf, layout, packet, source.octets(), destination.octets()).outcome()?
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Question::new(&mut ebpf, layout, packet, source.octets(), destination.octets()).outcome()?
        }
        (source, destination) => return Err(TrialError::Families(source, destination)),
    };
    Ok(Trial { outcome, loaded: pinned.is_ok_and(|pinned| pinned == tag), tag })
}

/// Marks every pair of addresses in the trial's UNUSUAL: a flow that is copied is found then, of whatever kind it is.
fn look_everything_up(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let failed = |error| KernelError::map("UNUSUAL", error);
    let map = ebpf.map_mut("UNUSUAL").ok_or_else(|| KernelError::Object("it has no map UNUSUAL".to_owned()))?;
    let mut unusual = Array::<_, u64>::try_from(map).map_err(failed)?;
    (0..OWN_ENTRIES).try_for_each(|place| unusual.set(place, 1, 0)).map_err(failed)
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, KernelError> {
    let program =
        ebpf.program_mut(PROGRAM).ok_or_else(|| KernelError::Object(format!("it has no program {PROGRAM}")))?;
    program.try_into().map_err(|_| KernelError::Object(format!("program {PROGRAM} is of the wrong type")))
}
