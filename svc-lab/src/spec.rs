//! What a lab should look like. Values only; nothing is built here.

use serde::{Deserialize, Serialize};

/// How pods are connected, within a node and between nodes. All of it is dual stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A routed veth for each pod with a link-local gateway, plain routes between nodes.
    #[default]
    Routed,
    /// A bridge `cni0` on each node, plain routes between nodes.
    Bridge,
    /// A bridge `cni0` on each node, a VXLAN device `flannel.1` between nodes.
    Vxlan,
}

/// What `Lab::build` builds.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Shape of the pod network.
    pub cni: Cni,
    /// Number of nodes, 1 to 40.
    pub nodes: u8,
    /// `rp_filter` of every interface of every node: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Whether bridged packets pass through netfilter on the nodes (`bridge-nf-call-iptables`, `-ip6tables`).
    pub br_netfilter: bool,
    /// MTUs.
    pub mtu: Mtu,
    /// Leave everything up when the lab is dropped; [`clean`](crate::clean) removes it later.
    pub keep: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self { cni: Cni::Routed, nodes: 2, rp_filter: 0, br_netfilter: false, mtu: Mtu::default(), keep: false }
    }
}

/// MTUs in bytes, at the IP layer.
#[derive(Clone, Copy, Debug)]
pub struct Mtu {
    /// Network of the nodes.
    pub uplink: u32,
    /// Pods; by default what the pod network can carry: the uplink's, less 50 for VXLAN.
    pub pods: Option<u32>,
    /// The link between router and the outside client; make it narrow to try path-MTU discovery.
    pub outside: u32,
}

impl Default for Mtu {
    fn default() -> Self {
        Self { uplink: 1500, pods: None, outside: 1500 }
    }
}

impl Spec {
    /// MTU of pods, in bytes.
    pub fn pod_mtu(&self) -> u32 {
        self.mtu.pods.unwrap_or(match self.cni {
            Cni::Routed | Cni::Bridge => self.mtu.uplink,
            Cni::Vxlan => self.mtu.uplink.saturating_sub(50),
        })
    }
}
