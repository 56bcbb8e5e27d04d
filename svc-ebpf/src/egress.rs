//! What goes out: sources are rewritten.

use svc_common::{
    Hook, Reason,
    config::INTERFACE_UPPER,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADED},
    masquerade::PROGRAM_MARK,
    vip::VIP_INSIDE,
};

use crate::{
    Verdict, echo,
    filter::outgoing,
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
        // Fragments that netfilter has seen are in order here: it puts datagrams together and takes them apart again.
        Kind::Other | Kind::Early => Verdict::Pass,
        Kind::IcmpError => icmp::translate(frame, tables, scratch, Hook::Egress),
        // Requests of others were answered where they came in: this one is the host's own.
        Kind::Echo => echo::answer(frame, tables, &scratch.packet.header, VIP_INSIDE),
        Kind::Transport => transport(frame, tables, scratch),
    }
}

/// What the tables say of the source of a packet that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It becomes what `scratch.flow` says.
    Rewrite,
    /// It stays as it is.
    Nothing,
    /// The packet ends here.
    Drop(Reason),
}

#[inline(always)]
fn transport<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    match find(frame, tables, scratch) {
        Found::Rewrite => write(frame, tables, scratch),
        Found::Nothing => Verdict::Pass,
        Found::Drop(reason) => Verdict::Drop(reason),
    }
}

/// Looks for the source of `scratch.packet`, a packet with a tuple that leaves. Nothing of it is written but its mark.
#[inline(always)]
pub fn find<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Found {
    let is_marked = frame.take_mark(PROGRAM_MARK);
    let may_clash = !is_marked && may_clash(tables, &scratch.packet);
    if !is_marked && !may_clash && !outgoing(tables, &scratch.packet) {
        return Found::Nothing;
    }
    scratch.packet.write_key(Hook::Egress, &mut scratch.key);
    let Some(first_in_tick) = tables.flow(&scratch.key, scratch.packet.closes(), &mut scratch.flow) else {
        return if is_marked {
            masquerade(frame, tables, scratch, Task::Open)
        } else if may_clash {
            masquerade(frame, tables, scratch, Task::Apart)
        } else {
            Found::Nothing
        };
    };
    if scratch.flow.flags & FLOW_MASQUERADED != 0 {
        // Somebody's own packet with the tuple of a masqueraded flow: that one's are marked.
        if !is_marked && !may_clash {
            return Found::Nothing;
        }
        if needs_care(&scratch.packet, &scratch.flow, first_in_tick) {
            return masquerade(frame, tables, scratch, Task::Keep);
        }
        return masqueraded(frame, tables);
    }
    let is_direct = scratch.flow.flags & FLOW_DIRECT != 0;
    // On a device on top of another one that has programs it is too early: with its own port back, a direct reply looks like
    // one of the Service's flow to the device below.
    if is_direct && (scratch.flow.peer_port == 0 || tables.interface().flags & INTERFACE_UPPER != 0) {
        return Found::Nothing;
    }
    if first_in_tick && scratch.flow.flags & FLOW_HAIRPIN == 0 {
        repair_forward(tables, scratch);
    }
    if !is_direct {
        tables.count(&scratch.flow, frame.size(), false);
    }
    Found::Rewrite
}

#[inline(always)]
fn masquerade<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    task: Task,
) -> Found {
    let outcome = match tables.masquerade(scratch, task) {
        Outcome::Choose => choose_port(tables, scratch),
        outcome => outcome,
    };
    match outcome {
        Outcome::Rewrite => masqueraded(frame, tables),
        Outcome::Pass => Found::Nothing,
        Outcome::Taken | Outcome::Choose => Found::Drop(Reason::TupleTaken),
        Outcome::Full => Found::Drop(Reason::FlowTableFull),
        Outcome::NoSource => Found::Drop(Reason::Inconsistent),
    }
}

/// On a device on top of another one that has programs, the mark stays: to the device below, the packet would look like one of
/// others with one of our ports.
#[inline(always)]
fn masqueraded<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T) -> Found {
    if tables.interface().flags & INTERFACE_UPPER != 0 {
        frame.mark(PROGRAM_MARK);
    }
    Found::Rewrite
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
