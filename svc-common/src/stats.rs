//! STATS_SERVICE, STATS_BACKEND and DROPS: per-CPU counters.

use bytemuck::{Pod, Zeroable};

/// Value of the counter maps, one for each CPU; a reader adds them up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes from the IP header on, both directions.
    pub bytes: u64,
    /// New flows (0 in DROPS).
    pub connections: u64,
}

const _: () = assert!(size_of::<Counters>() == 24);
