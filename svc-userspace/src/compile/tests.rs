//! Rows of the behaviour, one by one. `tests/compile_model.rs` compares the whole with a model of the rules.

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::model::{Endpoint, NameList, ServicePort, SlicePort};

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("other".into()),
        hint_nodes: NameList::default(),
        hint_zones: NameList::default(),
    }
}

fn here(mut endpoint: Endpoint) -> Endpoint {
    endpoint.node = Some("node-a".into());
    endpoint
}

fn draining(mut endpoint: Endpoint) -> Endpoint {
    (endpoint.ready, endpoint.terminating) = (false, true);
    endpoint
}

fn hinted(mut endpoint: Endpoint, nodes: &[&str], zones: &[&str]) -> Endpoint {
    endpoint.hint_nodes = nodes.iter().map(|name| (*name).into()).collect();
    endpoint.hint_zones = zones.iter().map(|name| (*name).into()).collect();
    endpoint
}

fn service() -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
        external_ips: vec!["192.0.2.9".parse().expect("an address")],
        load_balancer_ips: vec!["203.0.113.1".parse().expect("an address"), "2001:db8::1".parse().expect("an address")],
        claim: None,
        source_ranges: vec![],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) }],
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

fn slice(name: &str, port: u16, endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        name: ObjectName::new("default", name),
        service: service().name,
        family: Family::V4,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port }],
        endpoints,
        triggered_ms: None,
    }
}

fn node() -> NodeContext {
    let parse = |text: &str| text.parse().expect("an address");
    NodeContext {
        name: "node-a".into(),
        zone: Some("zone-1".into()),
        node_port_addresses: vec![parse("172.16.0.1"), parse("fd00::1")],
        loopback_addresses: vec![parse("127.0.0.1"), parse("::1")],
    }
}

fn only_table(service: &Service, slices: &[Slice]) -> PortTable {
    let slices: Vec<&Slice> = slices.iter().collect();
    let mut tables = compile(service, &slices, &node());
    assert_eq!(tables.len(), 1);
    tables.remove(0)
}

fn with(endpoints: Vec<Endpoint>) -> PortTable {
    only_table(&service(), &[slice("a", 8080, endpoints)])
}

fn hosts(table: &PortTable, set: &[usize]) -> Vec<String> {
    set.iter().map(|index| table.backends[*index].address.to_string()).collect()
}

fn policies(service: &Service) -> Vec<(FrontendKind, Set, Set)> {
    only_table(service, &[]).frontends.iter().map(|f| (f.kind, f.inside, f.outside)).collect()
}

#[test]
fn each_policy_is_about_its_own_frontends() {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort, NodePortLoopback};
    let table = |cluster: (Set, Set), other: (Set, Set)| {
        vec![
            (ClusterIp, cluster.0, cluster.1),
            (NodePortLoopback, other.0, other.1),
            (NodePort, other.0, other.1),
            (ExternalIp, other.0, other.1),
            (LoadBalancer, other.0, other.1),
        ]
    };
    let all = (Set::Cluster, Set::Cluster);
    assert_eq!(policies(&service()), table(all, all));
    let external = Service { external_local: true, ..service() };
    assert_eq!(policies(&external), table(all, (Set::Cluster, Set::Local)));
    let internal = Service { internal_local: true, ..service() };
    assert_eq!(policies(&internal), table((Set::Local, Set::Local), all));
}

#[test]
fn frontends_carry_their_own_ports_and_only_the_families_of_the_service() {
    let table = only_table(&service(), &[]);
    let addresses: Vec<_> = table.frontends.iter().map(|f| f.address.to_string()).collect();
    assert_eq!(
        addresses,
        ["10.96.0.1:80", "127.0.0.1:30080", "172.16.0.1:30080", "192.0.2.9:80", "203.0.113.1:80"],
        "nothing of IPv6, which the Service does not have"
    );
    let none = Service { cluster_ips: vec![], ..service() };
    assert_eq!(compile(&none, &[], &node()), []);
    let mut both = service();
    both.cluster_ips.push("fd01::1".parse().expect("an address"));
    let families: Vec<_> = compile(&both, &[], &node()).iter().map(|t| (t.key.family, t.frontends.len())).collect();
    assert_eq!(families, [(Family::V4, 5), (Family::V6, 4)]);
}

#[test]
fn sctp_has_no_loopback_node_port() {
    let mut sctp = service();
    sctp.ports[0].protocol = Protocol::Sctp;
    assert!(policies(&sctp).iter().all(|(kind, ..)| *kind != FrontendKind::NodePortLoopback));
}

