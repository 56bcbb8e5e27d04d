//! What becomes of a Service's ports and backends in the maps.

use std::collections::{BTreeMap, BTreeSet};

use svc_common::{BackendState, frontend};

use super::{maps::Maps, *};

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
    let local = frontend::FLAG_OUTSIDE_LOCAL;
    assert_eq!(flags(BTreeMap::new()), [Some(0), Some(local)]);
    assert_eq!(flags(BTreeMap::from([(1, (true, false))])), [Some(0), Some(local | frontend::FLAG_OUTSIDE_DROP)]);
    assert_eq!(flags(BTreeMap::from([(1, (true, true))])), [Some(0), Some(local)]);
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
    assert_eq!(
        maps.backends[&id],
        BackendValue { state: BackendState::Terminating, sets: Sets::default(), ..before.clone() }
    );
    maps.run(&tables.update(&name(0), port(None), 0).0, 0, ROOMY);
    assert_eq!(maps.backends[&id], BackendValue { state: BackendState::Gone, sets: Sets::default(), ..before });
}

#[test]
fn a_backend_is_in_its_sets_from_before_they_name_it_until_after_they_did() {
    let (mut tables, mut maps) = (Tables::new(ROOMY), Maps::default());
    // Ready and remote: policy Cluster. Then it drains on this node, and is all that policy Local has.
    let hosts = |moves: bool| BTreeMap::from([(1, (true, false)), (2, (!moves, moves))]);
    for moves in [false, true, false] {
        let ports = vec![table(0, 0, &hosts(moves), &BTreeSet::from([7]), true)];
        maps.run(&tables.update(&name(0), ports, 0).0, 0, ROOMY);
        let sets = maps.backends.values().find(|b| b.address.ip().to_string() == "10.0.0.2").map(|b| b.sets);
        assert_eq!(sets, Some(Sets { cluster: !moves, local: moves }));
    }
}
