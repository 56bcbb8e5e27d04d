//! Operations carried out on a model of the maps, with the invariants checked after every single one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*};
use svc_common::{
    BackendState, Frontend, SlotRange,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
    frontend,
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};

use super::*;
use crate::{
    compile::{BackendEntry, FrontendEntry, FrontendKind, PortTable, Set},
    model::Protocol,
};

const ROOMY: Capacity = Capacity {
    services: 1000,
    backends: 10_000,
    frontends_v4: 1000,
    frontends_v6: 1000,
    slots: 1_000_000,
    source_ranges: 1000,
};

/// The maps, and when what was last released.
#[derive(Clone, Default)]
struct Maps {
    services: BTreeMap<u32, Box<ServiceName>>,
    backends: BTreeMap<u32, BackendValue>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    slots: BTreeMap<u32, u32>,
    sources: BTreeSet<(u32, IpNet)>,
    vips: BTreeMap<IpAddr, u32>,
    filter: FilterWords,
    ids_until: BTreeMap<u32, u64>,
    services_until: BTreeMap<u32, u64>,
    slots_until: BTreeMap<u32, u64>,
}

type View = BTreeMap<FrontendAddress, (PortKey, u32, u32, Vec<SocketAddr>, Vec<SocketAddr>, Vec<IpNet>)>;

impl Maps {
    fn ranges(&self) -> BTreeSet<(u32, u32)> {
        self.frontends
            .values()
            .flat_map(|f| [f.inside, f.outside])
            .map(|r| (r.offset, r.len))
            .filter(|r| r.1 > 0)
            .collect()
    }

    fn apply(&mut self, op: &Op, now: u64) {
        let before = self.ranges();
        match op {
            Op::SetService(id, _) => {
                assert!(self.services_until.get(id).is_none_or(|until| *until <= now), "service id {id} still rests");
            }
            Op::RemoveService(id) => drop(self.services_until.insert(*id, now + REST_MS)),
            Op::SetBackend(id, value) => {
                if let Some(old) = self.backends.get(id)
                    && old.generation != value.generation
                {
                    assert!(value.generation > old.generation, "generations grow");
                    assert_eq!(old.state, BackendState::Gone, "a live backend keeps its id");
                    assert!(self.ids_until.get(id).is_none_or(|until| *until <= now), "backend id {id} still rests");
                }
                if value.state == BackendState::Gone {
                    self.ids_until.insert(*id, now + REST_MS);
                }
            }
            Op::WriteSlots(offset, ids) => {
                for slot in (*offset..).take(ids.len()) {
                    assert!(self.slots_until.get(&slot).is_none_or(|until| *until <= now), "slot {slot} still rests");
                    assert!(!before.iter().any(|r| (r.0..r.0 + r.1).contains(&slot)), "slot {slot} is in use");
                }
            }
            Op::SetVip(address, _) => {
                assert!(self.frontends.keys().any(|it| it.address.ip() == *address), "a VIP before its frontends");
                assert!(self.is_known(SocketAddr::new(*address, 0), 0, KNOWN_FRONTEND), "VIP {address} before its bit");
            }
            _ => {}
        }
        self.write(op.clone());
        let after = self.ranges();
        for (offset, len) in before.difference(&after) {
            self.slots_until.extend((*offset..offset + len).map(|slot| (slot, now + SLOT_REST_MS)));
        }
    }

    /// What the operation does, whatever it does it to.
    fn write(&mut self, op: Op) {
        match op {
            Op::SetService(id, name) => drop(self.services.insert(id, name)),
            Op::RemoveService(id) => drop(self.services.remove(&id)),
            Op::SetBackend(id, value) => drop(self.backends.insert(id, value)),
            Op::WriteSlots(offset, ids) => self.slots.extend((offset..).zip(ids)),
            Op::SetFrontend(address, value) => drop(self.frontends.insert(address, value)),
            Op::RemoveFrontend(address) => drop(self.frontends.remove(&address)),
            Op::SetSource(service, range) => drop(self.sources.insert((service, range))),
            Op::RemoveSource(service, range) => drop(self.sources.remove(&(service, range))),
            Op::SetVip(address, flags) => drop(self.vips.insert(address, flags)),
            Op::RemoveVip(address) => drop(self.vips.remove(&address)),
            Op::SetFilter(word, bits) => *self.filter.entry(word).or_default() |= bits,
        }
    }

