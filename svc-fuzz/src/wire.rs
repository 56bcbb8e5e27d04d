//! Where things stand in a frame, and what checksums over it come to: from the RFCs, without a line of the packet path.
//!
//! It never judges: that is `judge`'s business.

use std::ops::Range;

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// Place of a packet in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// Another fragment.
    Later,
}

/// An IP packet in a frame. All ranges are offsets into the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 4 or 6.
    pub version: u8,
    /// The IP header, with IPv4 options, without extension headers.
    pub header: Range<usize>,
    /// Source address.
    pub source: Range<usize>,
    /// Destination address.
    pub destination: Range<usize>,
    /// Protocol behind extension headers.
    pub protocol: u8,
    /// Fragmentation.
    pub position: Position,
    /// What follows all headers of IP, up to the end of the datagram or of the frame, whichever comes first.
    pub payload: Range<usize>,
    /// The datagram ends within the frame, and where it says.
    pub is_complete: bool,
}

/// Offset of the IP header behind an Ethernet header and its VLAN tags.
pub fn network(frame: &[u8], has_link: bool) -> Option<usize> {
    if !has_link {
        return Some(0);
    }
    let mut at = 12;
    loop {
        match word(frame, at)? {
            0x8100 | 0x88a8 => at += 4,
            0x0800 | 0x86dd => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The two bytes at an offset.
pub fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

/// The IP packet whose header is at `at`, as far as its headers are there.
pub fn dissect(frame: &[u8], at: usize) -> Option<Layout> {
    match frame.get(at)? >> 4 {
        4 => dissect_v4(frame, at),
        6 => dissect_v6(frame, at),
        _ => None,
    }
}

fn dissect_v4(frame: &[u8], at: usize) -> Option<Layout> {
    let fixed = frame.get(at..at + 20)?;
    let len = usize::from(fixed[0] & 15) * 4;
    let total = usize::from(word(fixed, 2)?);
    let flags = word(fixed, 6)?;
    let position = match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Position::Whole,
        (0, _) => Position::First,
        _ => Position::Later,
    };
    let start = at + len;
    let end = at + total;
    (len >= 20).then(|| Layout {
        version: 4,
        header: at..start.min(frame.len()),
        source: at + 12..at + 16,
        destination: at + 16..at + 20,
        protocol: fixed[9],
        position,
        payload: payload(frame, start, end),
        is_complete: (start..=frame.len()).contains(&end),
    })
}

/// A datagram whose length cannot be right, in a frame that goes on, is taken to be all of the frame.
fn payload(frame: &[u8], start: usize, end: usize) -> Range<usize> {
    let end = if end < start { frame.len() } else { end.min(frame.len()) };
    start..end.max(start)
}

fn dissect_v6(frame: &[u8], at: usize) -> Option<Layout> {
    let fixed = frame.get(at..at + 40)?;
    let total = usize::from(word(fixed, 4)?);
    let mut protocol = fixed[6];
    let mut start = at + 40;
    let mut position = Position::Whole;
    // RFC 8200 section 4.1: hop-by-hop options, routing, fragment, destination options.
    while matches!(protocol, 0 | 43 | 44 | 60) && position != Position::Later {
        let extension = frame.get(start..start + 8)?;
        if protocol == 44 {
            let offset = word(extension, 2)?;
            position = match (offset & 0xfff8, offset & 1) {
                (0, 0) => position,
                (0, _) => Position::First,
                _ => Position::Later,
            };
            start += 8;
        } else {
            start += (usize::from(extension[1]) + 1) * 8;
        }
        protocol = extension[0];
    }
    let end = if total == 0 { frame.len() } else { at + 40 + total };
    Some(Layout {
        version: 6,
        header: at..at + 40,
        source: at + 8..at + 24,
        destination: at + 24..at + 40,
        protocol,
        position,
        payload: payload(frame, start, end),
        is_complete: (start..=frame.len()).contains(&end),
    })
}

impl Layout {
    /// Offset of the transport checksum, for protocols whose checksum covers the addresses.
    pub fn checksum(&self) -> Option<usize> {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMPV6 if self.version == 6 => 2,
            _ => return None,
        };
        Some(self.payload.start + at)
    }

    /// The sum over the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) and the payload, its checksum included:
    /// 0 if the checksum is right. A constant replaces the length, which the packet path never changes.
    pub fn pseudo_sum(&self, frame: &[u8]) -> u16 {
        let length = self.payload.len();
        let pseudo = [(length >> 8) as u8, length as u8, 0, self.protocol];
        fold([&frame[self.source.clone()], &frame[self.destination.clone()], &pseudo, &frame[self.payload.clone()]])
    }

    /// The packet without what comes before and after it.
    pub fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.header.start..self.payload.end]
    }
}

/// One's-complement sum of the 16-bit words of all parts, modulo 0xffff: 0 over data with a valid checksum. Parts but the
/// last have an even length.
pub fn fold<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    (sum % 0xffff) as u16
}

/// The checksum that makes [`fold`] 0, for data that is not all zero and whose checksum field is.
pub fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 2] {
    ((0xffff - fold(parts)) % 0xffff).to_be_bytes()
}

/// CRC32c (RFC 9260 appendix A) of an SCTP packet as its checksum field holds it, bit by bit; the field itself, 8 bytes in,
/// counts as zero.
pub fn crc32c(packet: &[u8]) -> [u8; 4] {
    const POLYNOMIAL: u32 = 0x82f6_3b78; // 0x1edc6f41, bits reversed
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc32c_of_the_known_vector() {
        // RFC 3720 appendix B.4: 32 bytes of zeros.
        assert_eq!(super::crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    }
}
