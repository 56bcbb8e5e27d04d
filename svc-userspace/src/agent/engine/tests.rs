//! The engine with real tables and maps that fail on demand.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use svc_common::{Frontend, SlotRange};

use super::{Engine, Maps, REFUSED_RETRY_MS};
use crate::{
    compile::NodeContext,
    kernel::view::Snapshot,
    metrics::Metrics,
    model::{Change, Endpoint, Family, NameList, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort},
    sockets::Gone,
    tables::{Capacity, Difference, FilterWords, FrontendAddress, Observed, Op, Tables, Walked},
};

/// Maps that count, and fail for frontends of one port.
#[derive(Debug, Default)]
struct Fake {
    calls: usize,
    synced: bool,
    broken_port: Option<u16>,
    broken_removals: bool,
    frontends: BTreeMap<FrontendAddress, u32>,
    slots: usize,
    tables: BTreeMap<u32, Vec<u32>>,
    broken_reads: bool,
    filter: usize,
    broken_filter: bool,
    trusted: bool,
}

impl Maps for Fake {
    type Error = String;

    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, String)> {
        self.calls += 1;
        for (index, op) in ops.iter().enumerate() {
            match op {
                Op::SetFrontend(address, frontend) => {
                    if self.broken_port == Some(address.address.port()) {
                        return Err((index, "no space left".to_owned()));
                    }
                    self.frontends.insert(*address, frontend.service);
                }
                Op::RemoveFrontend(_) if self.broken_removals => return Err((index, "no memory left".to_owned())),
                Op::RemoveFrontend(address) => {
                    self.frontends.remove(address);
                }
                Op::WriteSlots(offset, ids) => {
                    self.slots += 1;
                    self.tables.insert(*offset, ids.clone());
                }
                Op::SetFilter(..) if self.broken_filter => return Err((index, "no memory left".to_owned())),
                Op::SetFilter(..) => self.filter += 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn sweep_filter(&mut self, used: FilterWords) -> Result<FilterWords, String> {
        Ok(used)
    }

    fn trust_filter(&mut self, trusted: bool) -> Result<(), String> {
        self.trusted = trusted;
        Ok(())
    }

    fn set_synced(&mut self) -> Result<(), String> {
        self.synced = true;
        Ok(())
    }

    fn differing(&mut self, ops: &[Op]) -> Result<Vec<(usize, Difference)>, String> {
        if self.broken_reads {
            return Err("no memory left".to_owned());
        }
        let missing = |(index, op): (usize, &Op)| match op {
            Op::SetFrontend(address, _) if !self.frontends.contains_key(address) => Some((index, Difference::Missing)),
            _ => None,
        };
        Ok(ops.iter().enumerate().filter_map(missing).collect())
    }

    fn slots(&mut self, range: SlotRange) -> Result<Vec<u32>, String> {
        Ok(self.tables.get(&range.offset).cloned().unwrap_or_default())
    }

    fn next_entries(&mut self, map: Walked, _: bool, found: &mut Observed) -> Result<bool, String> {
        if map == Walked::FrontendsV4 {
            let entry = |(address, service): (&FrontendAddress, &u32)| {
                (*address, Frontend { service: *service, ..Frontend::default() })
            };
            found.frontends.extend(self.frontends.iter().map(entry));
        }
        Ok(true)
    }
}

const CAPACITY: Capacity =
    Capacity { services: 64, backends: 64, frontends_v4: 64, frontends_v6: 64, slots: 1 << 16, source_ranges: 64 };

fn engine() -> Engine<Fake> {
    let metrics = Arc::new(Metrics::new(|| Ok(Snapshot::default())));
    let mut engine = Engine::new(Tables::new(CAPACITY), Fake::default(), metrics);
    engine.set_node(NodeContext { name: Arc::from("n1"), ..NodeContext::default() });
    engine
}

fn ready() -> Engine<Fake> {
    let mut engine = engine();
    engine.change(Change::Synced);
    engine.interfaces_listed();
    engine
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("ns", name)
}

/// A Service `10.96.0.PORT:PORT` with one port.
fn service(of: &str, port: u8) -> Change {
    let service = Service {
        name: name(of),
        cluster_ips: vec![[10, 96, 0, port].into()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        claim: None,
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: port.into(), node_port: None }],
        external_local: true,
        internal_local: false,
        affinity_seconds: None,
        health_check_node_port: Some(30_000 + u16::from(port)),
    };
    Change::Service(name(of), Some(Box::new(service)))
}

/// A slice with these endpoints, all ready and on node `n1`.
fn slice(of: &str, endpoints: &[[u8; 4]], triggered_ms: Option<i64>) -> Change {
    let endpoint = |&address: &[u8; 4]| Endpoint {
        address: address.into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".into()),
        hint_nodes: NameList::default(),
        hint_zones: NameList::default(),
    };
    let slice = Slice {
        name: name(of),
        service: name(of),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        headless: false,
        hostnames: vec![],
        triggered_ms,
    };
    Change::Slice(name(of), Some(Box::new(slice)))
}

fn metric(engine: &Engine<Fake>, line: &str) -> bool {
    engine.metrics.encode().expect("metrics").lines().any(|found| found == line)
}

#[test]
fn nothing_is_written_before_objects_and_interfaces_are_listed() {
    let mut engine = engine();
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    assert!(!engine.has_work(), "objects are not listed");
    engine.change(Change::Synced);
    engine.step(100, 0, 0);
    assert_eq!((engine.has_work(), engine.maps().calls), (false, 0), "interfaces are not listed");
    engine.interfaces_listed();
    engine.step(100, 0, 0);
    assert_eq!(engine.maps().frontends.len(), 1);
    assert!(engine.maps().synced && engine.is_synced() && !engine.is_behind());
}

#[test]
fn changes_that_came_together_are_programmed_once() {
    let mut engine = ready();
    engine.step(100, 0, 0);
    let before = engine.maps().calls;
    engine.change(service("a", 1));
    for last in 1..=100 {
        engine.change(slice("a", &[[10, 1, 0, last]], None));
    }
    engine.step(100, 1, 0);
    // One call for bits of the filter, one for the Service, one for what Services share.
    assert_eq!((engine.maps().calls - before, engine.maps().slots), (3, 1));
    engine.change(slice("a", &[[10, 1, 0, 100]], None));
    assert!(!engine.has_work(), "a report that changes nothing is no work");
}

#[test]
fn a_step_programs_no_more_than_it_may_and_the_rest_stays() {
    let mut engine = ready();
    (1..=10).for_each(|port| engine.change(service(&format!("s{port}"), port)));
    engine.step(4, 0, 0);
    assert_eq!(engine.maps().frontends.len(), 4);
    assert!(engine.is_behind() && !engine.maps().synced);
    engine.step(4, 0, 0);
    engine.step(4, 0, 0);
    assert_eq!(engine.maps().frontends.len(), 10);
    assert!(engine.maps().synced && !engine.has_work());
}

#[test]
fn a_write_that_fails_is_retried_and_keeps_only_its_own_service_waiting() {
    let mut engine = ready();
    engine.maps().broken_port = Some(1);
    engine.change(service("a", 1));
    engine.change(service("b", 2));
    engine.step(100, 0, 0);
    assert_eq!(engine.maps().frontends.len(), 1, "b is programmed");
    assert!(engine.is_behind() && !engine.maps().synced);
    assert!(metric(&engine, "svc_apply_failures_total 1"));

    let calls = engine.maps().calls;
    engine.tick(100);
    assert_eq!(engine.maps().calls, calls, "the first retry is not due");
    engine.maps().broken_port = None;
    engine.tick(200);
    assert_eq!(engine.maps().frontends.len(), 2);
    assert!(engine.maps().synced && !engine.is_behind());
}

#[test]
fn bits_of_the_filter_wait_behind_nothing() {
    let mut engine = ready();
    engine.step(100, 0, 0);
    engine.maps().broken_port = Some(1);
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    let bits = engine.maps().filter;
    engine.change(slice("a", &[[10, 1, 0, 9]], None));
    engine.step(100, 1, 0);
    assert!(engine.is_behind() && engine.maps().filter > bits, "another Service may have the same endpoint");
}

#[test]
fn a_filter_that_cannot_be_written_is_not_asked_until_a_sweep_succeeds() {
    let mut engine = ready();
    engine.step(100, 0, 0);
    assert!(engine.maps().trusted);
    engine.maps().broken_filter = true;
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    assert_eq!(
        (engine.maps().frontends.len(), engine.maps().trusted),
        (1, false),
        "served, by looking every packet up"
    );
    engine.tick(super::DISTRUST_MS - 1);
    assert!(!engine.maps().trusted);
    engine.tick(super::DISTRUST_MS);
    assert!(engine.maps().trusted && !engine.is_behind());
}

#[test]
fn a_change_of_a_waiting_service_comes_after_what_waits() {
    let mut engine = ready();
    engine.maps().broken_port = Some(1);
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    engine.change(Change::Service(name("a"), None));
    engine.maps().broken_port = None;
    engine.step(100, 1, 0);
    assert_eq!(engine.maps().frontends.len(), 0, "set, then removed");
    assert!(!engine.is_behind());
}

#[test]
fn an_address_whose_removal_waits_goes_to_another_service_only_after_it() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    let owned_by_a = engine.maps().frontends.clone();
    engine.maps().broken_removals = true;
    engine.change(Change::Service(name("a"), None));
    engine.change(service("b", 1));
    engine.step(100, 1, 0);
    assert_eq!(engine.maps().frontends, owned_by_a, "b would lose the address to the removal that is tried again");
    assert!(engine.has_refused());

    engine.maps().broken_removals = false;
    engine.tick(1000);
    assert!(engine.maps().frontends.is_empty());
    engine.tick(1000 + REFUSED_RETRY_MS);
    engine.step(100, 1000 + REFUSED_RETRY_MS, 0);
    assert_eq!(engine.maps().frontends.len(), 1, "b has it now");
    assert!(!engine.has_refused() && !engine.is_behind());
}

