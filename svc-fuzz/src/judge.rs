//! What the packet path may do to a packet, whatever its tables hold: judged from the bytes before and after, with the
//! offsets and sums of `wire` and with `etherparse`, never with the code under test.
//!
//! * Ingress changes the destination, egress the source; of an ICMP error, also the opposite address of the head it carries.
//! * With an address go its port, the checksums that cover it, and the other side's port. On a bridge port, ingress may
//!   write the bridge's hardware address instead. Not one other byte changes.
//! * A valid checksum stays valid, and one that was wrong stays wrong by the same amount.

use std::ops::Range;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

use crate::wire::{ICMP, ICMPV6, Layout, Position, SCTP, TCP, UDP, crc32c, dissect, fold, network, word};

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// It goes out.
    pub egress: bool,
    /// It has an Ethernet header.
    pub has_link: bool,
    /// Hardware address of the bridge, where it arrived on a port of one.
    pub bridge: Option<[u8; 6]>,
}

/// Panics with an explanation if the packet path must not turn `before` into `after`.
pub fn passed(before: &[u8], after: &[u8], at: Circumstances) {
    assert_eq!(before.len(), after.len(), "the length changed");
    if before == after {
        return;
    }
    if let Some(mac) = at.bridge.filter(|_| !at.egress && at.has_link)
        && before[6..] == after[6..]
    {
        assert_eq!(after[..6], mac, "steered to another address than the bridge's");
        return;
    }
    let layout = network(before, at.has_link).and_then(|offset| dissect(before, offset));
    let layout = layout.expect("a frame changed that is no IP packet");
    let allowed = match layout.protocol {
        ICMP if layout.version == 4 => error(before, after, &layout, at),
        ICMPV6 if layout.version == 6 => error(before, after, &layout, at),
        _ => transport(before, after, &layout, at),
    };
    for (offset, (old, new)) in before.iter().zip(after).enumerate() {
        let may = allowed.iter().any(|range| range.contains(&offset));
        assert!(old == new || may, "byte {offset} changed from {old:#x} to {new:#x}: {layout:?}");
    }
    let sum = |bytes: &[u8]| fold([&bytes[layout.header.clone()]]);
    if layout.version == 4 {
        assert_eq!(sum(before), sum(after), "the IPv4 header checksum went wrong");
    }
    let ip = layout.header.start;
    for (what, (was, is)) in ["IPv4 header", "transport"].into_iter().zip(exact(&before[ip..]).zip(exact(&after[ip..])))
    {
        assert!(!was || is, "the {what} checksum was exactly right and is not any more");
    }
}

/// Pairs each checksum that can be told before and after.
trait Pairs {
    fn zip(self, other: Self) -> Vec<(bool, bool)>;
}

impl Pairs for [Option<bool>; 2] {
    fn zip(self, other: Self) -> Vec<(bool, bool)> {
        self.into_iter().zip(other).map(|(was, is)| (was == Some(true), was.is_none() || is == Some(true))).collect()
    }
}

fn header_checksum(layout: &Layout) -> Option<Range<usize>> {
    (layout.version == 4).then(|| layout.header.start + 10..layout.header.start + 12)
}

/// TCP, UDP and whatever else has ports; checks the transport checksum and returns what may change.
fn transport(before: &[u8], after: &[u8], layout: &Layout, at: Circumstances) -> Vec<Range<usize>> {
    let address = if at.egress { &layout.source } else { &layout.destination };
    let mut allowed = vec![address.clone()];
    allowed.extend(header_checksum(layout));
    if layout.position == Position::Later {
        return allowed;
    }
    // A datagram that ends before its transport header does, in a frame that goes on: what it is cannot be told.
    let layout = &match layout.checksum() {
        Some(checksum) if checksum + 2 > layout.payload.end => {
            Layout { payload: layout.payload.start..before.len(), ..layout.clone() }
        }
        _ => layout.clone(),
    };
    let ports = layout.payload.start;
    allowed.push(ports..ports + 4);
    if layout.protocol == SCTP {
        sctp(before, after, layout);
        allowed.push(ports + 8..ports + 12);
        return allowed;
    }
    let Some(checksum) = layout.checksum() else { return allowed };
    allowed.push(checksum..checksum + 2);
    let is_udp = layout.protocol == UDP;
    assert!(is_udp || layout.protocol == TCP, "protocol {} was translated", layout.protocol);
    if is_udp && word(before, checksum) == Some(0) {
        assert_eq!(word(after, checksum), Some(0), "a UDP packet without a checksum got one");
    } else {
        assert!(!is_udp || word(after, checksum) != Some(0), "a UDP packet lost its checksum");
        assert_eq!(
            layout.pseudo_sum(before),
            layout.pseudo_sum(after),
            "the transport checksum went wrong: {layout:?}"
        );
    }
    allowed
}

