//! What becomes of a packet with a tuple that came in: its flow, else its frontend, says so. Nothing is written to it here.

use svc_common::{
    BackendState, Flow, FlowKey, FlowState, Frontend, FrontendKey, Hook, Reason, Scope,
    config::INTERFACE_UPPER,
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADED},
    frontend::{FLAG_HOST_ONLY, FLAG_INSIDE_DROP, FLAG_OUTSIDE_DROP, FLAG_SOURCE_RANGES},
};

use crate::{
    filter::may_be_service,
    flow::reply,
    ip::Ip,
    nowhere::no_frontend,
    open::{close, open, repair},
    scratch::Scratch,
    tables::{Decisions, Tables},
};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It passes as it is.
    Pass,
    /// It passes, or goes up the stack if it is the reply of a flow on a bridge.
    Steer,
    /// It goes where `scratch.flow` says.
    Forward,
    /// The same, and it is the first of its flow.
    ForwardNew,
    /// Its sender is told that nobody serves it.
    Refuse(Reason),
    /// It ends here.
    Drop(Reason),
}

impl Decision {
    /// The decision as a number, which a function of the kernel can return: the kind, and the reason above it.
    #[inline(always)]
    pub fn to_u32(self) -> u32 {
        match self {
            Self::Pass => 0,
            Self::Steer => 1,
            Self::Forward => 2,
            Self::ForwardNew => 3,
            Self::Refuse(reason) => 4 | (reason as u32) << 8,
            Self::Drop(reason) => 5 | (reason as u32) << 8,
        }
    }

    /// The decision of a number that [`Decision::to_u32`] gave.
    #[inline(always)]
    pub fn from_u32(number: u32) -> Self {
        let reason = Reason::from_u8((number >> 8) as u8);
        match number & 0xff {
            0 => Self::Pass,
            1 => Self::Steer,
            2 => Self::Forward,
            3 => Self::ForwardNew,
            4 => Self::Refuse(reason),
            _ => Self::Drop(reason),
        }
    }
}

/// Decides on `scratch.packet`, a packet with a tuple that came in.
#[inline(always)]
pub fn decide<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Decision {
    scratch.packet.write_key(Hook::Ingress, &mut scratch.key);
    let may_be_service = may_be_service(tables, &scratch.packet);
    let mut has_flow = false;
    if may_be_service && let Some(first_in_tick) = tables.flow(&scratch.key, scratch.packet.closes(), &mut scratch.flow)
    {
        if is_second_look(tables, &scratch.flow) {
            return Decision::Pass;
        }
        // A claim of others' flow (`masquerade.rs`) keeps its key, and nothing more.
        if scratch.flow.flags & FLOW_DIRECT != 0 && scratch.flow.peer_port == 0 {
            return Decision::Pass;
        }
        if keeps_backend(tables, scratch, first_in_tick) {
            if first_in_tick && scratch.flow.flags & FLOW_HAIRPIN == 0 {
                repair(tables, scratch);
            }
            return Decision::Forward;
        }
        has_flow = true;
    }

    scratch.interface = tables.interface();
    scratch.inside = scratch.interface.scope == Scope::Inside as u8;
    // One way to each end: the verifier walks what is behind it once for each way there.
    let found = if may_be_service { frontend(tables, &scratch.key) } else { None };
    match found {
        Some(frontend) => scratch.frontend = frontend,
        None => {
            if has_flow {
                close(tables, scratch);
            }
            return no_frontend(tables, scratch);
        }
    }
    let frontend = &scratch.frontend;
    let limited = !scratch.inside && frontend.flags & FLAG_SOURCE_RANGES != 0;
    if limited && !tables.source_allowed(frontend.service, &scratch.key.source) {
        return Decision::Drop(Reason::SourceRange);
    }
    scratch.range = if scratch.inside { frontend.inside } else { frontend.outside };
    if !scratch.packet.may_open() {
        if scratch.range.len != 0 && tables.recover(scratch) {
            return Decision::Forward;
        }
        // A client inside does not come by another node half-way, wherever the address may be reached.
        if scratch.inside || !scratch.frontend.may_move() {
            // A connection that others translate: netfilter, from before this dataplane took over.
            return Decision::Pass;
        }
    }
    if scratch.range.len == 0 {
        let drop_flag = if scratch.inside { FLAG_INSIDE_DROP } else { FLAG_OUTSIDE_DROP };
        return if scratch.frontend.flags & drop_flag != 0 {
            Decision::Drop(Reason::PolicyEmpty)
        } else if has_flow && !scratch.packet.is_connection() {
            // A datagram flow whose Service has nobody left stays where it is: its backend may come back.
            Decision::Forward
        } else {
            Decision::Refuse(Reason::NoEndpoint)
        };
    }
    match open(tables, scratch) {
        Ok(()) => Decision::ForwardNew,
        Err(reason) => Decision::Drop(reason),
    }
}

#[inline(always)]
fn frontend<A: Ip, T: Decisions<A>>(tables: &mut T, key: &FlowKey<A>) -> Option<Frontend> {
    let frontend = tables.frontend(&FrontendKey::new(key.destination.copy(), key.destination_port, key.protocol))?;
    (frontend.flags & FLAG_HOST_ONLY == 0).then_some(frontend)
}

/// True for a packet that has a direct flow's tuple on a device on top of the one where it came in: there it had another one,
/// and was translated, or its port was changed.
#[inline(always)]
fn is_second_look<A: Ip, T: Tables<A>>(tables: &mut T, flow: &Flow<A>) -> bool {
    flow.flags & FLOW_DIRECT != 0 && flow.peer_port != 0 && tables.interface().flags & INTERFACE_UPPER != 0
}

/// Whether a packet goes where its flow says. Not so: a SYN on a tuple whose connection has ended or whose backend is
/// gone, a datagram whose backend is gone, a datagram to an address that is no longer a frontend.
#[inline(always)]
fn keeps_backend<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>, first_in_tick: bool) -> bool {
    let (packet, flow) = (&scratch.packet, &scratch.flow);
    if flow.flags & (FLOW_HAIRPIN | FLOW_MASQUERADED) != 0 {
        return true;
    }
    if packet.is_connection() {
        if !packet.opens() {
            return true;
        }
        let closing = FlowState::Closing as u8;
        reply(&mut scratch.entry, &scratch.key, flow);
        let has_reply = tables.peek_flow(&scratch.entry.key, &mut scratch.found);
        if flow.state == closing || !has_reply || scratch.found.state == closing {
            return false;
        }
    } else if flow.flags & FLOW_DIRECT == 0 && first_in_tick && frontend(tables, &scratch.key).is_none() {
        return false;
    }
    flow.flags & FLOW_DIRECT != 0 || serves(tables, flow)
}

/// True while the backend that a flow names is the one it was opened to.
#[inline(always)]
fn serves<A: Ip, T: Decisions<A>>(tables: &mut T, flow: &Flow<A>) -> bool {
    tables
        .backend(flow.backend)
        .is_some_and(|backend| backend.generation == flow.generation && backend.state != BackendState::Gone as u8)
}
