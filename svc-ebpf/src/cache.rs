//! The flow cache of the shortcut: all that it takes to send on a packet of an established flow, found by one lookup.
//!
//! What the long way ([`crate::shortcut`]) found out about a packet (both rewrites, the way out, the hardware addresses) holds
//! for the flow's next ones, for a moment. An entry holds
//!
//! * within the unit of the clock it was made in (1.07 s), so that the flow's entries are touched, repaired and asked anew as often
//!   as without the cache, and the route as well;
//! * as long as no route, neighbour or link has changed ([`Moment::generation`]);
//! * for packets that came in by the same interface and fit the link they leave by;
//! * of a datagram flow's requests, as long as the backend serves.
//!
//! Packets that begin or end a connection never come here. Whoever opens a flow on a tuple anew takes the tuple's entry away
//! ([`forget`]), and whoever made an entry looks once more whether the flow is still the one it was made of ([`remember`]): of the
//! two, at least one sees the other, since an entry is shown by an operation that orders memory.

use svc_common::{BackendState, FlowKey, Hook, flow::FLOW_MASQUERADED, protocol};

use crate::{
    checksum::Change,
    frame::Covered,
    ip::{Ip, pseudo_header},
    packet::Packet,
    rewrite::{or, pair},
    scratch::Scratch,
    shortcut::{ETHERNET, Road, Way, count_hop},
    tables::Tables,
};

/// What is known of a flow in one direction.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached<A> {
    /// The packet as it comes in.
    pub key: FlowKey<A>,
    /// Its source as it leaves, *network order*.
    pub source: A,
    /// Its destination as it leaves, *network order*.
    pub destination: A,
    /// Both ports as it leaves, as they stand in the header.
    pub ports: [u8; 4],
    /// Index of the interface it comes in by.
    pub interface: u32,
    /// Index of the one it leaves by.
    pub leaves_by: u32,
    /// When it was made, in units of 2^30 ns (1.07 s).
    pub made: u32,
    /// [`Moment::generation`] when it was made.
    pub generation: u32,
    /// Service port that is counted.
    pub service: u32,
    /// Backend that is counted.
    pub backend: u32,
    /// Hardware addresses as they stand in the frame, destination and source, in words, which are written faster than bytes.
    pub macs: [u32; 3],
    /// What the addresses change in sums that cover them ([`Change::folded`]).
    pub addresses: [u8; 2],
    /// What the ports change.
    pub port_change: [u8; 2],
    /// Sum of the pseudo header as it comes in, but for the length.
    pub pseudo_header: [u8; 2],
    /// Most bytes of a packet that fits the link, from the IP header on.
    pub mtu: u16,
    /// 1: from a client to a backend.
    pub is_request: u32,
    /// Zero.
    pub pad: u32,
}

/// Both hardware addresses as an entry has them.
#[inline(always)]
pub fn macs(to: [u8; 6], from: [u8; 6]) -> [u32; 3] {
    let words = [[to[0], to[1], to[2], to[3]], [to[4], to[5], from[0], from[1]], [from[2], from[3], from[4], from[5]]];
    words.map(u32::from_ne_bytes)
}

/// What time it is for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The clock, in units of 2^30 ns (1.07 s).
    pub now: u32,
    /// Grows with every change that ways of packets depend on; 0: there is no cache. (No `Option`: where it is none, LLVM would store fields that were never
    /// written, which the verifier refuses.)
    pub generation: u32,
    /// Number of places less one; a power of two less one.
    pub mask: u32,
}

/// CACHE: places for entries, shared by all CPUs.
pub trait Cache<A> {
    /// When it is now.
    fn moment(&mut self) -> Moment;
    /// Copies the entry at a place, whole, if it is the key's.
    fn read(&mut self, place: u32, key: &FlowKey<A>, into: &mut Cached<A>) -> bool;
    /// Writes an entry, unless another CPU is writing there. All that was written before it is seen by whoever sees it, and
    /// nothing is read before it that comes after.
    fn write(&mut self, place: u32, entry: &Cached<A>);
    /// Makes the entry at a place nobody's, if it is the key's; likewise.
    fn clear(&mut self, place: u32, key: &FlowKey<A>);
    /// True if the entry at a place is the key's, or holds no more.
    fn gives_way(&mut self, place: u32, key: &FlowKey<A>, moment: Moment) -> bool;
}

/// Both places of a key differ in one bit.
const OTHER: u32 = 1;

