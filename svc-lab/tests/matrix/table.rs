//! The axes of the matrix and what they multiply to. It sends nothing.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use svc_lab::{
    Cni, Protocol, Request,
    model::{Asked, Backend, Cell, Client, Endpoint, Expected, Impossible, Policies, SocketLb, expected},
    plan,
};

use crate::support::{PORT, service_addresses};

/// The pods, as the lab numbers them: `client`, `near` and `here` (a process) on node 1, `far` and `host` on node 2.
pub(crate) const CLIENT: Backend = Backend { name: "client", node: 1, nth: Some(0) };
const NEAR: Backend = Backend { name: "near", node: 1, nth: Some(1) };
const HERE: Backend = Backend { name: "here", node: 1, nth: None };
const FAR: Backend = Backend { name: "far", node: 2, nth: Some(0) };
const HOST: Backend = Backend { name: "host", node: 2, nth: None };

const CLIENTS: [Client; 3] = [Client::Pod(CLIENT), Client::Host, Client::Outside];
const ASKED: [Asked; 6] =
    [Asked::ClusterIp, Asked::NodePort(1), Asked::NodePort(2), Asked::Loopback, Asked::LoadBalancer, Asked::ExternalIp];
const POLICIES: [Policies; 4] = [
    Policies { internal_local: false, external_local: false },
    Policies { internal_local: false, external_local: true },
    Policies { internal_local: true, external_local: false },
    Policies { internal_local: true, external_local: true },
];

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    ConnectedUdp,
}

impl Transport {
    fn protocol(self) -> Protocol {
        if self == Self::Tcp { Protocol::Tcp } else { Protocol::Udp }
    }

    /// A request of this kind.
    pub(crate) fn request(self, asked: SocketAddr) -> Request {
        let request = Request::new(self.protocol(), asked);
        if self == Self::ConnectedUdp { request.connected() } else { request }
    }
}

/// Endpoints of a Service, and what is interesting about them.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) endpoints: Vec<Endpoint<Backend>>,
}

/// What is multiplied: each row with each of the policies is a Service.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    rows: Vec<Row>,
    transports: &'static [Transport],
}

/// A Service of the table.
pub(crate) struct Published<'a> {
    pub(crate) nth: u16,
    pub(crate) policies: Policies,
    pub(crate) row: &'a Row,
}

/// A cell with what the model expects.
pub(crate) struct Question {
    pub(crate) client: Client,
    pub(crate) transport: Transport,
    pub(crate) asked: SocketAddr,
    pub(crate) by_socket: bool,
    pub(crate) expected: Expected,
    what: Asked,
    policies: Policies,
    row: &'static str,
}

impl Table {
    /// One Service for each place a backend can be in, one with all of them, one with none.
    pub(crate) fn of_places() -> Self {
        let row = |name, backends: &[Backend]| Row { name, endpoints: backends.iter().map(|&it| ready(it)).collect() };
        let rows = vec![
            row("a backend on node 1", &[NEAR]),
            row("a backend on node 2", &[FAR]),
            row("the client itself", &[CLIENT]),
            row("a backend in node 1's network", &[HERE]),
            row("a backend in node 2's network", &[HOST]),
            row("backends everywhere", &[NEAR, FAR, CLIENT, HERE, HOST]),
            row("no backend", &[]),
        ];
        Self { name: "places", rows, transports: &[Transport::Tcp, Transport::Udp, Transport::ConnectedUdp] }
    }

    /// One Service for each combination of conditions and hints that the rules tell apart.
    pub(crate) fn of_conditions() -> Self {
        let row = |name, endpoints: &[Endpoint<Backend>]| Row { name, endpoints: endpoints.to_vec() };
        let (near, far) = (ready(NEAR), ready(FAR));
        let rows = vec![
            row("one draining beside a ready one elsewhere", &[drains(&near), far.clone()]),
            row("one draining elsewhere beside a ready one", &[near.clone(), drains(&far)]),
            row("all draining", &[drains(&near), drains(&far)]),
            row("one draining on node 1 only", &[drains(&near)]),
            row("one draining on node 2 only", &[drains(&far)]),
            row("one dead, one ready", &[dead(&near), far.clone()]),
            row("all dead", &[dead(&near), dead(&far)]),
            row("serving, but neither ready nor terminating", &[unready(&near), unready(&far)]),
            row("unready here, draining there", &[unready(&near), drains(&far)]),
            row("one listed twice, once draining", &[drains(&near), near.clone(), drains(&far)]),
            row("node hints", &[hinted(&near, &["node2"], &[]), hinted(&far, &["node1"], &[])]),
            row("zone hints", &[hinted(&near, &[], &["zone-2"]), hinted(&far, &[], &["zone-1"])]),
            row("hints of one only", &[hinted(&near, &["node2"], &["zone-2"]), far.clone()]),
            row("hints that leave nothing", &[hinted(&near, &["node3"], &["zone-3"]), hinted(&far, &["node3"], &[])]),
            row(
                "node hints against zone hints",
                &[hinted(&near, &["node1"], &["zone-2"]), hinted(&far, &["node2"], &["zone-1"])],
            ),
            row(
                "zone hints where node hints leave nothing",
                &[hinted(&near, &["node3"], &["zone-1"]), hinted(&far, &["node3"], &["zone-2"])],
            ),
            row("hints of the ready one, none of the draining one", &[hinted(&near, &["node2"], &[]), drains(&far)]),
        ];
        Self { name: "conditions", rows, transports: &[Transport::Tcp, Transport::Udp] }
    }

