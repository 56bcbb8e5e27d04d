//! The paths of a Service: who asks what, who may answer, and which client address the backend must see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::{
    cluster::{Shop, addresses},
    interrupt::hold,
};
use crate::{FailureKind, Lab, Place, Pod, Protocol, Request, Service, Success, plan};

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) who: String,
    pub(super) asked: String,
    pub(super) protocols: Vec<&'static str>,
    pub(super) answered: String,
    pub(super) seen: String,
    pub(super) right: bool,
}

/// What must be true of the client address that the backend sees.
#[derive(Clone, Copy)]
enum Seen {
    /// The client's own.
    Own,
    /// A pod reached itself: through the packet path it looks like the address that was asked, while a socket that was
    /// connected to its backend shows the pod's own.
    Itself,
    /// One of this node's.
    Node(u8),
    /// Whatever: who masquerades is the CNI's business, or the kernel chooses among a node's addresses.
    Any,
}

enum Expected<'a> {
    /// All of these answer sooner or later, and nobody else.
    Each(Vec<(&'a Pod, Seen)>),
    /// One of these answers, and the backend sees that.
    OneOf(&'a [Pod], Seen),
    /// Of all that answer, this pod is shown: the request is repeated until it does.
    Until(&'a Pod, Seen),
    /// Silence.
    Nobody(&'static str),
}

struct Path<'a> {
    title: &'static str,
    who: &'a Place,
    label: String,
    service: &'a Service,
    kind: &'static str,
    /// Whose node port it is, in parentheses.
    whose: &'static str,
    addresses: Vec<IpAddr>,
    node_port: bool,
    expected: Expected<'a>,
}

/// Requests for one path, family and protocol: with three equal backends one is missed once in 10¹¹ runs.
const ATTEMPTS: u32 = 64;

/// Sends everything, to the addresses that were given to the load balancer as well; the rows in the order of the story.
pub(super) fn walk(lab: &Lab, shop: &Shop, given: &[IpAddr]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for path in paths(lab, shop, given) {
        for &address in &path.addresses {
            hold();
            for row in path.ports().iter().flat_map(|&(protocol, port)| path.ask(lab, shop, address, protocol, port)) {
                let same = |other: &&mut Row| {
                    (other.title, &other.who, &other.asked, &other.answered, &other.seen, other.right)
                        == (row.title, &row.who, &row.asked, &row.answered, &row.seen, row.right)
                };
                match rows.iter_mut().find(same) {
                    Some(other) => other.protocols.extend(row.protocols),
                    None => rows.push(row),
                }
            }
        }
    }
    rows
}

fn paths<'a>(lab: &'a Lab, shop: &'a Shop, given: &[IpAddr]) -> Vec<Path<'a>> {
    let Shop { services, client, web, orders, front, api, .. } = shop;
    let [web_1, web_2, web_host] = web;
    let [orders_1, orders_2] = orders;
    let [front_1, front_2] = front;
    let (node_1, outside) = (lab.node(1), lab.outside());
    let vips = |service: &Service| addresses(&service.object["spec"]["clusterIPs"]);
    let node = |index: u8| lab.node(index).addresses.both().to_vec();
    let path = |title, who: &'a Place, service: &'a Service, kind: &'static str, addresses, expected| Path {
        title,
        who,
        label: label(shop, who),
        service,
        kind: kind.split_once(' ').map_or(kind, |(first, _)| first),
        whose: kind.find(' ').map_or("", |at| &kind[at..]),
        node_port: kind.starts_with("NodePort"),
        addresses,
        expected,
    };
    let (cluster, ports, balancer, local) =
        (&services.cluster_ip, &services.node_port, &services.load_balancer, &services.local);
    let loopback = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let inside = "A pod asks";
    let host = "A process of a node asks";
    let world = "A client outside asks";
    let three = Expected::Each(vec![(web_1, Seen::Own), (web_2, Seen::Own), (web_host, Seen::Any)]);
    let kept_or_not = |near, far| Expected::Each(vec![(near, Seen::Own), (far, Seen::Node(1))]);
    vec![
        path(inside, client, cluster, "ClusterIP", vips(cluster), three),
        path(inside, web_1, cluster, "ClusterIP", vips(cluster), Expected::Until(web_1, Seen::Itself)),
        path(inside, client, ports, "NodePort (node1)", node(1), Expected::OneOf(orders, Seen::Own)),
        path(inside, client, ports, "NodePort (node2)", node(2), Expected::OneOf(orders, Seen::Any)),
        path(host, node_1, cluster, "ClusterIP", vips(cluster), Expected::OneOf(web, Seen::Node(1))),
        path(host, node_1, ports, "NodePort", loopback, Expected::OneOf(orders, Seen::Node(1))),
        path(host, node_1, ports, "NodePort (node1)", node(1), Expected::OneOf(orders, Seen::Node(1))),
        path(world, outside, ports, "NodePort (node1)", node(1), kept_or_not(orders_1, orders_2)),
        path(world, outside, local, "NodePort (node1)", node(1), Expected::Each(vec![(api, Seen::Own)])),
        path(world, outside, local, "NodePort (node2)", node(2), Expected::Nobody("policy Local, no pod on node2")),
        path(world, outside, balancer, "LoadBalancer", given.to_vec(), kept_or_not(front_1, front_2)),
    ]
}

fn label(shop: &Shop, who: &Place) -> String {
    match shop.pods().find(|pod| pod.name() == who.name()) {
        Some(pod) => format!("pod {} on node{}", pod.name(), pod.node),
        None if who.name() == "outside" => "outside".to_owned(),
        None => format!("process on {}", who.name()),
    }
}

impl Path<'_> {
    /// The first port of each protocol.
    fn ports(&self) -> Vec<(Protocol, u16)> {
        let ports = self.service.ports();
        let field = if self.node_port { "nodePort" } else { "port" };
        [(Protocol::Tcp, "TCP"), (Protocol::Udp, "UDP")]
            .into_iter()
            .filter_map(|(protocol, name)| {
                let port = ports.iter().find(|port| port["protocol"].as_str().unwrap_or("TCP") == name)?;
                Some((protocol, port.get(field).and_then(Value::as_u64)?.try_into().ok()?))
            })
            .collect()
    }

    fn ask(&self, lab: &Lab, shop: &Shop, address: IpAddr, protocol: Protocol, port: u16) -> Vec<Row> {
        let destination = std::net::SocketAddr::new(address, port);
        let row = |answered: String, seen: String, right| Row {
            title: self.title,
            who: self.label.clone(),
            asked: format!("{} {} {destination}{}", self.kind, self.service.name(), self.whose),
            protocols: vec![protocol.as_str()],
            answered,
            seen,
            right,
        };
        let count = if matches!(self.expected, Expected::OneOf(..) | Expected::Nobody(_)) { 1 } else { ATTEMPTS };
        let timeout = if matches!(self.expected, Expected::Nobody(_)) { 300 } else { 2000 };
        let request = Request::new(protocol, destination).count(count).timeout_ms(timeout).stop_at_failure();
        let outcomes = match self.who.ask_all(&request) {
            Ok(outcomes) => outcomes,
            Err(error) => return vec![row(format!("(the lab failed: {error})"), String::new(), false)],
        };
        let mut answers: Vec<Success> = Vec::new();
        for outcome in outcomes {
            match (outcome, &self.expected) {
                (Ok(success), _) => answers.push(success),
                (Err(failure), Expected::Nobody(why)) if failure.kind == FailureKind::Timeout => {
                    return vec![row(format!("nobody ({why})"), "-".into(), true)];
                }
                (Err(failure), _) => return vec![row(format!("({failure})"), "-".into(), false)],
            }
        }
        let told_by = |pod: &Pod, wanted: Seen| {
            let success = answers.iter().find(|success| success.answer.server == pod.name());
            let Some(success) = success else {
                return row(format!("(never by {})", pod.name()), "-".into(), false);
            };
            let seen = success.answer.client.ip();
            let right = self.is_right(lab, wanted, seen, success, destination);
            let place = if pod.host_network { ", host network" } else { "" };
            let itself = if pod.name() == self.who.name() { ", itself" } else { "" };
            row(format!("{} on node{}{place}{itself}", pod.name(), pod.node), self.explain(lab, shop, seen), right)
        };
        let strangers = |allowed: &[&Pod]| {
            answers.iter().find(|success| allowed.iter().all(|pod| pod.name() != success.answer.server)).map(
                |success| {
                    row(
                        format!("{} (not a backend)", success.answer.server),
                        success.answer.client.ip().to_string(),
                        false,
                    )
                },
            )
        };
        match &self.expected {
            Expected::Each(pods) => {
                let allowed: Vec<&Pod> = pods.iter().map(|(pod, _)| *pod).collect();
                pods.iter().map(|(pod, seen)| told_by(pod, *seen)).chain(strangers(&allowed)).collect()
            }
            Expected::Until(pod, seen) => vec![told_by(pod, *seen)],
            Expected::OneOf(pods, seen) => {
                let answered = pods.iter().find(|pod| answers.iter().any(|it| it.answer.server == pod.name()));
                let row = answered.map(|pod| told_by(pod, *seen));
                row.or_else(|| strangers(&pods.iter().collect::<Vec<_>>())).into_iter().collect()
            }
            Expected::Nobody(_) => strangers(&[]).into_iter().collect(),
        }
    }

    fn is_right(&self, lab: &Lab, wanted: Seen, seen: IpAddr, success: &Success, asked: std::net::SocketAddr) -> bool {
        // Whoever is translated must not notice.
        let peer = success.peer == asked;
        peer && match wanted {
            Seen::Own => self.own(lab).contains(&seen),
            Seen::Itself => seen == asked.ip() || self.own(lab).contains(&seen),
            Seen::Node(index) => node_of(lab, seen) == Some(index),
            Seen::Any => true,
        }
    }

    fn own(&self, lab: &Lab) -> Vec<IpAddr> {
        let name = self.who.name();
        if name == "outside" {
            return plan::OUTSIDE.both().to_vec();
        }
        lab.pod_named(name).map(|pod| pod.addresses.both().to_vec()).unwrap_or_default()
    }

    fn explain(&self, lab: &Lab, shop: &Shop, seen: IpAddr) -> String {
        if self.own(lab).contains(&seen) {
            return format!("{seen} (its own)");
        }
        if let Some(node) = node_of(lab, seen) {
            let verb = if self.who.name() == format!("node{node}") { "" } else { ", masqueraded" };
            return format!("{seen} (node{node}{verb})");
        }
        if let Some(pod) = shop.pods().find(|pod| pod.addresses.like(seen) == seen) {
            return format!("{seen} ({})", pod.name());
        }
        format!("{seen} (the Service's)")
    }
}

/// The node that has an address, on its uplink, its bridge or its overlay.
fn node_of(lab: &Lab, address: IpAddr) -> Option<u8> {
    let mut nodes = lab.nodes().iter().map(|node| node.index);
    nodes.find(|&index| {
        [plan::node(index), plan::gateway(index), plan::pod_net(index)].iter().any(|it| it.like(address) == address)
    })
}