    fn is_known(&self, address: SocketAddr, protocol: u8, bit: u32) -> bool {
        let place = match address.ip() {
            IpAddr::V4(ip) => filter_place(&ip.octets(), address.port(), protocol),
            IpAddr::V6(ip) => filter_place(&ip.octets(), address.port(), protocol),
        };
        self.filter.get(&(place / 64)).is_some_and(|word| word >> (place % 64) & u64::from(bit) != 0)
    }

    fn range(&self, range: SlotRange) -> Vec<u32> {
        (range.offset..range.offset + range.len).filter_map(|slot| self.slots.get(&slot).copied()).collect()
    }

    fn check(&self, capacity: Capacity) {
        for (address, entry) in &self.frontends {
            let name = self.services.get(&entry.service).expect("a frontend's service has a name");
            assert_eq!(name.protocol, address.protocol.number());
            assert!(self.is_known(address.address, name.protocol, KNOWN_FRONTEND), "{address:?} before its bit");
            for range in [entry.inside, entry.outside] {
                let ids = self.range(range);
                assert_eq!(ids.len(), range.len as usize, "{address:?} names slots that were never written");
                assert!(range.offset + range.len <= capacity.slots);
                for id in ids.into_iter().collect::<BTreeSet<_>>() {
                    let backend = self.backends.get(&id).expect("a slot names a backend");
                    assert_ne!(backend.state, BackendState::Gone, "{address:?} leads to a backend that is gone");
                    assert_eq!(backend.service, entry.service, "{address:?} leads to a backend of another Service");
                    assert!(
                        self.is_known(backend.address, name.protocol, KNOWN_ENDPOINT),
                        "{backend:?} before its bit"
                    );
                }
            }
        }
        assert!(self.frontends.len() <= (capacity.frontends_v4 + capacity.frontends_v6) as usize);
        assert!(self.services.keys().all(|id| (1..capacity.services).contains(id)));
        assert!(self.backends.keys().all(|id| (1..capacity.backends).contains(id)));
    }

    fn run(&mut self, ops: &[Op], now: u64, capacity: Capacity) {
        for op in ops {
            self.apply(op, now);
            self.check(capacity);
        }
    }

    /// What Services share is what all of them together use.
    fn check_shared(&self) {
        let mut vips: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (address, entry) in &self.frontends {
            let flags = match entry.flags {
                flags if flags & frontend::FLAG_CLUSTER_IP != 0 => VIP_INSIDE | VIP_OUTSIDE,
                _ => VIP_OUTSIDE,
            };
            *vips.entry(address.address.ip()).or_default() |= flags;
        }
        assert_eq!(self.vips, vips);
        for backend in self.backends.values().filter(|backend| backend.state != BackendState::Gone) {
            assert!(self.is_known(backend.address, Protocol::Tcp.number(), KNOWN_ENDPOINT), "{backend:?}");
        }
        assert!(self.sources.iter().all(|(service, _)| self.services.contains_key(service)), "a range of no Service");
    }

    fn sources(&self, service: u32) -> Vec<IpNet> {
        self.sources.iter().filter(|(id, _)| *id == service).map(|(_, range)| *range).collect()
    }

    fn key(&self, id: u32) -> PortKey {
        to_port_key(&self.services[&id]).expect("a name")
    }

    /// What clients notice: no ids, no offsets.
    fn view(&self) -> View {
        let addresses = |range| self.range(range).iter().map(|id| self.backends[id].address).collect();
        let entry = |f: &Frontend| {
            let sources = self.sources(f.service);
            (self.key(f.service), f.flags, f.affinity_seconds, addresses(f.inside), addresses(f.outside), sources)
        };
        self.frontends.iter().map(|(address, f)| (*address, entry(f))).collect()
    }

    fn live(&self) -> BTreeSet<(PortKey, SocketAddr, u8, bool)> {
        let live = self.backends.values().filter(|b| b.state != BackendState::Gone);
        live.map(|b| (self.key(b.service), b.address, b.state as u8, b.local)).collect()
    }

    fn observed(&self) -> Observed {
        Observed {
            services: self.services.iter().map(|(id, name)| (*id, name.clone())).collect(),
            backends: self.backends.iter().map(|(id, value)| (*id, value.clone())).collect(),
            frontends: self.frontends.iter().map(|(address, value)| (*address, *value)).collect(),
            slots: self
                .ranges()
                .into_iter()
                .map(|(offset, len)| (offset, self.range(SlotRange { offset, len })))
                .collect(),
            sources: self.sources.iter().copied().collect(),
            vips: self.vips.iter().map(|(address, flags)| (*address, *flags)).collect(),
            filter: self.filter.iter().map(|(word, bits)| (*word, *bits)).collect(),
        }
    }
}