/// SCTP: CRC32c changes with the ports by as much as it does for anybody, or stays zero (left to a device).
fn sctp(before: &[u8], after: &[u8], layout: &Layout) {
    let ports = layout.payload.start;
    let field =
        |bytes: &[u8]| u32::from_be_bytes([bytes[ports + 8], bytes[ports + 9], bytes[ports + 10], bytes[ports + 11]]);
    if before[ports..ports + 4] == after[ports..ports + 4] || field(before) == 0 {
        assert_eq!(field(before), field(after), "the SCTP checksum changed, and nothing it covers");
        return;
    }
    assert_eq!(layout.position, Position::Whole, "ports of an SCTP fragment, whose checksum covers more, changed");
    if layout.is_complete {
        let off = |bytes: &[u8]| field(bytes) ^ u32::from_be_bytes(crc32c(&bytes[layout.payload.clone()]));
        assert_eq!(off(before), off(after), "the SCTP checksum went wrong");
    }
}

/// Panics unless `after` is the ICMP error that refuses `before`: from the address it was sent to, with its beginning.
pub fn refused(before: &[u8], after: &[u8], has_link: bool) {
    let start = turned_round(before, after, has_link);
    let old = dissect(before, start).expect("refused what is no IP packet");
    let new = dissect(after, start).expect("the refusal is no IP packet");
    assert!(matches!(old.protocol, TCP | UDP | SCTP) && old.position != Position::Later, "{old:?} must not be refused");
    assert_eq!(before[old.source.clone()], after[new.destination.clone()], "the refusal goes elsewhere");
    assert_eq!(before[old.destination.clone()], after[new.source.clone()], "the refusal comes from elsewhere");
    let (protocol, kind, code, most) = if old.version == 4 { (ICMP, 3, 3, 576) } else { (ICMPV6, 1, 4, 1280) };
    assert_eq!((new.version, new.protocol, new.position), (old.version, protocol, Position::Whole));
    assert_eq!(after[new.payload.start..new.payload.start + 2], [kind, code]);
    assert_eq!(after[new.payload.start + 4..new.payload.start + 8], [0; 4]);
    assert!(new.is_complete && new.payload.end == after.len() && after.len() - start <= most, "{new:?}");
    let head = &after[new.payload.start + 8..];
    assert!(before[start..].starts_with(head), "the refusal carries something else than the packet's beginning");
    assert!(head.len() >= old.payload.start - start + 8, "the refusal carries too little");
    if old.version == 4 {
        assert_eq!(fold([&after[new.header.clone()]]), 0, "the refusal's IPv4 header checksum");
    }
    // The error's checksum is derived from the packet's own.
    let was_right = exact(&before[start..]);
    let has_sum = old.protocol != SCTP && !(old.protocol == UDP && word(before, old.payload.start + 6) == Some(0));
    // And from that of the IPv4 header, which `exact` does not look at in a packet that is cut short.
    let has_right_header = old.version != 4 || fold([&before[old.header.clone()]]) == 0;
    if has_right_header && !was_right.contains(&Some(false)) && (was_right[1] == Some(true) || !has_sum) {
        assert_eq!(exact(&after[start..])[1], Some(true), "the refusal's ICMP checksum");
    }
}

/// Panics unless `after` is the answer to the echo request `before`.
pub fn answered(before: &[u8], after: &[u8], has_link: bool) {
    let start = turned_round(before, after, has_link);
    assert_eq!(before.len(), after.len(), "the length changed");
    let old = dissect(before, start).expect("answered what is no IP packet");
    let (request, reply) = if old.version == 4 { (8, 0) } else { (128, 129) };
    assert_eq!((before[old.payload.start], after[old.payload.start]), (request, reply));
    assert_eq!(before[old.source.clone()], after[old.destination.clone()], "the answer goes elsewhere");
    assert_eq!(before[old.destination.clone()], after[old.source.clone()], "the answer comes from elsewhere");
    let hops = old.header.start + if old.version == 4 { 8 } else { 7 };
    let checksum = old.payload.start + 2;
    let mut allowed =
        vec![0..start, old.source.clone(), old.destination.clone(), hops..hops + 1, checksum..checksum + 2];
    allowed.push(old.payload.start..old.payload.start + 1);
    allowed.extend(header_checksum(&old));
    for (offset, (was, is)) in before.iter().zip(after).enumerate() {
        let may = allowed.iter().any(|range| range.contains(&offset));
        assert!(was == is || may, "byte {offset} changed from {was:#x} to {is:#x}: {old:?}");
    }
    let sum = |bytes: &[u8]| match old.version {
        4 => (fold([&bytes[old.header.clone()]]), fold([&bytes[old.payload.clone()]])),
        _ => (0, old.pseudo_sum(bytes)),
    };
    assert_eq!(sum(before), sum(after), "a checksum of the answer went wrong");
}

