//! CACHE_STATE: when what CACHE_V4/V6 know of flows that go past the stack holds.

use bytemuck::{Pod, Zeroable};

/// The only value of CACHE_STATE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CacheState {
    /// Raised by the agent whenever routes, addresses or interfaces change, and when it starts: an entry that was made before no
    /// longer holds. 0: the cache is off. (Of neighbours the kernel itself keeps count, in NEIGHBOURS.)
    pub generation: u32,
    /// Entries of CACHE_V4, less one; a power of two less one.
    pub mask_v4: u32,
    /// The same for CACHE_V6.
    pub mask_v6: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<CacheState>() == 16);