fn name(service: u8) -> ObjectName {
    ObjectName::new("default", format!("service-{service}"))
}

/// A port table: `hosts` says for each backend whether it is ready, and whether it is local.
fn table(service: u8, port: u8, hosts: &BTreeMap<u8, (bool, bool)>, vips: &BTreeSet<u8>, local: bool) -> PortTable {
    let number = 80 + u16::from(port);
    let backends: Vec<BackendEntry> = hosts
        .iter()
        .map(|(host, (ready, local))| BackendEntry {
            address: SocketAddr::from(([10, 0, 0, *host], 8080)),
            terminating: !ready,
            local: *local,
            unused: None,
        })
        .collect();
    let choose = |wanted: &dyn Fn(&BackendEntry) -> bool| -> Vec<usize> {
        let of = |ready: bool| -> Vec<usize> {
            let fits = |b: &BackendEntry| wanted(b) && b.terminating != ready;
            (0..backends.len()).filter(|index| fits(&backends[*index])).collect()
        };
        if of(true).is_empty() { of(false) } else { of(true) }
    };
    let (cluster, own) = (choose(&|_| true), choose(&|b| b.local));
    let entry = |address: [u8; 4], kind, outside| FrontendEntry {
        address: SocketAddr::from((address, number)),
        kind,
        inside: Set::Cluster,
        outside,
    };
    let outside = if local { Set::Local } else { Set::Cluster };
    let mut frontends = vec![entry([10, 96, 0, service], FrontendKind::ClusterIp, Set::Cluster)];
    frontends.extend(vips.iter().map(|vip| {
        // Without a port of their own, so that ports and Services can clash over them.
        let mut vip = entry([203, 0, 113, *vip], FrontendKind::LoadBalancer, outside);
        vip.address.set_port(80);
        vip
    }));
    PortTable {
        key: PortKey {
            service: name(service),
            name: format!("port-{port}").into(),
            protocol: Protocol::Tcp,
            port: number,
            family: Family::V4,
        },
        affinity_seconds: 0,
        source_ranges: None,
        backends,
        cluster,
        local: own,
        frontends,
        not_serving: vec![],
    }
}

fn prefix(n: u8) -> IpNet {
    format!("192.0.{n}.0/24").parse().expect("a prefix")
}

fn simple(service: u8, hosts: &[u8], vips: &[u8]) -> PortTable {
    table(service, 0, &hosts.iter().map(|h| (*h, (true, false))).collect(), &vips.iter().copied().collect(), false)
}

/// (service, its ports, milliseconds that pass before)
type Step = (u8, Vec<PortTable>, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = |service: u8, port: u8| {
        let hosts = proptest::collection::btree_map(1u8..9, any::<(bool, bool)>(), 0..6);
        let vips = proptest::collection::btree_set(1u8..5, 0..3);
        let ranges = proptest::option::of(proptest::collection::btree_set(1u8..4, 0..3));
        (hosts, vips, any::<bool>(), ranges).prop_map(move |(hosts, vips, local, ranges)| PortTable {
            source_ranges: ranges.map(|ranges| ranges.into_iter().map(prefix).collect()),
            ..table(service, port, &hosts, &vips, local)
        })
    };
    let step = (0u8..4, 0u64..30_000).prop_flat_map(move |(service, wait)| {
        let ports = (proptest::option::of(port(service, 0)), proptest::option::of(port(service, 1)));
        ports.prop_map(move |(a, b)| (service, a.into_iter().chain(b).collect(), wait))
    });
    vec(step, 1..16)
}

fn capacities() -> impl Strategy<Value = Capacity> {
    (2u32..8, 2u32..40, 1u32..10, 0u32..6000).prop_map(|(services, backends, frontends_v4, slots)| Capacity {
        services,
        backends,
        frontends_v4,
        frontends_v6: 0,
        slots,
        source_ranges: 1,
    })
}

