//! The compile step against the model of the rules in `svc_lab::model`, which shares nothing with it: for random Services,
//! slices and nodes, every address, every origin of traffic, and who answers there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use proptest::{collection::vec, option, prelude::*, sample};
use svc_lab::model::{self as rules, Address, Origin, Policies, Verdict};
use svc_userspace::{
    compile::{FrontendKind, NodeContext, PortTable, Set, compile},
    model::{Endpoint, Family, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort},
};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const NAMES: [&str; 3] = ["", "http", "dns"];

fn some_of(addresses: &[&str]) -> impl Strategy<Value = Vec<IpAddr>> + use<> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().expect("an address")).collect();
    let count = addresses.len();
    sample::subsequence(addresses, 0..=count)
}

fn names(names: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    vec(sample::select(names).prop_map(Into::into), 0..3)
}

fn a_port() -> impl Strategy<Value = rules::Port> {
    (sample::select(&NAMES[..]), sample::select(&PROTOCOLS[..]), sample::select(&[53u16, 80][..]), any::<bool>())
        .prop_map(|(name, protocol, port, has_node_port)| rules::Port {
            name: name.into(),
            protocol: protocol.number(),
            port,
            node_port: has_node_port.then_some(30_000 + port),
        })
}

fn a_service() -> impl Strategy<Value = rules::Service> {
    (
        prop_oneof![
            1 => some_of(&["10.96.0.1", "fd00:10:96::1"]),
            3 => Just(vec![IpAddr::from([10, 96, 0, 1])]),
        ],
        some_of(&["203.0.113.1", "203.0.113.2", "2001:db8:f::1"]),
        some_of(&["192.0.2.9", "2001:db8:e::9"]),
        vec(a_port(), 0..4),
        any::<(bool, bool)>(),
    )
        .prop_map(|(cluster_ips, load_balancer_ips, external_ips, ports, (internal_local, external_local))| {
            let policies = Policies { internal_local, external_local };
            // The API server takes a name, and a number of a protocol, only once.
            let mut unique: Vec<rules::Port> = Vec::new();
            for port in ports {
                if unique.iter().all(|it| it.name != port.name && (it.protocol, it.port) != (port.protocol, port.port))
                {
                    unique.push(port);
                }
            }
            rules::Service { cluster_ips, load_balancer_ips, external_ips, ports: unique, policies }
        })
}

fn an_endpoint(is_ipv6: bool) -> impl Strategy<Value = rules::Listed> {
    let node = option::of(sample::select(&["node-a", "node-b"][..]).prop_map(Into::into));
    // Most endpoints are ready, and most have hints, or hints would hardly ever be complete.
    let condition = |usual: bool| prop_oneof![3 => Just(usual), 1 => Just(!usual)];
    let conditions = (condition(true), condition(true), condition(false));
    let hints = (names(&["node-a", "node-b", "node-c"]), names(&["zone-1", "zone-2"]));
    (1..8u16, conditions, node, hints).prop_map(move |(host, (ready, serving, terminating), node, hints)| {
        let identity = if is_ipv6 {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host])
        } else {
            IpAddr::from([10, 0, 0, u8::try_from(host).expect("a small number")])
        };
        let (for_nodes, for_zones) = hints;
        rules::Endpoint { identity, ready, serving, terminating, node, for_nodes, for_zones }
    })
}

fn a_slice() -> impl Strategy<Value = rules::Slice> {
    prop::bool::weighted(0.3).prop_flat_map(|is_ipv6| {
        let port = (sample::select(&NAMES[..]), sample::select(&PROTOCOLS[..]), 8080..8082u16);
        let ports = vec(port.prop_map(|(name, protocol, port)| (name.into(), protocol.number(), port)), 0..5);
        (ports, vec(an_endpoint(is_ipv6), 0..5)).prop_map(move |(ports, endpoints)| rules::Slice {
            is_ipv6,
            ports,
            endpoints,
        })
    })
}

fn a_host() -> impl Strategy<Value = rules::Host> {
    let zone = option::of(sample::select(&["zone-1", "zone-2"][..]).prop_map(Into::into));
    let (addresses, loopback) = (some_of(&["172.16.0.1", "172.16.0.2", "fd00:50::1"]), some_of(&["127.0.0.1", "::1"]));
    (zone, addresses, loopback).prop_map(|(zone, addresses, loopback)| rules::Host {
        node: rules::Node { name: "node-a".into(), zone },
        addresses,
        loopback,
    })
}

fn protocol(number: u8) -> Protocol {
    Protocol::from_number(number).expect("one of the three")
}

fn name_of_service() -> ObjectName {
    ObjectName::new("default", "web")
}