    /// Its Services.
    pub(crate) fn services(&self) -> impl Iterator<Item = Published<'_>> {
        let pairs = self.rows.iter().flat_map(|row| POLICIES.map(|policies| (row, policies)));
        (10..).zip(pairs).map(|(nth, (row, policies))| Published { nth, policies, row })
    }

    /// Its cells in one kind of lab, and how many cannot be, by reason.
    pub(crate) fn cells(&self, cni: Cni, socket_lb: SocketLb) -> (Vec<Question>, BTreeMap<Impossible, usize>) {
        let (mut cells, mut impossible) = (Vec::new(), BTreeMap::new());
        for Published { nth, policies, row } in self.services() {
            for (client, what, transport) in self.requests() {
                for asked in addresses(what, nth) {
                    let (protocol, address, endpoints) = (transport.protocol(), asked.ip(), &row.endpoints[..]);
                    let cell = Cell { cni, socket_lb, client, asked: what, address, protocol, policies, endpoints };
                    let by_socket = cell.is_by_socket();
                    match if row.suits(client) { expected(&cell) } else { Err(NOT_ITSELF) } {
                        Ok(expected) => {
                            let row = row.name;
                            cells.push(Question { client, transport, asked, by_socket, expected, what, policies, row });
                        }
                        Err(reason) => *impossible.entry(reason).or_default() += 1,
                    }
                }
            }
        }
        (cells, impossible)
    }

    fn requests(&self) -> impl Iterator<Item = (Client, Asked, Transport)> {
        let asked = CLIENTS.into_iter().flat_map(|client| ASKED.map(|asked| (client, asked)));
        asked.flat_map(|(client, asked)| self.transports.iter().map(move |&transport| (client, asked, transport)))
    }
}

impl Row {
    /// A Service that only the client serves is there for that client.
    fn suits(&self, client: Client) -> bool {
        let serves = |it: &Endpoint<Backend>| it.identity == CLIENT;
        client == Client::Pod(CLIENT) || !self.endpoints.iter().all(serves) || self.endpoints.is_empty()
    }
}

const NOT_ITSELF: Impossible = "only a pod can be the backend that it asks for";

/// Where the nth Service is asked, in both families.
fn addresses(what: Asked, nth: u16) -> Vec<SocketAddr> {
    let (cluster, balancer) = service_addresses(nth);
    let (addresses, port) = match what {
        Asked::ClusterIp => (cluster, PORT),
        Asked::LoadBalancer => (balancer, PORT),
        Asked::ExternalIp => (external_ips(nth), PORT),
        Asked::NodePort(node) => (plan::node(node).both().to_vec(), node_port(nth)),
        Asked::Loopback => (vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], node_port(nth)),
    };
    addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

/// Node port of the nth Service.
pub(crate) fn node_port(nth: u16) -> u16 {
    30_000 + nth
}

/// External IPs of the nth Service: routed like those of load balancers, and none of them.
pub(crate) fn external_ips(nth: u16) -> Vec<IpAddr> {
    service_addresses(100 + nth).1
}

fn ready(backend: Backend) -> Endpoint<Backend> {
    Endpoint {
        identity: backend,
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node{}", backend.node)),
        for_nodes: Vec::new(),
        for_zones: Vec::new(),
    }
}

fn drains(endpoint: &Endpoint<Backend>) -> Endpoint<Backend> {
    Endpoint { ready: false, terminating: true, ..endpoint.clone() }
}

fn unready(endpoint: &Endpoint<Backend>) -> Endpoint<Backend> {
    Endpoint { ready: false, ..endpoint.clone() }
}

fn dead(endpoint: &Endpoint<Backend>) -> Endpoint<Backend> {
    Endpoint { ready: false, serving: false, terminating: true, ..endpoint.clone() }
}

fn hinted(endpoint: &Endpoint<Backend>, nodes: &[&str], zones: &[&str]) -> Endpoint<Backend> {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Endpoint { for_nodes: owned(nodes), for_zones: owned(zones), ..endpoint.clone() }
}

impl Question {
    /// What the model expects, in a word.
    pub(crate) fn outcome(&self) -> &'static str {
        match &self.expected {
            Expected::Answers(_) => "answered",
            Expected::Refused => "refused",
            Expected::Unreachable => "unreachable",
            Expected::Silence => "silent",
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, transport, asked, what, policies, row, .. } = self;
        let client = match client {
            Client::Pod(pod) => pod.name,
            Client::Host => "node1",
            Client::Outside => "outside",
        };
        let policy = match (policies.internal_local, policies.external_local) {
            (true, _) => "internal policy Local",
            (_, true) => "external policy Local",
            _ => "policy Cluster",
        };
        write!(f, "{client} → {what:?} {asked} {transport:?}, {row}, {policy}")
    }
}
