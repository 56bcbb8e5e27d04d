//! What the agent has to be told. It checks nothing: the command line does.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::node::NodePortAddresses;
use crate::{dns, kernel::Xdp, model::Claims, tables::Capacity};

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The API, by a kubeconfig file or as a pod.
    Kubernetes(Option<PathBuf>),
    /// A directory.
    Manifests(PathBuf),
}

/// Who gives flows from outside to other nodes an address of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Masquerade {
    /// nftables where the kernel has it, else, and with XDP, the programs
    #[default]
    Auto,
    /// The kernel's NAT, by two rules in nftables
    Nftables,
    /// The programs, with the ports 49152-65535, which are reserved for them
    Programs,
}

/// Everything the agent has to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Own node name.
    pub node_name: Arc<str>,
    /// Where objects come from.
    pub source: Source,
    /// Names of uplinks; empty: found by their default routes.
    pub uplinks: Vec<String>,
    /// Patterns of interfaces towards pods; empty: guessed.
    pub pod_patterns: Vec<String>,
    /// Which addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Node ports are served on 127.0.0.1 and ::1, by the socket hooks.
    pub loopback_node_ports: bool,
    /// Who masquerades.
    pub masquerade: Masquerade,
    /// Whether uplinks get the XDP program.
    pub xdp: Xdp,
    /// `CONFIG_SOCKET_*`.
    pub config_flags: u32,
    /// Honour `spec.externalIPs`.
    pub external_ips: bool,
    /// Pools of addresses for Services of type LoadBalancer, and who may ask them.
    pub pools: Option<(PathBuf, Claims)>,
    /// Namespace of the Lease by which the one is elected that gives addresses to the Services of the API.
    pub lease_namespace: String,
    /// Prefixes of cluster IPs, if known.
    pub service_cidrs: Vec<IpNet>,
    /// Root of the pins.
    pub bpffs: PathBuf,
    /// Where the socket hooks are attached; `None`: nowhere.
    pub cgroup: Option<PathBuf>,
    /// Metrics server.
    pub metrics_address: SocketAddr,
    /// Health server.
    pub healthz_address: SocketAddr,
    /// The DNS server, if there is to be one.
    pub dns: Option<dns::Options>,
    /// How often the kernel is compared with what was made of it; `None`: never.
    pub repair_interval: Option<Duration>,
    /// Entries of each flow table.
    pub flows: u32,
    /// Sizes of the other maps.
    pub capacity: Capacity,
}
