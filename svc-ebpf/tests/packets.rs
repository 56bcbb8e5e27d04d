//! Packets in, packets out: each test follows one flow through the hooks, byte for byte, in both families. Packets are
//! built and their checksums judged by an independent implementation (`etherparse`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;
use svc_common::{
    Backend, BackendState, Frontend, FrontendKey, Hook, Interface, Reason, Scope, SlotRange,
    backend::BACKEND_LOCAL,
    config::INTERFACE_BRIDGE_PORT,
    flow::FLOW_HAIRPIN,
    frontend::{FLAG_CLUSTER_IP, FLAG_INSIDE_DROP, FLAG_NODE_PORT},
    protocol,
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
    ip::Ip,
};

/// The addresses of one family that the scenarios use.
trait Plan: Ip + std::hash::Hash {
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

const CLIENT: u8 = 1;
const VIP: u8 = 2;
const OTHER_VIP: u8 = 3;
const ROUTER: u8 = 9;
const BACKEND: u8 = 100;
const VIP_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
const MARK: u32 = 0x1000;
const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// A Service of both protocols with `backends` local endpoints, seen from a pod's interface.
fn tables<A: Plan>(backends: u8) -> HostTables<A> {
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

fn backend<A: Plan>(address: A) -> Backend<A> {
    Backend {
        address,
        port: BACKEND_PORT,
        state: BackendState::Active as u8,
        flags: BACKEND_LOCAL,
        generation: 1,
        service: 7,
    }
}

fn set_flags<A: Plan>(tables: &mut HostTables<A>, flags: u32) {
    tables.frontends.values_mut().for_each(|frontend| frontend.flags = flags);
}

/// An Ethernet frame. `tcp_flags` of 0 makes it UDP.
fn frame(source: SocketAddr, destination: SocketAddr, tcp_flags: u8, payload: &[u8]) -> HostFrame {
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

fn at<A: Plan>(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(A::nth(n).ip(), port)
}

/// Source and destination of a frame whose checksums are all valid.
#[track_caller]
fn addresses(frame: &HostFrame) -> (SocketAddr, SocketAddr) {
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
fn pass<A: Plan>(
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
fn drop_reason<A: Plan>(tables: &mut HostTables<A>, destination: SocketAddr, tcp_flags: u8) -> Reason {
    let mut frame = frame(at::<A>(CLIENT, 40000), destination, tcp_flags, b"");
    match tables.run(Hook::Ingress, &mut frame) {
        Verdict::Drop(reason) => reason,
        Verdict::Pass => panic!("the packet passed"),
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

both_families! {
    fn requests_go_to_a_backend_and_replies_come_from_the_vip<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables::<A>(3);
            let client = at::<A>(CLIENT, 40000);
            let (source, backend) = pass(&mut tables, Hook::Ingress, client, at::<A>(VIP, VIP_PORT), flags);
            assert_eq!(source, client);
            assert_eq!(backend.port(), BACKEND_PORT);
            let reply = pass(&mut tables, Hook::Egress, backend, client, if flags == 0 { 0 } else { SYN | ACK });
            assert_eq!(reply, (at::<A>(VIP, VIP_PORT), client));
            assert_eq!(tables.flows.len(), 2);
            assert_eq!(tables.counted[&7], 2);
        }
    }

    fn every_packet_of_a_flow_goes_to_the_same_backend<A: Plan>() {
        let mut tables = tables::<A>(5);
        for port in 1000..1100 {
            let (client, vip) = (at::<A>(CLIENT, port), at::<A>(VIP, VIP_PORT));
            let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
            tables.slots.rotate_left(1);
            let (_, second) = pass(&mut tables, Hook::Ingress, client, vip, ACK);
            assert_eq!(first, second);
        }
    }

    fn what_is_no_service_is_left_alone<A: Plan>() {
        let mut tables = tables::<A>(1);
        for hook in [Hook::Ingress, Hook::Egress] {
            let before = frame(at::<A>(CLIENT, 1), at::<A>(ROUTER, 2), SYN, b"x");
            let mut after = before.clone();
            assert_eq!(tables.run(hook, &mut after), Verdict::Pass);
            assert_eq!(after.bytes, before.bytes);
        }
        assert!(tables.flows.is_empty());
    }

    fn a_service_without_endpoints_drops_with_its_reason<A: Plan>() {
        let mut tables = tables::<A>(0);
        assert_eq!(drop_reason(&mut tables, at::<A>(VIP, VIP_PORT), SYN), Reason::NoEndpoint);
        set_flags(&mut tables, FLAG_CLUSTER_IP | FLAG_INSIDE_DROP);
        assert_eq!(drop_reason(&mut tables, at::<A>(VIP, VIP_PORT), 0), Reason::PolicyEmpty);
    }

    fn only_outside_traffic_to_remote_backends_is_marked_for_masquerade<A: Plan>() {
        for (scope, local, marked) in [
            (Scope::Inside, false, false),
            (Scope::Inside, true, false),
            (Scope::Outside, true, false),
            (Scope::Outside, false, true),
            (Scope::Overlay, false, true),
        ] {
            let mut tables = tables::<A>(1);
            tables.interface.scope = scope as u8;
            tables.backends.get_mut(&1).unwrap().flags = if local { BACKEND_LOCAL } else { 0 };
            for _ in 0..2 {
                let mut frame = frame(at::<A>(CLIENT, 1), at::<A>(VIP, VIP_PORT), SYN, b"");
                assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Pass);
                assert_eq!(frame.mark, if marked { MARK } else { 0 }, "{scope:?}, local: {local}");
            }
        }
    }

    fn a_pod_reaches_itself_through_its_service<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables::<A>(1);
            let (pod, backend, vip) = (at::<A>(BACKEND, 40000), at::<A>(BACKEND, BACKEND_PORT), at::<A>(VIP, VIP_PORT));
            let vip_as_client = at::<A>(VIP, 40000);
            assert_eq!(pass(&mut tables, Hook::Ingress, pod, vip, flags), (pod, backend));
            assert_eq!(pass(&mut tables, Hook::Egress, pod, backend, flags), (vip_as_client, backend));
            assert_eq!(pass(&mut tables, Hook::Ingress, backend, vip_as_client, flags), (backend, pod));
            assert_eq!(pass(&mut tables, Hook::Egress, backend, pod, flags), (vip, pod));
        }
    }

    fn a_pod_reaches_itself_from_the_port_it_serves_on<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (pod, vip) = (at::<A>(BACKEND, BACKEND_PORT), at::<A>(VIP, VIP_PORT));
        let (remapped, backend) = pass(&mut tables, Hook::Ingress, pod, vip, SYN);
        assert_ne!(remapped.port(), BACKEND_PORT);
        let (source, destination) = pass(&mut tables, Hook::Egress, remapped, backend, SYN);
        assert_eq!((source.ip(), destination), (vip.ip(), backend));
        let answer = pass(&mut tables, Hook::Ingress, backend, source, SYN | ACK);
        assert_eq!(answer, (backend, remapped));
        assert_eq!(pass(&mut tables, Hook::Egress, backend, remapped, SYN | ACK), (vip, pod));
        assert!(tables.flows.values().any(|flow| flow.flags & FLOW_HAIRPIN != 0));
    }

    fn two_vips_of_one_backend_and_one_client_port_do_not_share_a_tuple<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables::<A>(1);
            let client = at::<A>(CLIENT, 40000);
            let (first, backend) = pass(&mut tables, Hook::Ingress, client, at::<A>(VIP, VIP_PORT), flags);
            let (second, _) = pass(&mut tables, Hook::Ingress, client, at::<A>(OTHER_VIP, VIP_PORT), flags);
            assert_eq!(first, client);
            assert_ne!(second.port(), client.port());
            assert_eq!(pass(&mut tables, Hook::Egress, backend, first, flags), (at::<A>(VIP, VIP_PORT), client));
            assert_eq!(pass(&mut tables, Hook::Egress, backend, second, flags), (at::<A>(OTHER_VIP, VIP_PORT), client));
        }
    }

    fn a_datagram_leaves_a_backend_that_is_gone<A: Plan>() {
        let mut tables = tables::<A>(2);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, 0);
        let gone = if first == at::<A>(BACKEND, BACKEND_PORT) { 1 } else { 2 };
        tables.backends.get_mut(&gone).unwrap().state = BackendState::Gone as u8;
        tables.slots = vec![3 - gone, 3 - gone];
        let (_, second) = pass(&mut tables, Hook::Ingress, client, vip, 0);
        assert_ne!(first, second);
        assert_eq!(pass(&mut tables, Hook::Egress, second, client, 0), (vip, client));
    }

    fn a_datagram_stays_if_nobody_else_serves<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, 0);
        tables.backends.get_mut(&1).unwrap().state = BackendState::Gone as u8;
        tables.frontends.values_mut().for_each(|frontend| frontend.inside.len = 0);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, 0), (client, first));
    }

    fn an_established_connection_stays_with_a_backend_that_is_gone_and_a_new_one_does_not<A: Plan>() {
        let mut tables = tables::<A>(2);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        let gone = if first == at::<A>(BACKEND, BACKEND_PORT) { 1 } else { 2 };
        tables.backends.get_mut(&gone).unwrap().generation += 1;
        tables.slots = vec![3 - gone, 3 - gone];
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, first);
        assert_ne!(pass(&mut tables, Hook::Ingress, client, vip, SYN).1, first);
    }

    fn a_syn_after_fin_opens_a_new_flow<A: Plan>() {
        for backend_closes in [false, true] {
            let mut tables = tables::<A>(2);
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
            // A retransmitted SYN does not move the connection, whatever the slots say now.
            tables.slots.rotate_left(1);
            assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, SYN).1, first);
            if backend_closes {
                pass(&mut tables, Hook::Egress, first, client, FIN | ACK);
            } else {
                pass(&mut tables, Hook::Ingress, client, vip, FIN | ACK);
            }
            assert_ne!(pass(&mut tables, Hook::Ingress, client, vip, SYN).1, first);
        }
    }

    fn a_direct_connection_from_the_port_of_an_ended_one_is_not_translated<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, SYN | ACK).0, vip);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, FIN | ACK).0, vip);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, ACK).0, vip);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, backend, SYN), (client, backend));
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, SYN | ACK), (backend, client));
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, ACK), (backend, client));
    }

    fn a_connection_that_others_translate_passes_untouched<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip));
        set_flags(&mut tables, FLAG_NODE_PORT);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, at::<A>(BACKEND, BACKEND_PORT));
    }

    fn an_evicted_entry_is_rebuilt_from_the_other<A: Plan>() {
        let mut tables = tables::<A>(3);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        tables.flows.retain(|key, _| key.hook == Hook::Egress as u8);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, backend);
        tables.flows.retain(|key, _| key.hook == Hook::Ingress as u8);
        tables.now += 1;
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, backend);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, ACK), (vip, client));
    }

    fn affinity_keeps_a_client_on_its_backend_until_it_times_out<A: Plan>() {
        let mut tables = tables::<A>(7);
        tables.frontends.values_mut().for_each(|frontend| frontend.affinity_seconds = 100);
        let vip = at::<A>(VIP, VIP_PORT);
        let (_, first) = pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 1), vip, SYN);
        tables.slots.rotate_left(1);
        for port in 2..20 {
            let vip = at::<A>(if port % 2 == 0 { VIP } else { OTHER_VIP }, VIP_PORT);
            assert_eq!(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, port), vip, SYN).1, first);
        }
        tables.now += 100;
        assert_ne!(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 99), vip, SYN).1, first);
    }

    fn replies_on_a_bridge_port_are_steered_up_the_stack<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let bridge_mac = [6, 5, 4, 3, 2, 1];
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        tables.interface = Interface { scope: Scope::Inside as u8, flags: INTERFACE_BRIDGE_PORT, bridge_mac };
        let mut reply = frame(backend, client, SYN | ACK, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut reply), Verdict::Pass);
        assert_eq!(reply.bytes[..6], bridge_mac);
        assert_eq!(addresses(&reply), (backend, client));
        let mut direct = frame(backend, at::<A>(CLIENT, 40001), SYN | ACK, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut direct), Verdict::Pass);
        assert_ne!(direct.bytes[..6], bridge_mac);
    }

    fn vlan_tags_in_the_frame_are_skipped<A: Plan>() {
        for tags in 1..=2 {
            let mut tables = tables::<A>(1);
            let mut tagged = frame(at::<A>(CLIENT, 1), at::<A>(VIP, VIP_PORT), SYN, b"").bytes;
            for _ in 0..tags {
                tagged.splice(12..12, [0x81, 0, 0, 5]);
            }
            let mut tagged = HostFrame::new(tagged);
            assert_eq!(tables.run(Hook::Ingress, &mut tagged), Verdict::Pass);
            assert_eq!(addresses(&tagged).1, at::<A>(BACKEND, BACKEND_PORT));
        }
    }

    fn frames_without_a_link_header_are_translated<A: Plan>() {
        let mut tables = tables::<A>(1);
        let ethernet = frame(at::<A>(CLIENT, 1), at::<A>(VIP, VIP_PORT), SYN, b"");
        let mut bare = HostFrame::new(&ethernet.bytes[14..]);
        assert_eq!(tables.run_at(Hook::Ingress, &mut bare, 0), Verdict::Pass);
        let whole = HostFrame::new([&ethernet.bytes[..14], &bare.bytes].concat());
        assert_eq!(addresses(&whole).1, at::<A>(BACKEND, BACKEND_PORT));
    }

    fn a_udp_checksum_of_zero_stays_zero<A: Plan>() {
        let mut tables = tables::<A>(1);
        let mut frame = frame(at::<A>(CLIENT, 1), at::<A>(VIP, VIP_PORT), 0, b"");
        let checksum = frame.bytes.len() - 2;
        frame.bytes[checksum..].fill(0);
        assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Pass);
        assert_eq!(frame.bytes[checksum..], [0, 0]);
    }

    fn errors_about_replies_reach_the_backend_and_speak_its_language<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, 0);
        let complaint = frame(vip, client, 0, b"payload");
        let mut error = icmp_error::<A>(at::<A>(ROUTER, 0), vip, &complaint);
        assert_eq!(tables.run(Hook::Ingress, &mut error), Verdict::Pass);
        assert_eq!(icmp_addresses(&error), (A::nth(ROUTER).ip(), backend.ip(), backend, client));
    }

    fn errors_about_requests_speak_of_the_vip_and_keep_the_routers_address<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        let complaint = frame(client, backend, SYN, b"");
        let mut from_router = icmp_error::<A>(at::<A>(ROUTER, 0), client, &complaint);
        assert_eq!(tables.run(Hook::Egress, &mut from_router), Verdict::Pass);
        assert_eq!(icmp_addresses(&from_router), (A::nth(ROUTER).ip(), client.ip(), client, vip));
        let mut from_backend = icmp_error::<A>(backend, client, &complaint);
        assert_eq!(tables.run(Hook::Egress, &mut from_backend), Verdict::Pass);
        assert_eq!(icmp_addresses(&from_backend), (vip.ip(), client.ip(), client, vip));
    }
}

