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

impl<A: Address> FlowKey<A> {
    /// Writes all of it, in words as large as those in which the kernel's hash tables read keys: a processor that reads what
    /// it has just written in smaller pieces waits until these have reached its cache.
    #[inline(always)]
    #[expect(unsafe_code, reason = "volatile writes are what LLVM leaves in one piece")]
    pub fn fill(&mut self, source: &A, destination: &A, ports: [u16; 2], protocol: u8, hook: Hook) {
        #[repr(C, packed)]
        struct Word(u64);
        let end = u64::from(ports[0]) | u64::from(ports[1]) << 16 | u64::from(protocol) << 32 | (hook as u64) << 40;
        let addresses = (source.words(), destination.words());
        self.source = source.copy();
        self.destination = destination.copy();
        let start = core::ptr::from_mut(self).cast::<Word>();
        // SAFETY: the key ends with eight bytes of ports, protocol, hook and padding, and `Word` may be anywhere; in IPv4
        // it begins with eight bytes of addresses.
        unsafe {
            let words = size_of::<Self>() / size_of::<Word>();
            start.add(words - 1).write_volatile(Word(end.to_le()));
            if A::VERSION == 4 {
                let (a, b) = (u64::from(addresses.0[0].to_be()), u64::from(addresses.1[0].to_be()));
                start.write_volatile(Word((a | b << 32).to_le()));
            }
        }
    }
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