#[test]
fn what_nobody_claims_is_removed_after_the_first_sync() {
    let mut first = ready();
    first.change(service("gone", 1));
    first.change(service("stays", 2));
    first.step(100, 0, 0);

    let mut observed = Observed::default();
    let mut tables = Tables::new(CAPACITY);
    for (of, port) in [("gone", 1), ("stays", 2)] {
        let (ops, _) = tables.update(&name(of), first.world().compile(&name(of)).0, 0);
        for op in ops {
            match op {
                Op::SetService(id, service) => observed.services.push((id, service)),
                Op::SetBackend(id, backend) => observed.backends.push((id, backend)),
                Op::SetFrontend(address, frontend) => observed.frontends.push((address, frontend)),
                Op::WriteSlots(offset, slots) => observed.slots.push((offset, slots)),
                Op::SetVip(address, flags) => observed.vips.push((address, flags)),
                Op::SetFilter(word, bits) => observed.filter.push((word, bits)),
                Op::SetSource(..) | Op::RemoveSource(..) | Op::RemoveVip(_) => panic!("port {port}: no such thing"),
                Op::RemoveService(_) | Op::RemoveFrontend(_) => panic!("port {port}: nothing to remove"),
            }
        }
    }
    let maps = Fake {
        frontends: observed.frontends.iter().map(|(address, frontend)| (*address, frontend.service)).collect(),
        ..Fake::default()
    };
    let mut second = Engine::new(super::adopt(CAPACITY, &observed), maps, first.metrics.clone());
    second.change(service("stays", 2));
    second.change(Change::Synced);
    second.interfaces_listed();
    assert_eq!(second.maps().frontends.len(), 2);
    second.step(100, 0, 0);
    let ports: Vec<u16> = second.maps().frontends.keys().map(|address| address.address.port()).collect();
    assert_eq!(ports, [2]);
}

