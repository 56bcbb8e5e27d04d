//! The zone after random sequences of changes, against the specification's own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hickory_proto::rr::RecordType;
use proptest::prelude::*;

use super::{
    super::{
        names::{reverse, with_dashes},
        zone::Answer,
    },
    Cluster, DOMAIN, service, slice, unbalanced, written,
};
use crate::model::{Change, ObjectName, Protocol, Unbalanced};

/// All records of objects, in the specification's words: name, type, data.
fn specified(objects: &BTreeMap<(bool, ObjectName), Change>) -> BTreeSet<(String, RecordType, String)> {
    let mut records = BTreeSet::new();
    let mut add = |name: String, kind: RecordType, data: String| {
        records.insert((name, kind, data));
    };
    let kind_of = |address: &IpAddr| if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let label = |protocol: Protocol| protocol.to_string().to_lowercase();
    add(format!("dns-version.{DOMAIN}"), RecordType::TXT, "1.1.0".to_owned());
    add(format!("ns.dns.{DOMAIN}"), RecordType::A, "10.0.0.53".to_owned());
    // Branches that exist without a record of their own.
    add(format!("x.y.pod.{DOMAIN}"), RecordType::NULL, String::new());
    add(format!("svc.{DOMAIN}"), RecordType::NULL, String::new());
    for object in objects.values() {
        match object {
            Change::Service(name, Some(service)) => {
                let fqdn = format!("{}.{}.svc.{DOMAIN}", name.name, name.namespace);
                for address in &service.cluster_ips {
                    add(fqdn.clone(), kind_of(address), address.to_string());
                    add(reverse(*address), RecordType::PTR, fqdn.clone());
                }
                for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
                    let srv = format!("_{}._{}.{fqdn}", port.name, label(port.protocol));
                    add(srv, RecordType::SRV, format!("{} {fqdn}", port.port));
                }
            }
            Change::Unbalanced(name, service) => {
                let fqdn = format!("{}.{}.svc.{DOMAIN}", name.name, name.namespace);
                if let Unbalanced::ExternalName(target) = &**service {
                    add(fqdn.clone(), RecordType::CNAME, format!("{target}."));
                    continue;
                }
                for slice in objects.values() {
                    let Change::Slice(_, Some(slice)) = slice else { continue };
                    if slice.service != *name {
                        continue;
                    }
                    for (i, endpoint) in slice.endpoints.iter().enumerate().filter(|(_, it)| it.ready) {
                        let hostname = slice.hostnames[i].as_deref().map(str::to_lowercase);
                        let hostname = hostname.unwrap_or_else(|| with_dashes(endpoint.address));
                        let host = format!("{hostname}.{fqdn}");
                        add(fqdn.clone(), kind_of(&endpoint.address), endpoint.address.to_string());
                        add(host.clone(), kind_of(&endpoint.address), endpoint.address.to_string());
                        add(reverse(endpoint.address), RecordType::PTR, host.clone());
                        for port in slice.ports.iter().filter(|port| !port.name.is_empty()) {
                            let srv = format!("_{}._{}.{fqdn}", port.name, label(port.protocol));
                            add(srv, RecordType::SRV, format!("{} {host}", port.port));
                        }
                    }
                }
            }
            _ => {}
        }
    }
    // A cluster IP is its Service's alone, whatever a slice says.
    for object in objects.values() {
        let Change::Service(_, Some(service)) = object else { continue };
        for address in &service.cluster_ips {
            let owners: BTreeSet<String> = objects
                .values()
                .filter_map(|it| match it {
                    Change::Service(name, Some(it)) if it.cluster_ips.contains(address) => {
                        Some(format!("{}.{}.svc.{DOMAIN}", name.name, name.namespace))
                    }
                    _ => None,
                })
                .collect();
            let name = reverse(*address);
            records.retain(|(of, _, data)| *of != name || owners.contains(data));
        }
    }
    records
}

