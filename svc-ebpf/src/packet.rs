//! A packet as the hooks see it: addresses, ports, and where everything stands.

use svc_common::{FlowKey, FragmentKey, Hook, Ports, protocol};

use crate::{
    frame::Frame,
    ip::{Fragment, Header, Ip, MAX_OFFSET},
    tables::Tables,
};

/// What an IP packet carries, as far as Services are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<A> {
    /// TCP or UDP: it has a tuple.
    Transport(Transport<A>),
    /// An ICMP error, with the head of the packet it is about at `header.payload + 8`.
    IcmpError(Header<A>),
}

/// A TCP or UDP packet, or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport<A> {
    /// IP header.
    pub header: Header<A>,
    /// Ports; of a later fragment, those its first fragment had.
    pub ports: Ports,
    /// Flags of the TCP header (RFC 9293 section 3.1), 0 for UDP and for later fragments.
    pub tcp_flags: u8,
}

const FIN: u8 = 1 << 0;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;

const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
const TCP_FLAGS: usize = 13;
/// An ICMP header (RFC 792, RFC 4443: 4 bytes in common, 4 that depend on the type).
pub const ICMP_LEN: usize = 8;

impl<A: Ip> Packet<A> {
    /// Parses the packet whose IP header is at `offset`. `None`: nothing that Services could be concerned with.
    #[inline(always)]
    pub fn parse<F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, offset: usize, hook: Hook) -> Option<Self> {
        if !frame.require(offset + A::HEADER_LEN) {
            return None;
        }
        let mut header = A::parse(frame, offset)?;
        header.payload = frame.forget(header.payload);
        match header.protocol {
            protocol::TCP | protocol::UDP => Transport::parse(frame, tables, header, hook).map(Self::Transport),
            icmp if icmp == A::ICMP && header.fragment == Fragment::Whole => {
                // The head that an error carries begins with a whole IP header and 8 more bytes (RFC 792).
                if header.payload > MAX_OFFSET || !frame.require(header.payload + ICMP_LEN) {
                    return None;
                }
                // Two bytes, though one would do: see `Frame::get`.
                let [icmp_type, _code]: [u8; 2] = frame.get(header.payload)?;
                A::is_icmp_error(icmp_type).then_some(Self::IcmpError(header))
            }
            _ => None,
        }
    }
}

impl<A: Ip> Transport<A> {
    #[inline(always)]
    fn parse<F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, header: Header<A>, hook: Hook) -> Option<Self> {
        if let Fragment::Later { id } = header.fragment {
            let ports = tables.fragment(&fragment_key(&header, id, hook))?;
            return Some(Self { header, ports, tcp_flags: 0 });
        }
        let at = header.payload;
        let is_tcp = header.protocol == protocol::TCP;
        let needed = if is_tcp { TCP_LEN } else { UDP_LEN };
        if at > MAX_OFFSET || !frame.require(at + needed) {
            return None;
        }
        let ports: [u8; 4] = frame.get(at)?;
        let tcp_flags = if is_tcp { frame.get::<[u8; 2]>(at + TCP_FLAGS - 1)?[1] } else { 0 };
        let ports = Ports {
            source: u16::from_be_bytes([ports[0], ports[1]]),
            destination: u16::from_be_bytes([ports[2], ports[3]]),
        };
        Some(Self { header, ports, tcp_flags })
    }

    /// The tuple, as a key for `hook`.
    #[inline(always)]
    pub fn key(&self, hook: Hook) -> FlowKey<A> {
        FlowKey {
            source: self.header.source,
            destination: self.header.destination,
            source_port: self.ports.source,
            destination_port: self.ports.destination,
            protocol: self.header.protocol,
            hook: hook as u8,
            pad: [0; 2],
        }
    }

    /// True for TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.header.protocol == protocol::TCP
    }

    /// True for the first packet of a TCP connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.tcp_flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// True for the answer to the first packet of a TCP connection.
    #[inline(always)]
    pub fn answers_opening(&self) -> bool {
        self.tcp_flags & (SYN | ACK | RST | FIN) == SYN | ACK
    }

    /// True for a TCP packet that ends its direction of a connection.
    #[inline(always)]
    pub fn closes(&self) -> bool {
        self.tcp_flags & (FIN | RST) != 0
    }

    /// Leaves the ports of a first fragment for the later ones.
    #[inline(always)]
    pub fn remember_fragment<T: Tables<A>>(&self, tables: &mut T, hook: Hook) {
        if let Fragment::First { id } = self.header.fragment {
            tables.remember_fragment(&fragment_key(&self.header, id, hook), self.ports);
        }
    }
}

#[inline(always)]
fn fragment_key<A: Ip>(header: &Header<A>, id: u32, hook: Hook) -> FragmentKey<A> {
    FragmentKey {
        source: header.source,
        destination: header.destination,
        id,
        protocol: header.protocol,
        hook: hook as u8,
        pad: [0; 2],
    }
}
