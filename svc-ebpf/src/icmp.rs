//! ICMP errors about translated packets.
//!
//! An error carries the head of the packet it complains about. To belong to the receiver's connection, that head must
//! show the addresses the receiver knows. The head travels opposite to the error, so the entry that translates it is the
//! one whose key is the head's tuple *inverted*:
//!
//! * ingress: somebody complains about a reply we translated (VIP → client). The forward entry (client → VIP) gives the
//!   backend: it becomes the head's source and the error's destination.
//! * egress: somebody complains about a request we translated (client → backend). The reply entry (backend → client)
//!   gives the VIP: it becomes the head's destination, and the error's source if that is the backend itself. A router's
//!   address is left alone, or traceroute would lie. Likewise the entry that masquerades (client → backend) gives the node:
//!   that one becomes the error's source in any case, as nobody beyond it is known to the backend.
//! * ingress, about a masqueraded request: the inbound entry gives the client, and the egress program the rest.
//!
//! The transport checksum inside the head is left alone: receivers match heads by addresses and ports, and most heads
//! are cut before the data it covers.

use svc_common::{FlowKey, Hook, Ports, Reason, flow::FLOW_MASQUERADED, protocol};

use crate::{
    Verdict,
    checksum::Change,
    frame::{Covered, Frame},
    ip::{Fragment, Header, Ip, MAX_OFFSET},
    packet::ICMP_LEN,
    rewrite::{or, pair},
    scratch::Scratch,
    tables::Tables,
};

const ICMP_CHECKSUM: usize = 2;
const PORTS_LEN: usize = 4;

/// Translates the error in `scratch.packet`, if it is about a flow of ours.
#[inline(always)]
pub fn translate<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    hook: Hook,
) -> Verdict {
    let Some(ports) = find(frame, tables, scratch, hook) else { return Verdict::Pass };
    match write(frame, scratch, ports, hook) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::NotWritable),
    }
}

/// Looks for the entry, in `scratch.flow`, of the flow that the error in `scratch.packet` is about; the ports that its head
/// has.
#[inline(always)]
pub(crate) fn find<A: Ip, F: Frame, T: Tables<A>>(
    frame: &mut F,
    tables: &mut T,
    scratch: &mut Scratch<A>,
    hook: Hook,
) -> Option<Ports> {
    let Scratch { packet, head, key, flow, .. } = scratch;
    let ports = parse_head(frame, &packet.header, head)?;
    *key = FlowKey {
        source: head.destination.copy(),
        destination: head.source.copy(),
        source_port: ports.destination,
        destination_port: ports.source,
        protocol: head.protocol,
        hook: hook as u8,
        pad: [0; 2],
    };
    tables.peek_flow(key, flow).then_some(ports)
}

/// Header, in place, and ports of the packet that the error is about.
#[inline(always)]
fn parse_head<A: Ip, F: Frame>(frame: &mut F, outer: &Header<A>, head: &mut Header<A>) -> Option<Ports> {
    // Known already, but not to the verifier.
    if outer.payload > MAX_OFFSET {
        return None;
    }
    let at = outer.payload + ICMP_LEN;
    if !frame.require(at + A::HEADER_LEN) {
        return None;
    }
    A::parse(frame, at, head)?;
    head.payload = frame.forget(head.payload);
    let has_ports = matches!(head.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    if !has_ports || head.fragment == Fragment::Later {
        return None;
    }
    if head.payload > MAX_OFFSET || !frame.require(head.payload + PORTS_LEN) {
        return None;
    }
    let ports: [u8; PORTS_LEN] = frame.get(head.payload)?;
    Some(Ports {
        source: u16::from_be_bytes([ports[0], ports[1]]),
        destination: u16::from_be_bytes([ports[2], ports[3]]),
    })
}

/// Translates the error with what [`find`] has found.
#[inline(always)]
pub(crate) fn write<A: Ip, F: Frame>(frame: &mut F, scratch: &Scratch<A>, ports: Ports, hook: Hook) -> Option<()> {
    let Scratch { packet, head, flow, .. } = scratch;
    let outer = &packet.header;
    let new = &flow.address;
    let (old, head_at, new_ports, outer_old, outer_at) = match hook {
        Hook::Ingress => (
            &head.source,
            A::SOURCE,
            pair(flow.port, or(flow.peer_port, ports.destination)),
            &outer.destination,
            A::DESTINATION,
        ),
        Hook::Egress => (
            &head.destination,
            A::DESTINATION,
            pair(or(flow.peer_port, ports.source), flow.port),
            &outer.source,
            A::SOURCE,
        ),
    };
    let checksum = outer.payload + ICMP_CHECKSUM;
    let addresses = A::change(old, new);

    A::fix_header(frame, head.offset, addresses)?;
    frame.put(head.offset + head_at, new)?;
    let old_ports = pair(ports.source, ports.destination);
    frame.put(head.payload, &new_ports)?;
    // In IPv4 the head's own header checksum, which the error's checksum covers as well, cancels the address out.
    let covered = if A::VERSION == 6 { addresses } else { Change::none() };
    let covered = covered.replace(&old_ports, &new_ports);
    frame.fix_checksum(checksum, covered, Covered::Payload, false)?;

    // Of a masqueraded flow nobody beyond this node is known to the backend.
    let is_masqueraded = hook == Hook::Egress && flow.flags & FLOW_MASQUERADED != 0;
    if outer_old == old || is_masqueraded {
        let addresses = A::change(outer_old, new);
        A::fix_header(frame, outer.offset, addresses)?;
        frame.put(outer.offset + outer_at, new)?;
        if A::VERSION == 6 {
            frame.fix_checksum(checksum, addresses, Covered::PseudoHeader { ipv6: true }, false)?;
        }
    }
    Some(())
}
