//! Refusing a packet: the frame becomes the ICMP error "port unreachable", from the address it was sent to.
//!
//! The error has to carry the beginning of the packet, under its own checksum. That is summed up without reading the
//! payload: a whole packet with a valid transport checksum adds up to the complement of its pseudo header. This also holds
//! for packets whose checksum is still to be filled in by a device (CHECKSUM_PARTIAL, usual on veths), once it is. Only of
//! packets that are too long for that, and of those without a checksum, the transport header alone is kept and read.

use svc_common::protocol;

use crate::{
    checksum::Change,
    frame::Frame,
    ip::{Fragment, Ip, pseudo_header},
    link::turn_round,
    packet::{ICMP_LEN, Packet},
};

const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const SCTP_LEN: usize = 12;
const TCP_CHECKSUM: usize = 16;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const SCTP_CHECKSUM: usize = 8;

/// Makes the frame the refusal of the packet in it. `None`: no error may be sent about it (RFC 1122 section 3.2.2), or the
/// frame cannot be changed; it must be dropped then.
#[inline(always)]
pub fn refuse<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>) -> Option<()> {
    let header = &packet.header;
    let headers = header.payload.checked_sub(header.offset)?;
    // Extension headers would have to be summed up one by one.
    let is_plain = A::VERSION == 4 || headers == A::HEADER_LEN;
    if !is_plain || header.fragment == Fragment::Later || !header.source.is_host() {
        return None;
    }
    let (kept, sum) = transport(frame, packet, headers)?;
    let sum = A::header_sum(frame, header.offset)?.and(sum);

    let (source, destination) = (&header.destination, &header.source);
    frame.reshape(header.payload + kept, header.offset, A::HEADER_LEN + ICMP_LEN)?;
    let len = ICMP_LEN + headers + kept;
    A::write(frame, header.offset, source, destination, len)?;
    let [kind, code] = A::PORT_UNREACHABLE;
    let sum = sum.and(A::icmp_pseudo_header(source, destination, len)).cover(&[kind, code]);
    let [high, low] = sum.apply([0xff, 0xff]);
    frame.put(header.offset + A::HEADER_LEN, &[kind, code, high, low, 0, 0, 0, 0])?;
    turn_round(frame, header.offset)
}

/// How many bytes of the transport header and what follows the error carries, and what they add up to.
#[inline(always)]
fn transport<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, headers: usize) -> Option<(usize, Change)> {
    let header = &packet.header;
    let len = header.len.checked_sub(headers)?;
    let pseudo_header = pseudo_header(&header.source, &header.destination, header.protocol, len);
    let (kept, checksum) = match header.protocol {
        protocol::TCP => (TCP_LEN, TCP_CHECKSUM),
        protocol::UDP => (UDP_LEN, UDP_CHECKSUM),
        _ => (SCTP_LEN, 0),
    };
    if len < kept {
        return None; // the IP header says that there is no whole transport header
    }
    let checksum: [u8; 2] = frame.get(header.payload + checksum)?;
    // UDP has a length of its own, which its checksum goes by.
    let udp_len: [u8; 2] = frame.get(header.payload + UDP_LENGTH)?;
    let one_length = header.protocol != protocol::UDP || usize::from(u16::from_be_bytes(udp_len)) == len;
    let has_checksum = header.protocol == protocol::TCP || (header.protocol == protocol::UDP && checksum != [0, 0]);
    let fits = A::HEADER_LEN + ICMP_LEN + header.len <= A::MAX_ERROR;
    if has_checksum && one_length && fits && header.fragment == Fragment::Whole {
        return Some((len, complement(pseudo_header.folded())));
    }
    // The field of a checksum that is still to be filled in holds the sum of the pseudo header.
    if has_checksum && checksum == pseudo_header.folded() {
        return Some((kept, complement(checksum)));
    }
    let at = header.payload;
    let sum = match header.protocol {
        protocol::TCP => Change::none().cover(&frame.get::<[u8; TCP_LEN]>(at)?),
        protocol::UDP => Change::none().cover(&frame.get::<[u8; UDP_LEN]>(at)?),
        _ => Change::none().cover(&frame.get::<[u8; SCTP_LEN]>(at)?),
    };
    Some((kept, sum))
}

/// True if the packet's checksum is to be filled in by the device that sends it (CHECKSUM_PARTIAL): the field holds the sum
/// of the pseudo header, or nothing yet. One whole packet in 65,536 looks like that without being so.
#[inline(always)]
pub fn is_left_to_device<A: Ip, F: Frame>(frame: &F, packet: &Packet<A>) -> Option<bool> {
    let header = &packet.header;
    let checksum = match header.protocol {
        protocol::TCP => TCP_CHECKSUM,
        protocol::UDP => UDP_CHECKSUM,
        _ => return Some(frame.get::<[u8; 4]>(header.payload + SCTP_CHECKSUM)? == [0; 4]),
    };
    let len = header.len.checked_sub(header.payload.checked_sub(header.offset)?)?;
    let pseudo_header = pseudo_header(&header.source, &header.destination, header.protocol, len);
    Some(frame.get::<[u8; 2]>(header.payload + checksum)? == pseudo_header.folded())
}

#[inline(always)]
fn complement(sum: [u8; 2]) -> Change {
    Change::none().cover(&[!sum[0], !sum[1]])
}
