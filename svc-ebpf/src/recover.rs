//! Connections whose forward entry was evicted: found again by the reply entry, which still has its tuple.
//!
//! Which backend a connection went to is not known, but where [`crate::open`] may have sent it: the same choices are made
//! again, and it is the one that has the reply entry. No choice is remembered and nothing is opened here.

use svc_common::{
    AffinityKey, FlowKey, FlowState, Hook,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADED},
    flow_hash,
    hash::client_hash,
};

use crate::{
    ip::Ip,
    open::{ATTEMPTS, BACKENDS_TRIED, SPREAD, remapped_port},
    rewrite::or,
    scratch::Scratch,
    select::by_hash,
    tables::{Decisions, Tables},
};

/// Makes the forward entry of the packet `scratch.key` again and leaves it in `scratch.flow`; false if there is no
/// connection of ours with its tuple.
#[inline(always)]
pub fn recover<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> bool {
    let with_affinity = scratch.frontend.affinity_seconds != 0;
    // A client may have come before affinity was switched on.
    let choices = if with_affinity { 3 * ATTEMPTS } else { ATTEMPTS };
    for number in 0..3 * ATTEMPTS {
        if number < choices && tables.recover_one(scratch, number) {
            return true;
        }
    }
    false
}

/// Tries one choice: of each kind, by flow, by client and by binding, there are as many as attempts to open a flow.
#[inline(always)]
pub fn recover_one<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, number: u32) -> bool {
    let key = &scratch.key;
    let (kind, attempt) = (number / ATTEMPTS, number % ATTEMPTS);
    let flow_hash = flow_hash(&key.source, key.source_port, &key.destination, key.destination_port, key.protocol);
    let step = attempt.wrapping_mul(SPREAD);
    let remap = attempt >= BACKENDS_TRIED || (kind > 0 && attempt > 0);
    let found = match kind {
        0 => by_hash(tables, scratch.range, if remap { flow_hash } else { flow_hash.wrapping_add(step) }),
        1 => by_hash(tables, scratch.range, client_hash(&key.source)),
        _ => bound(tables, scratch),
    };
    let Some(backend) = found.and_then(|id| tables.backend(id)) else { return false };
    let key = &scratch.key;
    scratch.entry.key = FlowKey {
        source: backend.address.copy(),
        destination: key.source.copy(),
        source_port: backend.port,
        destination_port: if remap { remapped_port(flow_hash.wrapping_add(step)) } else { key.source_port },
        hook: Hook::Egress as u8,
        ..*key
    };
    let Scratch { key, flow, entry, found, .. } = scratch;
    let is_reply = tables.peek_flow(&entry.key, found)
        && found.flags & (FLOW_DIRECT | FLOW_HAIRPIN | FLOW_MASQUERADED) == 0
        && found.address == key.destination
        && found.port == key.destination_port
        && or(found.peer_port, entry.key.destination_port) == key.source_port;
    if !is_reply {
        return false;
    }
    flow.address = entry.key.source.copy();
    flow.port = entry.key.source_port;
    flow.peer_port = if remap { entry.key.destination_port } else { 0 };
    flow.backend = found.backend;
    flow.generation = found.generation;
    flow.service = found.service;
    flow.last_seen = tables.now();
    flow.state = FlowState::Open as u8;
    flow.flags = found.flags;
    flow.pad = [0; 2];
    // If the table is full, the next packet finds the reply entry again.
    let _ = tables.insert_flow(key, flow);
    true
}

/// The backend that the client is bound to, even if its time is over: it starts anew with new connections only.
#[inline(always)]
fn bound<A: Ip, T: Decisions<A>>(tables: &mut T, scratch: &Scratch<A>) -> Option<u32> {
    let key = AffinityKey { client: scratch.key.source.copy(), service: scratch.frontend.service };
    Some(tables.affinity(&key)?.backend)
}
