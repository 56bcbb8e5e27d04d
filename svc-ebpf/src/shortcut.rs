//! The way past the stack: what comes in by an uplink for an endpoint of another node leaves again at once, with destination
//! and source rewritten in one go; the reply likewise. For XDP.
//!
//! It is [`crate::ingress`], a route, and [`crate::egress`], with the same tables, entries and functions, in the order in
//! which the stack would run them. Nothing is written to the frame before it is certain that it leaves this way: what the
//! shortcut cannot do goes up the stack as it came, where the tc programs find the same entries and do the same.
//!
//! conntrack sees nothing of a flow that takes the shortcut from its first packet on; a packet of it that has to go through the
//! stack once is picked up there in mid-stream, without a window. A flow that began in the stack stays there:
//! conntrack knows its window, and would not know the packets that went past it.

use svc_common::{
    FrontendKey, Hook, Reason,
    flow::{FLOW_MASQUERADED, FLOW_OWN_PORT, FLOW_SHORTCUT},
    masquerade::PROGRAM_MARK,
};

use crate::{
    cache::Cached,
    decide::Decision,
    egress::{Found, find},
    filter::may_be_service,
    flow::reply,
    frame::Frame,
    icmp,
    ip::{Fragment, Ip},
    packet::{Kind, Packet},
    reject::is_left_to_device,
    rewrite::{Side, or, rewrite},
    scratch::Scratch,
    tables::Tables,
};

/// How a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Up the stack, as it came.
    Stack,
    /// It leaves, rewritten.
    Leave,
    /// It ends here.
    Drop(Reason),
}

/// A frame that can be sent on, and the routes.
pub trait Road<A>: Frame {
    /// The interface that the packet, as far as `packet` has it, leaves by; `None` if only the stack can send it. (No
    /// neighbour, a narrow link, an interface that takes no frames from here.)
    fn route(&mut self, packet: &Packet<A>) -> Option<u32>;
    /// Writes the hardware addresses for the way that [`Road::route`] found.
    fn readdress(&mut self) -> Option<()>;
    /// Writes that way into an entry of the cache: interface, hardware addresses, MTU.
    fn hop(&self, into: &mut Cached<A>) -> Option<()>;
    /// Writes the hardware addresses of an entry of the cache; the frame leaves by its interface.
    fn leave(&mut self, interface: u32, macs: &[u32; 3]) -> Option<()>;
    /// Index of the interface the frame came in by.
    fn came_by(&self) -> u32;
    /// Calls [`known()`](crate::cache::known); a function of its own, as those of [`Tables`].
    fn known<T: Tables<A>>(&mut self, tables: &mut T, incoming: &mut Scratch<A>) -> Option<Way>;
}

/// Sends on the packet whose IP header is at `offset`, if it takes the shortcut. `outgoing` is the memory of the egress
/// program.
#[inline(always)]
pub fn shortcut<A: Ip, F: Road<A>, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    incoming: &mut Scratch<A>,
    outgoing: &mut Scratch<A>,
    offset: usize,
) -> Way {
    let kind = incoming.packet.parse(frame, tables, offset, Hook::Ingress, &mut incoming.fragment);
    if !is_plain(frame, &incoming.packet) {
        return Way::Stack;
    }
    match kind {
        Kind::Transport if may_be_service(tables, &incoming.packet) => {}
        Kind::IcmpError => return error(frame, tables, incoming, outgoing),
        _ => return Way::Stack,
    }
    if let Some(way) = frame.known(tables, incoming) {
        return way;
    }
    if is_left_to_device(frame, &incoming.packet) != Some(false) || !may_take(tables, incoming) {
        return Way::Stack;
    }
    let moment = tables.moment();
    incoming.shortcut = true;
    let is_new = match tables.decide(incoming) {
        Decision::Forward => false,
        Decision::ForwardNew => true,
        Decision::Drop(reason) => return Way::Drop(reason),
        Decision::Pass | Decision::Steer | Decision::Refuse(_) => return Way::Stack,
    };
    let flags = incoming.flow.flags;
    if flags & FLOW_SHORTCUT == 0 {
        // To an endpoint of this node. The stack does not know that the flow is new.
        if is_new {
            tables.count_new(&incoming.flow);
        }
        return Way::Stack;
    }
    translate(incoming, &mut outgoing.packet);
    let Some(interface) = frame.route(&outgoing.packet) else {
        if is_new {
            keep_to_stack(tables, incoming);
            tables.count_new(&incoming.flow);
        }
        return Way::Stack;
    };
    tables.leave_by(interface);
    if flags & FLOW_OWN_PORT != 0 {
        frame.mark(PROGRAM_MARK);
    }
    match find(frame, tables, outgoing) {
        Found::Rewrite => {}
        Found::Nothing => return Way::Stack,
        Found::Drop(reason) => return Way::Drop(reason),
    }
    if flags & FLOW_MASQUERADED == 0 {
        tables.count(&incoming.flow, frame.size(), is_new);
    }
    if !is_new && moment.generation != 0 && frame.hop(&mut incoming.cached).is_some() {
        tables.remember(incoming, outgoing, frame.came_by(), moment);
    }
    match write(frame, incoming, outgoing) {
        Some(()) => Way::Leave,
        None => Way::Drop(Reason::NotWritable),
    }
}

