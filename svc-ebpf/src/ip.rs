//! IP headers of both versions: what a hook needs of them, and where their addresses stand.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use svc_common::{Address, protocol};

use crate::{checksum::Change, frame::Frame};

/// Highest offset at which a header is read: far beyond any real stack of headers, small enough for the verifier to see
/// that packet arithmetic cannot wrap ("math between pkt pointer and register with unbounded min value").
pub const MAX_OFFSET: usize = 0x3ff;

/// Position of a packet in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The packet is the whole datagram.
    Whole,
    /// The first fragment: it carries the transport header. `id` in *host order*.
    First {
        /// Identification.
        id: u32,
    },
    /// A later fragment: no transport header. `id` in *host order*.
    Later {
        /// Identification.
        id: u32,
    },
}

/// An IP header.
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
    /// Offset of the IP header in the frame.
    pub offset: usize,
    /// Offset of what follows: the transport header, but for later fragments.
    pub payload: usize,
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

    /// Parses the header at `offset`, which must be readable for [`Ip::HEADER_LEN`] bytes. `None` for anything but a well-formed header.
    fn parse<F: Frame>(frame: &mut F, offset: usize) -> Option<Header<Self>>;

    /// How the pseudo header or payload of a transport checksum changes with an address.
    fn change(old: &Self, new: &Self) -> Change;

    /// Adjusts the header's own checksum, if it has one.
    fn fix_header<F: Frame>(frame: &mut F, offset: usize, change: Change) -> Option<()>;

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
    fn parse<F: Frame>(frame: &mut F, offset: usize) -> Option<Header<Self>> {
        const MORE_FRAGMENTS: u16 = 0x2000; // RFC 791 section 3.1, bit 2 of the flags
        const FRAGMENT_OFFSET: u16 = 0x1fff;

        let bytes: [u8; Ipv4Hdr::LEN] = frame.get(offset)?;
        let words = usize::from(bytes[0] & 0xf);
        if bytes[0] >> 4 != 4 || words < 5 {
            return None;
        }
        let id = u32::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        let flags = u16::from_be_bytes([bytes[6], bytes[7]]);
        let fragment = match (flags & FRAGMENT_OFFSET, flags & MORE_FRAGMENTS) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First { id },
            _ => Fragment::Later { id },
        };
        Some(Header {
            source: [bytes[12], bytes[13], bytes[14], bytes[15]],
            destination: [bytes[16], bytes[17], bytes[18], bytes[19]],
            protocol: bytes[9],
            fragment,
            offset,
            payload: offset + words * 4,
        })
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
    fn parse<F: Frame>(frame: &mut F, offset: usize) -> Option<Header<Self>> {
        // RFC 8200 section 4: hop-by-hop options, routing, fragment, destination options.
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;

        let start: [u8; 8] = frame.get(offset)?;
        if start[0] >> 4 != 6 {
            return None;
        }
        let source = frame.get(offset + Self::SOURCE)?;
        let destination = frame.get(offset + Self::DESTINATION)?;

        let mut next = start[6];
        let mut payload = offset + Ipv6Hdr::LEN;
        let mut fragment = Fragment::Whole;
        for _ in 0..MAX_EXTENSIONS {
            if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                break;
            }
            if payload > MAX_OFFSET || !frame.require(payload + 8) {
                return None;
            }
            let extension: [u8; 8] = frame.get(payload)?;
            if next == FRAGMENT {
                let id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                let position = u16::from_be_bytes([extension[2], extension[3]]);
                payload += 8;
                // Bits 15..3 are the offset, bit 0 says that more follow (RFC 8200 section 4.5). A fragment header on a
                // whole datagram ("atomic fragment", RFC 6946) changes nothing.
                fragment = match (position & 0xfff8, position & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First { id },
                    _ => Fragment::Later { id },
                };
                next = extension[0];
                if let Fragment::Later { .. } = fragment {
                    break;
                }
            } else {
                next = extension[0];
                payload += (usize::from(extension[1]) + 1) * 8;
            }
        }
        Some(Header { source, destination, protocol: next, fragment, offset, payload })
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
    fn is_icmp_error(icmp_type: u8) -> bool {
        // RFC 4443 section 2.1: unreachable, packet too big, time exceeded, parameter problem.
        matches!(icmp_type, 1..=4)
    }
}
