//! The zone against the specification's own words, and requests against what may be said to them.

mod requests;
mod specification;
mod zone;

use std::net::IpAddr;

use hickory_proto::rr::{Name, RData, RecordType};

use super::{
    records::Records,
    zone::{Answer, Window, Zone},
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