/// An ICMP error (unreachable) from `source` about `complaint`, whose head it carries.
fn icmp_error<A: Plan>(source: SocketAddr, destination: SocketAddr, complaint: &HostFrame) -> HostFrame {
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
fn icmp_addresses(frame: &HostFrame) -> (IpAddr, IpAddr, SocketAddr, SocketAddr) {
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

#[test]
fn later_fragments_follow_the_first_one() {
    let mut tables = tables::<[u8; 4]>(5);
    let (client, vip) = (at::<[u8; 4]>(CLIENT, 40000), at::<[u8; 4]>(VIP, VIP_PORT));
    let mut first = frame(client, vip, 0, &[7; 64]);
    set_ipv4_fragment(&mut first, 77, 0x2000);
    let mut later = frame(client, vip, 0, &[8; 64]);
    set_ipv4_fragment(&mut later, 77, 0x0009);
    let later_payload = later.bytes[34..].to_vec();

    let mut early = later.clone();
    assert_eq!(tables.run(Hook::Ingress, &mut early), Verdict::Pass);
    assert_eq!(early.bytes, later.bytes, "a later fragment that overtakes the first passes untranslated");

    assert_eq!(tables.run(Hook::Ingress, &mut first), Verdict::Pass);
    assert_eq!(tables.run(Hook::Ingress, &mut later), Verdict::Pass);
    assert_eq!(first.bytes[30..34], later.bytes[30..34], "one destination");
    assert_eq!(later.bytes[30], 10);
    assert_eq!(later.bytes[33] / 5, BACKEND / 5);
    assert_eq!(later.bytes[34..], later_payload, "a later fragment has no ports to rewrite");
    let (header, _) = etherparse::Ipv4Header::from_slice(&later.bytes[14..]).unwrap();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
}

fn set_ipv4_fragment(frame: &mut HostFrame, id: u16, flags: u16) {
    frame.bytes[18..20].copy_from_slice(&id.to_be_bytes());
    frame.bytes[20..22].copy_from_slice(&flags.to_be_bytes());
    let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame.bytes[14..]).unwrap();
    header.header_checksum = header.calc_header_checksum();
    frame.bytes[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
}

#[test]
fn extension_headers_are_walked() {
    let mut tables = tables::<[u8; 16]>(1);
    let mut frame = frame(at::<[u8; 16]>(CLIENT, 1), at::<[u8; 16]>(VIP, VIP_PORT), 0, b"payload");
    // A destination-options header of 8 bytes in front of UDP.
    frame.bytes.splice(54..54, [protocol::UDP, 0, 1, 4, 0, 0, 0, 0]);
    frame.bytes[20] = 60;
    let length = u16::from_be_bytes([frame.bytes[18], frame.bytes[19]]) + 8;
    frame.bytes[18..20].copy_from_slice(&length.to_be_bytes());
    assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Pass);
    assert_eq!(addresses(&frame).1, at::<[u8; 16]>(BACKEND, BACKEND_PORT));
}

proptest! {
    #[test]
    fn no_frame_makes_the_packet_path_panic_or_changes_its_length(
        bytes in proptest::collection::vec(any::<u8>(), 0..160), version in 0u8..3, hook in 0u8..2,
    ) {
        let mut bytes = bytes;
        if bytes.len() > 16 && version > 0 {
            let (ethertype, first) = if version == 1 { ([8, 0], 0x45) } else { ([0x86, 0xdd], 0x60) };
            bytes[12..14].copy_from_slice(&ethertype);
            bytes[14] = first;
        }
        let hook = if hook == 0 { Hook::Ingress } else { Hook::Egress };
        let len = bytes.len();
        let mut frame = HostFrame::new(bytes);
        tables::<[u8; 4]>(3).run(hook, &mut frame);
        tables::<[u8; 16]>(3).run(hook, &mut frame);
        prop_assert_eq!(frame.bytes.len(), len);
    }
}
