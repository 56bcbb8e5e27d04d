//! What comes in: destinations are rewritten.

use svc_common::{
    BackendState, Flow, FlowKey, FlowState, Frontend, FrontendKey, Hook, Interface, Reason, Scope,
    config::INTERFACE_BRIDGE_PORT,
    flow::{FLOW_HAIRPIN, FLOW_MASQUERADE},
    flow_hash,
    frontend::{FLAG_HOST_ONLY, FLAG_INSIDE_DROP, FLAG_OUTSIDE_DROP},
};

use crate::{
    Verdict,
    flow::reply,
    frame::Frame,
    icmp,
    ip::Ip,
    open::{open, repair},
    packet::{Packet, Transport},
    rewrite::{Side, rewrite},
    scratch::Scratch,
    select::by_hash,
    tables::{Decisions, Tables},
};

/// Handles the packet whose IP header is at `offset`.
#[inline(always)]
pub fn ingress<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    offset: usize,
) -> Verdict {
    match Packet::parse(frame, tables, offset, Hook::Ingress) {
        None => Verdict::Pass,
        Some(Packet::IcmpError(header)) => icmp::translate(frame, tables, &header, Hook::Ingress),
        Some(Packet::Transport(packet)) => {
            scratch.packet = packet;
            transport(frame, tables, scratch)
        }
    }
}

#[inline(always)]
fn transport<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    scratch.key = scratch.packet.key(Hook::Ingress);
    let mut has_flow = false;
    if let Some(first_in_tick) = tables.flow(&scratch.key, scratch.packet.closes(), &mut scratch.flow) {
        if keeps_backend(tables, scratch, first_in_tick) {
            if first_in_tick && scratch.flow.flags & FLOW_HAIRPIN == 0 {
                repair(tables, scratch);
            }
            return forward(frame, tables, &scratch.packet, &scratch.flow, false);
        }
        has_flow = true;
    }

    let interface = tables.interface();
    let Some(frontend) = frontend(tables, &scratch.key) else {
        if has_flow {
            tables.remove_flow(&scratch.key);
        }
        return steer(frame, tables, &scratch.packet, &interface);
    };
    scratch.frontend = frontend;
    scratch.inside = interface.scope == Scope::Inside as u8;
    let (range, drop_flag) =
        if scratch.inside { (frontend.inside, FLAG_INSIDE_DROP) } else { (frontend.outside, FLAG_OUTSIDE_DROP) };
    scratch.range = range;
    if range.len == 0 {
        // A datagram flow whose Service has nobody left stays where it is: its backend may come back.
        return if has_flow && !scratch.packet.is_tcp() {
            forward(frame, tables, &scratch.packet, &scratch.flow, false)
        } else if frontend.flags & drop_flag != 0 {
            Verdict::Drop(Reason::PolicyEmpty)
        } else {
            Verdict::Drop(Reason::NoEndpoint)
        };
    }
    let continues = scratch.packet.is_tcp() && !scratch.packet.opens();
    if continues && !frontend.is_external() && !lost_its_entry(tables, scratch) {
        // A connection that others translate: netfilter, from before this dataplane took over.
        return Verdict::Pass;
    }
    match open(tables, scratch) {
        Ok(()) => forward(frame, tables, &scratch.packet, &scratch.flow, true),
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn frontend<A: Ip, T: Decisions<A>>(tables: &mut T, key: &FlowKey<A>) -> Option<Frontend> {
    let frontend = tables.frontend(&FrontendKey::new(key.destination, key.destination_port, key.protocol))?;
    (frontend.flags & FLAG_HOST_ONLY == 0).then_some(frontend)
}

/// Whether a packet goes where its flow says. Not so: a SYN on a tuple whose connection has ended or whose backend is
/// gone, a datagram whose backend is gone, a datagram to an address that is no longer a frontend.
#[inline(always)]
fn keeps_backend<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, first_in_tick: bool) -> bool {
    let (packet, flow) = (&scratch.packet, &scratch.flow);
    if flow.flags & FLOW_HAIRPIN != 0 {
        return true;
    }
    if packet.is_tcp() {
        if !packet.opens() {
            return true;
        }
        let closing = FlowState::Closing as u8;
        reply(&mut scratch.entry, &scratch.key, flow);
        let reply_closing = tables.peek_flow(&scratch.entry.key).is_none_or(|reply| reply.state == closing);
        if flow.state == closing || reply_closing {
            return false;
        }
    } else if first_in_tick && frontend(tables, &scratch.key).is_none() {
        return false;
    }
    tables
        .backend(flow.backend)
        .is_some_and(|backend| backend.generation == flow.generation && backend.state != BackendState::Gone as u8)
}

/// True for a packet of a connection of ours whose forward entry was evicted: the backend it hashes to still has the
/// reply entry.
#[inline(always)]
fn lost_its_entry<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> bool {
    let key = &scratch.key;
    let hash = flow_hash(&key.source, key.source_port, &key.destination, key.destination_port, key.protocol);
    let Some(id) = by_hash(tables, scratch.range, hash) else { return false };
    let Some(backend) = tables.backend(id) else { return false };
    scratch.entry.key = FlowKey {
        source: backend.address,
        destination: key.source,
        source_port: backend.port,
        destination_port: key.source_port,
        hook: Hook::Egress as u8,
        ..*key
    };
    let reply = tables.peek_flow(&scratch.entry.key);
    reply.is_some_and(|reply| reply.address == key.destination && reply.port == key.destination_port)
}

#[inline(always)]
fn forward<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    packet: &Transport<A>,
    flow: &Flow<A>,
    is_new: bool,
) -> Verdict {
    packet.remember_fragment(tables, Hook::Ingress);
    tables.count(flow, frame.size(), is_new);
    if flow.flags & FLOW_MASQUERADE != 0 {
        frame.mark(tables.masquerade_mark());
    }
    match rewrite(frame, packet, Side::Destination, flow) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}

/// On a bridge port, gives a reply whose source will be rewritten the bridge's own hardware address as destination, so
/// that it goes up the stack, where netfilter sees both directions of the connection, instead of from port to port.
#[inline(always)]
fn steer<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    packet: &Transport<A>,
    interface: &Interface,
) -> Verdict {
    if interface.flags & INTERFACE_BRIDGE_PORT == 0 || tables.peek_flow(&packet.key(Hook::Egress)).is_none() {
        return Verdict::Pass;
    }
    packet.remember_fragment(tables, Hook::Ingress);
    match frame.put(0, &interface.bridge_mac) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}
