//! The zone against the specification's own words, and requests against what may be said to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use proptest::prelude::*;

use super::{
    answer::{self, Dropped, QUERY_MOST, Request, Step, Transport},
    names::{reverse, with_dashes},
    records::Records,
    zone::{Answer, TTL, Window, Zone},
};
use crate::{
    model::{
        Change, Endpoint, Family, NameList, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, Unbalanced,
    },
    world::World,
};

const DOMAIN: &str = "cluster.local.";
const ALL: Window = Window { turn: 0, most: usize::MAX };

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// The world of a DNS server, followed by a zone.
struct Cluster {
    world: World,
    zone: Zone,
}

impl Cluster {
    fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut world = World::new();
        world.serve_names();
        let mut zone = Zone::new(name(DOMAIN), vec!["10.0.0.53".parse().expect("an address")], 1);
        zone.set_complete();
        let mut cluster = Self { world, zone };
        changes.into_iter().for_each(|change| cluster.change(change));
        cluster
    }

    fn change(&mut self, change: Change) {
        self.world.apply(change);
        for name in self.world.take_renamed() {
            self.zone.set(&name, Records::of(&self.world, &name));
        }
    }

    fn ask(&self, of: &str, kind: RecordType) -> Answer {
        self.zone.answer(&name(of), kind, ALL).expect("names of tests can be written")
    }
}

fn service(of: &str, cluster_ips: &[IpAddr], ports: &[(&str, Protocol, u16)]) -> Change {
    let object = ObjectName::new("ns", of);
    let service = Service {
        name: object.clone(),
        cluster_ips: cluster_ips.into(),
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        claim: None,
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| ServicePort { name: name.into(), protocol, port, node_port: None })
            .collect(),
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    };
    Change::Service(object, Some(Box::new(service)))
}

fn unbalanced(of: &str, service: Unbalanced) -> Change {
    Change::Unbalanced(ObjectName::new("ns", of), Box::new(service))
}

/// An endpoint: its address, whether it is ready, and its hostname.
type Spec = (IpAddr, bool, Option<&'static str>);

fn slice(of: &str, service: &str, endpoints: &[Spec], ports: &[(&str, Protocol, u16)]) -> Change {
    let object = ObjectName::new("ns", of);
    let slice = Slice {
        name: object.clone(),
        service: ObjectName::new("ns", service),
        family: Family::V4,
        ports: ports.iter().map(|&(name, protocol, port)| SlicePort { name: name.into(), protocol, port }).collect(),
        endpoints: endpoints
            .iter()
            .map(|&(address, ready, _)| Endpoint {
                address,
                ready,
                serving: ready,
                terminating: false,
                node: None,
                hint_nodes: NameList::default(),
                hint_zones: NameList::default(),
            })
            .collect(),
        headless: true,
        hostnames: endpoints.iter().map(|(_, _, hostname)| hostname.map(Into::into)).collect(),
        triggered_ms: None,
    };
    Change::Slice(object, Some(Box::new(slice)))
}

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

fn written(record: &RData) -> String {
    match record {
        RData::A(address) => address.to_string(),
        RData::AAAA(address) => address.to_string(),
        RData::SRV(srv) => format!("{} {}", srv.port, srv.target),
        RData::PTR(name) => name.to_string(),
        RData::CNAME(name) => name.to_string(),
        RData::TXT(text) => text.txt_data.iter().map(|it| String::from_utf8_lossy(it)).collect(),
        other => format!("{other:?}"),
    }
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

    #[test]
    fn whatever_comes_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        handle(&Cluster::new([]), &bytes, tcp);
    }

    #[test]
    fn queries_with_a_few_other_bytes_are_survived(
        at in prop::collection::vec((0..80_usize, any::<u8>()), 0..6), kind in 0..300_u16, edns in any::<Option<u16>>()
    ) {
        let mut bytes = query("web-0.a.ns.svc.cluster.local.", RecordType::from(kind), edns);
        for (index, byte) in at {
            let length = bytes.len();
            bytes[index % length] = byte;
        }
        handle(&headless(40), &bytes, false);
    }
}

/// Reads and answers; what can be answered is an answer to what was asked, and no longer than it may be.
fn handle(cluster: &Cluster, bytes: &[u8], tcp: bool) -> Option<Message> {
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let answer = match answer::read(bytes, transport) {
        Request::Drop(_) => return None,
        Request::Refuse(bytes, _) => bytes,
        Request::Ask(question) => match answer::answer(&cluster.zone, question, 7) {
            Step::Done(bytes, _) => bytes,
            Step::Forward(_) => return None,
        },
    };
    assert!(tcp || answer.len() <= 1232, "{} bytes", answer.len());
    let message = Message::from_vec(&answer).expect("an answer can be read");
    assert_eq!(
        (message.metadata.message_type, message.metadata.id.to_be_bytes().as_slice()),
        (MessageType::Response, &bytes[..2])
    );
    Some(message)
}

