//! AFFINITY_V4/V6: `sessionAffinity: ClientIP`, which backend a client used last.

use bytemuck::{Pod, Zeroable};

/// Key of AFFINITY: shared by all VIPs and node ports of one Service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// Client address, *network order*; unspecified (all zero) for processes of this host.
    pub client: A,
    /// Service port.
    pub service: u32,
}

/// Value of AFFINITY.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend.
    pub generation: u32,
    /// Time of the last new flow, in units of 2^30 ns (1.07 s) of the monotonic clock.
    pub last_seen: u32,
}

const _: () = assert!(size_of::<AffinityKey<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<AffinityKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<Affinity>() == 12);
