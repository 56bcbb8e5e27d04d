//! What goes out: sources are rewritten.

use svc_common::{
    Hook, Reason,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADED},
    masquerade::PROGRAM_MARK,
    vip::VIP_INSIDE,
};

use crate::{
    Verdict, echo,
    frame::Frame,
    icmp,
    ip::Ip,
    masquerade::{Outcome, Task, choose_port, may_clash, needs_care},
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
    scratch.packet.write_key(Hook::Egress, &mut scratch.key);
    let Some(first_in_tick) = tables.flow(&scratch.key, scratch.packet.closes(), &mut scratch.flow) else {
        if frame.take_mark(PROGRAM_MARK) {
            return masquerade(frame, tables, scratch, Task::Open);
        }
        if may_clash(tables, &scratch.packet) {
            return masquerade(frame, tables, scratch, Task::Apart);
        }
        return Verdict::Pass;
    };
    if scratch.flow.flags & FLOW_MASQUERADED != 0 {
        frame.take_mark(PROGRAM_MARK);
        if needs_care(&scratch.packet, &scratch.flow, first_in_tick) {
            return masquerade(frame, tables, scratch, Task::Keep);
        }
        return write(frame, tables, scratch);
    }
    let is_direct = scratch.flow.flags & FLOW_DIRECT != 0;
    if is_direct && scratch.flow.peer_port == 0 {
        return Verdict::Pass;
    }
    if first_in_tick && scratch.flow.flags & FLOW_HAIRPIN == 0 {
        repair_forward(tables, scratch);
    }
    if !is_direct {
        tables.count(&scratch.flow, frame.size(), false);
    }
    write(frame, tables, scratch)
}

#[inline(always)]
fn masquerade<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    task: Task,
) -> Verdict {
    let outcome = match tables.masquerade(scratch, task) {
        Outcome::Choose => choose_port(tables, scratch),
        outcome => outcome,
    };
    match outcome {
        Outcome::Rewrite => write(frame, tables, scratch),
        Outcome::Pass => Verdict::Pass,
        Outcome::Taken | Outcome::Choose => Verdict::Drop(Reason::TupleTaken),
        Outcome::Full => Verdict::Drop(Reason::FlowTableFull),
        Outcome::NoSource => Verdict::Drop(Reason::Inconsistent),
    }
}

#[inline(always)]
fn write<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    let Scratch { packet, flow, fragment, .. } = scratch;
    packet.remember_fragment(tables, Hook::Egress, fragment);
    match rewrite(frame, packet, Side::Source, flow) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}
