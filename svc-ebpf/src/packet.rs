//! A packet as the hooks see it: addresses, ports, and where everything stands.

use svc_common::{FlowKey, FragmentKey, Hook, Ports, protocol};

use crate::{
    frame::Frame,
    ip::{Fragment, Header, Ip, MAX_OFFSET},
    tables::Tables,
};

/// What an IP packet carries, as far as Services are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that Services could be concerned with.
    Other,
    /// TCP, UDP or SCTP, or a fragment of it: it has a tuple.
    Transport,
    /// A later fragment of TCP, UDP or SCTP that came before the first one: its tuple is not known.
    Early,
    /// An ICMP error, with the head of the packet it is about at `header.payload + 8`.
    IcmpError,
    /// An ICMP echo request.
    Echo,
}

/// An IP packet. Of one that is not [`Kind::Transport`] only the header means anything.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// IP header.
    pub header: Header<A>,
    /// Ports; of a later fragment, those its first fragment had.
    pub ports: Ports,
    /// Flags of the TCP header (RFC 9293 section 3.1), those of like meaning for SCTP; 0 for UDP and for later fragments.
    pub flags: u8,
}

const FIN: u8 = 1 << 0;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;

const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
const TCP_FLAGS: usize = 13;
/// SCTP's common header, and the one of the first chunk (RFC 9260 section 3).
const SCTP_LEN: usize = 16;
const SCTP_CHUNK: usize = 12;
/// An ICMP header (RFC 792, RFC 4443: 4 bytes in common, 4 that depend on the type).
pub const ICMP_LEN: usize = 8;

impl<A: Ip> Packet<A> {
    /// Parses the packet whose IP header is at `offset`, in place; `fragment` is room for a key.
    #[inline(always)]
    pub fn parse<F: Frame, T: Tables<A>>(
        &mut self,
        frame: &mut F,
        tables: &mut T,
        offset: usize,
        hook: Hook,
        fragment: &mut FragmentKey<A>,
    ) -> Kind {
        if !frame.require(offset + A::HEADER_LEN) || A::parse(frame, offset, &mut self.header).is_none() {
            return Kind::Other;
        }
        self.header.payload = frame.forget(self.header.payload);
        match self.header.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                self.parse_transport(frame, tables, hook, fragment).unwrap_or(Kind::Other)
            }
            icmp if icmp == A::ICMP && self.header.fragment == Fragment::Whole => {
                self.parse_icmp(frame).unwrap_or(Kind::Other)
            }
            _ => Kind::Other,
        }
    }

    #[inline(always)]
    fn parse_icmp<F: Frame>(&self, frame: &mut F) -> Option<Kind> {
        let at = self.header.payload;
        // The head that an error carries begins with a whole IP header and 8 more bytes (RFC 792).
        if at > MAX_OFFSET || !frame.require(at + ICMP_LEN) {
            return None;
        }
        // What the IP header does not count in is padding: an answer's checksum would not cover what it changes.
        if self.header.len < at.checked_sub(self.header.offset)? + ICMP_LEN {
            return None;
        }
        // Two bytes, though one would do: see `Frame::get`.
        let [icmp_type, _code]: [u8; 2] = frame.get(at)?;
        if icmp_type == A::ECHO[0] { Some(Kind::Echo) } else { A::is_icmp_error(icmp_type).then_some(Kind::IcmpError) }
    }

    #[inline(always)]
    fn parse_transport<F: Frame, T: Tables<A>>(
        &mut self,
        frame: &mut F,
        tables: &mut T,
        hook: Hook,
        fragment: &mut FragmentKey<A>,
    ) -> Option<Kind> {
        self.flags = 0;
        if self.header.fragment == Fragment::Later {
            self.write_fragment_key(hook, fragment);
            return match tables.fragment(fragment) {
                Some(ports) if ports != Ports::AWAITED => {
                    self.ports = ports;
                    Some(Kind::Transport)
                }
                _ => Some(Kind::Early),
            };
        }
        let at = self.header.payload;
        let needed = match self.header.protocol {
            protocol::TCP => TCP_LEN,
            protocol::SCTP => SCTP_LEN,
            _ => UDP_LEN,
        };
        if at > MAX_OFFSET || !frame.require(at + needed) {
            return None;
        }
        let ports: [u8; 4] = frame.get(at)?;
        self.ports = Ports {
            source: u16::from_be_bytes([ports[0], ports[1]]),
            destination: u16::from_be_bytes([ports[2], ports[3]]),
        };
        match self.header.protocol {
            protocol::TCP => self.flags = frame.get::<[u8; 2]>(at + TCP_FLAGS - 1)?[1],
            protocol::SCTP => self.flags = sctp_flags(frame.get::<[u8; 2]>(at + SCTP_CHUNK)?[0]),
            _ => {}
        }
        Some(Kind::Transport)
    }

    /// Writes the tuple as a key for `hook`. In place, here and below: a key that is returned would lie on the stack first.
    #[inline(always)]
    pub fn write_key(&self, hook: Hook, into: &mut FlowKey<A>) {
        let ports = [self.ports.source, self.ports.destination];
        into.fill(&self.header.source, &self.header.destination, ports, self.header.protocol, hook);
    }

    /// True for TCP and SCTP: flows have a beginning and an end that can be seen.
    #[inline(always)]
    pub fn is_connection(&self) -> bool {
        self.header.protocol != protocol::UDP
    }

    /// True for the first packet of a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// True for a packet by which one of both sides begins a connection.
    #[inline(always)]
    pub fn starts(&self) -> bool {
        self.flags & SYN != 0
    }

    /// True for a packet that may be the first of its flow: one that opens a connection, and any datagram.
    #[inline(always)]
    pub fn may_open(&self) -> bool {
        !self.is_connection() || self.opens()
    }

    /// True for a packet that ends its direction of a connection.
    #[inline(always)]
    pub fn closes(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }

    /// Leaves the ports of a first fragment for the later ones.
    #[inline(always)]
    pub fn remember_fragment<T: Tables<A>>(&self, tables: &mut T, hook: Hook, key: &mut FragmentKey<A>) {
        if self.header.fragment == Fragment::First {
            self.write_fragment_key(hook, key);
            tables.remember_fragment(key, self.ports);
        }
    }

    /// Writes what the fragments of the datagram have in common as a key for `hook`.
    #[inline(always)]
    pub fn write_fragment_key(&self, hook: Hook, into: &mut FragmentKey<A>) {
        into.source = self.header.source.copy();
        into.destination = self.header.destination.copy();
        into.id = self.header.id;
        into.protocol = self.header.protocol;
        into.hook = hook as u8;
        into.pad = [0; 2];
    }
}

/// What a chunk of SCTP means in TCP's terms: INIT and INIT ACK open an association, ABORT and SHUTDOWN COMPLETE end it
/// (RFC 9260 section 3.2).
#[inline(always)]
fn sctp_flags(chunk: u8) -> u8 {
    match chunk {
        1 => SYN,
        2 => SYN | ACK,
        6 | 14 => RST,
        _ => ACK,
    }
}
