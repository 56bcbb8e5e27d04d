//! What goes out: sources are rewritten.

use svc_common::{
    Hook, Reason,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN},
    vip::VIP_INSIDE,
};

use crate::{
    Verdict, echo,
    filter::outgoing,
    frame::Frame,
    icmp,
    ip::Ip,
    open::repair_forward,
    packet::Kind,
    rewrite::{Side, rewrite},
    scratch::Scratch,
    tables::Tables,
};

/// Handles the packet whose IP header is at `offset`.
#[inline(always)]
pub fn egress<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    offset: usize,
) -> Verdict {
    match scratch.packet.parse(frame, tables, offset, Hook::Egress, &mut scratch.fragment) {
        Kind::Other => Verdict::Pass,
        Kind::IcmpError => icmp::translate(frame, tables, scratch, Hook::Egress),
        // Requests of others were answered where they came in: this one is the host's own.
        Kind::Echo => echo::answer(frame, tables, &scratch.packet.header, VIP_INSIDE),
        Kind::Transport => transport(frame, tables, scratch),
    }
}

#[inline(always)]
fn transport<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    if !outgoing(tables, &scratch.packet) {
        return Verdict::Pass;
    }
    scratch.packet.write_key(Hook::Egress, &mut scratch.key);
    let Some(first_in_tick) = tables.flow(&scratch.key, scratch.packet.closes(), &mut scratch.flow) else {
        return Verdict::Pass;
    };
    let is_direct = scratch.flow.flags & FLOW_DIRECT != 0;
    if is_direct && scratch.flow.peer_port == 0 {
        return Verdict::Pass;
    }
    if first_in_tick && scratch.flow.flags & FLOW_HAIRPIN == 0 {
        repair_forward(tables, scratch);
    }
    let Scratch { packet, flow, fragment, .. } = scratch;
    packet.remember_fragment(tables, Hook::Egress, fragment);
    if !is_direct {
        tables.count(flow, frame.size(), false);
    }
    match rewrite(frame, packet, Side::Source, flow) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}
