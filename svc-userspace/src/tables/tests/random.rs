//! Random histories of Services, with restarts and damage between.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use svc_common::SlotRange;

use super::{
    maps::{Maps, View},
    *,
};

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
