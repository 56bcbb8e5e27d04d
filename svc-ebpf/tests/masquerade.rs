//! Masquerading by the programs, packet by packet: through the uplink to another node and back.

mod support;

use std::net::SocketAddr;

use svc_common::{
    Flow, FlowKey, FlowState, Hook, Reason, Scope,
    config::INTERFACE_UPPER,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
    flow::{FLOW_DIRECT, FLOW_MASQUERADED, FLOW_NEW},
    masquerade::{FIRST_PORT, PROGRAM_MARK},
    protocol,
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
};

use support::*;

/// This node, of which the leaving interface has the address.
const NODE: u8 = 50;
const RST: u8 = 4;

/// An uplink, and a Service of `backends` endpoints on other nodes.
fn uplink<A: Plan>(backends: u8) -> HostTables<A> {
    let mut tables = tables::<A>(backends);
    tables.interface.scope = Scope::Outside as u8;
    tables.backends.values_mut().for_each(|backend| backend.flags = 0);
    tables.programs_masquerade = true;
    tables.masquerade_source = Some(A::nth(NODE));
    tables.now = 200_000;
    tables.is_filtered = true;
    for protocol in [protocol::TCP, protocol::UDP] {
        tables.know(&A::nth(VIP), VIP_PORT, protocol, KNOWN_FRONTEND);
        tables.know(&A::nth(BACKEND), BACKEND_PORT, protocol, KNOWN_ENDPOINT);
    }
    tables
}

/// In by the uplink and out to the backend; what the backend sees.
fn there<A: Plan>(tables: &mut HostTables<A>, from: SocketAddr, to: SocketAddr, flags: u8) -> (SocketAddr, SocketAddr) {
    let mut frame = frame(from, to, flags, b"hello");
    assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Pass);
    let (source, destination) = addresses(&frame);
    assert_eq!(source, from, "netfilter sees the client");
    assert_eq!(frame.mark, PROGRAM_MARK);
    assert_eq!(destination.port(), BACKEND_PORT);
    assert_eq!(tables.run(Hook::Egress, &mut frame), Verdict::Pass);
    assert_eq!(frame.mark, 0, "or it would reach the outer packet of a tunnel");
    addresses(&frame)
}

/// The answer to what the backend saw: back in, and out by the uplink; what the client sees.
fn back<A: Plan>(
    tables: &mut HostTables<A>,
    seen: (SocketAddr, SocketAddr),
    client: SocketAddr,
    flags: u8,
) -> (SocketAddr, SocketAddr) {
    let mut frame = frame(seen.1, seen.0, flags, b"hello");
    assert_eq!(tables.run(Hook::Ingress, &mut frame), Verdict::Pass);
    assert_eq!(addresses(&frame), (seen.1, client), "netfilter sees the client");
    assert_eq!(frame.mark, 0);
    assert_eq!(tables.run(Hook::Egress, &mut frame), Verdict::Pass);
    addresses(&frame)
}

/// The inbound entries: who has which of our ports.
fn owners<A: Plan>(tables: &HostTables<A>) -> Vec<(FlowKey<A>, Flow<A>)> {
    let entries =
        tables.flows.iter().filter(|(key, flow)| key.hook == Hook::Ingress as u8 && flow.flags & FLOW_MASQUERADED != 0);
    entries.map(|(key, flow)| (*key, *flow)).collect()
}

