//! What comes in: destinations are rewritten.

use svc_common::{
    Hook, Reason, Scope,
    config::INTERFACE_BRIDGE_PORT,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADE, FLOW_MASQUERADED, FLOW_OWN_PORT},
    masquerade::PROGRAM_MARK,
};

use crate::{
    Verdict,
    decide::Decision,
    echo,
    filter::incoming,
    frame::Frame,
    icmp,
    ip::{Fragment, Ip},
    nowhere::who,
    packet::{Kind, Packet},
    reject::refuse,
    rewrite::{Side, rewrite},
    scratch::Scratch,
    tables::Tables,
};

/// Handles the packet whose IP header is at `offset`.
#[inline(always)]
pub fn ingress<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    offset: usize,
) -> Verdict {
    match scratch.packet.parse(frame, tables, offset, Hook::Ingress, &mut scratch.fragment) {
        Kind::Other => return Verdict::Pass,
        Kind::IcmpError => return icmp::translate(frame, tables, scratch, Hook::Ingress),
        Kind::Echo => {
            let inside = tables.interface().scope == Scope::Inside as u8;
            return echo::answer(frame, tables, &scratch.packet.header, who(inside));
        }
        Kind::Early => return tables.hold_early(frame, scratch),
        Kind::Transport => {}
    }
    if scratch.packet.header.fragment == Fragment::First && tables.lead(frame, scratch) {
        return Verdict::Again;
    }
    if !incoming(tables, &scratch.packet) {
        return Verdict::Pass;
    }
    scratch.shortcut = false;
    match tables.decide(scratch) {
        Decision::Pass => Verdict::Pass,
        Decision::Steer => steer(frame, tables, scratch),
        Decision::Forward => forward(frame, tables, scratch, false),
        Decision::ForwardNew => forward(frame, tables, scratch, true),
        Decision::Refuse(reason) => refusal(frame, tables, &scratch.packet, reason),
        Decision::Drop(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn forward<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    is_new: bool,
) -> Verdict {
    let Scratch { packet, flow, .. } = scratch;
    if flow.flags & (FLOW_DIRECT | FLOW_MASQUERADED) == 0 {
        tables.count(flow, frame.size(), is_new);
    }
    if flow.flags & (FLOW_MASQUERADE | FLOW_OWN_PORT) != 0 {
        let is_own = flow.flags & FLOW_OWN_PORT != 0;
        frame.mark(if is_own { PROGRAM_MARK } else { tables.masquerade_mark() });
    }
    match rewrite(frame, packet, Side::Destination, flow) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}

/// On a bridge port, gives a reply whose source will be rewritten the bridge's own hardware address as destination, so
/// that it goes up the stack, where netfilter sees both directions of the connection, instead of from port to port.
#[inline(always)]
fn steer<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    let Scratch { packet, entry, found, interface, .. } = scratch;
    if interface.flags & INTERFACE_BRIDGE_PORT == 0 {
        return Verdict::Pass;
    }
    packet.write_key(Hook::Egress, &mut entry.key);
    // A direct connection went from port to port, so its replies do as well. What is masqueraded came from outside, and what
    // a pod sends to itself has the tuple of such an entry only behind this hook: here, the entry is another flow's.
    if !tables.peek_flow(&entry.key, found) || found.flags & (FLOW_DIRECT | FLOW_HAIRPIN | FLOW_MASQUERADED) != 0 {
        return Verdict::Pass;
    }
    match frame.put(0, &interface.bridge_mac) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}

/// Refuses a packet, within the limit of refusals.
#[inline(always)]
fn refusal<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    packet: &Packet<A>,
    reason: Reason,
) -> Verdict {
    if !tables.may_refuse() {
        return Verdict::Drop(Reason::RefusalLimit);
    }
    match refuse(frame, packet) {
        Some(()) => Verdict::Refuse(reason),
        None => Verdict::Drop(reason),
    }
}
