//! Which addresses lead to a Service port, and which set of endpoints each of them uses.
//!
//! It never looks at endpoints, and never at other Services: who owns an address that two claim is `tables`' business.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{FrontendEntry, FrontendKind, NodeContext, Set};
use crate::model::{Family, Protocol, Service, ServicePort};

/// The frontends of a port in one family, sorted. An address that has two roles appears once, as the first of them in
/// the order of [`FrontendKind`].
pub(super) fn of_port(service: &Service, port: &ServicePort, family: Family, node: &NodeContext) -> Vec<FrontendEntry> {
    let mut found: BTreeMap<SocketAddr, FrontendEntry> = BTreeMap::new();
    let mut add = |addresses: &[IpAddr], number: u16, kind: FrontendKind| {
        let (inside, outside) = sets(service, kind);
        for address in addresses.iter().filter(|address| Family::of(**address) == family) {
            let address = SocketAddr::new(*address, number);
            found.entry(address).or_insert(FrontendEntry { address, kind, inside, outside });
        }
    };
    add(&service.cluster_ips, port.port, FrontendKind::ClusterIp);
    if let Some(node_port) = port.node_port {
        add(&node.node_port_addresses, node_port, FrontendKind::NodePort);
        // Socket hooks serve them, and these know TCP and UDP only.
        if port.protocol != Protocol::Sctp {
            add(&node.loopback_addresses, node_port, FrontendKind::NodePortLoopback);
        }
    }
    add(&service.load_balancer_ips, port.port, FrontendKind::LoadBalancer);
    add(&service.external_ips, port.port, FrontendKind::ExternalIp);
    found.into_values().collect()
}

/// The clients that `loadBalancerSourceRanges` admits in a family, sorted; `None`: everybody.
///
/// Everybody is admitted without ranges, by a /0 of the family, and by a /0 of the other family where this one has no
/// range: `0.0.0.0/0` alone means the world. Other ranges of one family admit nobody of the other.
pub(super) fn source_ranges(service: &Service, family: Family) -> Option<Vec<IpNet>> {
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    let mut ranges: Vec<IpNet> = service.source_ranges.iter().filter(of_family).map(IpNet::trunc).collect();
    let judged = if ranges.is_empty() { &service.source_ranges } else { &ranges };
    if judged.is_empty() || judged.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

/// The sets for traffic from inside and from outside. `internalTrafficPolicy` is about the cluster IP, whoever asks;
/// `externalTrafficPolicy` is about everything else, and only for traffic from outside.
fn sets(service: &Service, kind: FrontendKind) -> (Set, Set) {
    let policy = |local| if local { Set::Local } else { Set::Cluster };
    match kind {
        FrontendKind::ClusterIp => (policy(service.internal_local), policy(service.internal_local)),
        FrontendKind::NodePort
        | FrontendKind::NodePortLoopback
        | FrontendKind::LoadBalancer
        | FrontendKind::ExternalIp => (Set::Cluster, policy(service.external_local)),
    }
}