fn query(of: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(of), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().expect("a query")
}

/// A headless Service `a` with so many endpoints of each family, all of them with a named port.
fn headless(count: u16) -> Cluster {
    let endpoints: Vec<Spec> = (0..count)
        .flat_map(|i| {
            let [high, low] = i.to_be_bytes();
            [IpAddr::from([10, 1, high, low]), [0xfd00, 0, 0, 1, 0, 0, 0, i].into()]
        })
        .map(|address| (address, true, None))
        .collect();
    Cluster::new([
        unbalanced("a", Unbalanced::Headless),
        slice("a-1", "a", &endpoints, &[("http", Protocol::Tcp, 8080)]),
    ])
}

#[test]
fn answers_that_are_too_long_say_so_and_hold_what_fits() {
    let cluster = headless(10_000);
    for (kind, edns, tcp, least) in [
        (RecordType::A, None, false, 28),
        (RecordType::A, Some(1232), false, 70),
        (RecordType::A, Some(65_000), false, 70),
        (RecordType::A, None, true, 4_000),
        (RecordType::AAAA, None, true, 2_300),
    ] {
        let message = handle(&cluster, &query("a.ns.svc.cluster.local.", kind, edns), tcp).expect("an answer");
        assert!(
            message.metadata.truncation && message.answers.len() >= least,
            "{kind} {edns:?}: {}",
            message.answers.len()
        );
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
    let srv = query("_http._tcp.a.ns.svc.cluster.local.", RecordType::SRV, Some(1232));
    let message = handle(&cluster, &srv, false).expect("an answer");
    assert!(message.metadata.truncation && message.answers.len() >= 15, "{}", message.answers.len());
}

#[test]
fn answers_that_fit_are_whole_at_every_size() {
    for count in [1, 27, 28, 29, 30, 72, 73, 74, 75, 76] {
        let cluster = headless(count);
        for (edns, room) in [(None, 512_usize), (Some(1232), 1232)] {
            let message =
                handle(&cluster, &query("a.ns.svc.cluster.local.", RecordType::A, edns), false).expect("an answer");
            // A header, the question, and 16 bytes for each address; 11 for the OPT record.
            let needs = 12 + 24 + 4 + 16 * usize::from(count) + if edns.is_some() { 11 } else { 0 };
            assert_eq!(message.metadata.truncation, needs > room, "{count} {edns:?}");
            assert_eq!(message.answers.len() == usize::from(count), needs <= room, "{count} {edns:?}");
        }
    }
}

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
fn aliases_are_followed_within_the_cluster_and_circles_end() {
    let alias = |of, target: &str| unbalanced(of, Unbalanced::ExternalName(target.into()));
    let mut cluster = Cluster::new([
        alias("a", "b.ns.svc.cluster.local"),
        service("b", &["10.0.0.1".parse().expect("an address")], &[]),
        alias("c", "d.ns.svc.cluster.local"),
        alias("d", "c.ns.svc.cluster.local"),
        alias("e", "gone.ns.svc.cluster.local"),
        alias("f", "www.example.com"),
    ]);
    let ask = |cluster: &Cluster, of: &str, kind| {
        handle(cluster, &query(&format!("{of}.ns.svc.cluster.local."), kind, None), false)
    };
    let found = ask(&cluster, "a", RecordType::A).expect("an answer");
    assert_eq!(
        found.answers.iter().map(|it| written(&it.data)).collect::<Vec<_>>(),
        ["b.ns.svc.cluster.local.", "10.0.0.1"]
    );
    assert!(found.metadata.authoritative && found.metadata.recursion_available);
    let none = ask(&cluster, "a", RecordType::AAAA).expect("an answer");
    assert_eq!(
        (none.answers.len(), none.authorities.len(), none.metadata.response_code),
        (1, 1, ResponseCode::NoError)
    );
    assert_eq!(ask(&cluster, "c", RecordType::A).expect("an answer").metadata.response_code, ResponseCode::ServFail);
    let gone = ask(&cluster, "e", RecordType::A).expect("an answer");
    assert_eq!((gone.answers.len(), gone.metadata.response_code), (1, ResponseCode::NXDomain));
    assert!(ask(&cluster, "f", RecordType::A).is_none(), "forwarded");
    let plain = ask(&cluster, "f", RecordType::CNAME).expect("an answer");
    assert_eq!(written(&plain.answers[0].data), "www.example.com.");
    cluster.change(Change::Service(ObjectName::new("ns", "b"), None));
    assert_eq!(ask(&cluster, "a", RecordType::A).expect("an answer").metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn whoever_asks_for_everything_gets_one_record_that_says_nothing() {
    let cluster = Cluster::new([
        service("web", &["10.0.0.1".parse().expect("an address")], &[]),
        unbalanced("inside", Unbalanced::ExternalName("web.ns.svc.cluster.local".into())),
        unbalanced("outside", Unbalanced::ExternalName("www.example.com".into())),
    ]);
    for (of, ours) in [
        ("web.ns.svc.cluster.local.", true),
        ("inside.ns.svc.cluster.local.", true),
        ("outside.ns.svc.cluster.local.", true),
        ("www.example.com.", false),
        ("9.0.0.10.in-addr.arpa.", false),
        (".", false),
    ] {
        for tcp in [false, true] {
            let found = handle(&cluster, &query(of, RecordType::ANY, Some(1232)), tcp).expect("not forwarded");
            assert_eq!((found.answers.len(), found.metadata.authoritative), (1, ours), "{of}: {found:?}");
            assert_eq!(found.answers[0].record_type(), RecordType::HINFO, "{of}");
        }
    }
    let none = handle(&cluster, &query("x.ns.svc.cluster.local.", RecordType::ANY, None), false).expect("an answer");
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
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

#[test]
fn what_is_no_question_is_refused_or_dropped() {
    let cluster = headless(1);
    let plain = || query("a.ns.svc.cluster.local.", RecordType::A, None);
    let code = |bytes: &[u8]| handle(&cluster, bytes, false).map(|message| message.metadata.response_code);
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = Message::from_vec(&plain()).expect("a query");
        change(&mut message);
        message.to_vec().expect("a query")
    };
    assert_eq!(code(&plain()), Some(ResponseCode::NoError));
    assert!(matches!(answer::read(&plain()[..11], Transport::Udp), Request::Drop(Dropped::Malformed)));
    let answer = with(&|message| message.metadata.message_type = MessageType::Response);
    assert!(matches!(answer::read(&answer, Transport::Udp), Request::Drop(Dropped::Response)));
    assert_eq!(code(&plain()[..20]), Some(ResponseCode::FormErr));
    assert_eq!(code(&with(&|message| message.queries.clear())), Some(ResponseCode::FormErr));
    let twice = with(&|message| message.queries.extend(message.queries.clone()));
    assert_eq!(code(&twice), Some(ResponseCode::FormErr));
    let long: Vec<u8> = plain().into_iter().chain(std::iter::repeat(0)).take(QUERY_MOST + 1).collect();
    assert_eq!(code(&long), Some(ResponseCode::FormErr));
    assert_eq!(code(&with(&|message| message.metadata.op_code = OpCode::Status)), Some(ResponseCode::NotImp));
    let chaos = with(&|message| {
        message.queries[0].set_query_class(DNSClass::CH);
    });
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    assert_eq!(code(&query("cluster.local.", RecordType::AXFR, None)), Some(ResponseCode::Refused));
    let later = with(&|message| {
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
    });
    // 16 means this in an OPT record, and a bad signature elsewhere: hickory reads the latter.
    assert_eq!(code(&later).map(u16::from), Some(u16::from(ResponseCode::BADVERS)));
    let any = handle(&cluster, &query("a.ns.svc.cluster.local.", RecordType::ANY, None), false).expect("an answer");
    assert_eq!((any.answers.len(), any.answers[0].record_type()), (1, RecordType::HINFO));
}

#[test]
fn denials_have_the_soa_and_its_time_to_live() {
    let cluster = headless(1);
    for (of, code) in [("nobody.ns.svc", ResponseCode::NXDomain), ("ns.svc", ResponseCode::NoError)] {
        let message =
            handle(&cluster, &query(&format!("{of}.{DOMAIN}"), RecordType::A, None), false).expect("an answer");
        assert_eq!((message.metadata.response_code, message.metadata.authoritative), (code, true));
        let [soa] = message.authorities.as_slice() else { panic!("{message:?}") };
        let RData::SOA(data) = &soa.data else { panic!("{soa:?}") };
        assert_eq!((soa.name.to_string().as_str(), soa.ttl, data.minimum), (DOMAIN, TTL, TTL));
    }
}