/// Checks that the frame goes back to where it came from; returns the offset of the IP header.
fn turned_round(before: &[u8], after: &[u8], has_link: bool) -> usize {
    let start = network(before, has_link).expect("answered what is no IP packet");
    if has_link {
        assert_eq!((&before[..6], &before[6..12]), (&after[6..12], &after[..6]), "not back to where it came from");
        assert_eq!(before[12..start], after[12..start], "the link header changed");
    }
    start
}

/// ICMP errors; checks both checksums and returns what may change.
fn error(before: &[u8], after: &[u8], layout: &Layout, at: Circumstances) -> Vec<Range<usize>> {
    let kind = before[layout.payload.start];
    let complains = if layout.version == 4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) };
    assert!(complains && layout.position == Position::Whole, "ICMP of type {kind} was translated");
    let head = dissect(before, layout.payload.start + 8).expect("translated without a head");
    assert_eq!(head.version, layout.version);
    let (outer, inner) =
        if at.egress { (&layout.source, &head.destination) } else { (&layout.destination, &head.source) };
    let checksum = layout.payload.start + 2;
    let mut allowed = vec![outer.clone(), inner.clone(), checksum..checksum + 2];
    // A head may claim less than it carries: ports stand where its header ends.
    let ports = if head.version == 4 { head.header.end } else { head.payload.start };
    allowed.push(ports..ports + 4);
    allowed.extend(header_checksum(layout).into_iter().chain(header_checksum(&head)));
    assert!(head.position != Position::Later, "a head without ports was translated");

    let inner_sum = |bytes: &[u8]| fold([&bytes[head.header.clone()]]);
    if head.version == 4 {
        assert_eq!(inner_sum(before), inner_sum(after), "the head's IPv4 header checksum went wrong");
    }
    // A head that the error's own length cuts off, in a frame that goes on, is translated where it stands.
    let end = if ports + 4 > layout.payload.end { before.len() } else { layout.payload.end };
    let layout = Layout { payload: layout.payload.start..end, ..layout.clone() };
    let sum = |bytes: &[u8]| match layout.version {
        4 => fold([&bytes[layout.payload.clone()]]),
        _ => layout.pseudo_sum(bytes),
    };
    assert_eq!(sum(before), sum(after), "the ICMP checksum went wrong");
    allowed
}

/// Whether the IPv4 header's and the transport's checksum are exactly what `etherparse` computes; `None`: it cannot tell.
fn exact(packet: &[u8]) -> [Option<bool>; 2] {
    let Ok(headers) = PacketHeaders::from_ip_slice(packet) else { return [None, None] };
    let payload = headers.payload.slice();
    let header = match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => Some(ip.header_checksum == ip.calc_header_checksum()),
        _ => None,
    };
    let transport = match (&headers.transport, &headers.net) {
        (Some(TransportHeader::Udp(udp)), _) if udp.checksum == 0 => None,
        (Some(TransportHeader::Udp(udp)), Some(NetHeaders::Ipv4(ip, _))) => {
            udp.calc_checksum_ipv4(ip, payload).ok().map(|right| right == udp.checksum)
        }
        (Some(TransportHeader::Udp(udp)), Some(NetHeaders::Ipv6(ip, _))) => {
            udp.calc_checksum_ipv6(ip, payload).ok().map(|right| right == udp.checksum)
        }
        (Some(TransportHeader::Tcp(tcp)), Some(NetHeaders::Ipv4(ip, _))) => {
            tcp.calc_checksum_ipv4(ip, payload).ok().map(|right| right == tcp.checksum)
        }
        (Some(TransportHeader::Tcp(tcp)), Some(NetHeaders::Ipv6(ip, _))) => {
            tcp.calc_checksum_ipv6(ip, payload).ok().map(|right| right == tcp.checksum)
        }
        (Some(TransportHeader::Icmpv4(icmp)), _) => Some(icmp.icmp_type.calc_checksum(payload) == icmp.checksum),
        (Some(TransportHeader::Icmpv6(icmp)), Some(NetHeaders::Ipv6(ip, _))) => {
            let right = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload);
            right.ok().map(|right| right == icmp.checksum)
        }
        _ => None,
    };
    [header, transport]
}

/// Panics unless `etherparse` finds every checksum of an IP packet right: for packets made by this crate.
pub fn assert_valid(packet: &[u8]) {
    assert!(!exact(packet).contains(&Some(false)), "{packet:02x?}");
}
