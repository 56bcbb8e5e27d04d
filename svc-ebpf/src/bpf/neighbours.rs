//! Counts the kernel's updates of neighbours, for the flow cache: what it knows of hardware addresses holds as long as there is none.
//! No agent is needed for that, and no packet comes between an update and its number.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::Array,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};

#[btf_map]
static NEIGHBOURS: Array<u64, 1> = Array::new();

/// `neigh_update_done` (include/trace/events/neigh.h): an entry of any network namespace has changed.
#[raw_tracepoint(tracepoint = "neigh_update_done")]
#[inline(always)]
fn svc_neighbour(_context: RawTracePointContext) -> i32 {
    if let Some(updates) = NEIGHBOURS.get_ptr_mut(0) {
        // SAFETY: aligned memory of the map.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(updates, 1) };
    }
    0
}

/// How many updates there have been, in 32 bits.
#[inline(always)]
pub(super) fn updates() -> u32 {
    match NEIGHBOURS.get_ptr_mut(0) {
        // SAFETY: as above.
        Some(updates) => unsafe { updates.read_volatile() as u32 },
        None => 0, // never taken: an array's entries are always there
    }
}
