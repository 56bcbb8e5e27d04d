//! Packets in, packets out: each test follows one flow through the hooks, byte for byte, in both families.

mod support;

use proptest::prelude::*;
use svc_common::{
    BackendState, Hook, Interface, Reason, Scope, SlotRange,
    backend::{BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_LOCAL},
    config::INTERFACE_BRIDGE_PORT,
    flow::FLOW_HAIRPIN,
    frontend::{
        FLAG_INSIDE_DROP, FLAG_INSIDE_LOCAL, FLAG_LOAD_BALANCER, FLAG_NODE_PORT, FLAG_OUTSIDE_DROP, FLAG_OUTSIDE_LOCAL,
    },
    protocol,
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
};

use support::*;

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

    fn a_datagram_is_dropped_if_policy_leaves_nobody_while_others_serve<A: Plan>() {
        for (scope, flag) in [(Scope::Inside, FLAG_INSIDE_DROP), (Scope::Outside, FLAG_OUTSIDE_DROP)] {
            let mut tables = tables::<A>(1);
            tables.interface.scope = scope as u8;
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let (_, first) = pass(&mut tables, Hook::Ingress, client, vip, 0);
            let before = tables.clone();
            tables.backends.get_mut(&1).unwrap().state = BackendState::Gone as u8;
            for frontend in tables.frontends.values_mut() {
                (frontend.inside.len, frontend.outside.len) = (0, 0);
            }
            set_flags(&mut tables, flag);
            assert_eq!(drop_reason(&mut tables, vip, 0), Reason::PolicyEmpty);
            (tables.frontends, tables.backends) = (before.frontends, before.backends);
            assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, 0), (client, first), "it is back");
        }
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

    fn a_connection_that_others_translate_passes_untouched<A: Plan>() {
        let mut tables = tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip));
        set_flags(&mut tables, FLAG_NODE_PORT);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip));
        set_flags(&mut tables, FLAG_LOAD_BALANCER);
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, vip), "no pod comes by another node");
        tables.interface.scope = Scope::Outside as u8;
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

    fn a_forward_entry_is_rebuilt_though_affinity_chose_the_backend<A: Plan>() {
        for (bound_elsewhere, affinity_since) in [(false, true), (true, true), (false, false)] {
            let mut tables = tables::<A>(7);
            let set = |tables: &mut HostTables<A>, seconds| {
                tables.frontends.values_mut().for_each(|frontend| frontend.affinity_seconds = seconds);
            };
            set(&mut tables, if affinity_since { 100 } else { 0 });
            let vip = at::<A>(VIP, VIP_PORT);
            for port in 40000..40050 {
                let client = at::<A>(CLIENT, port);
                let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
                tables.flows.retain(|key, _| key.hook == Hook::Egress as u8);
                let before = tables.affinity.clone();
                // The time of the binding plays no part: a long connection outlives it.
                tables.now += 1000;
                if bound_elsewhere {
                    tables.affinity.clear();
                }
                set(&mut tables, 100);
                assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, backend);
                assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK).1, backend);
                assert_eq!(pass(&mut tables, Hook::Egress, backend, client, ACK), (vip, client));
                assert!(bound_elsewhere || tables.affinity == before, "it is no new connection");
                if !affinity_since {
                    set(&mut tables, 0);
                }
                tables.affinity.clear();
                tables.slots.rotate_left(usize::from(!bound_elsewhere && affinity_since));
            }
        }
    }

    fn a_forward_entry_is_rebuilt_though_the_clients_port_was_remapped<A: Plan>() {
        let mut tables = tables::<A>(1);
        for port in 40000..40050 {
            let client = at::<A>(CLIENT, port);
            let first = pass(&mut tables, Hook::Ingress, client, at::<A>(VIP, VIP_PORT), SYN);
            let second = pass(&mut tables, Hook::Ingress, client, at::<A>(OTHER_VIP, VIP_PORT), SYN);
            assert_ne!(first.0, second.0);
            tables.flows.retain(|key, _| key.hook == Hook::Egress as u8);
            assert_eq!(pass(&mut tables, Hook::Ingress, client, at::<A>(OTHER_VIP, VIP_PORT), ACK), second);
            assert_eq!(pass(&mut tables, Hook::Ingress, client, at::<A>(VIP, VIP_PORT), ACK), first);
        }
    }

    fn a_forward_entry_is_rebuilt_from_the_reply_though_no_slot_leads_to_its_backend<A: Plan>() {
        let mut tables = tables::<A>(2);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        let terminating = if backend == at::<A>(BACKEND, BACKEND_PORT) { 1 } else { 2 };
        tables.backends.get_mut(&terminating).unwrap().state = BackendState::Terminating as u8;
        tables.slots = vec![3 - terminating; 2];
        tables.flows.retain(|key, _| key.hook == Hook::Egress as u8);
        tables.now += 1;
        assert_eq!(pass(&mut tables, Hook::Egress, backend, client, ACK), (vip, client));
        assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, ACK), (client, backend));
    }

    fn the_entries_of_a_pod_that_reaches_itself_are_rebuilt<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables::<A>(1);
            let (pod, backend, vip) = (at::<A>(BACKEND, 40000), at::<A>(BACKEND, BACKEND_PORT), at::<A>(VIP, VIP_PORT));
            let later = if flags == SYN { ACK } else { 0 };
            pass(&mut tables, Hook::Ingress, pod, vip, flags);
            let all = tables.flows.clone();
            for evicted in all.keys() {
                tables.flows.remove(evicted);
                tables.now += 1;
                pass(&mut tables, Hook::Ingress, pod, vip, later);
                assert!(tables.flows.contains_key(evicted), "{evicted:?}");
            }
            assert_eq!(tables.flows.len(), all.len());
            assert_eq!(pass(&mut tables, Hook::Egress, backend, pod, later), (vip, pod));
        }
    }

    fn a_client_outside_with_the_backends_address_is_no_hairpin<A: Plan>() {
        let mut tables = tables::<A>(1);
        tables.interface.scope = Scope::Outside as u8;
        tables.backends.get_mut(&1).unwrap().flags = 0;
        let (node, vip) = (at::<A>(BACKEND, 40000), at::<A>(VIP, VIP_PORT));
        assert_eq!(pass(&mut tables, Hook::Ingress, node, vip, SYN), (node, at::<A>(BACKEND, BACKEND_PORT)));
        assert_eq!(tables.flows.len(), 2, "an entry for each direction");
    }

    fn every_port_of_a_client_works_through_two_vips_of_an_endpoint_with_affinity<A: Plan>() {
        let mut tables = tables::<A>(1);
        tables.frontends.values_mut().for_each(|frontend| frontend.affinity_seconds = 100);
        for port in 40000..40200 {
            for vip in [VIP, OTHER_VIP] {
                pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, port), at::<A>(vip, VIP_PORT), SYN);
            }
        }
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

    fn affinity_never_leaves_the_set_that_a_frontend_grants<A: Plan>() {
        for scope in [Scope::Inside, Scope::Outside] {
            let mut tables = tables::<A>(2);
            tables.interface.scope = scope as u8;
            tables.backends.get_mut(&2).unwrap().flags &= !BACKEND_IN_LOCAL;
            let (vip, local) = (at::<A>(VIP, VIP_PORT), at::<A>(OTHER_VIP, VIP_PORT));
            for (key, frontend) in &mut tables.frontends {
                frontend.affinity_seconds = 100;
                let is_local = key.address == A::nth(OTHER_VIP);
                let range = SlotRange { offset: u32::from(!is_local), len: 1 };
                (frontend.inside, frontend.outside) = (range, range);
                frontend.flags |= if is_local { FLAG_INSIDE_LOCAL | FLAG_OUTSIDE_LOCAL } else { 0 };
            }
            let ask = |tables: &mut _, port, vip| {
                pass::<A>(tables, Hook::Ingress, at::<A>(CLIENT, port), vip, SYN).1
            };
            assert_eq!(ask(&mut tables, 1, vip), at::<A>(BACKEND + 1, BACKEND_PORT));
            assert_eq!(ask(&mut tables, 2, local), at::<A>(BACKEND, BACKEND_PORT));
            assert_eq!(ask(&mut tables, 3, vip), at::<A>(BACKEND, BACKEND_PORT), "the last one is in both sets");
        }
    }

    fn affinity_holds_among_endpoints_that_drain_while_nobody_else_serves<A: Plan>() {
        let mut tables = tables::<A>(7);
        tables.frontends.values_mut().for_each(|frontend| frontend.affinity_seconds = 100);
        tables.backends.values_mut().for_each(|backend| backend.state = BackendState::Terminating as u8);
        let vip = at::<A>(VIP, VIP_PORT);
        let (_, first) = pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 1), vip, SYN);
        tables.slots.rotate_left(1);
        assert_eq!(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 2), vip, SYN).1, first);
        for backend in tables.backends.values_mut() {
            backend.flags &= !BACKEND_IN_CLUSTER;
        }
        assert_ne!(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 3), vip, SYN).1, first);
    }

    fn a_client_with_affinity_falls_on_one_backend_whatever_ids_a_node_gives<A: Plan>() {
        let mut found = Vec::new();
        for service in 7..27 {
            let mut tables = tables::<A>(7);
            for frontend in tables.frontends.values_mut() {
                (frontend.affinity_seconds, frontend.service) = (100, service);
            }
            found.push(pass(&mut tables, Hook::Ingress, at::<A>(CLIENT, 1), at::<A>(VIP, VIP_PORT), SYN).1);
        }
        found.dedup();
        assert_eq!(found.len(), 1, "{found:?}");
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
