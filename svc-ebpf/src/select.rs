//! Choosing a backend: affinity first, then the consistent-hash table.

use svc_common::{Address, Affinity, AffinityKey, BackendState, Frontend, SlotRange, slot_in_range};

use crate::tables::Decisions;

/// The id in the slot that `hash` leads to, if its backend takes new flows; `None` is what only a reader that is between
/// two generations of a Service can see.
///
/// Only the id is returned, here and below, though the backend is at hand: an `Option` of the whole pair would lie on the
/// stack, where LLVM merges fields into stores that the verifier refuses ("misaligned stack access").
#[inline(always)]
pub fn by_hash<A: Address, T: Decisions<A>>(tables: &mut T, range: SlotRange, hash: u32) -> Option<u32> {
    let id = tables.slot(range.offset.wrapping_add(slot_in_range(hash, range.len)))?;
    let backend = tables.backend(id)?;
    (backend.state != BackendState::Gone as u8).then_some(id)
}

/// The id of the backend a client is bound to by `sessionAffinity: ClientIP`, if that is in force and policy and hints grant
/// the backend to this side: other frontends of the port may have bound the client to one that they do not.
#[inline(always)]
pub fn by_affinity<A: Address, T: Decisions<A>>(
    tables: &mut T,
    frontend: &Frontend,
    inside: bool,
    client: &A,
    now: u32,
) -> Option<u32> {
    let key = AffinityKey { client: client.copy(), service: frontend.service };
    let bound = tables.affinity(&key)?;
    // The clock's unit is 2^30 ns, 7.4% longer than a second: 15/16 of the seconds, in units, is the time-out plus 0.7%.
    let limit = frontend.affinity_seconds - frontend.affinity_seconds / 16;
    if now.wrapping_sub(bound.last_seen) > limit {
        return None;
    }
    let backend = tables.backend(bound.backend)?;
    let usable = backend.state != BackendState::Gone as u8
        && backend.flags & frontend.membership(inside) != 0
        && backend.generation == bound.generation;
    usable.then_some(bound.backend)
}

/// Binds a client to the backend of its newest flow.
#[inline(always)]
pub fn remember_affinity<A: Address, T: Decisions<A>>(
    tables: &mut T,
    frontend: &Frontend,
    client: &A,
    backend: u32,
    generation: u32,
    now: u32,
) {
    let key = AffinityKey { client: client.copy(), service: frontend.service };
    let bound = Affinity { backend, generation, last_seen: now };
    tables.set_affinity(&key, bound);
}