/// Updates every Service until nothing changes, as an agent does: refused ones again, time passing.
fn settle(tables: &mut Tables, maps: &mut Maps, wanted: &BTreeMap<u8, Vec<PortTable>>, now: u64, finish: bool) {
    for (service, ports) in wanted {
        let (ops, _) = tables.update(&name(*service), ports.clone(), now);
        maps.run(&ops, now, ROOMY);
    }
    if finish {
        let ops = tables.finish_adoption(now);
        maps.run(&ops, now, ROOMY);
    }
    // A retry may free what another one waits for.
    loop {
        let mut changed = false;
        for service in tables.refused() {
            let ports = wanted.iter().find(|(number, _)| name(**number) == service).map(|(_, ports)| ports.clone());
            let (ops, _) = tables.update(&service, ports.unwrap_or_default(), now);
            maps.run(&ops, now, ROOMY);
            changed |= !ops.is_empty();
        }
        if !changed {
            break;
        }
    }
}

proptest! {
    #[test]
    fn every_reader_sees_complete_services_after_every_single_operation(steps in steps(), capacity in capacities()) {
        for capacity in [ROOMY, capacity] {
            let (mut tables, mut maps, mut now) = (Tables::new(capacity), Maps::default(), 0);
            for (service, ports, wait) in &steps {
                now += wait;
                let before = maps.view();
                let (ops, refused) = tables.update(&name(*service), ports.clone(), now);
                maps.run(&ops, now, capacity);
                let after = maps.view();
                for port in ports {
                    let of = |view: &View| -> View {
                        view.iter().filter(|(_, entry)| entry.0 == port.key).map(|(a, e)| (*a, e.clone())).collect()
                    };
                    if refused.iter().any(|refused| refused.key == port.key) {
                        prop_assert_eq!(of(&before), of(&after), "a refused port stays as it was");
                    } else {
                        let mut fresh = Maps::default();
                        fresh.run(&Tables::new(ROOMY).update(&name(*service), vec![port.clone()], 0).0, 0, ROOMY);
                        prop_assert_eq!(of(&fresh.view()), of(&after), "a port ends up as if it were programmed afresh");
                    }
                }
                let others = |view: &View| -> View {
                    view.iter().filter(|(_, e)| e.0.service != name(*service)).map(|(a, e)| (*a, e.clone())).collect()
                };
                prop_assert_eq!(others(&before), others(&after), "other Services are left alone");
                maps.check_shared();
                let again = tables.update(&name(*service), ports.clone(), now).0;
                prop_assert!(refused.is_empty() || again.is_empty() || !ops.is_empty());
                prop_assert!(!refused.is_empty() || again.is_empty(), "nothing changed, but {:?}", again);
                maps.run(&again, now, capacity);
                prop_assert_eq!(tables.fill().frontends_v4.used as usize, maps.frontends.len());
            }
            for service in 0..4 {
                let (ops, _) = tables.update(&name(service), vec![], now);
                maps.run(&ops, now, capacity);
            }
            tables.expire(now + REST_MS);
            let fill = tables.fill();
            let Fill { services, backends, frontends_v4, frontends_v6, slots, source_ranges_v4, source_ranges_v6 } = fill;
            for usage in
                [services, backends, frontends_v4, frontends_v6, slots, source_ranges_v4, source_ranges_v6]
            {
                prop_assert_eq!((usage.used, usage.resting), (0, 0), "everything comes back");
            }
            maps.check_shared();
            prop_assert!(maps.frontends.is_empty() && maps.services.is_empty() && maps.sources.is_empty());
        }
    }

    #[test]
    fn a_restart_after_any_operation_converges(steps in steps(), cut in any::<proptest::sample::Index>()) {
        let (mut tables, mut maps, mut now) = (Tables::new(ROOMY), Maps::default(), 0);
        let mut wanted: BTreeMap<u8, Vec<PortTable>> = BTreeMap::new();
        let mut all = Vec::new();
        for (service, ports, wait) in &steps {
            now += wait;
            all.extend(tables.update(&name(*service), ports.clone(), now).0.into_iter().map(|op| (op, now)));
            wanted.insert(*service, ports.clone());
        }
        for (op, at) in &all[..cut.index(all.len() + 1)] {
            maps.apply(op, *at);
            maps.check(ROOMY);
        }
        maps.services_until.clear();
        maps.slots_until.clear();
        let adopted = Tables::adopt(ROOMY, &maps.observed());
        let mut restarted = adopted;
        settle(&mut restarted, &mut maps, &wanted, now, true);
        maps.check_shared();

        // Who of two claimants has an address depends on history; all else does not.
        let clash = !restarted.refused().is_empty();
        if !clash {
            let (mut fresh, mut expected) = (Tables::new(ROOMY), Maps::default());
            settle(&mut fresh, &mut expected, &wanted, 0, false);
            prop_assert_eq!(maps.view(), expected.view());
            prop_assert_eq!(maps.live(), expected.live());
        }
        let mut again = Tables::adopt(ROOMY, &maps.observed());
        for (service, ports) in &wanted {
            let (ops, _) = again.update(&name(*service), ports.clone(), now);
            prop_assert!(ops.is_empty(), "adopted and unchanged, but {:?}", ops);
        }
        prop_assert_eq!(again.finish_adoption(now), vec![]);
    }

    #[test]
    fn whatever_is_found_is_repaired(
        steps in steps(),
        damage in vec((0u8..12, any::<proptest::sample::Index>(), 0u32..50), 1..8),
    ) {
        let (mut tables, mut maps, mut wanted) = (Tables::new(ROOMY), Maps::default(), BTreeMap::new());
        for (service, ports, _) in &steps {
            maps.run(&tables.update(&name(*service), ports.clone(), 0).0, 0, ROOMY);
            wanted.insert(*service, ports.clone());
        }
        for (kind, at, value) in damage {
            harm(&mut maps, kind, at, value);
        }
        let observed = maps.observed();
        maps.slots_until.clear();
        maps.services_until.clear();
        maps.ids_until.clear();
        let mut adopted = Tables::adopt(ROOMY, &observed);
        let mut ops = Vec::new();
        for _ in 0..2 {
            for (service, ports) in &wanted {
                ops.extend(adopted.update(&name(*service), ports.clone(), 0).0);
            }
            ops.extend(adopted.finish_adoption(0));
        }
        for op in &ops {
            // Damaged maps violate the invariants until they are repaired: only the end is checked.
            maps.write(op.clone());
        }
        maps.check(ROOMY);
        maps.check_shared();
        if adopted.refused().is_empty() {
            let (mut fresh, mut expected) = (Tables::new(ROOMY), Maps::default());
            settle(&mut fresh, &mut expected, &wanted, 0, false);
            prop_assert_eq!(maps.view(), expected.view());
            prop_assert_eq!(maps.live(), expected.live());
        }
    }
}