#[test]
fn a_refused_port_is_counted_and_tried_again() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    // The same address and port for another Service.
    let Change::Service(_, Some(mut twin)) = service("b", 1) else { panic!("a Service") };
    twin.name = name("b");
    engine.change(Change::Service(name("b"), Some(twin)));
    engine.step(100, 0, 0);
    assert!(metric(&engine, r#"svc_refused_ports{namespace="ns",name="b"} 1"#));
    assert!(!engine.is_behind(), "a refused port is not waited for");

    engine.change(Change::Service(name("a"), None));
    engine.step(100, 0, 0);
    engine.tick(60_000);
    engine.step(100, 60_000, 0);
    assert!(!metric(&engine, r#"svc_refused_ports{namespace="ns",name="b"} 1"#));
    assert_eq!(engine.maps().frontends.len(), 1);
}

#[test]
fn health_ports_count_distinct_local_ready_addresses() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.change(slice("a", &[[10, 1, 0, 1], [10, 1, 0, 2], [10, 1, 0, 1]], None));
    engine.step(100, 0, 0);
    let port = engine.health_ports().get(&name("a")).copied();
    assert_eq!(port.map(|port| (port.port, port.local_endpoints)), Some((30_001, 2)));

    // The same pods in the other family, and one more that has no other: each pod counts once.
    let Change::Service(_, Some(mut dual)) = service("a", 1) else { panic!("a Service") };
    dual.cluster_ips.push(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
    let Change::Slice(_, Some(mut v6)) = slice("a", &[[10, 1, 0, 1]; 3], None) else { panic!("a slice") };
    v6.family = Family::V6;
    for (endpoint, number) in v6.endpoints.iter_mut().zip(1..) {
        endpoint.address = IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, number]);
    }
    engine.change(Change::Service(name("a"), Some(dual)));
    engine.change(Change::Slice(name("a-v6"), Some(v6)));
    engine.step(100, 0, 0);
    assert_eq!(engine.health_ports()[&name("a")].local_endpoints, 3);
    engine.change(service("a", 1));
    engine.step(100, 0, 0);
    assert_eq!(engine.health_ports()[&name("a")].local_endpoints, 2, "the Service has no IPv6 any more");
    engine.change(Change::Service(name("a"), None));
    engine.step(100, 0, 0);
    assert!(engine.health_ports().is_empty());
}

#[test]
fn programming_latency_counts_each_trigger_after_the_first_sync_once() {
    let count = |count: u32| format!("kubeproxy_network_programming_duration_seconds_count {count}");
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.change(slice("a", &[[10, 1, 0, 1]], Some(1_000)));
    engine.step(100, 0, 900_000);
    assert!(metric(&engine, &count(0)), "what was there before says nothing about this agent");
    engine.change(slice("a", &[[10, 1, 0, 2]], Some(2_000)));
    engine.step(100, 0, 2_250);
    engine.change(slice("a", &[[10, 1, 0, 3]], Some(2_000)));
    engine.step(100, 0, 9_000);
    assert!(metric(&engine, &count(1)));
    assert!(metric(&engine, "kubeproxy_network_programming_duration_seconds_sum 0.25"));
}

/// What [`service`] and [`slice`] make, over UDP.
fn over_udp(change: Change) -> Change {
    match change {
        Change::Service(name, Some(mut service)) => {
            service.ports.iter_mut().for_each(|port| port.protocol = Protocol::Udp);
            Change::Service(name, Some(service))
        }
        Change::Slice(name, Some(mut slice)) => {
            slice.ports.iter_mut().for_each(|port| port.protocol = Protocol::Udp);
            Change::Slice(name, Some(slice))
        }
        other => other,
    }
}

#[test]
fn backends_of_udp_that_are_gone_from_the_maps_are_told_once() {
    let mut engine = ready();
    for endpoints in [&[[10, 1, 0, 1], [10, 1, 0, 2]][..], &[[10, 1, 0, 1]]] {
        for change in [service("tcp", 1), slice("tcp", endpoints, None)] {
            engine.change(change);
        }
        for change in [service("udp", 2), slice("udp", endpoints, None)] {
            engine.change(over_udp(change));
        }
        assert_eq!(engine.take_gone(), []);
        engine.step(100, 0, 0);
    }
    let gone = |address: &str| Gone { address: address.parse().expect("an address"), service: 2 };
    assert_eq!(engine.take_gone(), [gone("10.1.0.2:8080")]);
    assert_eq!(engine.take_gone(), []);
    engine.change(Change::Service(name("tcp"), None));
    engine.change(Change::Service(name("udp"), None));
    engine.step(100, 0, 0);
    assert_eq!(engine.take_gone(), [gone("10.1.0.1:8080")]);
}

#[test]
fn a_backend_is_not_gone_before_its_removal_is_written() {
    let mut engine = ready();
    for endpoints in [&[[10, 1, 0, 1], [10, 1, 0, 2]][..], &[[10, 1, 0, 1]]] {
        engine.change(over_udp(service("a", 1)));
        engine.change(over_udp(slice("a", endpoints, None)));
        engine.step(100, 0, 0);
        engine.maps().broken_port = Some(1);
    }
    assert_eq!(engine.take_gone(), []);
    engine.maps().broken_port = None;
    engine.tick(200);
    assert_eq!(engine.take_gone().len(), 1);
}

/// Lets a whole comparison pass by.
fn pass(engine: &mut Engine<Fake>) {
    for _ in 0..1000 {
        if engine.repair() {
            return;
        }
    }
    panic!("the pass does not end");
}

#[test]
fn what_was_changed_from_outside_is_put_right_counted_and_nothing_else_is_written() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.change(slice("a", &[[10, 0, 0, 1], [10, 0, 0, 2]], None));
    engine.step(10, 0, 0);
    let (calls, frontends, tables) = {
        pass(&mut engine);
        let maps = engine.maps();
        (maps.calls, maps.frontends.clone(), maps.tables.clone())
    };
    pass(&mut engine);
    assert_eq!(engine.maps().calls, calls, "nothing was changed, nothing is written");

    engine.maps().frontends.clear();
    pass(&mut engine);
    assert_eq!(engine.maps().frontends, frontends);
    assert!(metric(&engine, "svc_repairs_total{what=\"FRONTENDS_V4\"} 1"));
    let foreign = FrontendAddress { address: "10.96.0.9:80".parse().expect("an address"), protocol: Protocol::Tcp };
    engine.maps().frontends.insert(foreign, 77);
    for ids in engine.maps().tables.values_mut() {
        ids[0] ^= 1;
    }
    pass(&mut engine);
    assert_eq!(engine.maps().frontends, frontends);
    assert_eq!(engine.maps().tables, tables);
    assert!(metric(&engine, "svc_repairs_total{what=\"FRONTENDS_V4\"} 2"));
    assert!(metric(&engine, "svc_repairs_total{what=\"SLOTS\"} 1"));
}

