//! FLOWS_V4/V6: decisions already taken, one entry for each direction of a translated flow.

use crate::Address;

/// Key of FLOWS: the 5-tuple of the packet *as the hook sees it*, and the hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address, *network order*.
    pub source: A,
    /// Destination address, *network order*.
    pub destination: A,
    /// Source port, *host order*.
    pub source_port: u16,
    /// Destination port, *host order*.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Hook`] as a number.
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Which side of an address a hook rewrites.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Ingress rewrites destinations.
    Ingress = 0,
    /// Egress rewrites sources.
    Egress = 1,
}

/// Value of FLOWS: the rewrite, and what it was derived from.
///
/// At ingress `address:port` is the new destination, and `peer_port` the new source port; at egress `address:port` is the
/// new source, and `peer_port` the new destination port. A `peer_port` of 0 leaves that port alone; it is set only where
/// two clients' flows would otherwise share a tuple towards one backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow<A> {
    /// New address, *network order*.
    pub address: A,
    /// New port, *host order*.
    pub port: u16,
    /// New port of the other side, *host order*; 0: unchanged.
    pub peer_port: u16,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend when the flow was made.
    pub generation: u32,
    /// Service port.
    pub service: u32,
    /// Time of the last packet, in units of 2^30 ns (1.07 s) of the monotonic clock.
    pub last_seen: u32,
    /// [`FlowState`] as a number.
    pub state: u8,
    /// `FLOW_*` flags below.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl<A: Address> Flow<A> {
    /// All zero: room for an entry to be copied into.
    #[inline(always)]
    pub fn empty() -> Self {
        Self {
            address: A::zeroed(),
            port: 0,
            peer_port: 0,
            backend: 0,
            generation: 0,
            service: 0,
            last_seen: 0,
            state: FlowState::Open as u8,
            flags: 0,
            pad: [0; 2],
        }
    }
}

/// The packet leaves with an address of this node as its source (the agent's nftables rule does it).
pub const FLOW_MASQUERADE: u8 = 1 << 0;
/// The flow was opened by a packet from inside.
pub const FLOW_INSIDE: u8 = 1 << 1;
/// Client and backend are one: the entry that turns the client's address into the VIP, or back.
pub const FLOW_HAIRPIN: u8 = 1 << 2;
/// No Service is involved: a client and an endpoint talk directly, and the entry only keeps flows of Services off their
/// tuple. Its rewrite changes nothing but, where a Service had the tuple first, the client's port.
pub const FLOW_DIRECT: u8 = 1 << 3;
/// As [`FLOW_MASQUERADE`], but the programs do it, by two more entries ([`FLOW_MASQUERADED`]).
pub const FLOW_OWN_PORT: u8 = 1 << 4;
/// The entry that turns a client's address into one of this node's, or back.
pub const FLOW_MASQUERADED: u8 = 1 << 5;
/// Of a masqueraded entry: nothing shows yet that the flow lasts.
pub const FLOW_NEW: u8 = 1 << 6;
/// The flow began in XDP and goes past the stack, as far as it can.
pub const FLOW_SHORTCUT: u8 = 1 << 7;

/// How far a flow has come.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// Packets are expected.
    Open = 0,
    /// A FIN or RST was seen in this entry's direction: the next SYN on the tuple opens a new flow.
    Closing = 1,
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<FlowKey<[u8; 16]>>() == 40);
const _: () = assert!(size_of::<Flow<[u8; 4]>>() == 28);
const _: () = assert!(size_of::<Flow<[u8; 16]>>() == 40);
