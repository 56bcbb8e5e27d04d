//! What the zone says beyond the specification: order, names of pods, whose address it is, and the time before everything is listed.

use std::net::IpAddr;

use hickory_proto::rr::RecordType;

use super::{
    super::{
        names::reverse,
        zone::{Answer, TTL, Window, Zone},
    },
    ALL, Cluster, DOMAIN, headless, name, service, slice, unbalanced, written,
};
use crate::model::{Change, ObjectName, Unbalanced};

#[test]
fn the_order_of_addresses_turns() {
    let cluster = headless(3);
    let first = |turn| {
        let window = Window { turn, most: 9 };
        let answer = cluster.zone.answer(&name("a.ns.svc.cluster.local."), RecordType::A, window).expect("an answer");
        let Answer::Data(data) = answer else { panic!("{answer:?}") };
        assert_eq!((data.records.len(), data.total, data.ttl), (3, 3, TTL));
        written(&data.records[0])
    };
    let turns: Vec<_> = (0..4).map(first).collect();
    assert_eq!(turns, ["10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.0"]);
    assert_eq!(first(usize::MAX).len(), 8);
}

#[test]
fn a_pod_is_named_by_any_address_of_any_namespace() {
    let cluster = Cluster::new([]);
    for (of, kind, want) in [
        ("10-1-2-3.ns.pod", RecordType::A, Some("10.1.2.3")),
        ("fd00--1.other.pod", RecordType::AAAA, Some("fd00::1")),
        ("10-1-2-3.ns.pod", RecordType::AAAA, None),
    ] {
        match (cluster.ask(&format!("{of}.{DOMAIN}"), kind), want) {
            (Answer::Data(data), Some(want)) => {
                assert_eq!(data.records.iter().map(written).collect::<Vec<_>>(), [want]);
            }
            (Answer::NoData, None) => {}
            (found, _) => panic!("{of}: {found:?}"),
        }
    }
    assert_eq!(cluster.ask("10-1-2.ns.pod.cluster.local.", RecordType::A), Answer::NoName);
}

#[test]
fn before_everything_is_listed_nothing_is_denied() {
    let zone = Zone::new(name(DOMAIN), vec![], 1);
    for (of, want) in [
        ("a.ns.svc.cluster.local.", Answer::NotYet),
        ("1.0.0.10.in-addr.arpa.", Answer::NotYet),
        ("example.com.", Answer::Elsewhere),
    ] {
        assert_eq!(zone.answer(&name(of), RecordType::A, ALL).expect("an answer"), want, "{of}");
    }
}

#[test]
fn a_slice_does_not_rename_the_cluster_address_of_a_service() {
    let ip: IpAddr = "10.0.0.1".parse().expect("an address");
    let mut cluster = Cluster::new([
        unbalanced("a", Unbalanced::Headless),
        slice("by-hand", "a", &[(ip, true, Some("bank"))], &[]),
        service("web", &[ip], &[]),
    ]);
    let names = |cluster: &Cluster| match cluster.ask(&reverse(ip), RecordType::PTR) {
        Answer::Data(data) => data.records.iter().map(written).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&cluster), ["web.ns.svc.cluster.local."]);
    cluster.change(Change::Service(ObjectName::new("ns", "web"), None));
    assert_eq!(names(&cluster), ["bank.a.ns.svc.cluster.local."], "nobody's cluster address");
}
