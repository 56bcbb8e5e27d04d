//! Opening a flow: a backend, and entries for both directions that take nothing from any other flow.

use svc_common::{
    Backend, Flow, FlowState, Reason,
    backend::BACKEND_LOCAL,
    flow::{FLOW_INSIDE, FLOW_MASQUERADE, FLOW_MASQUERADED, FLOW_OWN_PORT, FLOW_SHORTCUT},
    flow_hash,
    hash::client_hash,
    slot_in_range,
};

use crate::{
    cache::forget,
    flow::{Entry, forward_of, inbound, is_hairpin, outbound, outbound_of, reply},
    ip::Ip,
    scratch::Scratch,
    select::{by_affinity, by_hash, remember_affinity},
    tables::{Insert, Tables},
};

/// Backends tried before the client's port is remapped.
pub(crate) const BACKENDS_TRIED: u32 = 3;
/// Attempts in all.
pub(crate) const ATTEMPTS: u32 = 6;
/// 2^32 / golden ratio: spreads successive attempts over the whole range.
pub(crate) const SPREAD: u32 = 0x9e37_79b9;
const FIRST_REMAPPED_PORT: u32 = 1024;

/// Chooses a backend for the flow `scratch.key` and makes its entries; the forward one is left in `scratch.flow`.
///
/// The reply entry is only made if no other flow has it: on a clash another backend is tried, then another source port
/// towards the backend.
#[inline(always)]
pub fn open<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Result<(), Reason> {
    let mut failure = Reason::Inconsistent;
    for number in 0..ATTEMPTS {
        match tables.attempt(scratch, number) {
            Attempt::Opened => return Ok(()),
            Attempt::NoBackend => {}
            Attempt::Taken => failure = Reason::TupleTaken,
            Attempt::Full => return Err(Reason::FlowTableFull),
        }
    }
    Err(failure)
}

/// What became of an attempt to open a flow.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The flow is open.
    Opened = 0,
    /// The slot led to no backend that takes new flows.
    NoBackend = 1,
    /// Another flow has the tuple.
    Taken = 2,
    /// The flow table did not take an entry.
    Full = 3,
}

/// One attempt: `number` counts from 0.
#[inline(always)]
pub fn attempt<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, number: u32) -> Attempt {
    let now = tables.now();
    let Scratch { key, frontend, range, inside, .. } = scratch;
    let with_affinity = frontend.affinity_seconds != 0;
    let bound = if with_affinity { by_affinity(tables, frontend, *inside, &key.source, now) } else { None };
    let flow_hash = flow_hash(&key.source, key.source_port, &key.destination, key.destination_port, key.protocol);
    let hash = if with_affinity { client_hash(&key.source) } else { flow_hash };
    let step = number.wrapping_mul(SPREAD);
    let remap = number >= BACKENDS_TRIED || (with_affinity && number > 0);
    let id = match bound {
        Some(id) => id,
        None => match by_hash(tables, *range, if remap { hash } else { hash.wrapping_add(step) }) {
            Some(id) => id,
            None => return Attempt::NoBackend,
        },
    };
    let Some(backend) = tables.backend(id) else { return Attempt::NoBackend };
    let generation = backend.generation;
    let masquerade = if scratch.inside || backend.flags & BACKEND_LOCAL != 0 {
        0
    } else if tables.programs_masquerade() {
        if scratch.shortcut { FLOW_OWN_PORT | FLOW_SHORTCUT } else { FLOW_OWN_PORT }
    } else {
        FLOW_MASQUERADE
    };
    forward(&mut scratch.flow, id, &backend, if scratch.inside { FLOW_INSIDE } else { masquerade });
    scratch.flow.peer_port = if remap { remapped_port(flow_hash.wrapping_add(step)) } else { 0 };
    scratch.flow.last_seen = now;
    match claim(tables, scratch) {
        Insert::Done => {}
        Insert::Taken => return Attempt::Taken,
        Insert::Full => return Attempt::Full,
    }
    if !tables.replace_flow(&scratch.key, &scratch.flow) {
        return Attempt::Full;
    }
    forget(tables, &scratch.key);
    if with_affinity {
        remember_affinity(tables, &scratch.frontend, &scratch.key.source, id, generation, now);
    }
    Attempt::Opened
}

/// A client port that stands in for another one.
#[inline(always)]
pub(crate) fn remapped_port(hash: u32) -> u16 {
    (FIRST_REMAPPED_PORT + slot_in_range(hash, 0x1_0000 - FIRST_REMAPPED_PORT)) as u16
}