/// The first packet's flags; for each other one whether it goes to the backend, and its flags; units of time.
type Story = (u8, &'static [(bool, u8)], u32);

both_families! {
    fn a_client_meets_the_backend_as_this_node_and_the_vip_answers<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = uplink::<A>(1);
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let seen = there(&mut tables, client, vip, flags);
            assert_eq!(seen.0.ip(), A::nth(NODE).ip());
            assert!(seen.0.port() >= FIRST_PORT);
            assert_eq!(back(&mut tables, seen, client, if flags == 0 { 0 } else { SYN | ACK }), (vip, client));
            assert_eq!(there(&mut tables, client, vip, if flags == 0 { 0 } else { ACK }), seen);
            assert_eq!(tables.flows.len(), 4);
            assert_eq!(tables.counted[&7], 3, "each packet once");
        }
    }

    fn only_flows_that_nftables_does_not_masquerade_get_ports<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut tables = uplink::<A>(1);
        there(&mut tables, client, vip, SYN);
        // From now on nftables does: the flow keeps its port, another one gets the mark.
        tables.programs_masquerade = false;
        there(&mut tables, client, vip, ACK);
        let mut other = frame(at::<A>(CLIENT, 40001), vip, SYN, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut other), Verdict::Pass);
        assert_eq!(other.mark, MARK);
    }

    fn a_mark_that_somebody_else_has_set_means_nothing<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let mut foreign = frame(at::<A>(CLIENT, 40000), at::<A>(BACKEND, BACKEND_PORT), SYN, b"");
        let before = foreign.bytes.clone();
        foreign.mark = PROGRAM_MARK;
        assert_eq!(tables.run(Hook::Egress, &mut foreign), Verdict::Pass);
        assert_eq!(foreign.bytes, before);
        assert!(tables.flows.is_empty());
    }

    fn no_two_clients_share_a_port<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let mut seen = std::collections::HashSet::new();
        for port in 1..3000 {
            assert!(seen.insert(there(&mut tables, at::<A>(CLIENT, port), at::<A>(VIP, VIP_PORT), SYN)));
        }
    }

    fn a_port_is_given_again_only_when_its_flow_is_over<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        // How a flow goes on after it was opened, and how long its port is its own after that.
        let stories: [Story; 7] = [
            (SYN, &[(false, SYN | ACK)], 8),
            (SYN, &[(false, SYN | ACK), (true, ACK)], 80_466),
            (SYN, &[(false, SYN | ACK), (true, ACK), (true, FIN | ACK)], 64),
            (SYN, &[(false, SYN | ACK), (true, ACK), (false, FIN | ACK)], 64),
            (SYN, &[(false, SYN | ACK), (true, ACK), (true, FIN | ACK), (false, FIN | ACK)], 2),
            (0, &[(false, 0)], 28),
            (0, &[], 28),
        ];
        for (first, rest, limit) in stories {
            let mut tables = uplink::<A>(1);
            let seen = there(&mut tables, client, vip, first);
            for &(is_there, flags) in rest {
                if is_there {
                    there(&mut tables, client, vip, flags);
                } else {
                    back(&mut tables, seen, client, flags);
                }
            }
            let [(key, flow)] = owners(&tables)[..] else { panic!("one port") };
            // All other ports towards the backend are taken by flows that are not over.
            for port in FIRST_PORT..=u16::MAX {
                let lasts = Flow { address: A::nth(ROUTER), flags: FLOW_MASQUERADED, ..flow };
                tables.flows.entry(FlowKey { destination_port: port, ..key }).or_insert(lasts);
            }
            let opens = |tables: &mut HostTables<A>| (1..8_000_u16).any(|port| {
                let mut other = frame(at::<A>(ROUTER, port), vip, first, b"");
                assert_eq!(tables.run(Hook::Ingress, &mut other), Verdict::Pass);
                tables.run(Hook::Egress, &mut other) == Verdict::Pass
            });
            let wait = |tables: &mut HostTables<A>, ticks: u32| {
                tables.now += ticks;
                let now = tables.now;
                let others = tables.flows.values_mut().filter(|flow| flow.address == A::nth(ROUTER));
                others.for_each(|flow| flow.last_seen = now);
            };
            wait(&mut tables, limit);
            assert!(!opens(&mut tables), "{first} {rest:?}");
            wait(&mut tables, 1);
            assert!(opens(&mut tables), "{first} {rest:?}");
            // The old flow, should it come back, notices and gets nobody's.
            let mut late = frame(client, vip, ACK, b"");
            if first == SYN && tables.run(Hook::Ingress, &mut late) == Verdict::Pass {
                assert_eq!(tables.run(Hook::Egress, &mut late), Verdict::Drop(Reason::TupleTaken));
            }
        }
    }

    fn a_flow_of_many_units_of_time_is_not_new<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let seen = there(&mut tables, client, vip, 0);
        assert_eq!(owners(&tables)[0].1.flags & FLOW_NEW, FLOW_NEW);
        tables.now += 1;
        assert_eq!(there(&mut tables, client, vip, 0), seen);
        assert_eq!(owners(&tables)[0].1.flags & FLOW_NEW, 0);
        assert_eq!(owners(&tables)[0].1.last_seen, tables.now, "as young as the flow's last packet");
    }

    fn either_entry_brings_the_other_one_back<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let seen = there(&mut tables, client, vip, SYN);
        let all = tables.flows.clone();
        for (key, flow) in &all {
            if flow.flags & FLOW_MASQUERADED == 0 {
                continue;
            }
            tables.flows.remove(key);
            tables.now += 1;
            if key.hook == Hook::Ingress as u8 {
                assert_eq!(there(&mut tables, client, vip, ACK), seen);
            } else {
                assert_eq!(back(&mut tables, seen, client, ACK), (vip, client));
            }
            assert!(tables.flows.contains_key(key));
        }
        // Both gone: the first port that is tried is the one it had.
        tables.flows.retain(|_, flow| flow.flags & FLOW_MASQUERADED == 0);
        assert_eq!(there(&mut tables, client, vip, ACK), seen);
    }

    fn a_port_that_others_use_is_not_taken_and_others_do_not_take_ours<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let ours = there(&mut uplink::<A>(1), client, vip, SYN);
        // They were first: netfilter masqueraded a pod's flow and kept its port.
        let mut tables = uplink::<A>(1);
        let foreign = || frame(ours.0, ours.1, SYN, b"");
        let mut first = foreign();
        assert_eq!(tables.run(Hook::Egress, &mut first), Verdict::Pass);
        assert_eq!(addresses(&first), ours);
        assert!(tables.flows.values().all(|flow| flow.flags == FLOW_DIRECT));
        let other = there(&mut tables, client, vip, SYN);
        assert_ne!(other, ours);
        let mut answer = frame(ours.1, ours.0, SYN | ACK, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut answer), Verdict::Pass);
        assert_eq!(addresses(&answer), (ours.1, ours.0), "netfilter gets its own answer");
        // We were first.
        let mut tables = uplink::<A>(1);
        assert_eq!(there(&mut tables, client, vip, SYN), ours);
        let mut second = foreign();
        assert_eq!(tables.run(Hook::Egress, &mut second), Verdict::Pass);
        assert_ne!(addresses(&second), ours);
        let mut answer = frame(ours.1, addresses(&second).0, SYN | ACK, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut answer), Verdict::Pass);
        assert_eq!(addresses(&answer), (ours.1, ours.0), "netfilter gets the answer to what it sent");
        assert_eq!(back(&mut tables, ours, client, SYN | ACK), (vip, client));
        // What is in mid-stream and clashes is not sent as somebody else.
        let mut late = frame(ours.0, ours.1, ACK, b"");
        tables.flows.retain(|key, _| key.source_port != ours.0.port());
        assert_eq!(tables.run(Hook::Egress, &mut late), Verdict::Drop(Reason::TupleTaken));
    }

    fn other_ports_and_other_addresses_are_nobodys_business<A: Plan>() {
        let mut tables = uplink::<A>(1);
        for (from, to) in [
            (at::<A>(NODE, FIRST_PORT - 1), at::<A>(BACKEND, BACKEND_PORT)),
            (at::<A>(ROUTER, FIRST_PORT), at::<A>(BACKEND, BACKEND_PORT)),
            (at::<A>(NODE, FIRST_PORT), at::<A>(ROUTER, BACKEND_PORT)),
        ] {
            for flags in [SYN, ACK, RST, 0] {
                assert_eq!(tables.run(Hook::Egress, &mut frame(from, to, flags, b"")), Verdict::Pass);
            }
        }
        tables.programs_masquerade = false;
        let own = frame(at::<A>(NODE, FIRST_PORT), at::<A>(BACKEND, BACKEND_PORT), SYN, b"");
        assert_eq!(tables.run(Hook::Egress, &mut own.clone()), Verdict::Pass);
        assert!(tables.flows.is_empty());
    }

    fn an_interface_without_an_address_sends_nothing_untranslated<A: Plan>() {
        let mut tables = uplink::<A>(1);
        tables.masquerade_source = None;
        let mut request = frame(at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT), SYN, b"");
        assert_eq!(tables.run(Hook::Ingress, &mut request), Verdict::Pass);
        assert_eq!(tables.run(Hook::Egress, &mut request), Verdict::Drop(Reason::Inconsistent));
    }

    fn a_fin_of_the_backend_is_noted_where_the_port_is_owned<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let seen = there(&mut tables, client, vip, SYN);
        back(&mut tables, seen, client, FIN | ACK);
        assert_eq!(owners(&tables)[0].1.state, FlowState::Closing as u8);
    }

    fn the_device_below_leaves_alone_what_was_masqueraded_on_top_of_it<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let ours = there(&mut uplink::<A>(1), client, vip, SYN);
        for is_foreign in [false, true] {
            let mut packet = if is_foreign { frame(ours.0, ours.1, SYN, b"") } else { frame(client, vip, SYN, b"") };
            if !is_foreign {
                assert_eq!(tables.run(Hook::Ingress, &mut packet), Verdict::Pass);
            }
            tables.interface.flags = INTERFACE_UPPER;
            assert_eq!(tables.run(Hook::Egress, &mut packet), Verdict::Pass);
            let masqueraded = addresses(&packet);
            assert_eq!(masqueraded == ours, !is_foreign);
            tables.interface.flags = 0;
            assert_eq!(tables.run(Hook::Egress, &mut packet), Verdict::Pass);
            assert_eq!((addresses(&packet), packet.mark), (masqueraded, 0));
        }
    }

    fn errors_reach_whom_they_are_about<A: Plan>() {
        let mut tables = uplink::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let seen = there(&mut tables, client, vip, SYN);
        let (node, backend, router) = (seen.0, seen.1, at::<A>(ROUTER, 0));
        let mut both_hooks = |from: SocketAddr, to: SocketAddr, about: &HostFrame| {
            let mut error = icmp_error::<A>(from, to, about);
            assert_eq!(tables.run(Hook::Ingress, &mut error), Verdict::Pass);
            let between = icmp_addresses(&error);
            assert_eq!(tables.run(Hook::Egress, &mut error), Verdict::Pass);
            (between, icmp_addresses(&error))
        };
        // A router on the way to the backend, and the backend itself, complain about the request.
        for (complainer, shown) in [(router, router), (backend, vip)] {
            let about = frame(node, backend, SYN, b"hello");
            let (between, after) = both_hooks(complainer, node, &about);
            assert_eq!(between, (complainer.ip(), client.ip(), client, backend), "what netfilter sees");
            assert_eq!(after, (shown.ip(), client.ip(), client, vip), "what the client sees");
        }
        // A router on the way to the client, and the client, complain about the answer.
        for complainer in [router, client] {
            let about = frame(vip, client, SYN | ACK, b"hello");
            let (between, after) = both_hooks(complainer, vip, &about);
            assert_eq!(between, (complainer.ip(), backend.ip(), backend, client), "what netfilter sees");
            assert_eq!(after, (node.ip(), backend.ip(), backend, node), "what the backend sees");
        }
    }
}
