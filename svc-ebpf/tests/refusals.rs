//! Packets with nowhere to go, and echo requests: what the sender is told, byte for byte, in both families.

mod support;

use std::net::SocketAddr;

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;
use svc_common::{
    Hook, Reason, Scope, SourcePrefix,
    frontend::{FLAG_CLUSTER_IP, FLAG_INSIDE_DROP, FLAG_LOAD_BALANCER, FLAG_SOURCE_RANGES},
    vip::{Cidr, VIP_INSIDE, VIP_OUTSIDE},
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
};

use support::*;

/// Runs a packet that must be refused, and checks the error: from the address that was asked, to the client, about this
/// packet, turned round.
#[track_caller]
fn refused<A: Plan>(tables: &mut HostTables<A>, destination: SocketAddr, flags: u8, payload: &[u8]) -> Reason {
    let client = at::<A>(CLIENT, 40000);
    let request = frame(client, destination, flags, payload);
    let mut error = request.clone();
    let Verdict::Refuse(reason) = tables.run(Hook::Ingress, &mut error) else { panic!("not refused") };
    assert_eq!(icmp_addresses(&error), (destination.ip(), client.ip(), client, destination));
    assert_eq!(error.bytes[..6], request.bytes[6..12], "it goes to where the packet came from");
    assert_eq!(error.bytes[6..12], request.bytes[..6]);
    let (kind, limit) = if A::VERSION == 4 { ([3, 3], 576) } else { ([1, 4], 1280) };
    let ip = A::HEADER_LEN;
    assert_eq!(error.bytes[14 + ip..][..2], kind);
    assert!(error.bytes.len() <= 14 + limit);
    let head = &error.bytes[14 + ip + 8..];
    assert_eq!(*head, request.bytes[14..][..head.len()], "the head is the packet's beginning");
    assert!(tables.flows.is_empty());
    reason
}

