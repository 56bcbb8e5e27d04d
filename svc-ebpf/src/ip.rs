//! IP headers of both versions: what a hook needs of them, and where their addresses stand.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use svc_common::{Address, protocol};

use crate::{checksum::Change, frame::Frame, rewrite::Side};

/// Highest offset at which a header is read: far beyond any real stack of headers, small enough for the verifier to see
/// that packet arithmetic cannot wrap ("math between pkt pointer and register with unbounded min value").
pub const MAX_OFFSET: usize = 0x3ff;

/// Hop limit of packets that start here (IANA "IP Parameters", default TTL).
const HOPS: u8 = 64;

/// The pseudo header that transport checksums cover (RFC 9293 section 3.1, RFC 8200 section 8.1); `len` is that of the
/// transport header and its payload.
#[inline(always)]
pub fn pseudo_header<A: Address>(source: &A, destination: &A, protocol: u8, len: usize) -> Change {
    let mut sum = Change::none().cover(&(len as u32).to_be_bytes()).cover(&[0, protocol]);
    for words in [source.words(), destination.words()] {
        for word in words {
            sum = sum.cover(&word.to_be_bytes());
        }
    }
    sum
}

/// Position of a packet in its datagram.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The packet is the whole datagram.
    Whole = 0,
    /// The first fragment: it carries the transport header.
    First = 1,
    /// A later fragment: no transport header.
    Later = 2,
}

/// An IP header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<A> {
    /// Source address, *network order*.
    pub source: A,
    /// Destination address, *network order*.
    pub destination: A,
    /// Protocol behind all extension headers.
    pub protocol: u8,
    /// Fragmentation.
    pub fragment: Fragment,
    /// Identification of the datagram that a fragment is of, *host order*.
    pub id: u32,
    /// Offset of the IP header in the frame.
    pub offset: usize,
    /// Offset of what follows: the transport header, but for later fragments.
    pub payload: usize,
    /// Bytes of the packet from its IP header on, as that header has it: a frame may be padded.
    pub len: usize,
}

/// An address family whose headers can be parsed and rewritten.
pub trait Ip: Address {
    /// ICMP's protocol number in this family.
    const ICMP: u8;
    /// Bytes of the header without options or extension headers.
    const HEADER_LEN: usize;
    /// Offset of the source address in the header.
    const SOURCE: usize;
    /// Offset of the destination address in the header.
    const DESTINATION: usize;

    /// Parses the header at `offset`, which must be readable for [`Ip::HEADER_LEN`] bytes. `None` for anything but a
    /// well-formed header. In place: a header that is returned would lie on the stack first.
    fn parse<F: Frame>(frame: &mut F, offset: usize, into: &mut Header<Self>) -> Option<()>;

    /// Offset of a later fragment in its datagram, in KiB. `header` is that of the packet in `frame`.
    fn fragment_position<F: Frame>(frame: &F, header: &Header<Self>) -> Option<u32>;

    /// How the pseudo header or payload of a transport checksum changes with an address.
    fn change(old: &Self, new: &Self) -> Change;

    /// Writes a new address into the header, whose own checksum, if it has one, follows by `change`; and behind the header,
    /// which has no options or extensions then, `ports`.
    fn write_address<F: Frame>(
        frame: &mut F,
        header: &Header<Self>,
        side: Side,
        new: &Self,
        change: Change,
        ports: Option<&[u8; 4]>,
    ) -> Option<()>;

    /// Adjusts the header's own checksum, if it has one.
    fn fix_header<F: Frame>(frame: &mut F, offset: usize, change: Change) -> Option<()>;

    /// Type and code of the error that says "nobody serves this port".
    const PORT_UNREACHABLE: [u8; 2];
    /// ICMP types of the echo request and its reply.
    const ECHO: [u8; 2];
    /// Most bytes of an ICMP error, IP header included.
    const MAX_ERROR: usize;

    /// Writes the header of a packet that starts here: no options, a hop limit of 64, `payload` bytes behind it.
    fn write<F: Frame>(frame: &mut F, offset: usize, source: &Self, destination: &Self, payload: usize) -> Option<()>;

    /// The hop limit of the header at `offset`.
    fn hops<F: Frame>(frame: &F, offset: usize) -> Option<u8>;

