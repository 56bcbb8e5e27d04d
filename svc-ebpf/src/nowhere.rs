//! Packets that no frontend takes: none of ours, unless Services own their address, or they go directly to an endpoint.

use svc_common::{
    Address, Reason,
    config::INTERFACE_UPPER,
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};

use crate::{
    decide::Decision,
    direct::{Apart, keep_apart},
    filter::may_be_vip,
    ip::Ip,
    scratch::Scratch,
    tables::{Decisions, Tables},
};

/// Which `VIP_*` clients of a scope are.
#[inline(always)]
pub fn who(inside: bool) -> u32 {
    if inside { VIP_INSIDE } else { VIP_OUTSIDE }
}

/// Why a flow to an address of Services without a frontend cannot be; `None` if they have nothing to do with the address.
#[inline(always)]
pub fn reason<A: Address, T: Decisions<A>>(tables: &mut T, address: &A, who: u32) -> Option<Reason> {
    if may_be_vip(tables, address) && tables.vip(address) & who != 0 {
        Some(Reason::UnknownPort)
    } else if tables.in_service_cidr(address) {
        Some(Reason::UnownedAddress)
    } else {
        None
    }
}

/// Decides on the packet `scratch.key` to no frontend. Only what may open a flow is judged: anything else may belong to a
/// connection that others translate.
#[inline(always)]
pub fn no_frontend<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Decision {
    if !scratch.packet.may_open() {
        return Decision::Steer;
    }
    let key = &scratch.key;
    match reason(tables, &key.destination, who(scratch.inside)) {
        Some(Reason::UnknownPort) => return Decision::Refuse(Reason::UnknownPort),
        Some(reason) => return Decision::Drop(reason),
        None => {}
    }
    // What a host sends to itself never leaves it.
    if key.source == key.destination {
        return Decision::Steer;
    }
    // Translated at the device below, a packet of a Service looks like a direct one on the device on top of it.
    if scratch.interface.flags & INTERFACE_UPPER != 0 {
        return Decision::Steer;
    }
    if !tables.is_target(&key.destination, key.destination_port, key.protocol) {
        return Decision::Steer;
    }
    match keep_apart(tables, scratch) {
        Apart::Alone => Decision::Steer,
        Apart::Remapped => Decision::Forward,
        Apart::Failed => Decision::Drop(Reason::TupleTaken),
    }
}