/// True for a packet that no router has to do more to than to count its hop: whole, without options and tags.
#[inline(always)]
fn is_plain<A: Ip, F: Frame>(frame: &F, packet: &Packet<A>) -> bool {
    let header = &packet.header;
    header.fragment == Fragment::Whole
        && header.offset == ETHERNET
        && header.payload == ETHERNET + A::HEADER_LEN
        && A::hops(frame, ETHERNET).is_some_and(|hops| hops > 1)
}

pub(crate) const ETHERNET: usize = 14;

/// True for a packet of a flow that takes the shortcut, and for one that may open such a flow.
#[inline(always)]
fn may_take<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> bool {
    let Scratch { packet, key, found, .. } = scratch;
    packet.write_key(Hook::Ingress, key);
    if tables.peek_flow(key, found) {
        return found.flags & FLOW_SHORTCUT != 0;
    }
    let frontend = FrontendKey::new(key.destination.copy(), key.destination_port, key.protocol);
    packet.may_open() && tables.frontend(&frontend).is_some()
}

/// Sends on the ICMP error in `incoming.packet` if it is about a flow that takes the shortcut: to conntrack, which does not know
/// the flow, it would be invalid.
#[inline(always)]
fn error<A: Ip, F: Road<A>, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    incoming: &mut Scratch<A>,
    outgoing: &mut Scratch<A>,
) -> Way {
    let Some(ports) = icmp::find(frame, tables, incoming, Hook::Ingress) else { return Way::Stack };
    if incoming.flow.flags & FLOW_SHORTCUT == 0 {
        return Way::Stack;
    }
    translate(incoming, &mut outgoing.packet);
    if frame.route(&outgoing.packet).is_none() {
        return Way::Stack;
    }
    let written = icmp::write(frame, incoming, ports, Hook::Ingress).and_then(|()| {
        let ports = icmp::find(frame, tables, outgoing, Hook::Egress)?;
        icmp::write(frame, outgoing, ports, Hook::Egress)?;
        count_hop::<A, F>(frame)?;
        frame.readdress()
    });
    match written {
        Some(()) => Way::Leave,
        None => Way::Drop(Reason::NotWritable),
    }
}

/// Writes the packet as it is between the two rewrites.
#[inline(always)]
fn translate<A: Ip>(incoming: &Scratch<A>, into: &mut Packet<A>) {
    let Scratch { packet, flow, .. } = incoming;
    into.header.source = packet.header.source.copy();
    into.header.destination = flow.address.copy();
    into.header.protocol = packet.header.protocol;
    into.header.fragment = Fragment::Whole;
    into.header.id = 0;
    into.header.offset = packet.header.offset;
    into.header.payload = packet.header.payload;
    into.header.len = packet.header.len;
    into.ports.source = or(flow.peer_port, packet.ports.source);
    into.ports.destination = flow.port;
    into.flags = packet.flags;
}

#[inline(always)]
fn write<A: Ip, F: Road<A>>(frame: &mut F, incoming: &Scratch<A>, outgoing: &Scratch<A>) -> Option<()> {
    rewrite(frame, &incoming.packet, Side::Destination, &incoming.flow)?;
    rewrite(frame, &outgoing.packet, Side::Source, &outgoing.flow)?;
    count_hop::<A, F>(frame)?;
    frame.readdress()
}

/// Does what a router does.
#[inline(always)]
pub(crate) fn count_hop<A: Ip, F: Frame>(frame: &mut F) -> Option<()> {
    let hops = A::hops(frame, ETHERNET)?;
    A::set_hops(frame, ETHERNET, hops.wrapping_sub(1))
}

/// Makes a flow that was just opened one of the stack.
#[inline(always)]
fn keep_to_stack<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) {
    let Scratch { key, flow, entry, .. } = scratch;
    flow.flags &= !FLOW_SHORTCUT;
    reply(entry, key, flow);
    let _ = tables.replace_flow(&entry.key, &entry.flow);
    let _ = tables.replace_flow(key, flow);
}