/// Every question about every name that has to do with the records is answered as they say.
fn assert_as_specified(cluster: &Cluster, objects: &BTreeMap<(bool, ObjectName), Change>) {
    let records = specified(objects);
    let names: BTreeSet<&str> = records.iter().map(|(name, _, _)| &**name).collect();
    let mut questions: BTreeSet<String> = BTreeSet::new();
    for name in &names {
        let mut rest = *name;
        while let Some((_, parent)) = rest.split_once('.') {
            questions.insert(rest.to_owned());
            questions.insert(format!("nobody.{rest}"));
            questions.insert(format!("_x._tcp.{rest}"));
            questions.insert(rest.to_uppercase());
            rest = parent;
        }
    }
    for of in &["a", "b", "c", "d"] {
        for prefix in ["", "web-0.", "10-0-0-1.", "fd00--1.", "_tcp.", "_http._tcp.", "_http._udp.", "_dns._udp."] {
            questions.insert(format!("{prefix}{of}.ns.svc.{DOMAIN}"));
        }
    }
    for question in questions {
        let lower = question.to_lowercase();
        let is_ours = lower.ends_with(&format!(".{DOMAIN}")) || lower == DOMAIN;
        for kind in
            [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT, RecordType::PTR, RecordType::CNAME]
        {
            if lower.contains(".pod.") {
                continue;
            }
            let here: Vec<_> = records.iter().filter(|(name, _, _)| *name == lower).collect();
            let data: BTreeSet<String> =
                here.iter().filter(|(_, k, _)| *k == kind).map(|(_, _, data)| data.clone()).collect();
            let alias = here.iter().find(|(_, k, _)| *k == RecordType::CNAME).map(|(_, _, data)| data);
            let exists = names.iter().any(|it| *it == lower || it.ends_with(&format!(".{lower}")));
            let found = cluster.ask(&question, kind);
            let context = format!("{question} {kind}: {found:?}");
            match found {
                Answer::Data(found) => {
                    let found: Vec<String> = found.records.iter().map(written).collect();
                    assert_eq!(found.len(), data.len(), "each once: {context}");
                    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), data, "{context}");
                    assert!(!data.is_empty(), "{context}");
                }
                Answer::Alias(target) => assert_eq!(Some(&target.to_string()), alias, "{context}"),
                Answer::NoData => assert!(data.is_empty() && exists && alias.is_none(), "{context}"),
                Answer::NoName => assert!(is_ours && !exists, "{context}"),
                Answer::Elsewhere => assert!(!is_ours && here.is_empty(), "{context}"),
                Answer::NotYet => panic!("{context}"),
            }
        }
    }
}

fn an_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1..5_u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (1..4_u16).prop_map(|n| [0xfd00, 0, 0, 0, 0, 0, 0, n].into())
    ]
}

fn a_port() -> impl Strategy<Value = (&'static str, Protocol, u16)> {
    let names = prop_oneof![Just("http"), Just("dns"), Just("")];
    (names, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)], 1..4_u16)
}

fn a_change() -> impl Strategy<Value = Change> {
    let of = || prop_oneof![Just("a"), Just("b"), Just("c")];
    let ports = || prop::collection::vec(a_port(), 0..3);
    let hostname = prop_oneof![Just(None), Just(Some("web-0")), Just(Some("Web-1")), Just(Some("10-0-0-1"))];
    let endpoints = prop::collection::vec((an_address(), prop::bool::weighted(0.7), hostname), 0..4);
    prop_oneof![
        2 => (of(), prop::collection::hash_set(an_address(), 1..3), ports())
            .prop_map(|(of, ips, ports)| service(of, &ips.into_iter().collect::<Vec<_>>(), &ports)),
        3 => of().prop_map(|of| unbalanced(of, Unbalanced::Headless)),
        1 => of().prop_map(|of| unbalanced(of, Unbalanced::ExternalName("www.example.com".into()))),
        1 => of().prop_map(|of| Change::Service(ObjectName::new("ns", of), None)),
        5 => (prop_oneof![Just("s1"), Just("s2"), Just("s3")], of(), endpoints, ports())
            .prop_map(|(name, of, endpoints, ports)| slice(name, of, &endpoints, &ports)),
        1 => prop_oneof![Just("s1"), Just("s2"), Just("s3")]
            .prop_map(|name| Change::Slice(ObjectName::new("ns", name), None)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_zone_answers_as_the_specification_says_after_every_sequence_of_changes(
        changes in prop::collection::vec(a_change(), 1..14)
    ) {
        let mut cluster = Cluster::new([]);
        let mut objects: BTreeMap<(bool, ObjectName), Change> = BTreeMap::new();
        for change in changes {
            let (key, gone) = match &change {
                Change::Service(name, service) => ((false, name.clone()), service.is_none()),
                Change::Slice(name, slice) => ((true, name.clone()), slice.is_none()),
                Change::Unbalanced(name, _) => ((false, name.clone()), false),
                _ => continue,
            };
            cluster.change(change.clone());
            objects.insert(key.clone(), change);
            if gone {
                objects.remove(&key);
            }
        }
        assert_as_specified(&cluster, &objects);
        for ((is_slice, name), _) in objects {
            cluster.change(if is_slice { Change::Slice(name, None) } else { Change::Service(name, None) });
        }
        assert!(cluster.zone.is_empty());
        assert_as_specified(&cluster, &BTreeMap::new());
    }
}
