//! Which endpoints a Service uses on this node, and which addresses lead to them: a pure function.
//!
//! Same input, same output, in the same order. It never sees ids, maps or the previous state: that is `tables`' business.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::model::{Family, ObjectName, Protocol, Service, Slice};

mod endpoints;
mod frontends;
#[cfg(test)]
mod tests;

/// Everything outside the objects that the result depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// Own node name: endpoints with this `nodeName` are local.
    pub name: Arc<str>,
    /// Own zone.
    pub zone: Option<Arc<str>>,
    /// Addresses of this node that node ports are served on.
    pub node_port_addresses: Vec<IpAddr>,
    /// Addresses that only this host's own sockets can use for node ports (127.0.0.1, ::1).
    pub loopback_addresses: Vec<IpAddr>,
}

/// Identity of a Service port in one family: what keeps its service id while it exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// The Service.
    pub service: ObjectName,
    /// Port name, empty if it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Service port, *host order*.
    pub port: u16,
    /// Family.
    pub family: Family,
}

/// One Service port of one family, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTable {
    /// Identity.
    pub key: PortKey,
    /// `sessionAffinity` time-out; 0: none.
    pub affinity_seconds: u32,
    /// Who may use its load balancer addresses from outside, sorted; `None`: everybody. Ranges of the other family are
    /// not among them: a Service that names only those admits nobody in this family.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Backends that exist, sorted by address: all that serve or may still carry flows, chosen or not.
    pub backends: Vec<BackendEntry>,
    /// Indices into `backends` of policy Cluster, ascending.
    pub cluster: Vec<usize>,
    /// Indices into `backends` of policy Local, ascending.
    pub local: Vec<usize>,
    /// Addresses and ports that lead here, sorted.
    pub frontends: Vec<FrontendEntry>,
    /// Endpoints that are no backends at all ([`Unused::NotServing`]), sorted: for people.
    pub not_serving: Vec<SocketAddr>,
}

/// An endpoint as a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendEntry {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Not ready: takes existing flows only, unless a set names it because nothing else is ready.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// `None` if a set that some frontend uses names it, else why it is not used: for people.
    pub unused: Option<Unused>,
}

/// Why an endpoint is in no set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unused {
    /// Neither ready nor serving.
    NotServing,
    /// Serving and terminating while others are ready.
    Terminating,
    /// Serving, but neither ready nor terminating.
    NotReady,
    /// Every frontend has policy Local, and the endpoint runs on another node.
    Policy,
    /// Hints give it to other nodes or zones.
    Hints,
}

/// An address and port that clients use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendEntry {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// Set for traffic from pods of this node and the node itself.
    pub inside: Set,
    /// Set for traffic from uplinks and overlays.
    pub outside: Set,
}

/// Which set of backends a frontend uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// [`PortTable::cluster`]; if it is empty there is no endpoint at all: reject.
    Cluster,
    /// [`PortTable::local`]; if it is empty but `cluster` is not: drop.
    Local,
}

/// Where a frontend's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// A node address and `spec.ports[].nodePort`.
    NodePort,
    /// A loopback address and `spec.ports[].nodePort`: this host's sockets only.
    NodePortLoopback,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

/// Compiles a Service: one table for each of its ports in each of its families, sorted by key. The order of slices,
/// endpoints and ports plays no part; slices of other Services are ignored.
pub fn compile(service: &Service, slices: &[&Slice], node: &NodeContext) -> Vec<PortTable> {
    let mut ports: Vec<_> = service.ports.iter().collect();
    ports.sort_by(|a, b| (&a.name, a.protocol, a.port, a.node_port).cmp(&(&b.name, b.protocol, b.port, b.node_port)));
    ports.dedup_by(|a, b| a.name == b.name && a.protocol == b.protocol && a.port == b.port);
    let mut tables = Vec::with_capacity(ports.len());
    for port in ports {
        for family in [Family::V4, Family::V6] {
            if !service.cluster_ips.iter().any(|address| Family::of(*address) == family) {
                continue;
            }
            let frontends = frontends::of_port(service, port, family, node);
            let selection = endpoints::select(service, port, family, slices, node, &frontends);
            tables.push(PortTable {
                key: PortKey {
                    service: service.name.clone(),
                    name: port.name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                    family,
                },
                affinity_seconds: service.affinity_seconds.unwrap_or(0),
                source_ranges: frontends::source_ranges(service, family),
                backends: selection.backends,
                cluster: selection.cluster,
                local: selection.local,
                frontends,
                not_serving: selection.not_serving,
            });
        }
    }
    tables
}