fn agents_service(service: &rules::Service) -> Service {
    let ports = service.ports.iter().map(|it| ServicePort {
        name: it.name.as_str().into(),
        protocol: protocol(it.protocol),
        port: it.port,
        node_port: it.node_port,
    });
    Service {
        name: name_of_service(),
        cluster_ips: service.cluster_ips.clone(),
        external_ips: service.external_ips.clone(),
        load_balancer_ips: service.load_balancer_ips.clone(),
        claim: None,
        source_ranges: vec![],
        ports: ports.collect(),
        external_local: service.policies.external_local,
        internal_local: service.policies.internal_local,
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

fn agents_slice(slice: &rules::Slice) -> Slice {
    let interned = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
    let endpoints = slice.endpoints.iter().map(|it| Endpoint {
        address: it.identity,
        ready: it.ready,
        serving: it.serving,
        terminating: it.terminating,
        node: it.node.as_deref().map(Into::into),
        hint_nodes: interned(&it.for_nodes),
        hint_zones: interned(&it.for_zones),
    });
    let ports = slice.ports.iter().map(|(name, number, port)| SlicePort {
        name: name.as_str().into(),
        protocol: protocol(*number),
        port: *port,
    });
    Slice {
        name: ObjectName::new("default", "web-1"),
        service: name_of_service(),
        family: if slice.is_ipv6 { Family::V6 } else { Family::V4 },
        ports: ports.collect(),
        endpoints: endpoints.collect(),
        triggered_ms: None,
    }
}

fn agents_node(host: &rules::Host) -> NodeContext {
    NodeContext {
        name: host.node.name.as_str().into(),
        zone: host.node.zone.as_deref().map(Into::into),
        node_port_addresses: host.addresses.clone(),
        loopback_addresses: host.loopback.clone(),
    }
}

type Answers = BTreeMap<(SocketAddr, Origin), Verdict<SocketAddr>>;

/// What a table means: `Set` says when an empty set rejects and when it drops.
fn compiled(table: &PortTable) -> Answers {
    let verdict = |set| {
        let members = if set == Set::Cluster { &table.cluster } else { &table.local };
        match (set, members.is_empty()) {
            (_, false) => Verdict::Answer(members.iter().map(|&index| table.backends[index].address).collect()),
            (Set::Local, true) if !table.cluster.is_empty() => Verdict::Drop,
            (_, true) => Verdict::Reject,
        }
    };
    let both = |it: &svc_userspace::compile::FrontendEntry| {
        [((it.address, Origin::Inside), verdict(it.inside)), ((it.address, Origin::Outside), verdict(it.outside))]
    };
    table.frontends.iter().flat_map(both).collect()
}

/// What the rules say, for one choice where they leave one.
fn ruled(
    row: &rules::Row,
    endpoints: &[rules::Endpoint<SocketAddr>],
    policies: Policies,
    node: &rules::Node,
) -> Answers {
    let both = |(&asked, &kind): (&SocketAddr, &Address)| {
        [Origin::Inside, Origin::Outside]
            .map(|origin| ((asked, origin), rules::verdict(endpoints, policies, kind, origin, node)))
    };
    row.addresses.iter().flat_map(both).collect()
}

fn kind(kind: FrontendKind) -> Address {
    match kind {
        FrontendKind::ClusterIp => Address::ClusterIp,
        FrontendKind::NodePort | FrontendKind::NodePortLoopback => Address::NodePort,
        FrontendKind::LoadBalancer => Address::LoadBalancer,
        FrontendKind::ExternalIp => Address::ExternalIp,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn every_address_leads_to_whom_the_rules_name(
        service in a_service(),
        slices in vec(a_slice(), 0..4),
        foreign in vec(a_slice(), 0..2),
        host in a_host(),
    ) {
        let mut listed: Vec<Slice> = slices.iter().map(agents_slice).collect();
        let service_of_others = ObjectName::new("default", "other");
        listed.extend(foreign.iter().map(|it| Slice { service: service_of_others.clone(), ..agents_slice(it) }));
        let listed: Vec<&Slice> = listed.iter().collect();
        let tables = compile(&agents_service(&service), &listed, &agents_node(&host));

        let mut rows = rules::rows(&service, &slices, &host);
        for table in &tables {
            let key = rules::Key {
                name: table.key.name.to_string(),
                protocol: table.key.protocol.number(),
                port: table.key.port,
                is_ipv6: table.key.family == Family::V6,
            };
            let row = rows.remove(&key);
            prop_assert!(row.is_some(), "the rules know no {:?}", key);
            let row = row.expect("just checked");
            let kinds: BTreeMap<_, _> = table.frontends.iter().map(|it| (it.address, kind(it.kind))).collect();
            prop_assert_eq!(&kinds, &row.addresses);
            for frontend in &table.frontends {
                let is_loopback = frontend.kind == FrontendKind::NodePortLoopback;
                prop_assert_eq!(is_loopback, frontend.address.ip().is_loopback());
            }
            let found = compiled(table);
            let allowed: Vec<Answers> =
                row.endpoints.iter().map(|endpoints| ruled(&row, endpoints, service.policies, &host.node)).collect();
            prop_assert!(allowed.contains(&found), "{:?}: {:#?} is none of {:#?}", key, found, allowed);
        }
        prop_assert!(rows.is_empty(), "nothing was compiled for {:?}", rows.keys());
    }
}
