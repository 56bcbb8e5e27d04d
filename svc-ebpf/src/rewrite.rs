//! Writing a flow's decision into the frame: one address, its port, where needed the other port, and the checksums.

use svc_common::{Flow, protocol};

use crate::{
    checksum::Change,
    frame::{Covered, Frame},
    ip::{Fragment, Ip},
    packet::Packet,
};

/// Which address of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Egress rewrites sources.
    Source,
    /// Ingress rewrites destinations.
    Destination,
}

/// Rewrites `side` of the packet to `flow.address:port`, and the port of the other side to `flow.peer_port` unless that
/// is 0. `None`: the frame cannot be written; it may be half rewritten and must be dropped.
#[inline(always)]
pub fn rewrite<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, side: Side, flow: &Flow<A>) -> Option<()> {
    let header = &packet.header;
    let addresses = A::change(if side == Side::Source { &header.source } else { &header.destination }, &flow.address);
    let old = pair(packet.ports.source, packet.ports.destination);
    let (source, destination) = match side {
        Side::Source => (flow.port, or(flow.peer_port, packet.ports.destination)),
        Side::Destination => (or(flow.peer_port, packet.ports.source), flow.port),
    };
    let new = pair(source, destination);
    // Each write is a call of the kernel, so ports go with the addresses where nothing is between them.
    let has_ports = header.fragment != Fragment::Later;
    let is_plain = has_ports && header.payload == header.offset + A::HEADER_LEN && header.protocol != protocol::SCTP;
    A::write_address(frame, header, side, &flow.address, addresses, is_plain.then_some(&new))?;
    if !has_ports {
        return Some(());
    }
    if header.protocol == protocol::SCTP {
        return if new == old { Some(()) } else { sctp_ports(frame, packet, &old, &new) };
    }
    let is_udp = header.protocol == protocol::UDP;
    let checksum = header.payload + if is_udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
    let pseudo_header = Covered::PseudoHeader { ipv6: A::VERSION == 6 };
    frame.fix_checksum(checksum, addresses, pseudo_header, is_udp)?;
    if new != old {
        if !is_plain {
            frame.put(header.payload, &new)?;
        }
        frame.fix_checksum(checksum, Change::none().replace(&old, &new), Covered::Payload, is_udp)?;
    }
    Some(())
}

/// SCTP's checksum covers the whole packet and no address.
#[inline(always)]
fn sctp_ports<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, old: &[u8; 4], new: &[u8; 4]) -> Option<()> {
    let header = &packet.header;
    if header.fragment != Fragment::Whole {
        return None; // how much the checksum covers is not known
    }
    frame.put(header.payload, new)?;
    let at = header.payload + SCTP_CHECKSUM;
    let checksum: [u8; 4] = frame.get(at)?;
    if checksum == [0; 4] {
        return Some(()); // left to the device that sends it (CHECKSUM_PARTIAL)
    }
    let xor = |a: &[u8; 4], b: &[u8; 4]| [a[0] ^ b[0], a[1] ^ b[1], a[2] ^ b[2], a[3] ^ b[3]];
    let len = (header.len + header.offset).checked_sub(header.payload)?;
    if len < SCTP_CHECKSUM + 4 {
        return None; // the IP header says that the packet ends before its checksum does
    }
    let change = frame.crc32c_change(xor(old, new), len as u32);
    frame.put(at, &xor(&checksum, &change))
}

/// RFC 768.
const UDP_CHECKSUM: usize = 6;
/// RFC 9293 section 3.1.
const TCP_CHECKSUM: usize = 16;
/// RFC 9260 section 3.1.
const SCTP_CHECKSUM: usize = 8;

/// Source and destination port as they stand at the head of every transport header.
#[inline(always)]
pub fn pair(source: u16, destination: u16) -> [u8; 4] {
    let (source, destination) = (source.to_be_bytes(), destination.to_be_bytes());
    [source[0], source[1], destination[0], destination[1]]
}

/// `port`, or `unchanged` where it is 0.
#[inline(always)]
pub fn or(port: u16, unchanged: u16) -> u16 {
    if port == 0 { unchanged } else { port }
}
