//! Packets, byte by byte: whatever a network may carry to a node, right or deliberately wrong.

use std::net::{IpAddr, SocketAddr};

use crate::wire::{self, ICMP, ICMPV6, Layout, SCTP, TCP, UDP};

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP with these flags.
    Tcp(u8),
    /// SCTP with one chunk of this type.
    Sctp(u8),
    /// An ICMP echo request, or a reply.
    Echo {
        /// It is a reply.
        reply: bool,
    },
    /// Another protocol.
    Other(u8),
}

/// FIN of a TCP header.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

/// What the transport checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Right.
    Right,
    /// This much more than right.
    Off(u16),
    /// Zero.
    Zero,
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u16,
    /// Offset in units of 8 bytes.
    pub offset: u16,
    /// More follow.
    pub more: bool,
}

/// A frame to be made.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Who sends it; the port is not used by all transports.
    pub source: SocketAddr,
    /// Whom it is for, of the same family.
    pub destination: SocketAddr,
    /// What it carries.
    pub transport: Transport,
    /// Bytes behind the transport header.
    pub payload: Vec<u8>,
    /// Of a datagram, only this.
    pub fragment: Option<Fragment>,
    /// 32-bit words of IPv4 options (at most 10).
    pub options: u8,
    /// IPv6 extension headers, by number.
    pub extensions: Vec<u8>,
    /// Transport checksum.
    pub checksum: Checksum,
    /// Without an Ethernet header.
    pub bare: bool,
    /// VLAN tags.
    pub tags: u8,
    /// Bytes behind the IP packet.
    pub padding: u8,
}

