//! A client and two nodes: who answers, and whom the one who answers sees. What the lab itself does to packets is declared
//! here, apart from what the dataplane has to do.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    Cni, Protocol,
    plan::{self, Addresses},
};

use super::sets::{Address, Endpoint, Node, Origin, Policies, Verdict, once, verdict};

/// Who asks. All clients inside are on node 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// This pod.
    Pod(Backend),
    /// A process of node 1.
    Host,
    /// The client behind the router, which sends load balancer, external and cluster IPs to node 1.
    Outside,
}

/// A pod, or a process in its node's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its name.
    pub name: &'static str,
    /// Its node, counted from 1.
    pub node: u8,
    /// Its number among the pods of its node; none for a process in the node's network.
    pub nth: Option<u8>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Asked {
    /// The cluster IP.
    ClusterIp,
    /// The node port at the address of this node.
    NodePort(u8),
    /// The node port at the loopback address.
    Loopback,
    /// The load balancer's address.
    LoadBalancer,
    /// The external IP.
    ExternalIp,
}

/// `--socket-lb` of the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketLb {
    /// Everybody's sockets are translated.
    All,
    /// Those of the host, and the pods' TCP.
    Auto,
    /// Those of the host.
    Host,
    /// None.
    Off,
}

impl SocketLb {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Auto => "auto",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// A request, and what it meets.
#[derive(Clone, Debug)]
pub struct Cell<'a> {
    /// Shape of the pod network.
    pub cni: Cni,
    /// Mode of the socket hooks.
    pub socket_lb: SocketLb,
    /// Who asks.
    pub client: Client,
    /// What is asked.
    pub asked: Asked,
    /// The address of that.
    pub address: IpAddr,
    /// Over which protocol.
    pub protocol: Protocol,
    /// The policies of the Service.
    pub policies: Policies,
    /// The endpoints of the Service, as listed.
    pub endpoints: &'a [Endpoint<Backend>],
}

impl Cell<'_> {
    /// Whether the client's socket learns the backend's address. Node ports of other nodes are no business of this one.
    pub fn is_by_socket(&self) -> bool {
        let wanted = match (self.client, self.socket_lb) {
            (Client::Outside, _) | (_, SocketLb::Off) | (Client::Pod(_), SocketLb::Host) => false,
            (Client::Host, _) | (Client::Pod(_), SocketLb::All) => true,
            (Client::Pod(_), SocketLb::Auto) => self.protocol == Protocol::Tcp,
        };
        wanted && decides(self.asked) == 1
    }
}

/// What must become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Each of these answers now and then, nobody else does, and each sees this client address.
    Answers(BTreeMap<Backend, IpAddr>),
    /// "Connection refused".
    Refused,
    /// "No route to host": what sockets are told where packets are dropped.
    Unreachable,
    /// Nothing comes back.
    Silence,
}

/// Why a request cannot be made, or is promised nothing.
pub type Impossible = &'static str;

/// What must become of a request.
pub fn expected(cell: &Cell<'_>) -> Result<Expected, Impossible> {
    let Cell { cni, client, asked, policies, endpoints, .. } = *cell;
    if asked == Asked::Loopback && client != Client::Host {
        return Err("a loopback address leads to the client itself");
    }
    let by_socket = cell.is_by_socket();
    if client == Client::Host && decides(asked) == 1 && !by_socket {
        return Err("processes of the host reach Services of their node through the socket hooks only");
    }
    let index = decides(asked);
    let node = Node { name: format!("node{index}"), zone: Some(format!("zone-{index}")) };
    let [endpoints] = &once(endpoints)[..] else { return Err("two entries of one endpoint contradict each other") };
    Ok(match verdict(endpoints, policies, kind(asked), origin(client, asked), &node) {
        Verdict::Reject => Expected::Refused,
        Verdict::Drop if by_socket => Expected::Unreachable,
        Verdict::Drop => Expected::Silence,
        Verdict::Answer(backends) => {
            let seen =
                |backend: Backend| if by_socket { directly(cni, client, backend) } else { routed(cell, backend) };
            let like = |addresses: Seen| match addresses {
                Seen::Asked => cell.address,
                Seen::At(addresses) => addresses.like(cell.address),
            };
            Expected::Answers(backends.into_iter().map(|backend| (backend, like(seen(backend)))).collect())
        }
    })
}

fn kind(asked: Asked) -> Address {
    match asked {
        Asked::ClusterIp => Address::ClusterIp,
        Asked::NodePort(_) | Asked::Loopback => Address::NodePort,
        Asked::LoadBalancer => Address::LoadBalancer,
        Asked::ExternalIp => Address::ExternalIp,
    }
}

/// The node that decides: the owner of the node port, else the one the client is on or is routed to.
fn decides(asked: Asked) -> u8 {
    if let Asked::NodePort(node) = asked { node } else { 1 }
}

fn origin(client: Client, asked: Asked) -> Origin {
    if client != Client::Outside && decides(asked) == 1 { Origin::Inside } else { Origin::Outside }
}

/// Whose address a backend sees.
enum Seen {
    /// The one that was asked.
    Asked,
    /// One of these.
    At(Addresses),
}

/// Whom a backend sees when a client of node 1 talks to it without any translation.
fn directly(cni: Cni, client: Client, backend: Backend) -> Seen {
    Seen::At(match client {
        Client::Pod(pod) => pods_source(pod, backend),
        Client::Host => source_towards(cni, 1, backend),
        Client::Outside => plan::OUTSIDE,
    })
}