fn harm(maps: &mut Maps, kind: u8, at: proptest::sample::Index, value: u32) {
    let pick = |count: usize| if count == 0 { 0 } else { at.index(count) };
    let service = maps.services.keys().nth(pick(maps.services.len())).copied();
    let backend = maps.backends.keys().nth(pick(maps.backends.len())).copied();
    let frontend = maps.frontends.keys().nth(pick(maps.frontends.len())).copied();
    match (kind, service, backend, frontend) {
        (9, ..) => drop(maps.sources.insert((value, prefix(9)))),
        (10, ..) => drop(maps.vips.insert(IpAddr::from([203, 0, 113, value as u8]), value)),
        (11, ..) => drop(maps.filter.insert(value % 64, u64::from(value) + 1)),
        (0, Some(id), ..) => drop(maps.services.remove(&id)),
        (1, Some(id), ..) => drop(maps.services.insert(value, maps.services[&id].clone())),
        (2, _, Some(id), _) => drop(maps.backends.remove(&id)),
        (3, _, Some(id), _) => {
            let copy = BackendValue { service: value, ..maps.backends[&id].clone() };
            maps.backends.insert(id, copy);
        }
        (4, _, _, Some(address)) => {
            let entry = maps.frontends.entry(address).or_default();
            entry.inside = SlotRange { offset: value * 16, len: 401 };
        }
        (5, _, _, Some(address)) => maps.frontends.entry(address).or_default().service = value,
        (6, ..) => drop(maps.slots.entry(value * 8).and_modify(|id| *id = value)),
        _ => {}
    }
}

#[test]
fn equal_sets_share_a_range_and_unequal_ones_do_not() {
    let hosts = |locals: [bool; 2]| BTreeMap::from([(1, (true, locals[0])), (2, (true, locals[1]))]);
    let vips = BTreeSet::from([1]);
    let mut maps = Maps::default();
    let mut tables = Tables::new(ROOMY);
    maps.run(&tables.update(&name(0), vec![table(0, 0, &hosts([true, true]), &vips, true)], 0).0, 0, ROOMY);
    assert_eq!(maps.ranges().len(), 1, "all are local: one table serves both sets");
    maps.run(&tables.update(&name(0), vec![table(0, 0, &hosts([true, false]), &vips, true)], 0).0, 0, ROOMY);
    assert_eq!(maps.ranges().len(), 2);
}