/// Writes the forward entry's value.
#[inline(always)]
fn forward<A: Ip>(flow: &mut Flow<A>, id: u32, backend: &Backend<A>, flags: u8) {
    flow.address = backend.address.copy();
    flow.port = backend.port;
    flow.backend = id;
    flow.generation = backend.generation;
    flow.service = backend.service;
    flow.state = FlowState::Open as u8;
    flow.flags = flags;
    flow.pad = [0; 2];
}

/// Makes the entries that belong to the forward entry in `scratch`, if nobody else has one of their tuples.
#[inline(always)]
pub(crate) fn claim<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Insert {
    reply(&mut scratch.entry, &scratch.key, &scratch.flow);
    let to_itself = is_hairpin(&scratch.key, &scratch.flow);
    if to_itself && scratch.entry.key.source_port == scratch.entry.key.destination_port {
        // The client's port is the backend's: one tuple would need both rewrites. Another port is tried.
        return Insert::Taken;
    }
    let made = tables.claim_entry(scratch);
    if to_itself && made == Insert::Done { claim_hairpin(tables, scratch) } else { made }
}

/// Makes `scratch.entry`, unless another flow has its key.
#[inline(always)]
pub fn claim_entry<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Insert {
    let Scratch { entry, found, .. } = scratch;
    match tables.insert_flow(&entry.key, &entry.flow) {
        Insert::Taken if is_ours(tables, entry, found) => {
            if tables.replace_flow(&entry.key, &entry.flow) {
                Insert::Done
            } else {
                Insert::Full
            }
        }
        made => made,
    }
}

/// True if an entry is in the table as the entry of this flow, not of another one that has its key; `owner` becomes what
/// is there.
#[inline(always)]
fn is_ours<A: Ip, T: Tables<A>>(tables: &mut T, entry: &Entry<A>, owner: &mut Flow<A>) -> bool {
    tables.peek_flow(&entry.key, owner)
        && owner.address == entry.flow.address
        && owner.port == entry.flow.port
        && owner.peer_port == entry.flow.peer_port
}

/// Removes the flow of the forward entry in `scratch`: both entries, or the reply's next packet would bring the forward one
/// back.
#[inline(always)]
pub fn close<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) {
    reply(&mut scratch.entry, &scratch.key, &scratch.flow);
    if is_ours(tables, &scratch.entry, &mut scratch.found) {
        tables.remove_flow(&scratch.entry.key);
    }
    tables.remove_flow(&scratch.key);
}

/// Makes the two further entries of a pod's flow to itself; all three or none. The pod may have a flow of its own from the port
/// that it serves on.
#[inline(always)]
fn claim_hairpin<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Insert {
    inbound(&mut scratch.entry, &scratch.key, &scratch.flow);
    tables.set_unusual(&scratch.entry.key.source, &scratch.entry.key.destination);
    let mut made = tables.claim_entry(scratch);
    if made == Insert::Done {
        outbound(&mut scratch.entry, &scratch.key, &scratch.flow);
        made = tables.claim_entry(scratch);
        if made == Insert::Done {
            return made;
        }
        inbound(&mut scratch.entry, &scratch.key, &scratch.flow);
        tables.remove_flow(&scratch.entry.key);
    }
    reply(&mut scratch.entry, &scratch.key, &scratch.flow);
    tables.remove_flow(&scratch.entry.key);
    made
}

/// Makes sure that the other entries of a forward entry still exist: an LRU table may have evicted them. That an entry is
/// there already is the usual case; if the table is full, the next second's packet tries again.
#[inline(always)]
pub fn repair<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) {
    let Scratch { key, flow, entry, .. } = scratch;
    if flow.flags & FLOW_MASQUERADED != 0 {
        outbound_of(entry, key, flow);
        let _ = tables.insert_flow(&entry.key, &entry.flow);
        return;
    }
    reply(entry, key, flow);
    let _ = tables.insert_flow(&entry.key, &entry.flow);
    if is_hairpin(key, flow) {
        outbound(entry, key, flow);
        let _ = tables.insert_flow(&entry.key, &entry.flow);
        inbound(entry, key, flow);
        tables.set_unusual(&entry.key.source, &entry.key.destination);
        let _ = tables.insert_flow(&entry.key, &entry.flow);
    }
}

/// Makes sure that the forward entry of the reply entry in `scratch` still exists. Its backend may be in no slot any more,
/// so that nothing else would lead there.
#[inline(always)]
pub fn repair_forward<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) {
    forward_of(&mut scratch.entry, &scratch.key, &scratch.flow);
    let _ = tables.insert_flow(&scratch.entry.key, &scratch.entry.flow);
}
