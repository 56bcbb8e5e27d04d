//! Requests, good and bad, to the byte: each has an answer that it may have, or none.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, RData, RecordType},
};
use proptest::prelude::*;

use super::{
    super::{
        answer::{self, Dropped, QUERY_MOST, Request, Step, Transport},
        zone::TTL,
    },
    Cluster, DOMAIN, headless, name, service, unbalanced, written,
};
use crate::model::{Change, ObjectName, Unbalanced};

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

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
