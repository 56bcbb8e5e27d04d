//! Direct connections to endpoints, kept apart from those that come through a Service.
//!
//! A client may use one source port through a VIP and, at the same time, directly to the endpoint behind it. Towards the
//! endpoint both would have one tuple, and its replies to the one would be translated as if they were of the other. So a
//! direct flow claims the reply's tuple when it opens; a flow of a Service that comes later finds it taken ([`crate::open`]).
//! If a flow of a Service has it already, the direct flow's client port is remapped towards the endpoint.

use svc_common::{
    Flow, FlowState,
    flow::{FLOW_DIRECT, FLOW_INSIDE},
    flow_hash,
};

use crate::{
    flow::reply,
    ip::Ip,
    open::{SPREAD, claim, remapped_port},
    scratch::Scratch,
    tables::{Insert, Tables},
};

const ATTEMPTS: u32 = 4;

/// What keeping a direct flow apart took.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// Nothing: the packet passes as it is.
    Alone = 0,
    /// Another client port: `scratch.flow` says which, and its entries are made.
    Remapped = 1,
    /// No port was free.
    Failed = 2,
}

/// Keeps the direct flow `scratch.key` apart. Its destination may be an endpoint; the packet may be the first of the flow.
#[inline(always)]
pub fn keep_apart<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) -> Apart {
    direct(tables, scratch);
    reply(&mut scratch.entry, &scratch.key, &scratch.flow);
    if !tables.peek_flow(&scratch.entry.key, &mut scratch.found) {
        // Whoever made the entry meanwhile: the next packet sees it. A full table is no reason to harm a direct flow.
        let _ = tables.insert_flow(&scratch.entry.key, &scratch.entry.flow);
        return Apart::Alone;
    }
    if scratch.found.flags & FLOW_DIRECT != 0 && scratch.found.peer_port == 0 {
        return Apart::Alone;
    }
    tables.set_unusual(&scratch.key.source, &scratch.key.destination);
    let key = &scratch.key;
    let hash = flow_hash(&key.source, key.source_port, &key.destination, key.destination_port, key.protocol);
    for number in 0..ATTEMPTS {
        scratch.flow.peer_port = remapped_port(hash.wrapping_add(number.wrapping_mul(SPREAD)));
        if claim(tables, scratch) == Insert::Done && tables.replace_flow(&scratch.key, &scratch.flow) {
            return Apart::Remapped;
        }
    }
    Apart::Failed
}

/// Writes the value of a direct flow's forward entry: it goes where it goes.
#[inline(always)]
fn direct<A: Ip, T: Tables<A>>(tables: &mut T, scratch: &mut Scratch<A>) {
    scratch.flow = Flow {
        address: scratch.key.destination.copy(),
        port: scratch.key.destination_port,
        peer_port: 0,
        backend: 0,
        generation: 0,
        service: 0,
        last_seen: tables.now(),
        state: FlowState::Open as u8,
        flags: if scratch.inside { FLOW_DIRECT | FLOW_INSIDE } else { FLOW_DIRECT },
        pad: [0; 2],
    };
}
