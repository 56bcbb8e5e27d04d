//! Which addresses a Service names that are not its to have.
//!
//! A cluster IP is its Service's, whoever else names it: the API server gives each to one alone. What Services name beside it is
//! weaker: an external IP, which anybody who may write Services can set, gives way to a load balancer's address of another Service,
//! and both to a cluster IP and to the API server. Of two Services with equal claims the first one has the address and port:
//! that is `tables`' business.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::{
    compile::{FrontendKind, PortTable},
    model::{ObjectName, Protocol, Service},
};

/// Cluster IPs, and whoever names other addresses.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// How many Services have an address as a cluster IP.
    cluster: HashMap<IpAddr, u32>,
    /// Who names an address as a load balancer's (true) or an external IP.
    others: HashMap<IpAddr, Vec<(ObjectName, bool)>>,
    /// Where the API server answers, by its own Service and by the agent's options.
    api: HashSet<SocketAddr>,
    configured: Option<SocketAddr>,
}

/// An address and port that a Service names and does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Whose it is.
    pub owner: Owner,
}

/// Who has an address that somebody else names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A Service, as its cluster IP.
    Cluster,
    /// A Service, as a load balancer's address.
    Balancer(ObjectName),
    /// The API server.
    Api,
    /// This node.
    Node,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, owner } = self;
        match owner {
            Owner::Cluster => write!(f, "{address} is another Service's cluster IP: remove it"),
            Owner::Balancer(name) => write!(f, "{address} is a load balancer's address of {name}: remove it"),
            Owner::Api => write!(f, "{address} is the API server: use another address or port"),
            Owner::Node => write!(f, "{address} is an address of this node, which no cluster IP can be"),
        }
    }
}

impl Claims {
    /// Counts what a Service names, or (`add` false) no longer; returns who may have to give way, or may have it again.
    pub(super) fn count(
        &mut self,
        name: &ObjectName,
        cluster_ips: &[IpAddr],
        service: Option<&Service>,
        add: bool,
    ) -> Vec<ObjectName> {
        let mut touched = Vec::new();
        for address in cluster_ips {
            let users = self.cluster.entry(*address).or_default();
            let before = *users;
            *users = if add { before + 1 } else { before.saturating_sub(1) };
            if *users == 0 {
                self.cluster.remove(address);
            }
            touched.extend(self.others.get(address).into_iter().flatten().map(|(name, _)| name.clone()));
        }
        let balancer = service.into_iter().flat_map(|service| &service.load_balancer_ips).map(|it| (*it, true));
        let external = service.into_iter().flat_map(|service| &service.external_ips).map(|it| (*it, false));
        for (address, is_balancer) in balancer.chain(external) {
            let claim = (name.clone(), is_balancer);
            let claims = self.others.entry(address).or_default();
            if add {
                claims.push(claim);
            } else if let Some(at) = claims.iter().position(|other| *other == claim) {
                claims.swap_remove(at);
            }
            if is_balancer {
                touched.extend(claims.iter().filter(|(other, _)| other != name).map(|(other, _)| other.clone()));
            }
            if claims.is_empty() {
                self.others.remove(&address);
            }
        }
        touched
    }

    /// Sets where the API server answers, as its own Service says; returns who may have to give way.
    pub(super) fn set_api(&mut self, mut addresses: HashSet<SocketAddr>) -> Vec<ObjectName> {
        addresses.extend(self.configured);
        let changed: HashSet<IpAddr> = self.api.symmetric_difference(&addresses).map(SocketAddr::ip).collect();
        self.api = addresses;
        let claims = changed.iter().filter_map(|address| self.others.get(address)).flatten();
        claims.map(|(name, _)| name.clone()).collect()
    }

    /// Sets where the agent itself reaches the API server.
    pub(super) fn configure_api(&mut self, address: SocketAddr) {
        self.configured = Some(address);
        self.api.insert(address);
    }

    /// True if one of these is a cluster IP.
    pub(super) fn has_cluster_ip<'a>(&self, mut addresses: impl Iterator<Item = &'a IpAddr>) -> bool {
        addresses.any(|address| self.cluster.contains_key(address))
    }

    /// Takes from the tables of a Service what is not its to have.
    pub(super) fn withhold(
        &self,
        service: &Service,
        node: &HashSet<IpAddr>,
        tables: &mut [PortTable],
    ) -> Vec<Withheld> {
        let mut withheld = Vec::new();
        for table in tables {
            let protocol = table.key.protocol;
            table.frontends.retain(|frontend| {
                let owner = self.owner(service, frontend.address, frontend.kind, protocol, node);
                withheld.extend(owner.clone().map(|owner| Withheld { address: frontend.address, owner }));
                owner.is_none()
            });
        }
        withheld
    }

    fn owner(
        &self,
        service: &Service,
        address: SocketAddr,
        kind: FrontendKind,
        protocol: Protocol,
        node: &HashSet<IpAddr>,
    ) -> Option<Owner> {
        let ip = address.ip();
        match kind {
            FrontendKind::ClusterIp => return node.contains(&ip).then_some(Owner::Node),
            FrontendKind::NodePort | FrontendKind::NodePortLoopback => return None,
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {}
        }
        let own = u32::from(service.cluster_ips.contains(&ip));
        if self.cluster.get(&ip).is_some_and(|users| *users > own) {
            return Some(Owner::Cluster);
        }
        if protocol == Protocol::Tcp && self.api.contains(&address) {
            return Some(Owner::Api);
        }
        if kind == FrontendKind::LoadBalancer {
            return None;
        }
        let mut claims = self.others.get(&ip).into_iter().flatten();
        let other = claims.find(|(name, is_balancer)| *is_balancer && *name != service.name);
        other.map(|(name, _)| Owner::Balancer(name.clone()))
    }
}
