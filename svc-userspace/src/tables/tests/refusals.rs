//! What is refused, by which name, and when there is room again.

use super::{maps::Maps, *};

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
    tables.hold(HashMap::default());
    assert!(!fits(&mut tables, 2 * REST_MS), "its removal may not have reached the maps yet");
    tables.resume(2 * REST_MS);
    assert!(!fits(&mut tables, 3 * REST_MS - 1), "flows of a moment ago name it");
    assert!(fits(&mut tables, 3 * REST_MS));
}