#[test]
fn writes_that_wait_are_no_difference_and_a_failure_to_compare_is_a_metric_until_it_ends() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.change(service("b", 2));
    engine.step(10, 0, 0);
    engine.maps().broken_port = Some(3);
    engine.change(service("c", 3));
    engine.step(10, 0, 0);
    engine.maps().frontends.clear();
    let calls = engine.maps().calls;
    pass(&mut engine);
    assert_eq!(engine.maps().frontends.len(), 2, "those of a and b; c waits");
    assert_eq!(engine.maps().calls, calls + 2);

    engine.maps().broken_port = None;
    engine.maps().broken_reads = true;
    pass(&mut engine);
    assert!(metric(&engine, "svc_repair_problem{what=\"maps\"} 1"));
    engine.maps().broken_reads = false;
    pass(&mut engine);
    assert!(!metric(&engine, "svc_repair_problem{what=\"maps\"} 1"));
}

#[test]
fn a_wall_clock_that_jumps_disturbs_nothing() {
    let mut engine = ready();
    engine.change(service("a", 1));
    engine.step(10, 0, 1_700_000_000_000);
    for (round, wall_ms) in [i64::MAX, i64::MIN, 0, -1, 1_700_000_000_000].into_iter().enumerate() {
        let endpoint = [10, 0, 0, u8::try_from(round).expect("few")];
        engine.change(slice("a", &[endpoint], Some(if round % 2 == 0 { i64::MIN } else { i64::MAX })));
        assert_eq!(engine.step(10, 10 + round as u64, wall_ms), 1);
        engine.tick(10 + round as u64);
        assert!(!engine.is_behind());
    }
    assert!(metric(&engine, "kubeproxy_network_programming_duration_seconds_count 5"));
    let frontends = engine.maps().frontends.len();
    pass(&mut engine);
    assert_eq!(engine.maps().frontends.len(), frontends);
}

#[test]
fn services_without_slices_and_slices_without_a_service_wait_for_each_other() {
    let mut engine = ready();
    engine.change(slice("b", &[[10, 0, 0, 9]], None));
    engine.change(service("a", 1));
    engine.step(10, 0, 0);
    assert_eq!((engine.maps().frontends.len(), engine.maps().slots), (1, 0), "a refuses, b is nobody");
    engine.change(service("b", 2));
    engine.change(slice("a", &[[10, 0, 0, 8]], None));
    engine.step(10, 1, 0);
    assert_eq!((engine.maps().frontends.len(), engine.maps().slots), (2, 2));
    engine.change(Change::Service(name("b"), None));
    engine.step(10, 2, 0);
    assert_eq!(engine.maps().frontends.len(), 1);
    engine.change(service("b", 2));
    engine.step(10, 3, 0);
    assert_eq!((engine.maps().frontends.len(), engine.maps().slots), (2, 3), "its slice was there all the time");
}
