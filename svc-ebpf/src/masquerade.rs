//! Masquerading by the programs: flows from outside to endpoints of other nodes get an address of this node, and a port of
//! our own range, as their source.
//!
//! Two entries beside the flow's forward and reply entry ([`crate::flow`]):
//!
//! | entry | hook | key | rewrite |
//! |---|---|---|---|
//! | outbound | egress | client → backend | source: node, own port |
//! | inbound | ingress | backend → node, own port | destination: client |
//!
//! netfilter stands between the two hooks and sees client ↔ backend in both directions.
//!
//! The inbound entry owns the port: it is only made if absent, or in the place of a flow that is over. Whoever finds an
//! outbound entry makes sure, once in a unit of time, that the inbound one still is its own. A flow of others whose source is
//! this node and one of these ports (netfilter kept the port of a pod) claims the inbound key in the same way, so that no
//! two of them share a tuple.

use svc_common::{
    Flow, FlowKey, FlowState, Hook,
    flow::{FLOW_DIRECT, FLOW_MASQUERADED, FLOW_NEW, FLOW_OWN_PORT, FLOW_SHORTCUT},
    flow_hash,
    masquerade::{FIRST_PORT, PORTS, is_own_port},
    protocol, slot_in_range,
};

use crate::{
    flow::{Entry, inbound_of, outbound_of},
    ip::Ip,
    open::SPREAD,
    packet::Packet,
    scratch::Scratch,
    tables::{Insert, Tables},
};

/// Ports tried in all.
const ATTEMPTS: u32 = 12;
/// Of these, the first ones must be free; then a flow that is over gives way.
const FREE_ATTEMPTS: u32 = 6;
/// Of those that are tried for free ones, and of the others, from here on the clock has a say: a client that tries again
/// meets other ports.
const SAME_ATTEMPTS: u32 = 4;

/// Idle time, in units of 2^30 ns (1.07 s), after which a flow is over: both sides have ended it.
const ENDED: u32 = 2;
/// One side has ended it (netfilter: between 30 and 120 s).
const HALF_ENDED: u32 = 64;
/// A connection that the client has not completed.
const NEW_CONNECTION: u32 = 8;
/// A datagram flow of packets close to each other (netfilter: 30 s).
const NEW_DATAGRAMS: u32 = 28;
/// A datagram flow that lasted (netfilter: 180 s with unequal times of conntrack versions, 120 s in newer ones).
const DATAGRAMS: u32 = 168;
/// An established connection (kube-proxy's default for conntrack: a day).
const CONNECTION: u32 = 80_466;

/// What the egress program wants of a packet's flow.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The packet was marked where it came in, and has no outbound entry.
    Open = 0,
    /// Its outbound entry is in `scratch.flow`.
    Keep = 1,
    /// It is of others, and has one of our ports.
    Apart = 2,
}

impl Task {
    /// The task of a number.
    #[inline(always)]
    pub fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::Open,
            1 => Self::Keep,
            _ => Self::Apart,
        }
    }
}

/// What became of it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The source becomes what `scratch.flow` says.
    Rewrite = 0,
    /// The packet is none of ours.
    Pass = 1,
    /// Every port that was tried is taken.
    Taken = 2,
    /// The flow table did not take an entry.
    Full = 3,
    /// The interface has no address to masquerade with.
    NoSource = 4,
    /// A port is to be chosen ([`choose_port`]); the rest of the outbound entry is in `scratch.flow`.
    Choose = 5,
}

impl Outcome {
    /// The outcome of a number.
    #[inline(always)]
    pub fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::Rewrite,
            1 => Self::Pass,
            2 => Self::Taken,
            3 => Self::Full,
            4 => Self::NoSource,
            _ => Self::Choose,
        }
    }
}

/// True if the outbound entry that a packet has found must be looked after: once in a unit of time; and when a connection
/// is completed, which makes its port last.
#[inline(always)]
pub fn needs_care<A: Ip>(packet: &Packet<A>, flow: &Flow<A>, first_in_tick: bool) -> bool {
    first_in_tick || (flow.flags & FLOW_NEW != 0 && packet.is_connection() && !packet.opens())
}