impl Frame {
    /// A plain packet with right checksums.
    pub fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            transport,
            payload: b"some payload of odd length!".to_vec(),
            fragment: None,
            options: 0,
            extensions: Vec::new(),
            checksum: Checksum::Right,
            bare: false,
            tags: 0,
            padding: 0,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let protocol = self.protocol();
        let is_later = self.fragment.is_some_and(|fragment| fragment.offset > 0);
        let content = if is_later { self.payload.clone() } else { self.content(protocol) };
        let packet = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ipv4(source.octets(), destination.octets(), protocol, &content)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.ipv6(source.octets(), destination.octets(), protocol, &content)
            }
            _ => Vec::new(),
        };
        let mut bytes = if self.bare { Vec::new() } else { self.link() };
        bytes.extend(packet);
        bytes.extend((0..self.padding).map(|n| 0xa0 | n));
        bytes
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Udp => UDP,
            Transport::Tcp(_) => TCP,
            Transport::Sctp(_) => SCTP,
            Transport::Echo { .. } if self.source.is_ipv4() => ICMP,
            Transport::Echo { .. } => ICMPV6,
            Transport::Other(protocol) => protocol,
        }
    }

    fn link(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in 0..self.tags {
            // An outer tag of IEEE 802.1ad, inner ones of 802.1Q.
            bytes.extend(if tag == 0 && self.tags > 1 { [0x88, 0xa8, 0, 9] } else { [0x81, 0, 0, 5] });
        }
        bytes.extend(if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes
    }

    /// Transport header and payload.
    fn content(&self, protocol: u8) -> Vec<u8> {
        let [source, destination] = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()];
        let ports = [source, destination].concat();
        let mut bytes = match self.transport {
            Transport::Udp => {
                let length = (self.payload.len() as u16 + 8).to_be_bytes();
                [&ports, &length[..], &[0, 0]].concat()
            }
            Transport::Tcp(flags) => {
                [&ports, &[0, 0, 3, 232, 0, 0, 0, 1, 0x50, flags, 0xfa, 0, 0, 0, 0, 0][..]].concat()
            }
            Transport::Sctp(kind) => {
                let length = (self.payload.len() as u16 + 4).to_be_bytes();
                [&ports, &[0, 0, 0, 1, 0, 0, 0, 0, kind, 0][..], &length[..]].concat()
            }
            Transport::Echo { reply } => {
                let kind = match (self.source.is_ipv4(), reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                [&[kind, 0, 0, 0][..], &ports[..2], &[0, 1]].concat()
            }
            Transport::Other(_) => Vec::new(),
        };
        bytes.extend(&self.payload);
        self.seal(&mut bytes, protocol);
        bytes
    }

    /// Writes the transport checksum.
    fn seal(&self, content: &mut [u8], protocol: u8) {
        if let (SCTP, Some(_)) = (protocol, content.get(8..12)) {
            let sum = u32::from_be_bytes(wire::crc32c(content));
            let sum = match self.checksum {
                Checksum::Right => sum,
                Checksum::Off(by) => sum ^ u32::from(by),
                Checksum::Zero => 0,
            };
            content[8..12].copy_from_slice(&sum.to_be_bytes());
        }
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return,
        };
        let has_pseudo_header = protocol != ICMP;
        if let Checksum::Zero = self.checksum {
            return;
        }
        let Some(field) = content.get(at..at + 2).map(|_| at) else { return };
        let addresses = [octets(self.source.ip()), octets(self.destination.ip())].concat();
        let length = (content.len() as u32).to_be_bytes();
        let pseudo = [&addresses[..], &length, &[0, protocol]].concat();
        let pseudo = if has_pseudo_header { &pseudo[..] } else { &[] };
        let mut sum = u16::from_be_bytes(wire::checksum([pseudo, &*content]));
        if let Checksum::Off(by) = self.checksum {
            sum = sum.wrapping_add(by);
        }
        if sum == 0 && protocol == UDP {
            sum = 0xffff;
        }
        content[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4], protocol: u8, content: &[u8]) -> Vec<u8> {
        let words = 5 + self.options.min(10);
        let total = (usize::from(words) * 4 + content.len()) as u16;
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(total.to_be_bytes());
        let (id, position) = match self.fragment {
            Some(Fragment { id, offset, more }) => (id, (offset & 0x1fff) | if more { 0x2000 } else { 0 }),
            None => (7, 0x4000), // don't fragment
        };
        bytes.extend([id.to_be_bytes(), position.to_be_bytes()].concat());
        bytes.extend([64, protocol, 0, 0]);
        bytes.extend([source, destination].concat());
        bytes.resize(usize::from(words) * 4, 1); // no operation (RFC 791)
        let sum = wire::checksum([&bytes[..]]);
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend(content);
        bytes
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16], protocol: u8, content: &[u8]) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        headers.extend(self.fragment.map(|_| 44));
        headers.push(protocol);
        let mut extensions = Vec::new();
        for pair in headers.windows(2) {
            let fragment = self.fragment.unwrap_or(Fragment { id: 1, offset: 0, more: false });
            match pair[0] {
                44 => {
                    extensions.extend([pair[1], 0]);
                    extensions.extend((fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes());
                    extensions.extend(u32::from(fragment.id).to_be_bytes());
                }
                // 6 bytes of padding (RFC 8200 section 4.2); as a routing header, one of an unknown type with nothing left.
                _ => extensions.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        let length = ((extensions.len() + content.len()) as u16).to_be_bytes();
        let start = [0x60, 0, 0, 0, length[0], length[1], headers[0], 64];
        [&start[..], &source, &destination, &extensions, content].concat()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An ICMP error of `kind` (as IPv4 numbers them: 3 unreachable, 11 time exceeded, 12 parameter problem; anything else is
/// taken literally) from `source` about a packet, of which it carries the first `head` bytes.
pub fn error(about: &[u8], source: IpAddr, destination: IpAddr, kind: u8, head: usize) -> Vec<u8> {
    let is_v4 = source.is_ipv4();
    let kind = match (is_v4, kind) {
        (false, 3) => 1,
        (false, 11) => 3,
        (false, 12) => 4,
        (_, kind) => kind,
    };
    let transport = Transport::Other(if is_v4 { ICMP } else { ICMPV6 });
    let head = &about[..about.len().min(head)];
    let mut frame = Frame::new(SocketAddr::new(source, 0), SocketAddr::new(destination, 0), transport);
    // A type that says how large a packet may be (RFC 1191, RFC 4443) says 1500.
    let start = match (is_v4, kind) {
        (true, 3) => [3, 4, 0, 0, 0, 0, 5, 0xdc],
        (false, 2) => [2, 0, 0, 0, 0, 0, 5, 0xdc],
        _ => [kind, 0, 0, 0, 0, 0, 0, 0],
    };
    frame.payload = [&start, head].concat();
    frame.bytes()
}

/// The first fragment of the datagram that a later one is of, with these ports; `packet` begins with its link header, if it
/// has one.
pub fn first_fragment(packet: &[u8], has_link: bool, source_port: u16, destination_port: u16) -> Option<Vec<u8>> {
    /// A header of TCP without options, which is longer than UDP's and SCTP's are, ports aside.
    const REST: [u8; 20] = [0, 0, 0, 1, 0, 0, 0, 2, 0x50, SYN, 2, 0, 0x12, 0x34, 0, 0, 5, 6, 7, 8];

    let at = wire::network(packet, has_link)?;
    let layout = wire::dissect(packet, at)?;
    let mut bytes = packet.get(..layout.payload.start)?.to_vec();
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend(REST);
    let header = layout.header.clone();
    if layout.version == 4 {
        let total = ((bytes.len() - at) as u16).to_be_bytes();
        bytes[at + 2..at + 4].copy_from_slice(&total);
        bytes[at + 6..at + 8].copy_from_slice(&0x2000_u16.to_be_bytes());
        bytes[at + 10..at + 12].fill(0);
        let sum = wire::checksum([bytes.get(header)?]);
        bytes[at + 10..at + 12].copy_from_slice(&sum);
    } else {
        let length = ((bytes.len() - header.end) as u16).to_be_bytes();
        bytes[at + 4..at + 6].copy_from_slice(&length);
        // The fragment header is the last one: all that follows it belongs to the datagram.
        let fragment = layout.payload.start.checked_sub(8)?;
        bytes[fragment + 2..fragment + 4].copy_from_slice(&1_u16.to_be_bytes());
    }
    Some(bytes)
}

/// The answer to a packet: addresses and ports change sides, a TCP packet gets other flags. `None` for a packet that has no
/// ports.
pub fn answer(packet: &[u8], tcp_flags: u8) -> Option<Vec<u8>> {
    let layout = wire::dissect(packet, 0)?;
    let ports = layout.payload.start;
    if layout.position != wire::Position::Whole || !matches!(layout.protocol, TCP | UDP | SCTP) {
        return None;
    }
    packet.get(ports..ports + if layout.protocol == TCP { 20 } else { 8 })?;
    let mut answer = packet.to_vec();
    let Layout { source, destination, .. } = layout.clone();
    answer[source.clone()].copy_from_slice(&packet[destination.clone()]);
    answer[destination].copy_from_slice(&packet[source]);
    answer[ports..ports + 2].copy_from_slice(&packet[ports + 2..ports + 4]);
    answer[ports + 2..ports + 4].copy_from_slice(&packet[ports..ports + 2]);
    if layout.protocol == SCTP && layout.is_complete && packet.len() >= ports + 12 {
        let sum = wire::crc32c(&answer[layout.payload.clone()]);
        answer[ports + 8..ports + 12].copy_from_slice(&sum);
    }
    if layout.protocol == TCP {
        answer[ports + 13] = tcp_flags;
        let (old, new) = (u16::from(packet[ports + 13]), u16::from(tcp_flags));
        let sum = u16::from_be_bytes([answer[ports + 16], answer[ports + 17]]);
        // RFC 1624, equation 3.
        let sum = wire::checksum([&(!sum).to_be_bytes()[..], &(!old).to_be_bytes(), &new.to_be_bytes()]);
        answer[ports + 16..ports + 18].copy_from_slice(&sum);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::assert_valid;

    #[test]
    fn packets_are_what_an_independent_parser_takes_them_for() {
        let pairs = [("8.0.0.1:1000", "8.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")];
        for (source, destination) in pairs {
            let ends = (source.parse().unwrap(), destination.parse().unwrap());
            for transport in [Transport::Udp, Transport::Tcp(SYN), Transport::Echo { reply: false }] {
                for len in 0..40 {
                    let mut frame = Frame { bare: true, ..Frame::new(ends.0, ends.1, transport) };
                    frame.payload = (0..len).map(|n: u8| n.wrapping_mul(37)).collect();
                    frame.options = len % 3;
                    frame.extensions = [0, 60][..usize::from(len % 3)].to_vec();
                    let packet = frame.bytes();
                    assert_valid(&packet);
                    let error = error(&packet, ends.1.ip(), ends.0.ip(), 3, 48);
                    assert_valid(&error[14..]);
                    if let Some(answer) = answer(&packet, SYN | ACK) {
                        assert_valid(&answer);
                        assert_ne!(answer, packet);
                    }
                }
            }
        }
    }
}
