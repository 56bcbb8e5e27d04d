//! `svc agent`: its options, and the checks that need nothing but them and this machine.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{ArgGroup, ValueEnum, builder::BoolishValueParser};
use hickory_proto::rr::Name;
use ipnet::IpNet;
use svc_common::{
    config::{CONFIG_SOCKET_HOST, CONFIG_SOCKET_PODS_TCP, CONFIG_SOCKET_PODS_UDP},
    vip::SERVICE_CIDRS,
};

use super::preflight;
use crate::{
    agent::{self, Masquerade, node::NodePortAddresses},
    dns::{self, client::DEFAULT_CLIENTS, upstream::Upstream},
    kernel::Xdp,
    model::{Claims, Family, is_label},
    privileges,
    tables::Capacity,
};

/// Arguments of `svc agent`.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("source").args(["manifests", "kubeconfig"])))]
pub struct AgentArgs {
    /// Name of this node, as in its Node object: decides which endpoints are local
    #[arg(long, env = "SVC_NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Read Services, EndpointSlices and Nodes from YAML and JSON files of this directory, and watch it
    #[arg(long, env = "SVC_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Reach the Kubernetes API as this file says; without it and without --manifests: as a pod does
    #[arg(long, env = "SVC_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Interface that leads out of this node; repeat for more [default: those with a default route]
    #[arg(long = "uplink", env = "SVC_UPLINK", value_name = "IF", value_delimiter = ',')]
    pub uplinks: Vec<String>,
    /// Pattern of interfaces that lead to pods (`cali*`); repeat for more [default: veths, and bridges of veths]
    #[arg(long = "pod-interfaces", env = "SVC_POD_INTERFACES", value_name = "GLOB", value_delimiter = ',')]
    pub pod_interfaces: Vec<String>,
    /// Addresses that node ports are served on: `primary`, or those in these prefixes (0.0.0.0/0: every IPv4 one)
    #[arg(
        long,
        env = "SVC_NODEPORT_ADDRESSES",
        value_name = "primary|CIDR,…",
        default_value = "primary",
        value_parser = parse_node_port_addresses
    )]
    pub nodeport_addresses: NodePortAddresses,
    /// Whose connections are translated when they are made; host processes depend on it
    #[arg(long, env = "SVC_SOCKET_LB", value_name = "MODE", value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Who masquerades flows from outside to endpoints on other nodes
    #[arg(long, env = "SVC_MASQUERADE", value_name = "WHO", value_enum, default_value_t)]
    pub masquerade: Masquerade,
    /// Where flows from outside to other nodes are forwarded before the stack, and netfilter, see them
    #[arg(long, env = "SVC_XDP", value_name = "MODE", value_enum, default_value_t)]
    pub xdp: Xdp,
    /// Serve `spec.externalIPs`; whoever may write Services may then claim any address
    #[arg(long, env = "SVC_EXTERNAL_IPS", value_parser = BoolishValueParser::new())]
    pub external_ips: bool,
    /// Give Services of type LoadBalancer addresses out of the pools of this YAML file, which is watched
    #[arg(long, env = "SVC_POOLS", value_name = "FILE")]
    pub pools: Option<PathBuf>,
    /// Give them to Services without a loadBalancerClass as well, not only to those of class `svc/pools`
    #[arg(long, env = "SVC_POOLS_DEFAULT", value_parser = BoolishValueParser::new())]
    pub pools_default: bool,
    /// Namespace of the Lease by which agents of the Kubernetes API elect the one that gives addresses
    #[arg(long, env = "SVC_LEASE_NAMESPACE", value_name = "NAME", default_value = "kube-system")]
    pub lease_namespace: String,
    /// Prefix that Services are given their cluster IPs of, at most 4 of each family; repeat for more. Packets to addresses
    /// of it that no Service owns are dropped rather than sent out
    #[arg(long = "service-cidr", env = "SVC_SERVICE_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub service_cidrs: Vec<IpNet>,
    /// cgroup v2 directory whose processes are translated [default: the cgroup2 mount of /proc/self/mounts]
    #[arg(long, env = "SVC_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where Prometheus metrics are served, at /metrics
    #[arg(long, env = "SVC_METRICS_ADDRESS", value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_address: SocketAddr,
    /// Where /healthz and /livez are served
    #[arg(long, env = "SVC_HEALTHZ_ADDRESS", value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_address: SocketAddr,
    /// Serve DNS for pods there, over UDP and TCP: names of the cluster, everything else by this node's resolvers; an
    /// address of this node, repeat for more
    #[arg(long = "dns", env = "SVC_DNS", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub dns: Vec<SocketAddr>,
    /// Prefix of clients that `--dns` answers, besides this node; repeat for more [default: private and link-local ones]
    #[arg(
        long = "dns-clients",
        env = "SVC_DNS_CLIENTS",
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = DEFAULT_CLIENTS,
        hide_default_value = true
    )]
    pub dns_clients: Vec<IpNet>,
    /// Domain of the cluster's names
    #[arg(long, env = "SVC_DNS_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local", value_parser = parse_domain)]
    pub dns_cluster_domain: Name,
    /// Resolver that is asked for all other names; repeat for more [default: those of --dns-resolv-conf]
    #[arg(long = "dns-upstream", env = "SVC_DNS_UPSTREAM", value_name = "ADDR[:PORT]", value_delimiter = ',', value_parser = parse_resolver)]
    pub dns_upstreams: Vec<SocketAddr>,
    /// File that lists these resolvers; read again when it changes
    #[arg(long, env = "SVC_DNS_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub dns_resolv_conf: PathBuf,
    /// Seconds from one comparison of the maps, programs and pins with what they should be to the next; what somebody else changed
    /// is put right. 0: never
    #[arg(long, env = "SVC_REPAIR_INTERVAL", value_name = "SECONDS", default_value_t = 60)]
    pub repair_interval: u32,
    /// Connections remembered, per family; the least recently used one makes room
    #[arg(long, env = "SVC_FLOWS", value_name = "N", default_value_t = 262_144, value_parser = at_least(1024))]
    pub flows: u32,
    /// Service ports, both families together; this and the next four are what maps begin with, they grow when they are full
    #[arg(long, env = "SVC_SERVICES", value_name = "N", default_value_t = 8_192, value_parser = at_least(16))]
    pub services: u32,
    /// Backends: endpoints of each Service port, both families together
    #[arg(long, env = "SVC_BACKENDS", value_name = "N", default_value_t = 32_768, value_parser = at_least(16))]
    pub backends: u32,
    /// Addresses and ports that lead to Services, per family
    #[arg(long, env = "SVC_FRONTENDS", value_name = "N", default_value_t = 16_384, value_parser = at_least(16))]
    pub frontends: u32,
    /// Entries of all consistent-hash tables; a Service takes about 100 for each backend, 4 bytes each
    #[arg(long, env = "SVC_SLOTS", value_name = "N", default_value_t = 1_048_576, value_parser = at_least(4096))]
    pub slots: u32,
    /// Entries of all `loadBalancerSourceRanges`, one for each range and Service port, per family
    #[arg(long, env = "SVC_SOURCE_RANGES", value_name = "N", default_value_t = 8_192, value_parser = at_least(16))]
    pub source_ranges: u32,
    /// Most kernel memory that maps may grow to, MiB; 0: they keep the sizes above [default: an eighth of the machine's]
    #[arg(long, env = "SVC_MAP_MEMORY", value_name = "MIB")]
    pub map_memory: Option<u32>,
    /// Format of the log on standard error; its level is RUST_LOG
    #[arg(long, env = "SVC_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Numbers from `least` to half of the range, so that sizes computed from them never overflow.