/// Does a task for the packet `scratch.packet` with the key `scratch.key`, which leaves.
#[inline(always)]
pub fn masquerade<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, task: Task) -> Outcome {
    match task {
        Task::Open => {}
        Task::Keep => {
            if keep(tables, scratch) {
                return Outcome::Rewrite;
            }
        }
        Task::Apart => return keep_apart(tables, scratch),
    }
    // A mark that somebody else set has no reply entry of ours.
    let Scratch { key, entry, found, .. } = scratch;
    inverted(&mut entry.key, key, Hook::Egress);
    let is_ours = tables.peek_flow(&entry.key, found) && found.flags & FLOW_OWN_PORT != 0;
    if task == Task::Open && !is_ours {
        return Outcome::Pass;
    }
    let (backend, generation, service) = (found.backend, found.generation, found.service);
    // The inbound entry tells replies which way to take.
    let flags = if is_ours { found.flags & FLOW_SHORTCUT } else { 0 };
    prepare(tables, scratch, backend, generation, service, flags)
}

/// Writes the outbound entry's value, all but its port.
#[inline(always)]
fn prepare<A: Ip, T: Tables<A>>(
    tables: &mut T,
    scratch: &mut Scratch<A>,
    backend: u32,
    generation: u32,
    service: u32,
    flags: u8,
) -> Outcome {
    let Some(source) = tables.masquerade_source() else { return Outcome::NoSource };
    let flow = &mut scratch.flow;
    flow.address = source.copy();
    flow.peer_port = 0;
    flow.backend = backend;
    flow.generation = generation;
    flow.service = service;
    flow.last_seen = tables.now();
    flow.state = FlowState::Open as u8;
    flow.flags = FLOW_MASQUERADED | FLOW_NEW | flags;
    flow.pad = [0; 2];
    Outcome::Choose
}

/// Makes both entries with a port that is nobody else's; the outbound one is left in `scratch.flow`.
#[inline(always)]
pub fn choose_port<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Outcome {
    for number in 0..ATTEMPTS {
        let outcome = tables.try_port(scratch, number);
        if outcome != Outcome::Taken {
            return outcome;
        }
    }
    Outcome::Taken
}

/// One attempt at that: `number` counts from 0.
#[inline(always)]
pub fn try_port<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, number: u32) -> Outcome {
    let Scratch { key, flow, entry, found, other, .. } = scratch;
    let now = flow.last_seen;
    let hash = flow_hash(&key.source, key.source_port, &key.destination, key.destination_port, key.protocol);
    let time = if number < SAME_ATTEMPTS { 0 } else { now };
    flow.port = FIRST_PORT + slot_in_range((hash ^ time).wrapping_add(number.wrapping_mul(SPREAD)), PORTS) as u16;
    inbound_of(entry, key, flow);
    tables.set_unusual(&entry.key.source, &entry.key.destination);
    match tables.insert_flow(&entry.key, &entry.flow) {
        Insert::Done => {}
        Insert::Full => return Outcome::Full,
        Insert::Taken => {
            if !tables.peek_flow(&entry.key, found) {
                return Outcome::Taken;
            }
            if !is_inbound_of(found, key) {
                let gives_way = number >= FREE_ATTEMPTS
                    && is_over(tables, entry, found, other, now)
                    && tables.release_flow(&entry.key, found.last_seen)
                    && tables.insert_flow(&entry.key, &entry.flow) == Insert::Done;
                if !gives_way {
                    return Outcome::Taken;
                }
            }
        }
    }
    if tables.replace_flow(key, flow) { Outcome::Rewrite } else { Outcome::Full }
}

/// Looks after the outbound entry `scratch.flow`; false if its port is another flow's by now.
#[inline(always)]
fn keep<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> bool {
    let Scratch { packet, key, flow, entry, found, .. } = scratch;
    let lasts = flow.flags & FLOW_NEW != 0 && !packet.opens();
    if lasts {
        flow.flags &= !FLOW_NEW;
    }
    inbound_of(entry, key, flow);
    // Touched, so that it is as young as the flow's last packet whichever way that went.
    if tables.flow(&entry.key, false, found).is_none() {
        tables.set_unusual(&entry.key.source, &entry.key.destination);
        if tables.insert_flow(&entry.key, &entry.flow) != Insert::Taken {
            return true; // made, or there is no room, and the next unit of time tries again
        }
        if !tables.peek_flow(&entry.key, found) {
            return true;
        }
    }
    if !is_inbound_of(found, key) {
        return false;
    }
    if lasts {
        entry.flow.state = found.state;
        let _ = tables.replace_flow(&entry.key, &entry.flow);
        let _ = tables.replace_flow(key, flow);
    }
    true
}