    /// Sets the hop limit of the header at `offset`.
    fn set_hops<F: Frame>(frame: &mut F, offset: usize, hops: u8) -> Option<()>;

    /// Sets the hop limit of the header at `offset` to 64.
    #[inline(always)]
    fn renew_hops<F: Frame>(frame: &mut F, offset: usize) -> Option<()> {
        Self::set_hops(frame, offset, HOPS)
    }

    /// What the header of a packet contributes to a checksum that covers it, extension headers not included. A valid IPv4
    /// header adds up to zero, its own checksum does that.
    fn header_sum<F: Frame>(frame: &F, offset: usize) -> Option<Change>;

    /// What ICMP's checksum covers of the IP header: a pseudo header in IPv6 (RFC 4443 section 2.3), nothing in IPv4.
    fn icmp_pseudo_header(source: &Self, destination: &Self, len: usize) -> Change;

    /// True for the ICMP types that complain about a packet and carry its head, and that translation must reach.
    ///
    /// Redirects are not among them: one that was translated would name a VIP as directly reachable.
    fn is_icmp_error(icmp_type: u8) -> bool;
}

impl Ip for [u8; 4] {
    const ICMP: u8 = protocol::ICMP;
    const HEADER_LEN: usize = Ipv4Hdr::LEN;
    const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);

    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F, offset: usize, into: &mut Header<Self>) -> Option<()> {
        const MORE_FRAGMENTS: u16 = 0x2000; // RFC 791 section 3.1, bit 2 of the flags
        const FRAGMENT_OFFSET: u16 = 0x1fff;

        let bytes: [u8; Ipv4Hdr::LEN] = frame.get(offset)?;
        let words = usize::from(bytes[0] & 0xf);
        if bytes[0] >> 4 != 4 || words < 5 {
            return None;
        }
        let id = u32::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        let flags = u16::from_be_bytes([bytes[6], bytes[7]]);
        into.fragment = match (flags & FRAGMENT_OFFSET, flags & MORE_FRAGMENTS) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        into.id = id;
        into.source = [bytes[12], bytes[13], bytes[14], bytes[15]];
        into.destination = [bytes[16], bytes[17], bytes[18], bytes[19]];
        into.protocol = bytes[9];
        into.offset = offset;
        into.payload = offset + words * 4;
        into.len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        Some(())
    }

    #[inline(always)]
    fn fragment_position<F: Frame>(frame: &F, header: &Header<Self>) -> Option<u32> {
        const FLAGS: usize = 6; // and, in the lower 13 bits, the offset in units of 8 bytes
        let position: [u8; 2] = frame.get(header.offset + FLAGS)?;
        Some(u32::from(u16::from_be_bytes(position) & 0x1fff) >> 7)
    }

    const PORT_UNREACHABLE: [u8; 2] = [3, 3]; // RFC 792
    const ECHO: [u8; 2] = [8, 0];
    const MAX_ERROR: usize = 576; // RFC 1812 section 4.3.2.3

    #[inline(always)]
    fn write<F: Frame>(frame: &mut F, offset: usize, source: &Self, destination: &Self, payload: usize) -> Option<()> {
        const INTERNETWORK_CONTROL: u8 = 0xc0; // RFC 1812 section 4.3.2.5
        const DO_NOT_FRAGMENT: u8 = 0x40;
        let [s, d] = [source, destination];
        let [high, low] = ((Ipv4Hdr::LEN + payload) as u16).to_be_bytes();
        let mut bytes: [u8; Ipv4Hdr::LEN] = [
            0x45,
            INTERNETWORK_CONTROL,
            high,
            low,
            0,
            0,
            DO_NOT_FRAGMENT,
            0,
            HOPS,
            protocol::ICMP,
            0,
            0,
            s[0],
            s[1],
            s[2],
            s[3],
            d[0],
            d[1],
            d[2],
            d[3],
        ];
        [bytes[10], bytes[11]] = Change::none().cover(&bytes).apply([0xff, 0xff]);
        frame.put(offset, &bytes)
    }

    #[inline(always)]
    fn hops<F: Frame>(frame: &F, offset: usize) -> Option<u8> {
        frame.get::<[u8; 2]>(offset + offset_of!(Ipv4Hdr, ttl)).map(|[hops, _]| hops)
    }

    #[inline(always)]
    fn set_hops<F: Frame>(frame: &mut F, offset: usize, hops: u8) -> Option<()> {
        let at = offset + offset_of!(Ipv4Hdr, ttl);
        let [old, protocol]: [u8; 2] = frame.get(at)?;
        Self::fix_header(frame, offset, Change::none().replace(&[old, protocol], &[hops, protocol]))?;
        frame.put(at, &[hops, protocol])
    }

    #[inline(always)]
    fn header_sum<F: Frame>(_frame: &F, _offset: usize) -> Option<Change> {
        Some(Change::none())
    }

    #[inline(always)]
    fn icmp_pseudo_header(_source: &Self, _destination: &Self, _len: usize) -> Change {
        Change::none()
    }

    #[inline(always)]
    fn change(old: &Self, new: &Self) -> Change {
        Change::none().replace(old, new)
    }

    #[inline(always)]
    fn fix_header<F: Frame>(frame: &mut F, offset: usize, change: Change) -> Option<()> {
        let at = offset + offset_of!(Ipv4Hdr, check);
        let checksum = frame.get(at)?;
        frame.put(at, &change.apply(checksum))
    }

    #[inline(always)]
    fn write_address<F: Frame>(
        frame: &mut F,
        header: &Header<Self>,
        side: Side,
        new: &Self,
        change: Change,
        ports: Option<&[u8; 4]>,
    ) -> Option<()> {
        // Checksum, source, destination and ports are neighbours; what is in front of them is written as it is, so that all
        // are whole words (the verifier: "misaligned stack access").
        let at = header.offset + offset_of!(Ipv4Hdr, ttl);
        let [ttl, protocol, high, low]: [u8; 4] = frame.get(at)?;
        let [high, low] = change.apply([high, low]);
        let start = u32::from_ne_bytes([ttl, protocol, high, low]);
        let word = |address: &Self| u32::from_ne_bytes(*address);
        let (source, destination) = match side {
            Side::Source => (word(new), word(&header.destination)),
            Side::Destination => (word(&header.source), word(new)),
        };
        match ports {
            None => frame.put(at, &[start, source, destination]),
            Some(ports) => frame.put(at, &[start, source, destination, u32::from_ne_bytes(*ports)]),
        }
    }

    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        // RFC 792: destination unreachable, time exceeded, parameter problem.
        matches!(icmp_type, 3 | 11 | 12)
    }
}

