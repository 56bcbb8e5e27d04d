//! Ports of a Service: numbers, protocols, node ports and target ports that change at run time, and one number that TCP and
//! UDP share.

use anyhow::{Context, Result};
use serde_json::Value;
use svc_lab::{Protocol, Service};

use crate::{
    doors::{BOTH, Expected, Kind, doors, lead_to, loopback},
    feed::Feed,
    shop::{NODE_PORT, PORT, Shop, TARGET, cluster_ips, eventually, external, service},
};

/// A port as a Service has it: number, node port, protocols, target.
#[derive(Clone, Copy, Debug)]
struct Port {
    number: u16,
    node: u16,
    protocols: &'static [Protocol],
    target: u16,
}

impl Port {
    fn service(&self) -> Service {
        let service = self.protocols.iter().fold(service("web", 1), |service, &protocol| {
            service.one_port(protocol, self.number, self.target, Some(self.node))
        });
        service.load_balancer(&external(1))
    }

    /// The doors of a number and a node port, over both protocols; shut unless they are this port's.
    fn doors<'a>(&self, shop: &Shop, number: u16, node: u16, servers: &'a [&'a str]) -> Expected<'a> {
        let nodes = shop.lab.node(1).addresses.both();
        let sorts = [
            (Kind::ClusterIp, cluster_ips(1), number, self.number),
            (Kind::LoadBalancer, external(1), number, self.number),
            (Kind::NodePort, nodes, node, self.node),
            (Kind::NodePort, loopback(), node, self.node),
        ];
        let each = sorts.into_iter().flat_map(|(kind, addresses, number, own)| {
            doors(kind, &addresses, number, &BOTH).into_iter().map(move |door| (door, number == own))
        });
        each.map(|(door, own)| (door, if own && self.protocols.contains(&door.protocol) { servers } else { &[] }))
            .collect()
    }
}

#[test]
fn numbers_protocols_node_ports_and_targets_change_at_run_time() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    // On its second port, `a` answers for itself alone.
    shop.lab.serve(&shop.a, TARGET + 1)?;
    let start = Port { number: PORT, node: NODE_PORT, protocols: &BOTH, target: TARGET };
    let steps: [(&str, Port, &[&str]); 8] = [
        ("start", start, &["a", "b"]),
        ("another number", Port { number: 81, ..start }, &["a", "b"]),
        ("TCP only", Port { number: 81, protocols: &[Protocol::Tcp], ..start }, &["a", "b"]),
        ("UDP in place of TCP", Port { number: 81, protocols: &[Protocol::Udp], ..start }, &["a", "b"]),
        ("another node port", Port { number: 81, protocols: &[Protocol::Udp], node: 30_090, ..start }, &["a", "b"]),
        ("everything else", start, &["a", "b"]),
        ("another target", Port { target: TARGET + 1, ..start }, &["a"]),
        ("back", start, &["a", "b"]),
    ];
    let objects = |port: Port| {
        let pods = if port.target == TARGET { &[&shop.a, &shop.b][..] } else { &[&shop.a] };
        port.service().with(pods)
    };
    feed.put("web", &objects(start))?;
    let _agent = shop.agent(feed.source(), &[])?;
    let mut before = start;
    for (what, port, servers) in steps {
        feed.put("web", &objects(port))?;
        let mut expected = port.doors(&shop, port.number, port.node, servers);
        // What the port was, if it is not that any more.
        let gone = port.doors(&shop, before.number, before.node, servers);
        expected.extend(gone.into_iter().filter(|(_, servers)| servers.is_empty()));
        // Of another target the frontends say nothing.
        shop.shows(&expected).context(what)?;
        eventually(what, || shop.answers(&expected))?;
        before = port;
    }
    Ok(())
}

#[test]
fn one_number_is_another_service_over_tcp_than_over_udp() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    // Two Services share the load balancer's address and the node port, as load balancers allow it.
    let of = |name: &str, nth: u8, protocol| {
        let service = service(name, nth).one_port(protocol, PORT, TARGET, Some(NODE_PORT));
        service.load_balancer(&external(1))
    };
    let (tcp, udp) = (of("tcp", 1, Protocol::Tcp), of("udp", 2, Protocol::Udp));
    feed.put("tcp", &tcp.with(&[&shop.a]))?;
    feed.put("udp", &udp.with(&[&shop.b]))?;
    // A third has both under one number, with a target for each.
    let both = service("both", 3).one_port(Protocol::Tcp, PORT, TARGET, None).one_port(Protocol::Udp, PORT, 8053, None);
    shop.lab.serve(&shop.b, 8053)?;
    let mut objects = both.with(&[&shop.a]);
    for (slice, address) in objects[1..].iter_mut().zip(shop.b.addresses.both()) {
        // Its TCP port is on `a`, its UDP port on `b`: a slice for each.
        let ports = slice["ports"].as_array().cloned().unwrap_or_default();
        let of = |protocol: &str| ports.iter().filter(|it| it["protocol"] == protocol).cloned().collect::<Value>();
        let mut other = slice.clone();
        slice["ports"] = of("TCP");
        other["ports"] = of("UDP");
        other["metadata"]["name"] = format!("udp-{}", slice["metadata"]["name"].as_str().unwrap_or_default()).into();
        other["endpoints"][0]["addresses"][0] = address.to_string().into();
        feed.put(&format!("other-{}", if address.is_ipv4() { "v4" } else { "v6" }), &[other])?;
    }
    feed.put("both", &objects)?;
    let _agent = shop.agent(feed.source(), &[])?;

    let node = shop.lab.node(1).addresses.both();
    let shared = |protocol, servers: &'static [&'static str]| {
        let mut expected = lead_to(doors(Kind::LoadBalancer, &external(1), PORT, &[protocol]), servers);
        for addresses in [node, loopback()] {
            expected.extend(lead_to(doors(Kind::NodePort, &addresses, NODE_PORT, &[protocol]), servers));
        }
        expected
    };
    let own = |nth, protocol, servers: &'static [&'static str]| {
        lead_to(doors(Kind::ClusterIp, &cluster_ips(nth), PORT, &[protocol]), servers)
    };
    let always = [
        own(1, Protocol::Tcp, &["a"]),
        own(1, Protocol::Udp, &[]),
        own(2, Protocol::Tcp, &[]),
        own(3, Protocol::Tcp, &["a"]),
        own(3, Protocol::Udp, &["b"]),
        shared(Protocol::Tcp, &["a"]),
    ]
    .concat();
    shop.has(&[always.clone(), own(2, Protocol::Udp, &["b"]), shared(Protocol::Udp, &["b"])].concat())?;
    // One of them goes, the other one stays as it is.
    feed.put("udp", &[])?;
    shop.has(&[always, own(2, Protocol::Udp, &[]), shared(Protocol::Udp, &[])].concat())
}
