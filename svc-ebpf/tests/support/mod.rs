//! Tables, packets and judges for the scenarios. Packets are built and their checksums judged by an independent
//! implementation (`etherparse`).
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use svc_common::{
    Backend, BackendState, Frontend, FrontendKey, Hook, Reason, Scope, SlotRange,
    backend::{BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_LOCAL},
    frontend::FLAG_CLUSTER_IP,
    protocol,
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
    ip::Ip,
};

/// The addresses of one family that the scenarios use.
pub(crate) trait Plan: Ip + std::hash::Hash {
    /// The n-th address of the family.
    fn nth(n: u8) -> Self;
    fn ip(self) -> IpAddr;
}

impl Plan for [u8; 4] {
    fn nth(n: u8) -> Self {
        [10, 0, 0, n]
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl Plan for [u8; 16] {
    fn nth(n: u8) -> Self {
        [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

pub(crate) const CLIENT: u8 = 1;
pub(crate) const VIP: u8 = 2;
pub(crate) const OTHER_VIP: u8 = 3;
pub(crate) const ROUTER: u8 = 9;
pub(crate) const BACKEND: u8 = 100;
pub(crate) const VIP_PORT: u16 = 80;
pub(crate) const BACKEND_PORT: u16 = 8080;
pub(crate) const MARK: u32 = 0x1000;
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 1;

/// A Service of both protocols with `backends` local endpoints, seen from a pod's interface.
pub(crate) fn tables<A: Plan>(backends: u8) -> HostTables<A> {
    let mut tables = HostTables { masquerade_mark: MARK, ..HostTables::default() };
    tables.interface.scope = Scope::Inside as u8;
    let range = SlotRange { offset: 0, len: u32::from(backends) };
    for n in 0..backends {
        let id = u32::from(n) + 1;
        tables.slots.push(id);
        tables.backends.insert(id, backend(A::nth(BACKEND + n)));
    }
    for vip in [VIP, OTHER_VIP] {
        for protocol in [protocol::TCP, protocol::UDP] {
            let frontend =
                Frontend { service: 7, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
            tables.frontends.insert(FrontendKey::new(A::nth(vip), VIP_PORT, protocol), frontend);
        }
    }
    tables
}

pub(crate) fn backend<A: Plan>(address: A) -> Backend<A> {
    Backend {
        address,
        port: BACKEND_PORT,
        state: BackendState::Active as u8,
        flags: BACKEND_LOCAL | BACKEND_IN_CLUSTER | BACKEND_IN_LOCAL,
        generation: 1,
        service: 7,
    }
}

pub(crate) fn set_flags<A: Plan>(tables: &mut HostTables<A>, flags: u32) {
    tables.frontends.values_mut().for_each(|frontend| frontend.flags = flags);
}

/// An Ethernet frame. `tcp_flags` of 0 makes it UDP.
pub(crate) fn frame(source: SocketAddr, destination: SocketAddr, tcp_flags: u8, payload: &[u8]) -> HostFrame {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), 64),
        _ => panic!("one family"),
    };
    let mut bytes = Vec::new();
    if tcp_flags == 0 {
        ip.udp(source.port(), destination.port()).write(&mut bytes, payload).unwrap();
    } else {
        let mut tcp = ip.tcp(source.port(), destination.port(), 1000, 64000);
        if tcp_flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if tcp_flags & ACK != 0 {
            tcp = tcp.ack(1);
        }
        if tcp_flags & FIN != 0 {
            tcp = tcp.fin();
        }
        tcp.write(&mut bytes, payload).unwrap();
    }
    HostFrame::new(bytes)
}

pub(crate) fn at<A: Plan>(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(A::nth(n).ip(), port)
}

/// Source and destination of a frame whose checksums are all valid.
#[track_caller]
pub(crate) fn addresses(frame: &HostFrame) -> (SocketAddr, SocketAddr) {
    let headers = PacketHeaders::from_ethernet_slice(&frame.bytes).unwrap();
    let payload = headers.payload.slice();
    let (source, destination) = match headers.net.as_ref().unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4 header checksum");
            (IpAddr::from(ip.source), IpAddr::from(ip.destination))
        }
        NetHeaders::Ipv6(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        NetHeaders::Arp(_) => panic!("not IP"),
    };
    match headers.transport.as_ref().unwrap() {
        TransportHeader::Udp(udp) => {
            if udp.checksum != 0 {
                let expected = match headers.net.as_ref().unwrap() {
                    NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(ip, payload),
                    NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(ip, payload),
                    NetHeaders::Arp(_) => unreachable!(),
                };
                assert_eq!(udp.checksum, expected.unwrap(), "UDP checksum");
            }
            (SocketAddr::new(source, udp.source_port), SocketAddr::new(destination, udp.destination_port))
        }
        TransportHeader::Tcp(tcp) => {
            let expected = match headers.net.as_ref().unwrap() {
                NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(ip, payload),
                NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(ip, payload),
                NetHeaders::Arp(_) => unreachable!(),
            };
            assert_eq!(tcp.checksum, expected.unwrap(), "TCP checksum");
            (SocketAddr::new(source, tcp.source_port), SocketAddr::new(destination, tcp.destination_port))
        }
        _ => panic!("not a transport packet"),
    }
}

/// Runs a packet through a hook that must let it pass, and returns where it comes from and goes to afterwards.
#[track_caller]
pub(crate) fn pass<A: Plan>(
    tables: &mut HostTables<A>,
    hook: Hook,
    source: SocketAddr,
    destination: SocketAddr,
    tcp_flags: u8,
) -> (SocketAddr, SocketAddr) {
    let mut frame = frame(source, destination, tcp_flags, b"some payload of odd length!");
    assert_eq!(tables.run(hook, &mut frame), Verdict::Pass);
    addresses(&frame)
}

#[track_caller]
pub(crate) fn drop_reason<A: Plan>(tables: &mut HostTables<A>, destination: SocketAddr, tcp_flags: u8) -> Reason {
    let mut frame = frame(at::<A>(CLIENT, 40000), destination, tcp_flags, b"");
    match tables.run(Hook::Ingress, &mut frame) {
        Verdict::Drop(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// Expands a scenario into a test for each family.
macro_rules! both_families {
    ($($(#[$meta:meta])* fn $name:ident<A: Plan>() $body:block)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            fn scenario<A: Plan>() $body
            scenario::<[u8; 4]>();
            scenario::<[u8; 16]>();
        }
    )*};
}

/// An ICMP error (unreachable) from `source` about `complaint`, whose head it carries.
pub(crate) fn icmp_error<A: Plan>(source: SocketAddr, destination: SocketAddr, complaint: &HostFrame) -> HostFrame {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let head = &complaint.bytes[14..];
    let mut bytes = Vec::new();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet
            .ipv4(source.octets(), destination.octets(), 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut bytes, &head[..28])
            .unwrap(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet
            .ipv6(source.octets(), destination.octets(), 64)
            .icmpv6_raw(1, 4, [0; 4])
            .write(&mut bytes, head)
            .unwrap(),
        _ => panic!("one family"),
    }
    HostFrame::new(bytes)
}

/// Outer source, outer destination, and source and destination of the head, of an ICMP error with valid checksums.
#[track_caller]
pub(crate) fn icmp_addresses(frame: &HostFrame) -> (IpAddr, IpAddr, SocketAddr, SocketAddr) {
    let headers = PacketHeaders::from_ethernet_slice(&frame.bytes).unwrap();
    let head = headers.payload.slice();
    let (source, destination) = match (headers.net.as_ref().unwrap(), headers.transport.as_ref().unwrap()) {
        (NetHeaders::Ipv4(ip, _), TransportHeader::Icmpv4(icmp)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "outer IPv4 header checksum");
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(head), "ICMP checksum");
            let (inner, _) = etherparse::Ipv4Header::from_slice(head).unwrap();
            assert_eq!(inner.header_checksum, inner.calc_header_checksum(), "inner IPv4 header checksum");
            (IpAddr::from(ip.source), IpAddr::from(ip.destination))
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(icmp)) => {
            let expected = icmp.icmp_type.calc_checksum(ip.source, ip.destination, head).unwrap();
            assert_eq!(icmp.checksum, expected, "ICMPv6 checksum");
            (IpAddr::from(ip.source), IpAddr::from(ip.destination))
        }
        other => panic!("not an ICMP error: {other:?}"),
    };
    let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    if source.is_ipv4() {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&head[at..at + 4]).unwrap());
        let inner = (SocketAddr::new(address(12), port(20)), SocketAddr::new(address(16), port(22)));
        (source, destination, inner.0, inner.1)
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&head[at..at + 16]).unwrap());
        let inner = (SocketAddr::new(address(8), port(40)), SocketAddr::new(address(24), port(42)));
        (source, destination, inner.0, inner.1)
    }
}

pub(crate) fn set_ipv4_fragment(frame: &mut HostFrame, id: u16, flags: u16) {
    frame.bytes[18..20].copy_from_slice(&id.to_be_bytes());
    frame.bytes[20..22].copy_from_slice(&flags.to_be_bytes());
    let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame.bytes[14..]).unwrap();
    header.header_checksum = header.calc_header_checksum();
    frame.bytes[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
}

pub(crate) use both_families;
