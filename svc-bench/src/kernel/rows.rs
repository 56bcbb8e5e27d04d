//! Which paths are measured, and what the kernel's own costs are measured by. Data; `mod.rs` runs it.

use super::world::{Family, Kind, Peer, Traffic};

/// Verdicts that mean one thing.
pub(super) struct Verdicts {
    /// The packet goes on: `TCX_NEXT`, `XDP_PASS`.
    pub(super) next: u32,
    /// `TCX_DROP`, `XDP_DROP`.
    pub(super) drop: u32,
    /// `TCX_REDIRECT`, `XDP_REDIRECT`.
    pub(super) redirect: u32,
}

/// Those of the classifiers.
pub(super) const TC: Verdicts = Verdicts { next: u32::MAX, drop: 2, redirect: 7 };
/// Those of XDP.
pub(super) const XDP: Verdicts = Verdicts { next: 2, drop: 1, redirect: 4 };
/// Flows that do not fit the caches, and fill half of a flow table of the default size at most.
const MANY: Option<u32> = Some(1 << 15);
const ONE: Option<u32> = Some(1);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Untouched,
    /// An address was rewritten.
    Forwarded,
    /// It goes back to its sender.
    Answered,
    Dropped,
}

/// A path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    pub(super) traffic: Traffic,
    /// The packets that open the flows.
    pub(super) opened_by: Option<Traffic>,
    pub(super) outcome: Outcome,
    /// After as many packets as use up a limit.
    pub(super) exhausted: bool,
}

const fn to(kind: Kind, peer: Peer, flows: Option<u32>) -> Traffic {
    Traffic { kind, peer, flows, reply: false, unlimited: false }
}

const fn from(kind: Kind, peer: Peer, flows: Option<u32>) -> Traffic {
    Traffic { kind, peer, flows, reply: true, unlimited: false }
}

const fn unlimited(traffic: Traffic) -> Traffic {
    Traffic { unlimited: true, ..traffic }
}

const fn ingress(name: &'static str, traffic: Traffic, outcome: Outcome) -> Row {
    Row { name, program: "svc_ingress", traffic, opened_by: None, outcome, exhausted: false }
}

const fn egress(name: &'static str, traffic: Traffic, outcome: Outcome) -> Row {
    Row { program: "svc_egress", ..ingress(name, traffic, outcome) }
}

const fn xdp(name: &'static str, traffic: Traffic, outcome: Outcome) -> Row {
    Row { program: "svc_xdp", ..ingress(name, traffic, outcome) }
}

const fn after(row: Row, opening: Traffic) -> Row {
    Row { opened_by: Some(opening), ..row }
}

use Kind::{Ack, Echo, Syn, Udp};
use Outcome::{Answered, Dropped, Forwarded, Untouched};
use Peer::{Backend, Balanced, Empty, Endpoint, Single, Stranger};

/// Measured with the tables at their default sizes, little filled.
pub(super) const ROWS: &[Row] = &[
    ingress("ingress, not a Service: TCP ACK", to(Ack, Stranger, ONE), Untouched),
    ingress("ingress, not a Service: UDP", to(Udp, Stranger, ONE), Untouched),
    ingress("ingress, not a Service: TCP SYN", to(Syn, Stranger, ONE), Untouched),
    ingress("ingress, not a Service: TCP ACK, 32,768 flows", to(Ack, Stranger, MANY), Untouched),
    ingress("ingress, directly to an endpoint: UDP", to(Udp, Endpoint, ONE), Untouched),
    ingress("ingress, directly to an endpoint: TCP ACK", to(Ack, Endpoint, ONE), Untouched),
    after(ingress("ingress, established, one flow: UDP", to(Udp, Balanced, ONE), Forwarded), to(Udp, Balanced, ONE)),
    after(
        ingress("ingress, established, 32,768 flows: UDP", to(Udp, Balanced, MANY), Forwarded),
        to(Udp, Balanced, MANY),
    ),
    after(
        ingress("ingress, established, one flow: TCP ACK", to(Ack, Balanced, ONE), Forwarded),
        to(Syn, Balanced, ONE),
    ),
    egress("egress, not a Service: TCP ACK", from(Ack, Stranger, ONE), Untouched),
    egress("egress, not a Service: UDP", from(Udp, Stranger, ONE), Untouched),
    egress("egress, not a Service: TCP ACK, 32,768 flows", from(Ack, Stranger, MANY), Untouched),
    after(egress("egress, established, one flow: UDP", from(Udp, Backend, ONE), Forwarded), to(Udp, Single, ONE)),
    after(egress("egress, established, 32,768 flows: UDP", from(Udp, Backend, MANY), Forwarded), to(Udp, Single, MANY)),
    after(egress("egress, established, one flow: TCP ACK", from(Ack, Backend, ONE), Forwarded), to(Syn, Single, ONE)),
    ingress("refused: UDP", unlimited(to(Udp, Empty, ONE)), Answered),
    ingress("refused: TCP SYN", unlimited(to(Syn, Empty, ONE)), Answered),
    Row { exhausted: true, ..ingress("refused beyond the limit: UDP", to(Udp, Empty, ONE), Dropped) },
    ingress("echo request to a VIP", to(Echo, Balanced, ONE), Answered),
];