fn at_least(least: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=i64::from(u32::MAX / 2))
}

/// `--socket-lb`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// TCP and UDP of host processes, TCP of pods
    #[default]
    Auto,
    /// TCP and UDP of host processes and pods
    All,
    /// TCP and UDP of host processes only
    Host,
    /// Nobody's: host processes do not reach Services
    Off,
}

impl SocketLb {
    /// `CONFIG_SOCKET_*` flags.
    pub fn flags(self) -> u32 {
        match self {
            Self::Auto => CONFIG_SOCKET_HOST | CONFIG_SOCKET_PODS_TCP,
            Self::All => CONFIG_SOCKET_HOST | CONFIG_SOCKET_PODS_TCP | CONFIG_SOCKET_PODS_UDP,
            Self::Host => CONFIG_SOCKET_HOST,
            Self::Off => 0,
        }
    }
}

fn parse_domain(text: &str) -> Result<Name, String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    if !bare.split('.').all(is_label) {
        return Err("use labels of letters, digits and inner hyphens, such as cluster.local".to_owned());
    }
    Name::from_ascii(format!("{bare}.").to_ascii_lowercase()).map_err(|error| error.to_string())
}

fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse().or_else(|_| text.parse().map(|address: IpAddr| SocketAddr::new(address, 53)));
    with_port.map_err(|_| format!("{text:?} is no address: write it like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53"))
}

/// What the DNS server has to be told, if there is to be one.
fn dns_options(args: &AgentArgs) -> anyhow::Result<Option<dns::Options>> {
    if let Some(every) = args.dns.iter().find(|address| address.ip().is_unspecified()) {
        anyhow::bail!("--dns: {every} is every address: name one of this node's, which answers can come from");
    }
    if args.dns.is_empty() {
        return Ok(None);
    }
    let upstream = if args.dns_upstreams.is_empty() {
        Upstream::File(args.dns_resolv_conf.clone())
    } else {
        Upstream::Given(args.dns_upstreams.clone())
    };
    Ok(Some(dns::Options {
        addresses: args.dns.clone(),
        clients: args.dns_clients.clone(),
        domain: args.dns_cluster_domain.clone(),
        upstream,
    }))
}

fn parse_node_port_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let prefix = |part: &str| match part.parse::<IpAddr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => part.parse().map_err(|_| format!("{part:?} is neither `primary` nor a prefix such as 10.0.0.0/8")),
    };
    text.split(',').map(prefix).collect::<Result<_, _>>().map(NodePortAddresses::Within)
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