#[test]
fn no_endpoint_rejects_and_an_empty_policy_set_drops() {
    let flags = |hosts: BTreeMap<u8, (bool, bool)>| {
        let mut maps = Maps::default();
        let table = table(0, 0, &hosts, &BTreeSet::from([1]), true);
        maps.run(&Tables::new(ROOMY).update(&name(0), vec![table], 0).0, 0, ROOMY);
        let of = |kind: u32| maps.frontends.values().find(|f| f.flags & kind != 0).map(|f| f.flags & !kind);
        [of(frontend::FLAG_CLUSTER_IP), of(frontend::FLAG_LOAD_BALANCER)]
    };
    assert_eq!(flags(BTreeMap::new()), [Some(0), Some(0)]);
    assert_eq!(flags(BTreeMap::from([(1, (true, false))])), [Some(0), Some(frontend::FLAG_OUTSIDE_DROP)]);
    assert_eq!(flags(BTreeMap::from([(1, (true, true))])), [Some(0), Some(0)]);
}

#[test]
fn an_address_of_another_service_is_refused_by_name_and_taken_once_it_is_free() {
    let (mut tables, mut maps) = (Tables::new(ROOMY), Maps::default());
    maps.run(&tables.update(&name(0), vec![simple(0, &[1], &[7])], 0).0, 0, ROOMY);
    let (ops, refused) = tables.update(&name(1), vec![simple(1, &[2], &[7])], 0);
    assert_eq!(ops, []);
    assert_eq!(
        refused[0].to_string(),
        "Service default/service-1 port port-0 80/TCP IPv4: 203.0.113.7:80/TCP already belongs to Service \
         default/service-0 port port-0 80/TCP IPv4: remove it from one of the two"
    );
    assert_eq!(tables.refused(), [name(1)]);
    maps.run(&tables.update(&name(0), vec![simple(0, &[1], &[])], 0).0, 0, ROOMY);
    let (ops, refused) = tables.update(&name(1), vec![simple(1, &[2], &[7])], 0);
    assert_eq!((refused, tables.refused()), (vec![], vec![]));
    maps.run(&ops, 0, ROOMY);
    assert_eq!(maps.frontends.len(), 3);
}

#[test]
fn an_address_that_moves_within_a_service_is_one_write() {
    let (mut tables, mut maps) = (Tables::new(ROOMY), Maps::default());
    maps.run(&tables.update(&name(0), vec![simple(0, &[1], &[7])], 0).0, 0, ROOMY);
    let mut renamed = simple(0, &[1], &[7]);
    renamed.key.name = "renamed".into();
    let (ops, _) = tables.update(&name(0), vec![renamed], 0);
    maps.run(&ops, 0, ROOMY);
    assert!(!ops.iter().any(|op| matches!(op, Op::RemoveFrontend(_))), "{ops:?}");
    assert!(maps.view().values().all(|entry| &*entry.0.name == "renamed"));
}

#[test]
fn a_full_map_refuses_by_name_and_the_room_comes_back_after_the_rest() {
    let cases = [
        (Capacity { slots: 400, ..ROOMY }, "slots of SLOTS", "--slots"),
        (Capacity { backends: 2, ..ROOMY }, "ids of BACKENDS", "--backends"),
        (Capacity { services: 1, ..ROOMY }, "ids of SERVICES", "--services"),
        (Capacity { frontends_v4: 0, ..ROOMY }, "entries of FRONTENDS_V4", "--frontends"),
        (Capacity { source_ranges: 0, ..ROOMY }, "entries of SOURCE_RANGES_V4", "--source-ranges"),
    ];
    for (capacity, what, flag) in cases {
        let port = PortTable { source_ranges: Some(vec![prefix(1)]), ..simple(0, &[1, 2], &[]) };
        let (ops, refused) = Tables::new(capacity).update(&name(0), vec![port], 0);
        assert_eq!(ops, [], "it is refused whole");
        let text = refused[0].to_string();
        assert!(text.contains(what) && text.contains(&format!("raise {flag},")), "{text}");
    }
    let mut tables = Tables::new(Capacity { slots: 416 * 2, ..ROOMY });
    for (now, hosts, fits) in
        [(0, [1, 2], true), (1, [1, 3], true), (2, [1, 4], false), (SLOT_REST_MS + 1, [1, 4], true)]
    {
        let (_, refused) = tables.update(&name(0), vec![simple(0, &hosts, &[])], now);
        assert_eq!(refused.is_empty(), fits, "at {now} ms: {refused:?}");
    }
}

