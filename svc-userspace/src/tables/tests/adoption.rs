//! Maps that no agent ever left.

use svc_common::{
    BackendState, Frontend, SlotRange,
    frontend::{FLAG_INSIDE_LOCAL, FLAG_OUTSIDE_LOCAL},
};

use super::{maps::Maps, *};
use crate::model::Protocol;

#[test]
fn absurd_maps_are_survived() {
    let key = simple(0, &[1], &[]).key;
    let name_entry = to_service_name(&key).expect("fits");
    let backend = |service, generation| BackendValue {
        address: SocketAddr::from(([10, 0, 0, 1], 1)),
        state: BackendState::Active,
        local: false,
        sets: Sets::default(),
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

/// Agents of before did not say of a backend which sets it is in, nor of a frontend which set it uses.
#[test]
fn maps_without_sets_are_completed() {
    let hosts = BTreeMap::from([(1, (true, true)), (2, (true, false)), (3, (false, true))]);
    let ports = || vec![table(0, 0, &hosts, &BTreeSet::from([7]), true)];
    let mut fresh = Maps::default();
    fresh.run(&Tables::new(ROOMY).update(&name(0), ports(), 0).0, 0, ROOMY);
    let mut maps = fresh.clone();
    maps.backends.values_mut().for_each(|backend| backend.sets = Sets::default());
    let sets = FLAG_INSIDE_LOCAL | FLAG_OUTSIDE_LOCAL;
    maps.frontends.values_mut().for_each(|frontend| frontend.flags &= !sets);

    let mut tables = Tables::adopt(ROOMY, &maps.observed());
    let ops = [tables.update(&name(0), ports(), 0).0, tables.finish_adoption(0)].concat();
    assert!(
        ops.iter().all(|op| matches!(op, Op::SetBackend(..) | Op::SetFrontend(..))),
        "no slot is written and no id given anew: {ops:?}"
    );
    for op in ops {
        maps.write(op);
    }
    maps.check(ROOMY);
    assert_eq!((maps.view(), maps.live()), (fresh.view(), fresh.live()));
}
