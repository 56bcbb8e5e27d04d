//! What a Service is on a node: the addresses where it can be asked and the endpoints behind them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::sets::{Address, Endpoint, Node, Policies, once};

/// IANA number of SCTP, which sockets of the host cannot be translated for.
const SCTP: u8 = 132;

/// A Service that is load-balanced.
#[derive(Clone, Debug)]
pub struct Service {
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, as far as they are honoured.
    pub external_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<Port>,
    /// Its policies.
    pub policies: Policies,
}

/// One of `spec.ports`.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
    /// Node port, if it has one.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of the Service.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Whether `addressType` is IPv6.
    pub is_ipv6: bool,
    /// `ports`: name, IANA protocol number, port.
    pub ports: Vec<(String, u8, u16)>,
    /// `endpoints`; the identity is `addresses[0]`.
    pub endpoints: Vec<Listed>,
}

/// An entry of a slice.
pub type Listed = Endpoint<IpAddr>;

/// The node, and what node ports are served on.
#[derive(Clone, Debug)]
pub struct Host {
    /// The node.
    pub node: Node,
    /// Addresses for node ports.
    pub addresses: Vec<IpAddr>,
    /// Addresses for node ports that only processes of the host reach.
    pub loopback: Vec<IpAddr>,
}

/// What tells one port of a Service in one family from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
    /// Family.
    pub is_ipv6: bool,
}

/// One port of a Service in one family.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where it can be asked, and as what.
    pub addresses: BTreeMap<SocketAddr, Address>,
    /// The endpoints, each once; several lists where the rules leave open which of two entries counts.
    pub endpoints: Vec<Vec<Endpoint<SocketAddr>>>,
}

/// Everything that a Service is on a node.
pub fn rows(service: &Service, slices: &[Slice], host: &Host) -> BTreeMap<Key, Row> {
    let mut rows = BTreeMap::new();
    for is_ipv6 in [false, true] {
        // A family without a cluster IP has no address of any kind.
        if service.cluster_ips.iter().all(|address| address.is_ipv6() != is_ipv6) {
            continue;
        }
        for port in &service.ports {
            let Port { name, protocol, port: number, .. } = port.clone();
            let endpoints = once(&listed(port, slices, is_ipv6));
            let addresses = addresses(service, port, host).filter(|(asked, _)| asked.is_ipv6() == is_ipv6).collect();
            rows.insert(Key { name, protocol, port: number, is_ipv6 }, Row { addresses, endpoints });
        }
    }
    rows
}

fn addresses(service: &Service, port: &Port, host: &Host) -> impl Iterator<Item = (SocketAddr, Address)> {
    let no_loopback = port.protocol == SCTP;
    let of_kind = |addresses: &[IpAddr], number: Option<u16>, kind: Address| -> Vec<(SocketAddr, Address)> {
        let number = number.into_iter();
        number.flat_map(|number| addresses.iter().map(move |&it| (SocketAddr::new(it, number), kind))).collect()
    };
    [
        of_kind(&service.cluster_ips, Some(port.port), Address::ClusterIp),
        of_kind(&service.load_balancer_ips, Some(port.port), Address::LoadBalancer),
        of_kind(&service.external_ips, Some(port.port), Address::ExternalIp),
        of_kind(&host.addresses, port.node_port, Address::NodePort),
        of_kind(if no_loopback { &[] } else { &host.loopback }, port.node_port, Address::NodePort),
    ]
    .into_iter()
    .flatten()
}

/// The endpoints that slices list for a port. The number is the slice's, by the name of the port.
fn listed(port: &Port, slices: &[Slice], is_ipv6: bool) -> Vec<Endpoint<SocketAddr>> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.is_ipv6 == is_ipv6) {
        for (name, protocol, number) in &slice.ports {
            if *name != port.name || *protocol != port.protocol || *number == 0 {
                continue;
            }
            for endpoint in slice.endpoints.iter().filter(|it| it.identity.is_ipv6() == is_ipv6) {
                let Endpoint { identity, ready, serving, terminating, node, for_nodes, for_zones } = endpoint.clone();
                let identity = SocketAddr::new(identity, *number);
                found.push(Endpoint { identity, ready, serving, terminating, node, for_nodes, for_zones });
            }
        }
    }
    found
}