/// Whom a backend sees when packets are translated on their way.
fn routed(cell: &Cell<'_>, backend: Backend) -> Seen {
    let Cell { cni, client, asked, .. } = *cell;
    let node = decides(asked);
    match client {
        // Hairpin: the pod must not see itself, or it would answer without the dataplane.
        Client::Pod(pod) if node == 1 && pod == backend => Seen::Asked,
        Client::Pod(pod) if node == 1 => Seen::At(pods_source(pod, backend)),
        // Masqueraded where the way back would not lead through the node that decides.
        _ if backend.node != node => Seen::At(source_towards(cni, node, backend)),
        Client::Outside => Seen::At(plan::OUTSIDE),
        // The lab's CNI masquerades pods that talk to a node; a node talks from its own address anyway.
        Client::Pod(_) | Client::Host => Seen::At(plan::node(1)),
    }
}

/// The lab: its CNI masquerades what a pod sends to an address that is no pod's, unless it stays on the node.
fn pods_source(pod: Backend, backend: Backend) -> Addresses {
    if backend.nth.is_none() && backend.node != pod.node { plan::node(pod.node) } else { pod.addresses() }
}

/// The lab: the address with which a node sends to a backend, which is that of the device the route names. Veths of
/// routed pods have none; there it is the node's.
fn source_towards(cni: Cni, node: u8, backend: Backend) -> Addresses {
    match (cni, backend.nth.is_some(), backend.node == node) {
        (Cni::Bridge | Cni::Vxlan, true, true) => plan::gateway(node),
        (Cni::Vxlan, true, false) => plan::pod_net(node),
        _ => plan::node(node),
    }
}

impl Backend {
    /// Its addresses.
    pub fn addresses(self) -> Addresses {
        self.nth.map_or(plan::node(self.node), |nth| plan::pod(self.node, nth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Backend = Backend { name: "near", node: 1, nth: Some(0) };
    const FAR: Backend = Backend { name: "far", node: 2, nth: Some(0) };

    /// What one ready backend of a Service with policy Local sees, or what the client is told.
    fn outcome(
        cni: Cni,
        socket_lb: SocketLb,
        client: Client,
        asked: Asked,
        backend: Backend,
    ) -> Result<String, String> {
        let endpoints = [Endpoint {
            identity: backend,
            ready: true,
            serving: true,
            terminating: false,
            node: Some(format!("node{}", backend.node)),
            for_nodes: vec![],
            for_zones: vec![],
        }];
        let address = IpAddr::from([203, 0, 113, 1]);
        let policies = Policies { internal_local: true, external_local: false };
        let endpoints = &endpoints[..];
        let cell = Cell { cni, socket_lb, client, asked, address, protocol: Protocol::Udp, policies, endpoints };
        match expected(&cell) {
            Ok(Expected::Answers(seen)) => Ok(seen[&backend].to_string()),
            Ok(other) => Err(format!("{other:?}")),
            Err(reason) => Err(reason.to_owned()),
        }
    }

    #[test]
    fn backends_see_whom_the_rules_and_the_lab_let_them_see() {
        use Asked::{ClusterIp, LoadBalancer, NodePort};
        use Client::{Host, Outside, Pod};
        use Cni::{Bridge, Routed, Vxlan};
        use SocketLb::{All, Auto, Off};
        let node_1 = Backend { name: "host", node: 1, nth: None };
        for (cni, socket_lb, client, asked, backend, seen) in [
            (Routed, Off, Outside, LoadBalancer, NEAR, "198.51.100.10"),
            (Routed, Off, Outside, LoadBalancer, FAR, "192.168.50.11"),
            (Vxlan, Off, Outside, LoadBalancer, FAR, "10.244.1.0"),
            (Vxlan, Off, Host, NodePort(2), FAR, "192.168.50.11"),
            (Vxlan, Off, Host, NodePort(2), NEAR, "10.244.2.0"),
            (Bridge, Auto, Host, ClusterIp, NEAR, "10.244.1.1"),
            (Bridge, Auto, Pod(NEAR), LoadBalancer, FAR, "10.244.1.10"),
            (Bridge, Auto, Pod(NEAR), LoadBalancer, NEAR, "203.0.113.1"),
            (Bridge, All, Pod(NEAR), LoadBalancer, NEAR, "10.244.1.10"),
            (Routed, Off, Pod(NEAR), NodePort(2), NEAR, "192.168.50.12"),
            (Routed, Off, Pod(NEAR), NodePort(2), FAR, "192.168.50.11"),
            (Routed, Off, Pod(NEAR), NodePort(1), node_1, "10.244.1.10"),
        ] {
            let title = format!("{cni:?} {socket_lb:?} {client:?} {asked:?} {backend:?}");
            assert_eq!(outcome(cni, socket_lb, client, asked, backend).as_deref(), Ok(seen), "{title}");
        }
        assert_eq!(outcome(Routed, Off, Outside, ClusterIp, FAR), Err("Silence".into()));
        assert_eq!(outcome(Routed, Auto, Pod(NEAR), ClusterIp, FAR), Err("Silence".into()));
        assert_eq!(outcome(Routed, All, Pod(NEAR), ClusterIp, FAR), Err("Unreachable".into()));
        assert!(outcome(Routed, Off, Host, ClusterIp, NEAR).is_err());
    }
}