/// Checks this machine, then runs the agent until it is told to stop.
pub fn run(bpffs: PathBuf, args: AgentArgs) -> anyhow::Result<()> {
    agent::heap::prepare();
    start_log(args.log_format);
    let source = match (&args.manifests, &args.kubeconfig) {
        (Some(dir), _) => agent::Source::Manifests(dir.clone()),
        (None, kubeconfig) => agent::Source::Kubernetes(kubeconfig.clone()),
    };
    anyhow::ensure!(
        args.xdp == Xdp::Off || args.masquerade != Masquerade::Nftables,
        "--xdp forwards flows that the programs masquerade: use --masquerade auto or programs, or --xdp off"
    );
    check_service_cidrs(&args.service_cidrs).context("cannot start the agent")?;
    let dns = dns_options(&args).context("cannot start the agent")?;
    let cgroup = match args.socket_lb {
        SocketLb::Off => None,
        _ => Some(preflight::cgroup(args.cgroup.as_deref()).context("cannot start the agent")?),
    };
    preflight::check(&bpffs, cgroup.as_deref()).context("cannot start the agent")?;
    // A variable that is false, and one that is set for agents with pools and without, asks for nothing.
    if args.pools_default && args.pools.is_none() {
        tracing::info!("--pools-default says nothing without --pools");
    }
    let ports = args.dns.iter().chain([&args.metrics_address, &args.healthz_address]).map(SocketAddr::port);
    privileges::limit(ports, args.pools.is_some()).context("cannot start the agent")?;
    let claims = if args.pools_default { Claims::Default } else { Claims::Class };
    let pools = args.pools.map(|file| std::path::absolute(file).map(|file| (file, claims))).transpose();
    let pools = pools.context("--pools").context("cannot start the agent")?;
    let options = agent::Options {
        node_name: Arc::from(args.node_name),
        source,
        uplinks: args.uplinks,
        pod_patterns: args.pod_interfaces,
        node_port_addresses: args.nodeport_addresses,
        loopback_node_ports: args.socket_lb != SocketLb::Off,
        config_flags: args.socket_lb.flags(),
        masquerade: args.masquerade,
        xdp: args.xdp,
        external_ips: args.external_ips,
        pools,
        lease_namespace: args.lease_namespace,
        service_cidrs: args.service_cidrs,
        bpffs,
        cgroup,
        metrics_address: args.metrics_address,
        healthz_address: args.healthz_address,
        dns,
        repair_interval: (args.repair_interval > 0).then(|| Duration::from_secs(args.repair_interval.into())),
        flows: args.flows,
        growth_limit: args.map_memory.map_or_else(|| machine_memory() / 8, |mib| u64::from(mib) << 20),
        capacity: Capacity {
            services: args.services,
            backends: args.backends,
            frontends_v4: args.frontends,
            frontends_v6: args.frontends,
            slots: args.slots,
            source_ranges: args.source_ranges,
        },
    };
    // Two threads beside this one: health, metrics, netlink and the API client never wait for the maps to be written.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(|| {
            if let Err(error) = privileges::drop_loading() {
                tracing::warn!("{error}");
            }
        })
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(agent::run(options));
    // A file system or DNS call that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

/// Memory of the machine, bytes; 0 if it cannot be read.
fn machine_memory() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let read = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    read(SysconfVar::_PHYS_PAGES) * read(SysconfVar::PAGE_SIZE)
}

/// The kernel's programs have room for few prefixes, and take those of length 0 for unused.
fn check_service_cidrs(prefixes: &[IpNet]) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let of_family = prefixes.iter().filter(|prefix| Family::of(prefix.addr()) == family);
        anyhow::ensure!(
            of_family.count() <= SERVICE_CIDRS as usize,
            "--service-cidr: {SERVICE_CIDRS} prefixes of a family at most: join neighbouring ones"
        );
    }
    if let Some(all) = prefixes.iter().find(|prefix| prefix.prefix_len() < 8) {
        anyhow::bail!("--service-cidr: {all} would cut this node off: give the prefix of cluster IPs alone");
    }
    Ok(())
}

fn start_log(format: LogFormat) {
    // kube's client logs each failed request without saying which; the source reports it with address and remedy.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Where the agent of this machine answers unless told otherwise, for `svc status`.
pub const DEFAULT_HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_are_primary_or_prefixes() {
        assert_eq!(parse_node_port_addresses("primary"), Ok(NodePortAddresses::Primary));
        let Ok(NodePortAddresses::Within(prefixes)) = parse_node_port_addresses("10.0.0.0/8,fd00::1") else {
            panic!("two prefixes");
        };
        assert_eq!(prefixes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::1/128"]);
        assert!(parse_node_port_addresses("eth0").is_err_and(|error| error.contains("eth0")));
    }

    #[test]
    fn auto_translates_the_host_and_tcp_of_pods() {
        assert_eq!(SocketLb::Auto.flags(), CONFIG_SOCKET_HOST | CONFIG_SOCKET_PODS_TCP);
        assert_eq!(SocketLb::Host.flags(), CONFIG_SOCKET_HOST);
        assert_eq!(SocketLb::Off.flags(), 0);
    }
}
