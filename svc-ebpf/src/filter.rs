//! What a packet may concern, by filters of bits: most packets are nobody's, and need no lookup in a hash table.
//!
//! Which entries of FLOWS a hook can find, and what the filters know of them:
//!
//! | hook | entry | known by |
//! |---|---|---|
//! | ingress | forward: client → frontend | the destination, a frontend |
//! | ingress | inbound (client = backend), forward of a direct flow with another client port | both addresses, in UNUSUAL |
//! | ingress | inbound of a masqueraded flow, and claims of others' flows: backend → this node | both addresses, in UNUSUAL |
//! | egress | outbound of a masqueraded flow: client → backend | the packet's mark; of a flow of others, the source's port |
//! | egress | reply: backend → client, and claims of direct flows | the source, an endpoint |
//! | egress | outbound (client = backend) | its addresses are equal |
//!
//! Everything else that a packet can be to us begins with its destination: a frontend, a VIP, an address that Services are
//! given, an endpoint; or, on a bridge, with its source. ICMP is not filtered.

use svc_common::{
    Address,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
};

use crate::{
    ip::Ip,
    packet::Packet,
    tables::{Decisions, Tables},
};

/// False for a packet with a tuple that came in and is nobody's.
#[inline(always)]
pub fn incoming<A: Ip, T: Tables<A>>(tables: &mut T, packet: &Packet<A>) -> bool {
    let (header, ports) = (&packet.header, packet.ports);
    let known = tables.known(&header.destination, ports.destination, header.protocol);
    if known & KNOWN_FRONTEND != 0 || tables.is_unusual(&header.source, &header.destination) {
        return true;
    }
    // What opens a flow may go to a port of a VIP that nobody serves, or directly to an endpoint.
    let opens = packet.may_open()
        && (known & KNOWN_ENDPOINT != 0
            || may_be_vip(tables, &header.destination)
            || tables.in_service_cidr(&header.destination));
    // Replies go up the stack on a bridge.
    opens || tables.has_bridges() && tables.known(&header.source, ports.source, header.protocol) & KNOWN_ENDPOINT != 0
}

/// True if a packet with a tuple that came in may be one of a flow, or go to a frontend.
#[inline(always)]
pub fn may_be_service<A: Ip, T: Tables<A>>(tables: &mut T, packet: &Packet<A>) -> bool {
    let header = &packet.header;
    tables.known(&header.destination, packet.ports.destination, header.protocol) & KNOWN_FRONTEND != 0
        || tables.is_unusual(&header.source, &header.destination)
}

/// True if a packet with a tuple that goes out may be one of a flow.
#[inline(always)]
pub fn outgoing<A: Ip, T: Tables<A>>(tables: &mut T, packet: &Packet<A>) -> bool {
    let header = &packet.header;
    tables.known(&header.source, packet.ports.source, header.protocol) & KNOWN_ENDPOINT != 0
        || header.source == header.destination
}

/// False if the address is not in VIPS.
#[inline(always)]
pub fn may_be_vip<A: Address, T: Decisions<A>>(tables: &mut T, address: &A) -> bool {
    tables.known(address, 0, 0) & KNOWN_FRONTEND != 0
}