#[test]
fn what_is_released_while_operations_wait_rests_from_their_end_on() {
    let mut tables = Tables::new(Capacity { services: 2, backends: 2, slots: 416, ..ROOMY });
    let fits = |tables: &mut Tables, now| tables.update(&name(1), vec![simple(1, &[2], &[])], now).1.is_empty();
    tables.update(&name(0), vec![simple(0, &[1], &[])], 0);
    tables.update(&name(0), vec![], 0);
    tables.hold(HashMap::new());
    assert!(!fits(&mut tables, 2 * REST_MS), "its removal may not have reached the maps yet");
    tables.resume(2 * REST_MS);
    assert!(!fits(&mut tables, 3 * REST_MS - 1), "flows of a moment ago name it");
    assert!(fits(&mut tables, 3 * REST_MS));
}

#[test]
fn a_terminating_backend_keeps_id_and_generation_and_one_that_left_is_gone_at_once() {
    let (mut tables, mut maps) = (Tables::new(ROOMY), Maps::default());
    let port = |second: Option<bool>| {
        let hosts = [(1, (true, false))].into_iter().chain(second.map(|ready| (2, (ready, false)))).collect();
        vec![table(0, 0, &hosts, &BTreeSet::new(), false)]
    };
    maps.run(&tables.update(&name(0), port(Some(true)), 0).0, 0, ROOMY);
    let (id, before) = maps.backends.iter().find(|(_, b)| b.address.ip().to_string() == "10.0.0.2").expect("is there");
    let (id, before) = (*id, before.clone());
    maps.run(&tables.update(&name(0), port(Some(false)), 0).0, 0, ROOMY);
    assert_eq!(maps.backends[&id], BackendValue { state: BackendState::Terminating, ..before.clone() });
    maps.run(&tables.update(&name(0), port(None), 0).0, 0, ROOMY);
    assert_eq!(maps.backends[&id], BackendValue { state: BackendState::Gone, ..before });
}

#[test]
fn absurd_maps_are_survived() {
    let key = simple(0, &[1], &[]).key;
    let name_entry = to_service_name(&key).expect("fits");
    let backend = |service, generation| BackendValue {
        address: SocketAddr::from(([10, 0, 0, 1], 1)),
        state: BackendState::Active,
        local: false,
        generation,
        service,
    };
    let range = SlotRange { offset: u32::MAX, len: u32::MAX };
    let value = Frontend { service: u32::MAX, inside: range, outside: range, ..Frontend::default() };
    let address = FrontendAddress { address: SocketAddr::from(([10, 96, 0, 0], 80)), protocol: Protocol::Tcp };
    let observed = Observed {
        services: vec![
            (0, name_entry.clone()),
            (u32::MAX, name_entry.clone()),
            (5, name_entry.clone()),
            (6, name_entry),
        ],
        backends: vec![
            (0, backend(5, 1)),
            (u32::MAX, backend(5, 1)),
            (7, backend(u32::MAX, u32::MAX)),
            (7, backend(0, 0)),
        ],
        frontends: vec![(address, value), (address, value)],
        slots: vec![(u32::MAX, vec![1, 2, 3]), (0, vec![])],
        sources: vec![(u32::MAX, prefix(1)), (5, "::/128".parse().expect("a prefix")), (5, prefix(1)), (5, prefix(1))],
        vips: vec![(IpAddr::from([10, 96, 0, 0]), u32::MAX), (IpAddr::from([0; 16]), 0)],
        filter: vec![(3, u64::MAX)],
    };
    for capacity in
        [ROOMY, Capacity { services: 0, backends: 0, frontends_v4: 0, frontends_v6: 0, slots: 0, source_ranges: 0 }]
    {
        let mut tables = Tables::adopt(capacity, &observed);
        let (_, refused) = tables.update(&name(0), vec![simple(0, &[1], &[])], 0);
        assert_eq!(refused.is_empty(), capacity == ROOMY);
        let ops = tables.finish_adoption(0);
        assert!(ops.contains(&Op::RemoveService(u32::MAX)), "{ops:?}");
        tables.expire(u64::MAX / 2);
    }
}