/// Measured at an uplink, of flows from outside to endpoints of other nodes.
pub(super) const XDP_ROWS: &[Row] = &[
    xdp("XDP, not a Service: TCP ACK", to(Ack, Stranger, ONE), Untouched),
    xdp("XDP, not a Service: UDP", to(Udp, Stranger, ONE), Untouched),
    xdp("XDP, not a Service: TCP ACK, 32,768 flows", to(Ack, Stranger, MANY), Untouched),
    after(xdp("XDP, established, one flow: UDP", to(Udp, Balanced, ONE), Forwarded), to(Udp, Balanced, ONE)),
    after(xdp("XDP, established, 32,768 flows: UDP", to(Udp, Balanced, MANY), Forwarded), to(Udp, Balanced, MANY)),
    after(xdp("XDP, established, one flow: TCP ACK", to(Ack, Balanced, ONE), Forwarded), to(Syn, Balanced, ONE)),
    after(xdp("XDP, reply, one flow: UDP", from(Udp, Backend, ONE), Forwarded), to(Udp, Single, ONE)),
    after(xdp("XDP, reply, one flow: TCP ACK", from(Ack, Backend, ONE), Forwarded), to(Syn, Single, ONE)),
];

/// Each measured with a flow table of its own that never fills.
pub(super) const NEW_ROWS: &[Row] = &[
    ingress("ingress, new flow, table not full: UDP", to(Udp, Balanced, None), Forwarded),
    ingress("ingress, new flow, table not full: TCP SYN", to(Syn, Balanced, None), Forwarded),
];

/// The same at an uplink: four entries each.
pub(super) const NEW_XDP_ROWS: &[Row] =
    &[xdp("XDP, new flow, table not full: UDP", to(Udp, Balanced, None), Forwarded)];

/// Measured at an uplink when the flow table, of the default size, is full.
pub(super) const FULL_XDP_ROWS: &[Row] = &[xdp("XDP, new flow, table full: UDP", to(Udp, Balanced, None), Forwarded)];

/// Measured when the flow table, of the default size, is full.
pub(super) const FULL_ROWS: &[Row] = &[
    ingress("ingress, new flow, table full: UDP", to(Udp, Balanced, None), Forwarded),
    ingress("ingress, new flow, table full: TCP SYN", to(Syn, Balanced, None), Forwarded),
];

/// A cost of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) name: &'static str,
    /// For IPv4 and for IPv6.
    programs: [&'static str; 2],
    pub(super) flows: Option<u32>,
    /// What puts entries into the map, and how many.
    filled_by: Option<([&'static str; 2], u32)>,
    /// With the wrapper.
    pub(super) gross: bool,
}

impl Floor {
    pub(super) fn program<A: Family>(&self) -> &'static str {
        self.programs[usize::from(A::VERSION != 4)]
    }

    pub(super) fn filled_by<A: Family>(&self) -> Option<(&'static str, u32)> {
        self.filled_by.map(|(programs, entries)| (programs[usize::from(A::VERSION != 4)], entries))
    }
}

const fn floor(name: &'static str, programs: [&'static str; 2], flows: Option<u32>) -> Floor {
    Floor { name, programs, flows, filled_by: None, gross: false }
}

const fn filled(floor: Floor, programs: [&'static str; 2], entries: u32) -> Floor {
    Floor { filled_by: Some((programs, entries)), ..floor }
}

const HASH: [&str; 2] = ["floor_hash_v4", "floor_hash_v6"];
const SET_HASH: [&str; 2] = ["floor_hash_set4", "floor_hash_set6"];
const LRU: [&str; 2] = ["floor_lru_v4", "floor_lru_v6"];
const SET_LRU: [&str; 2] = ["floor_lru_set4", "floor_lru_set6"];

/// In an order in which each finds the maps as it needs them.
pub(super) const FLOORS: &[Floor] = &[
    Floor { gross: true, ..floor("the wrapper and an empty program", ["floor_empty"; 2], ONE) },
    floor("array lookup", ["floor_array"; 2], MANY),
    filled(floor("hash lookup, one key", HASH, ONE), SET_HASH, 1 << 15),
    floor("hash lookup, 32,768 keys", HASH, MANY),
    filled(floor("LRU lookup, one key", LRU, ONE), SET_LRU, 1 << 15),
    floor("LRU lookup, 32,768 keys", LRU, MANY),
    floor("LRU update of a known key", SET_LRU, ONE),
    filled(floor("LRU insert that evicts", SET_LRU, None), SET_LRU, 400_000),
    floor("ktime_get_ns", ["floor_ktime"; 2], ONE),
    floor("ktime_get_coarse_ns", ["floor_coarse"; 2], ONE),
    floor("prandom", ["floor_prandom"; 2], ONE),
    floor("longer by a header, and back", ["floor_reshape"; 2], ONE),
];