#[test]
fn an_address_with_two_roles_is_one_frontend() {
    let mut twice = service();
    twice.load_balancer_ips = twice.external_ips.clone();
    let kinds: Vec<_> = policies(&twice).iter().map(|(kind, ..)| *kind).collect();
    assert!(kinds.contains(&FrontendKind::LoadBalancer) && !kinds.contains(&FrontendKind::ExternalIp), "{kinds:?}");
}

#[test]
fn no_endpoint_leaves_both_sets_empty() {
    let table = with(vec![]);
    assert!(table.backends.is_empty() && table.cluster.is_empty() && table.local.is_empty());
}

#[test]
fn terminating_endpoints_serve_when_nothing_is_ready() {
    let dead = Endpoint { serving: false, ..draining(endpoint("10.0.0.3")) };
    let table = with(vec![draining(endpoint("10.0.0.1")), here(draining(endpoint("10.0.0.2"))), dead]);
    assert_eq!(hosts(&table, &table.cluster), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(hosts(&table, &table.local), ["10.0.0.2:8080"]);
    assert!(table.backends.iter().all(|backend| backend.terminating && backend.unused.is_none()));
    assert_eq!(table.not_serving, ["10.0.0.3:8080".parse().expect("an address")]);
}

#[test]
fn the_local_set_falls_back_while_the_cluster_set_does_not() {
    let table = with(vec![endpoint("10.0.0.1"), here(draining(endpoint("10.0.0.2")))]);
    assert_eq!(hosts(&table, &table.cluster), ["10.0.0.1:8080"]);
    assert_eq!(hosts(&table, &table.local), ["10.0.0.2:8080"]);
    assert_eq!(table.backends[1].unused, Some(Unused::Terminating), "no frontend of this Service uses the local set");
}

#[test]
fn an_endpoint_that_serves_but_is_neither_ready_nor_terminating_is_in_no_set() {
    let table = with(vec![here(Endpoint { ready: false, ..endpoint("10.0.0.1") })]);
    assert_eq!((table.cluster.len(), table.local.len(), table.backends.len()), (0, 0, 1));
    assert_eq!(table.backends[0].unused, Some(Unused::NotReady));
}

#[test]
fn of_an_endpoint_listed_twice_the_entry_that_does_not_terminate_wins() {
    let (old, new) = (draining(endpoint("10.0.0.1")), endpoint("10.0.0.1"));
    for pair in [[old.clone(), new.clone()], [new, old]] {
        let slices = pair.map(|endpoint| slice("a", 8080, vec![endpoint]));
        let table = only_table(&service(), &slices);
        assert_eq!(table.backends.len(), 1);
        assert!(!table.backends[0].terminating);
    }
}

#[test]
fn one_port_name_may_stand_for_another_number_in_each_slice() {
    let slices = [slice("a", 8080, vec![endpoint("10.0.0.1")]), slice("b", 9090, vec![endpoint("10.0.0.1")])];
    let table = only_table(&service(), &slices);
    assert_eq!(hosts(&table, &table.cluster), ["10.0.0.1:8080", "10.0.0.1:9090"]);
}

#[test]
fn node_hints_go_before_zone_hints_and_incomplete_ones_are_ignored() {
    let one = |nodes: &[&str], zones: &[&str]| hinted(endpoint("10.0.0.1"), nodes, zones);
    let two = |nodes: &[&str], zones: &[&str]| hinted(endpoint("10.0.0.2"), nodes, zones);
    let (first, both) = (vec!["10.0.0.1:8080"], vec!["10.0.0.1:8080", "10.0.0.2:8080"]);
    let cases = [
        ("node hints", one(&["node-a"], &["zone-2"]), two(&["node-b"], &["zone-1"]), &first),
        ("zone hints", one(&[], &["zone-1"]), two(&[], &["zone-2"]), &first),
        ("no node matches, a zone does", one(&["node-c"], &["zone-1"]), two(&["node-b"], &["zone-2"]), &first),
        ("nothing matches", one(&["node-c"], &["zone-3"]), two(&["node-b"], &["zone-2"]), &both),
        ("one has no hints", one(&["node-a"], &["zone-1"]), two(&[], &[]), &both),
    ];
    for (case, one, two, expected) in cases {
        let table = with(vec![one, two]);
        assert_eq!(&hosts(&table, &table.cluster), expected, "{case}");
    }
    let table = with(vec![one(&[], &["zone-1"]), two(&[], &["zone-2"])]);
    assert_eq!(table.backends[1].unused, Some(Unused::Hints));
    let table = with(vec![one(&[], &["zone-1"]), draining(endpoint("10.0.0.2"))]);
    assert_eq!(hosts(&table, &table.cluster), ["10.0.0.1:8080"], "only ready endpoints need hints");
}

#[test]
fn source_ranges_admit_who_they_name_in_each_family() {
    let (world, nobody) = (None, Some(vec![]));
    let ranges =
        |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a prefix")).collect::<Vec<ipnet::IpNet>>();
    for (given, v4, v6) in [
        (vec![], world.clone(), world.clone()),
        (vec!["192.0.2.7/24", "10.0.0.0/8", "192.0.2.0/24"], Some(ranges(&["10.0.0.0/8", "192.0.2.0/24"])), nobody),
        (vec!["0.0.0.0/0", "10.0.0.0/8"], world.clone(), world.clone()),
        (vec!["10.0.0.0/8", "::/0"], Some(ranges(&["10.0.0.0/8"])), world),
    ] {
        let mut closed = Service { source_ranges: ranges(&given), ..service() };
        closed.cluster_ips.push("fd01::1".parse().expect("an address"));
        let found: Vec<_> = compile(&closed, &[], &node()).into_iter().map(|table| table.source_ranges).collect();
        assert_eq!(found, [v4, v6], "{given:?}");
    }
}

#[test]
fn a_service_with_only_local_frontends_says_why_others_are_unused() {
    let mut local = Service { internal_local: true, external_ips: vec![], load_balancer_ips: vec![], ..service() };
    local.ports[0].node_port = None;
    let table = only_table(&local, &[slice("a", 1, vec![here(endpoint("10.0.0.1")), endpoint("10.0.0.2")])]);
    assert_eq!(table.backends.iter().map(|b| b.unused).collect::<Vec<_>>(), [None, Some(Unused::Policy)]);
}

#[test]
fn slices_of_other_services_families_ports_and_protocols_are_ignored() {
    let mut slices = vec![slice("a", 1, vec![endpoint("10.0.0.1")]); 4];
    slices[0].service = ObjectName::new("default", "other");
    slices[1].family = Family::V6;
    slices[2].ports[0].name = "metrics".into();
    slices[3].ports[0].protocol = Protocol::Udp;
    assert_eq!(only_table(&service(), &slices).backends, []);
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let names = |names: [&'static str; 3]| vec(proptest::sample::select(names.to_vec()).prop_map(Into::into), 0..3);
    (
        1u8..12,
        any::<[bool; 3]>(),
        proptest::option::of(proptest::sample::select(vec!["node-a", "node-b"])),
        names(["node-a", "node-b", "node-c"]),
        names(["zone-1", "zone-2", "zone-3"]),
    )
        .prop_map(|(host, [ready, serving, terminating], node, hint_nodes, hint_zones)| Endpoint {
            address: IpAddr::from([10, 0, 0, host]),
            ready,
            serving,
            terminating,
            node: node.map(Into::into),
            hint_nodes: hint_nodes.into_iter().collect(),
            hint_zones: hint_zones.into_iter().collect(),
        })
}

fn any_slices() -> impl Strategy<Value = Vec<Slice>> {
    vec((vec(any_endpoint(), 0..6), 1u16..3), 0..4)
        .prop_map(|slices| slices.into_iter().map(|(endpoints, port)| slice("s", port, endpoints)).collect())
}

proptest! {
    #[test]
    fn backends_are_sorted_and_only_those_that_no_set_names_are_unused(slices in any_slices()) {
        let table = only_table(&service(), &slices);
        prop_assert!(table.backends.is_sorted_by(|a, b| a.address < b.address));
        for (index, backend) in table.backends.iter().enumerate() {
            prop_assert_eq!(backend.unused.is_none(), table.cluster.contains(&index));
        }
        prop_assert!(!table.cluster.is_empty() || table.local.is_empty(), "an empty cluster set means no endpoint at all");
    }

    #[test]
    fn order_plays_no_part(mut slices in any_slices(), swaps in vec(any::<(Index, Index, Index)>(), 0..20)) {
        let before = only_table(&service(), &slices);
        for (slice, a, b) in swaps {
            if slices.is_empty() { break }
            let count = slices.len();
            slices.swap(a.index(count), b.index(count));
            let endpoints = &mut slice.get_mut(&mut slices[..]).endpoints;
            if !endpoints.is_empty() {
                let count = endpoints.len();
                endpoints.swap(a.index(count), b.index(count));
            }
        }
        prop_assert_eq!(before, only_table(&service(), &slices));
    }
}
