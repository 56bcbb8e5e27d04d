//! What goes out: sources are rewritten.

use svc_common::{Flow, FlowState, Hook, Reason};

use crate::{
    Verdict,
    frame::Frame,
    icmp,
    ip::Ip,
    packet::{Packet, Transport},
    rewrite::{Side, rewrite},
    tables::Tables,
};

/// Handles the packet whose IP header is at `offset`.
#[inline(always)]
pub fn egress<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, offset: usize) -> Verdict {
    match Packet::parse(frame, tables, offset, Hook::Egress) {
        None => Verdict::Pass,
        Some(Packet::IcmpError(header)) => icmp::translate(frame, tables, &header, Hook::Egress),
        Some(Packet::Transport(packet)) => transport(frame, tables, &packet),
    }
}

#[inline(always)]
fn transport<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, packet: &Transport<A>) -> Verdict {
    let mut flow = Flow::empty();
    if tables.flow(&packet.key(Hook::Egress), packet.closes(), &mut flow).is_none() {
        return Verdict::Pass;
    }
    if packet.answers_opening() && flow.state == FlowState::Closing as u8 {
        // The connection that came through the Service has ended, or a SYN to it would have opened its entries again:
        // this answers one that went straight to the backend, from the same port.
        tables.remove_flow(&packet.key(Hook::Egress));
        return Verdict::Pass;
    }
    packet.remember_fragment(tables, Hook::Egress);
    tables.count(&flow, frame.size(), false);
    match rewrite(frame, packet, Side::Source, &flow) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}