both_families! {
    fn a_service_without_endpoints_refuses_and_one_whose_policy_leaves_none_drops<A: Plan>() {
        let mut tables = tables::<A>(0);
        for flags in [SYN, 0] {
            for length in [0, 1, 8, 301, 1200, 1400] {
                let reason = refused(&mut tables, at::<A>(VIP, VIP_PORT), flags, &vec![7; length]);
                assert_eq!(reason, Reason::NoEndpoint);
            }
        }
        set_flags(&mut tables, FLAG_CLUSTER_IP | FLAG_INSIDE_DROP);
        assert_eq!(drop_reason(&mut tables, at::<A>(VIP, VIP_PORT), 0), Reason::PolicyEmpty);
    }

    fn a_datagram_without_a_checksum_is_refused_with_a_valid_error<A: Plan>() {
        let mut tables = tables::<A>(0);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut frame = frame(client, vip, 0, b"payload");
        let checksum = 14 + A::HEADER_LEN + 6;
        frame.bytes[checksum..checksum + 2].fill(0);
        assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Refuse(Reason::NoEndpoint));
        assert_eq!(icmp_addresses(&frame).3, vip);
    }

    fn a_checksum_that_a_device_is_to_fill_in_later_is_right_in_the_error_then<A: Plan>() {
        for length in [0, 9, 2000] {
            let mut tables = tables::<A>(0);
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let mut partial = frame(client, vip, 0, &vec![3; length]);
            let at = 14 + A::HEADER_LEN;
            let udp_len = (partial.bytes.len() - at) as u32;
            // What Linux leaves in the field: the sum of the pseudo header, folded and not complemented.
            let mut pseudo: Vec<u8> = partial.bytes[14 + A::SOURCE..14 + A::HEADER_LEN].to_vec();
            pseudo.extend_from_slice(&udp_len.to_be_bytes());
            pseudo.extend_from_slice(&[0, 17]);
            partial.bytes[at + 6..at + 8].copy_from_slice(&folded(&pseudo));
            assert_eq!(tables.run(Hook::Ingress, &mut partial), Verdict::Refuse(Reason::NoEndpoint));
            // The device sums from the transport header to the end, and fills in the complement.
            let at = at + A::HEADER_LEN + 8;
            let sum = folded(&partial.bytes[at..]);
            partial.bytes[at + 6..at + 8].copy_from_slice(&[!sum[0], !sum[1]]);
            assert_eq!(icmp_addresses(&partial).3, vip, "{length} bytes");
        }
    }

    fn padding_behind_a_packet_is_no_part_of_the_error<A: Plan>() {
        let mut tables = tables::<A>(0);
        let mut padded = frame(at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT), 0, b"");
        padded.bytes.extend_from_slice(&[0xaa; 20]);
        assert_eq!(tables.run(Hook::Ingress, &mut padded), Verdict::Refuse(Reason::NoEndpoint));
        icmp_addresses(&padded);
    }

    fn an_unknown_port_of_a_vip_is_refused_to_whom_the_vip_is_for<A: Plan>() {
        let unknown = at::<A>(VIP, 81);
        let mut tables = tables::<A>(1);
        assert_eq!(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 40000), unknown, SYN).1, unknown, "no VIP yet");
        tables.vips.insert(A::nth(VIP), VIP_INSIDE | VIP_OUTSIDE);
        for flags in [SYN, 0] {
            assert_eq!(refused(&mut tables, unknown, flags, b"x"), Reason::UnknownPort);
        }
        let client = at::<A>(CLIENT, 40000);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, unknown, ACK), (client, unknown), "others may translate it");
        tables.vips.insert(A::nth(VIP), VIP_OUTSIDE);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, unknown, SYN), (client, unknown));
        tables.interface.scope = Scope::Outside as u8;
        assert_eq!(refused(&mut tables, unknown, SYN, b""), Reason::UnknownPort);
    }

    fn an_address_of_the_service_cidr_that_nobody_owns_is_dropped<A: Plan>() {
        let mut tables = tables::<A>(1);
        let mut mask = A::zeroed();
        bytemuck::bytes_of_mut(&mut mask).fill(0xff);
        tables.service_cidrs = vec![Cidr { network: A::zeroed(), mask: A::zeroed() }, Cidr { network: A::nth(77), mask }];
        assert_eq!(drop_reason(&mut tables, at::<A>(77, 80), SYN), Reason::UnownedAddress);
        assert_eq!(drop_reason(&mut tables, at::<A>(77, 80), 0), Reason::UnownedAddress);
        let (client, other) = (at::<A>(CLIENT, 40000), at::<A>(78, 80));
        assert_eq!(pass(&mut tables, Hook::Ingress, client, other, SYN), (client, other));
    }

    fn nobody_is_told_beyond_the_limit_or_at_an_address_that_is_no_hosts<A: Plan>() {
        let mut tables = tables::<A>(0);
        tables.refusals = 1;
        assert_eq!(refused(&mut tables, at::<A>(VIP, VIP_PORT), SYN, b""), Reason::NoEndpoint);
        assert_eq!(drop_reason(&mut tables, at::<A>(VIP, VIP_PORT), SYN), Reason::RefusalLimit);
        tables.refusals = 1;
        let nobody = SocketAddr::new(A::zeroed().ip(), 40000);
        let mut frame = frame(nobody, at::<A>(VIP, VIP_PORT), SYN, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Drop(Reason::NoEndpoint));
    }

    fn source_ranges_bind_clients_outside_even_without_an_endpoint<A: Plan>() {
        for backends in [0, 1] {
            let mut tables = tables::<A>(backends);
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            set_flags(&mut tables, FLAG_LOAD_BALANCER | FLAG_SOURCE_RANGES);
            tables.interface.scope = Scope::Outside as u8;
            assert_eq!(drop_reason(&mut tables, vip, SYN), Reason::SourceRange);
            tables.sources.insert(SourcePrefix { service: 7, address: A::nth(CLIENT) });
            if backends == 0 {
                assert_eq!(refused(&mut tables, vip, SYN, b""), Reason::NoEndpoint);
                continue;
            }
            assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, SYN).1, at::<A>(BACKEND, BACKEND_PORT));
            tables.sources.clear();
            let established = pass(&mut tables, Hook::Ingress, client, vip, ACK);
            assert_eq!(established.1, at::<A>(BACKEND, BACKEND_PORT), "a connection that was admitted goes on");
            tables.interface.scope = Scope::Inside as u8;
            let pod = at::<A>(CLIENT, 40001);
            assert_eq!(pass(&mut tables, Hook::Ingress, pod, vip, SYN).1, at::<A>(BACKEND, BACKEND_PORT));
        }
    }

    fn a_connection_that_others_translate_passes_though_nobody_serves<A: Plan>() {
        let mut tables = tables::<A>(0);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip));
        set_flags(&mut tables, FLAG_LOAD_BALANCER);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip));
        tables.interface.scope = Scope::Outside as u8;
        assert_eq!(refused(&mut tables, vip, ACK, b""), Reason::NoEndpoint);
    }

    fn an_echo_request_to_a_vip_is_answered_at_ingress_and_for_the_host_at_egress<A: Plan>() {
        for (hook, scope, vip, answered) in [
            (Hook::Ingress, Scope::Inside, VIP_INSIDE | VIP_OUTSIDE, true),
            (Hook::Ingress, Scope::Inside, VIP_OUTSIDE, false),
            (Hook::Ingress, Scope::Outside, VIP_OUTSIDE, true),
            (Hook::Ingress, Scope::Overlay, VIP_INSIDE | VIP_OUTSIDE, true),
            (Hook::Egress, Scope::Outside, VIP_INSIDE | VIP_OUTSIDE, true),
            (Hook::Egress, Scope::Outside, VIP_OUTSIDE, false),
            (Hook::Ingress, Scope::Inside, 0, false),
        ] {
            let mut tables = tables::<A>(1);
            tables.interface.scope = scope as u8;
            tables.vips.insert(A::nth(VIP), vip);
            let request = echo::<A>(A::nth(CLIENT), A::nth(VIP));
            let mut reply = request.clone();
            let verdict = tables.run(hook, &mut reply);
            if !answered {
                assert_eq!((verdict, reply.bytes), (Verdict::Pass, request.bytes));
                continue;
            }
            assert_eq!(verdict, Verdict::Answer);
            assert_eq!(reply.bytes[..6], request.bytes[6..12]);
            let headers = PacketHeaders::from_ethernet_slice(&reply.bytes).unwrap();
            let payload = headers.payload.slice();
            assert_eq!(payload, b"ping of odd length!");
            match (headers.net.unwrap(), headers.transport.unwrap()) {
                (NetHeaders::Ipv4(ip, _), TransportHeader::Icmpv4(icmp)) => {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    assert_eq!(ip.time_to_live, 64);
                    assert!(matches!(icmp.icmp_type, etherparse::Icmpv4Type::EchoReply(_)));
                    assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(payload));
                }
                (NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(icmp)) => {
                    assert_eq!(ip.hop_limit, 64);
                    assert!(matches!(icmp.icmp_type, etherparse::Icmpv6Type::EchoReply(_)));
                    let expected = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).unwrap();
                    assert_eq!(icmp.checksum, expected);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn echo<A: Plan>(source: A, destination: A) -> HostFrame {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut bytes = Vec::new();
    let payload = b"ping of odd length!";
    match (source.ip(), destination.ip()) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => ethernet
            .ipv4(source.octets(), destination.octets(), 7)
            .icmpv4_echo_request(5, 6)
            .write(&mut bytes, payload)
            .unwrap(),
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => ethernet
            .ipv6(source.octets(), destination.octets(), 7)
            .icmpv6_echo_request(5, 6)
            .write(&mut bytes, payload)
            .unwrap(),
        _ => panic!("one family"),
    }
    HostFrame::new(bytes)
}

/// The one's-complement sum of bytes (RFC 1071), in network order.
fn folded(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_be_bytes()
}

proptest! {
    #[test]
    fn the_error_about_any_packet_has_valid_checksums(
        payload in proptest::collection::vec(any::<u8>(), 0..1600), flags in prop_oneof![Just(SYN), Just(0)], v6 in any::<bool>(),
    ) {
        if v6 {
            refused(&mut tables::<[u8; 16]>(0), at::<[u8; 16]>(VIP, VIP_PORT), flags, &payload);
        } else {
            refused(&mut tables::<[u8; 4]>(0), at::<[u8; 4]>(VIP, VIP_PORT), flags, &payload);
        }
    }
}