/// The first place of a key. Whoever fills the places of others on purpose slows these down and does no other harm.
#[inline(always)]
fn place<A: Ip>(key: &FlowKey<A>, mask: u32) -> u32 {
    const NUMBERS: [u64; 4] =
        [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xff51_afd7_ed55_8ccd];
    let ports = u32::from(key.source_port) << 16 | u32::from(key.destination_port);
    let mut sum = u64::from(ports ^ u32::from(key.protocol)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let (source, destination) = (key.source.words(), key.destination.words());
    let mut at = 0;
    while at < size_of::<A>() / 4 {
        sum = sum.wrapping_add(u64::from(source[at]).wrapping_mul(NUMBERS[at]));
        sum = sum.wrapping_add(u64::from(destination[at]).wrapping_mul(NUMBERS[at].rotate_left(31)));
        at += 1;
    }
    (sum >> 32) as u32 & mask
}

/// True for a packet in the middle of a flow.
#[inline(always)]
fn is_ordinary<A: Ip>(packet: &Packet<A>) -> bool {
    packet.header.protocol != protocol::SCTP && !packet.closes() && !packet.starts()
}

/// Sends on the packet `incoming.packet` if its flow is known. `None`: the long way has to find out; nothing was written.
#[inline(always)]
pub fn known<A: Ip, F: Road<A>, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    incoming: &mut Scratch<A>,
    bytes: u32,
) -> Option<Way> {
    let Scratch { packet, key, cached, flow, .. } = incoming;
    let moment = tables.moment();
    if moment.generation == 0 || !is_ordinary(packet) {
        return None;
    }
    packet.write_key(Hook::Ingress, key);
    let first = place(key, moment.mask);
    if !tables.read(first, key, cached) && !tables.read(first ^ OTHER, key, cached) {
        return None;
    }
    let header = &packet.header;
    let holds = cached.made == moment.now
        && cached.generation == moment.generation
        && cached.interface == frame.came_by()
        && header.len <= usize::from(cached.mtu);
    if !holds {
        return None;
    }
    let is_udp = header.protocol == protocol::UDP;
    if is_udp && cached.is_request != 0 {
        let backend = tables.backend(cached.backend)?;
        let serves = backend.state != BackendState::Gone as u8
            && backend.service == cached.service
            && backend.address == cached.destination
            && backend.port == u16::from_be_bytes([cached.ports[2], cached.ports[3]]);
        if !serves {
            return None;
        }
    }
    let checksum = header.payload + if is_udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
    // A checksum that is still to be filled in holds the sum of the pseudo header: see `is_left_to_device`.
    let len = header.len.checked_sub(A::HEADER_LEN)?;
    let pseudo_header = Change::none().cover(&cached.pseudo_header).cover(&(len as u32).to_be_bytes());
    if frame.get::<[u8; 2]>(checksum)? == pseudo_header.folded() {
        return None;
    }
    flow.service = cached.service;
    flow.backend = cached.backend;
    tables.count(flow, bytes, false);
    match write(frame, cached, packet.header.payload, checksum, is_udp) {
        Some(()) => Some(Way::Leave),
        None => Some(Way::Drop(svc_common::Reason::NotWritable)),
    }
}

const UDP_CHECKSUM: usize = 6; // RFC 768
const TCP_CHECKSUM: usize = 16; // RFC 9293 section 3.1

#[inline(always)]
fn write<A: Ip, F: Road<A>>(
    frame: &mut F,
    cached: &Cached<A>,
    payload: usize,
    checksum: usize,
    is_udp: bool,
) -> Option<()> {
    let addresses = Change::none().cover(&cached.addresses);
    A::fix_header(frame, ETHERNET, addresses)?;
    frame.put(ETHERNET + A::SOURCE, &cached.source)?;
    frame.put(ETHERNET + A::DESTINATION, &cached.destination)?;
    frame.put(payload, &cached.ports)?;
    let pseudo_header = Covered::PseudoHeader { ipv6: A::VERSION == 6 };
    frame.fix_checksum(checksum, addresses.cover(&cached.port_change), pseudo_header, is_udp)?;
    count_hop::<A, F>(frame)?;
    frame.leave(cached.leaves_by, &cached.macs)
}

/// Remembers the flow of a packet that the long way has found a way for: `incoming` is as it came in by `came_by`, `outgoing` as
/// it is between the two rewrites, each with its flow; `incoming.cached` has the way out already.
#[inline(always)]
pub fn remember<A: Ip, T: Tables<A>>(
    tables: &mut T,
    incoming: &mut Scratch<A>,
    outgoing: &Scratch<A>,
    came_by: u32,
    moment: Moment,
) {
    let Scratch { packet, key, flow, found, cached, .. } = incoming;
    let header = &packet.header;
    if moment.generation == 0 || !is_ordinary(packet) {
        return;
    }
    packet.write_key(Hook::Ingress, key);
    packet.write_key(Hook::Ingress, &mut cached.key);
    cached.source = outgoing.flow.address.copy();
    cached.destination = flow.address.copy();
    let old = pair(packet.ports.source, packet.ports.destination);
    cached.ports = pair(outgoing.flow.port, or(outgoing.flow.peer_port, flow.port));
    cached.interface = came_by;
    cached.made = moment.now;
    cached.generation = moment.generation;
    let is_request = flow.flags & FLOW_MASQUERADED == 0;
    cached.is_request = u32::from(is_request);
    (cached.service, cached.backend) =
        if is_request { (flow.service, flow.backend) } else { (outgoing.flow.service, outgoing.flow.backend) };
    let addresses = A::change(&header.source, &cached.source).and(A::change(&header.destination, &cached.destination));
    cached.addresses = addresses.folded();
    cached.port_change = Change::none().replace(&old, &cached.ports).folded();
    cached.pseudo_header = pseudo_header(&header.source, &header.destination, header.protocol, 0).folded();
    cached.pad = 0;
    let first = place(key, moment.mask);
    let second = first ^ OTHER;
    let at = if tables.gives_way(first, key, moment) {
        first
    } else if tables.gives_way(second, key, moment) {
        second
    } else {
        first ^ (moment.now & OTHER)
    };
    tables.write(at, cached);
    // The tuple may have been opened anew meanwhile.
    let is_same = tables.peek_flow(key, found)
        && found.address == flow.address
        && found.port == flow.port
        && found.peer_port == flow.peer_port
        && found.generation == flow.generation;
    if !is_same {
        tables.clear(at, key);
    }
}

/// Takes what is known of a tuple away: a flow has been opened on it.
#[inline(always)]
pub fn forget<A: Ip, C: Cache<A>>(cache: &mut C, key: &FlowKey<A>) {
    let moment = cache.moment();
    if moment.generation == 0 {
        return;
    }
    let first = place(key, moment.mask);
    cache.clear(first, key);
    cache.clear(first ^ OTHER, key);
}
