//! The entries a flow consists of, derived from one another.
//!
//! | entry | hook | key | rewrite |
//! |---|---|---|---|
//! | forward | ingress | client → VIP | destination: backend |
//! | reply | egress | backend → client | source: VIP |
//! | only if client = backend: | | | |
//! | outbound | egress | client → backend | source: VIP, so that the backend does not answer itself |
//! | inbound | ingress | backend → VIP (client's port) | destination: client |

use svc_common::{
    Address, Flow, FlowKey, FlowState, Hook,
    flow::{FLOW_HAIRPIN, FLOW_INSIDE},
};

use crate::rewrite::or;

/// An entry of FLOWS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<A> {
    /// Key.
    pub key: FlowKey<A>,
    /// Value.
    pub flow: Flow<A>,
}

/// Writes the reply entry that belongs to a forward entry.
///
/// In place, here and below: an entry that is returned would lie on the stack first.
#[inline(always)]
pub fn reply<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, forward: &Flow<A>) {
    entry.key.source = forward.address.copy();
    entry.key.destination = key.source.copy();
    entry.key.source_port = forward.port;
    entry.key.destination_port = or(forward.peer_port, key.source_port);
    common(entry, key, forward, Hook::Egress, 0);
    entry.flow.address = key.destination.copy();
    entry.flow.port = key.destination_port;
    entry.flow.peer_port = if forward.peer_port == 0 { 0 } else { key.source_port };
}

/// Writes the forward entry that a reply entry was made of.
#[inline(always)]
pub fn forward_of<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, reply: &Flow<A>) {
    entry.key.source = key.destination.copy();
    entry.key.destination = reply.address.copy();
    entry.key.source_port = or(reply.peer_port, key.destination_port);
    entry.key.destination_port = reply.port;
    common(entry, key, reply, Hook::Ingress, 0);
    entry.flow.address = key.source.copy();
    entry.flow.port = key.source_port;
    entry.flow.peer_port = if reply.peer_port == 0 { 0 } else { key.destination_port };
}

/// True if client and backend of a forward entry are one pod of this node. A flow from outside whose client has the backend's
/// address is none: it was masqueraded as that node, whose own network the backend is in.
#[inline(always)]
pub fn is_hairpin<A: Address>(key: &FlowKey<A>, forward: &Flow<A>) -> bool {
    forward.flags & FLOW_INSIDE != 0 && key.source == forward.address
}

/// Hairpin: on its way to the backend, the packet gets the VIP as its source.
#[inline(always)]
pub fn outbound<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, forward: &Flow<A>) {
    let client_port = or(forward.peer_port, key.source_port);
    entry.key.source = key.source.copy();
    entry.key.destination = forward.address.copy();
    entry.key.source_port = client_port;
    entry.key.destination_port = forward.port;
    common(entry, key, forward, Hook::Egress, FLOW_HAIRPIN);
    entry.flow.address = key.destination.copy();
    entry.flow.port = client_port;
    entry.flow.peer_port = 0;
}

/// Hairpin: the backend's answer to the VIP goes to the client.
#[inline(always)]
pub fn inbound<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, forward: &Flow<A>) {
    let client_port = or(forward.peer_port, key.source_port);
    entry.key.source = forward.address.copy();
    entry.key.destination = key.destination.copy();
    entry.key.source_port = forward.port;
    entry.key.destination_port = client_port;
    common(entry, key, forward, Hook::Ingress, FLOW_HAIRPIN);
    entry.flow.address = key.source.copy();
    entry.flow.port = client_port;
    entry.flow.peer_port = 0;
}

/// Writes the inbound entry that belongs to an outbound one: see [`crate::masquerade`].
#[inline(always)]
pub fn inbound_of<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, outbound: &Flow<A>) {
    entry.key.source = key.destination.copy();
    entry.key.destination = outbound.address.copy();
    entry.key.source_port = key.destination_port;
    entry.key.destination_port = outbound.port;
    common(entry, key, outbound, Hook::Ingress, 0);
    entry.flow.address = key.source.copy();
    entry.flow.port = key.source_port;
    entry.flow.peer_port = 0;
}

/// Writes the outbound entry that an inbound one was made of.
#[inline(always)]
pub fn outbound_of<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, inbound: &Flow<A>) {
    entry.key.source = inbound.address.copy();
    entry.key.destination = key.source.copy();
    entry.key.source_port = inbound.port;
    entry.key.destination_port = key.source_port;
    common(entry, key, inbound, Hook::Egress, 0);
    entry.flow.address = key.destination.copy();
    entry.flow.port = key.destination_port;
    entry.flow.peer_port = 0;
}

/// What does not depend on the direction.
#[inline(always)]
fn common<A: Address>(entry: &mut Entry<A>, key: &FlowKey<A>, forward: &Flow<A>, hook: Hook, flags: u8) {
    entry.key.protocol = key.protocol;
    entry.key.hook = hook as u8;
    entry.key.pad = [0; 2];
    entry.flow.backend = forward.backend;
    entry.flow.generation = forward.generation;
    entry.flow.service = forward.service;
    entry.flow.last_seen = forward.last_seen;
    entry.flow.state = FlowState::Open as u8;
    entry.flow.flags = forward.flags | flags;
    entry.flow.pad = [0; 2];
}