/// Claims the port of a flow of others, or gives it another one if it is ours already.
#[inline(always)]
fn keep_apart<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Outcome {
    let is_own_address = tables.masquerade_source().is_some_and(|source| source == scratch.key.source);
    if !is_own_address
        || !tables.is_target(&scratch.key.destination, scratch.key.destination_port, scratch.key.protocol)
    {
        return Outcome::Pass;
    }
    let now = tables.now();
    let Scratch { packet, key, flow, entry, found, other, .. } = scratch;
    flow.address = key.source.copy();
    flow.port = key.source_port;
    flow.peer_port = 0;
    flow.backend = 0;
    flow.generation = 0;
    flow.service = 0;
    flow.last_seen = now;
    flow.state = FlowState::Open as u8;
    flow.flags = FLOW_DIRECT;
    flow.pad = [0; 2];
    inbound_of(entry, key, flow);
    tables.set_unusual(&entry.key.source, &entry.key.destination);
    if !tables.peek_flow(&entry.key, found) {
        // Whoever made the entry meanwhile: the next packet sees it. A full table is no reason to harm others.
        let _ = tables.insert_flow(&entry.key, &entry.flow);
        return Outcome::Pass;
    }
    if found.flags & FLOW_MASQUERADED == 0 {
        let _ = tables.flow(&entry.key, packet.closes(), found);
        return Outcome::Pass;
    }
    if is_over(tables, entry, found, other, now) && tables.release_flow(&entry.key, found.last_seen) {
        let _ = tables.insert_flow(&entry.key, &entry.flow);
        return Outcome::Pass;
    }
    if packet.may_open() { prepare(tables, scratch, 0, 0, 0, 0) } else { Outcome::Taken }
}

/// True if an inbound entry belongs to the outbound key.
#[inline(always)]
fn is_inbound_of<A: Ip>(inbound: &Flow<A>, outbound: &FlowKey<A>) -> bool {
    inbound.flags & FLOW_MASQUERADED != 0 && inbound.address == outbound.source && inbound.port == outbound.source_port
}

/// True if the flow that holds the key `entry.key` with the value `holder` has ended, or as good as that.
#[inline(always)]
fn is_over<A: Ip, T: Tables<A>>(
    tables: &mut T,
    entry: &Entry<A>,
    holder: &Flow<A>,
    other: &mut Entry<A>,
    now: u32,
) -> bool {
    let closing = FlowState::Closing as u8;
    // A packet of this very unit of time may have come later than the clock was read.
    let idle = |last_seen: u32| now.wrapping_sub(last_seen).cast_signed().max(0).cast_unsigned();
    let mut since = idle(holder.last_seen);
    let mut ended = u32::from(holder.state == closing);
    outbound_of(other, &entry.key, holder);
    if holder.flags & FLOW_MASQUERADED != 0 && tables.peek_flow(&other.key, &mut other.flow) {
        since = since.min(idle(other.flow.last_seen));
        ended += u32::from(other.flow.state == closing);
    }
    let is_datagram = entry.key.protocol == protocol::UDP;
    let limit = if ended == 2 {
        ENDED
    } else if ended > 0 {
        HALF_ENDED
    } else {
        match (holder.flags & FLOW_NEW != 0, is_datagram) {
            (true, false) => NEW_CONNECTION,
            (true, true) => NEW_DATAGRAMS,
            (false, true) => DATAGRAMS,
            (false, false) => CONNECTION,
        }
    };
    since > limit
}

/// Writes the key of the opposite direction.
#[inline(always)]
fn inverted<A: Ip>(into: &mut FlowKey<A>, key: &FlowKey<A>, hook: Hook) {
    into.source = key.destination.copy();
    into.destination = key.source.copy();
    into.source_port = key.destination_port;
    into.destination_port = key.source_port;
    into.protocol = key.protocol;
    into.hook = hook as u8;
    into.pad = [0; 2];
}

/// True for a packet of others that might have the source of one of our flows.
#[inline(always)]
pub fn may_clash<A: Ip, T: Tables<A>>(tables: &mut T, packet: &Packet<A>) -> bool {
    is_own_port(packet.ports.source) && tables.owns_ports()
}