/// Extension headers in front of the transport header that are walked; packets with more are nobody's Service traffic.
const MAX_EXTENSIONS: usize = 4;

impl Ip for [u8; 16] {
    const ICMP: u8 = protocol::ICMPV6;
    const HEADER_LEN: usize = Ipv6Hdr::LEN;
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);

    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F, offset: usize, into: &mut Header<Self>) -> Option<()> {
        // RFC 8200 section 4: hop-by-hop options, routing, fragment, destination options.
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;

        let start: [u8; 8] = frame.get(offset)?;
        if start[0] >> 4 != 6 {
            return None;
        }
        // As numbers: see `Address::copy`.
        into.source = frame.get::<u128>(offset + Self::SOURCE)?.to_ne_bytes();
        into.destination = frame.get::<u128>(offset + Self::DESTINATION)?.to_ne_bytes();
        into.offset = offset;
        into.len = Ipv6Hdr::LEN + usize::from(u16::from_be_bytes([start[4], start[5]]));
        into.fragment = Fragment::Whole;
        into.id = 0;

        let mut next = start[6];
        let mut payload = offset + Ipv6Hdr::LEN;
        for _ in 0..MAX_EXTENSIONS {
            if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                break;
            }
            if payload > MAX_OFFSET || !frame.require(payload + 8) {
                return None;
            }
            let extension: [u8; 8] = frame.get(payload)?;
            if next == FRAGMENT {
                into.id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                let position = u16::from_be_bytes([extension[2], extension[3]]);
                payload += 8;
                // Bits 15..3 are the offset, bit 0 says that more follow (RFC 8200 section 4.5). A fragment header on a
                // whole datagram ("atomic fragment", RFC 6946) changes nothing.
                let fragment = match (position & 0xfff8, position & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                into.fragment = fragment;
                next = extension[0];
                if fragment == Fragment::Later {
                    break;
                }
            } else {
                next = extension[0];
                payload += (usize::from(extension[1]) + 1) * 8;
            }
        }
        into.protocol = next;
        into.payload = payload;
        Some(())
    }

    #[inline(always)]
    fn fragment_position<F: Frame>(frame: &F, header: &Header<Self>) -> Option<u32> {
        // The fragment header ends where the payload begins: in its bits 31..19 the offset in units of 8 bytes.
        let position: [u8; 2] = frame.get(header.payload.checked_sub(6)?)?;
        Some(u32::from(u16::from_be_bytes(position)) >> 10)
    }

    const PORT_UNREACHABLE: [u8; 2] = [1, 4]; // RFC 4443 section 3.1
    const ECHO: [u8; 2] = [128, 129];
    const MAX_ERROR: usize = 1280; // RFC 4443 section 2.4(c)

    #[inline(always)]
    fn write<F: Frame>(frame: &mut F, offset: usize, source: &Self, destination: &Self, payload: usize) -> Option<()> {
        let [high, low] = (payload as u16).to_be_bytes();
        frame.put(offset, &[0x60, 0, 0, 0, high, low, protocol::ICMPV6, HOPS])?;
        frame.put(offset + Self::SOURCE, source)?;
        frame.put(offset + Self::DESTINATION, destination)
    }

    #[inline(always)]
    fn hops<F: Frame>(frame: &F, offset: usize) -> Option<u8> {
        frame.get::<[u8; 2]>(offset + offset_of!(Ipv6Hdr, next_hdr)).map(|[_, hops]| hops)
    }

    #[inline(always)]
    fn set_hops<F: Frame>(frame: &mut F, offset: usize, hops: u8) -> Option<()> {
        let at = offset + offset_of!(Ipv6Hdr, next_hdr);
        let [next, _]: [u8; 2] = frame.get(at)?;
        frame.put(at, &[next, hops])
    }

    #[inline(always)]
    fn header_sum<F: Frame>(frame: &F, offset: usize) -> Option<Change> {
        let start: [u8; 8] = frame.get(offset)?;
        let source: Self = frame.get(offset + Self::SOURCE)?;
        let destination: Self = frame.get(offset + Self::DESTINATION)?;
        Some(Change::none().cover(&start).cover(&source).cover(&destination))
    }

    #[inline(always)]
    fn icmp_pseudo_header(source: &Self, destination: &Self, len: usize) -> Change {
        pseudo_header(source, destination, protocol::ICMPV6, len)
    }

    #[inline(always)]
    fn change(old: &Self, new: &Self) -> Change {
        Change::none().replace(old, new)
    }

    #[inline(always)]
    fn fix_header<F: Frame>(_frame: &mut F, _offset: usize, _change: Change) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn write_address<F: Frame>(
        frame: &mut F,
        header: &Header<Self>,
        side: Side,
        new: &Self,
        _change: Change,
        ports: Option<&[u8; 4]>,
    ) -> Option<()> {
        // As words: see `Address::copy`.
        let words = |address: &Self| bytemuck::cast::<[u8; 16], [u32; 4]>(address.copy());
        let at = header.offset;
        let n = words(new);
        match (side, ports) {
            (Side::Source, None) => frame.put(at + Self::SOURCE, new),
            (Side::Destination, None) => frame.put(at + Self::DESTINATION, new),
            (Side::Source, Some(ports)) => {
                let d = words(&header.destination);
                frame.put(
                    at + Self::SOURCE,
                    &[n[0], n[1], n[2], n[3], d[0], d[1], d[2], d[3], u32::from_ne_bytes(*ports)],
                )
            }
            (Side::Destination, Some(ports)) => {
                frame.put(at + Self::DESTINATION, &[n[0], n[1], n[2], n[3], u32::from_ne_bytes(*ports)])
            }
        }
    }

    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        // RFC 4443 section 2.1: unreachable, packet too big, time exceeded, parameter problem.
        matches!(icmp_type, 1..=4)
    }
}
