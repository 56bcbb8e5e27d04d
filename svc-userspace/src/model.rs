//! Services, endpoints and the node as this project needs them: small, interned, free of Kubernetes types.
//!
//! Sources make these values and validate while they do; nothing past this module sees an object that makes no sense.
//! It never decides anything: which endpoint is used is `compile`'s business.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

pub use self::asking::{Asking, Asks, GIVEN_CONDITION, Has};

mod asking;

/// `namespace/name` of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IP protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => svc_common::protocol::TCP,
            Self::Udp => svc_common::protocol::UDP,
            Self::Sctp => svc_common::protocol::SCTP,
        }
    }

    /// The protocol of a number found in a map.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            svc_common::protocol::TCP => Some(Self::Tcp),
            svc_common::protocol::UDP => Some(Self::Udp),
            svc_common::protocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A Service that is load-balanced: headless and `ExternalName` Services never become one, see [`Unbalanced`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Name.
    pub name: ObjectName,
    /// `spec.clusterIPs`; also decides which families the Service has at all.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`; empty unless the agent was told to honour them.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP or absent.
    pub load_balancer_ips: Vec<IpAddr>,
    /// What it asks of the pools, if it does and has no address from elsewhere.
    pub claim: Option<Box<Claim>>,
    /// `spec.loadBalancerSourceRanges`; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.sessionAffinity: ClientIP`, and its `timeoutSeconds`.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort`, *host order*.
    pub health_check_node_port: Option<u16>,
}

/// What names need to know of a Service that is not load-balanced here. A type of its own, so that none is ever compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Unbalanced {
    /// `clusterIP: None`: its endpoints are all there is.
    Headless,
    /// `type: ExternalName`: the name it stands for, letters, digits, hyphens, underscores and dots.
    ExternalName(Arc<str>),
    /// It has addresses which another proxy serves.
    Elsewhere {
        /// `spec.clusterIPs`.
        cluster_ips: Vec<IpAddr>,
        /// `spec.ports`.
        ports: Vec<ServicePort>,
    },
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Port name, empty if it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port, *host order*, never 0.
    pub port: u16,
    /// Node port, *host order*, never 0.
    pub node_port: Option<u16>,
}

/// Which Services may ask the pools for addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claims {
    /// None: there are no pools.
    #[default]
    Nobody,
    /// Those whose `spec.loadBalancerClass` is [`CLAIM_CLASS`].
    Class,
    /// These, and those without a class.
    Default,
}

/// `spec.loadBalancerClass` of Services that ask the pools.
pub const CLAIM_CLASS: &str = "svc/pools";
/// Annotation: the pool that addresses shall be of.
pub const CLAIM_POOL: &str = "svc/pool";
/// Annotation: the addresses that are wanted, separated by commas; at most one of each family.
pub const CLAIM_ADDRESSES: &str = "svc/addresses";
/// Annotation: Services of one namespace with the same value may have the same address, if they have no port in common.
pub const CLAIM_SHARE: &str = "svc/share";

/// What a Service of type LoadBalancer asks of the pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The Service.
    pub name: ObjectName,
    /// `metadata.labels`, for the selectors of pools.
    pub labels: BTreeMap<String, String>,
    /// Families that the Service has, the preferred one first.
    pub families: Vec<Family>,
    /// `ipFamilyPolicy: RequireDualStack`: an address of each family or none at all.
    pub all_families: bool,
    /// Addresses that are wanted: annotation [`CLAIM_ADDRESSES`], else `spec.loadBalancerIP`.
    pub wanted: Vec<IpAddr>,
    /// Annotation [`CLAIM_POOL`].
    pub pool: Option<Arc<str>>,
    /// Annotation [`CLAIM_SHARE`].
    pub share: Option<Arc<str>>,
    /// Ports of the Service, *host order*.
    pub ports: Vec<(Protocol, u16)>,
}

#[cfg(test)]
impl Claim {
    /// What a plain Service of one TCP port asks for.
    pub(crate) fn plain(name: ObjectName) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            families: vec![Family::V4],
            all_families: false,
            wanted: Vec::new(),
            pool: None,
            share: None,
            ports: vec![(Protocol::Tcp, 80)],
        }
    }
}

/// An `EndpointSlice` of one family that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to: label `kubernetes.io/service-name`, same namespace.
    pub service: ObjectName,
    /// `addressType`.
    pub family: Family,
    /// `ports`, without those that have no number.
    pub ports: Vec<SlicePort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// Label `service.kubernetes.io/headless`: for names only, never load-balanced.
    pub headless: bool,
    /// `endpoints[].hostname` in the order of [`Slice::endpoints`], DNS labels; empty if none has one or names are not served.
    pub hostnames: Vec<Option<Arc<str>>>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, milliseconds since 1970, for the latency metric.
    pub triggered_ms: Option<i64>,
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Port name, empty if it has none: matches [`ServicePort::name`].
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port, *host order*, never 0.
    pub port: u16,
}

/// One entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `addresses[0]`; of the slice's family; never unspecified, loopback, link-local or multicast.
    pub address: IpAddr,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means true.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub hint_nodes: NameList,
    /// `hints.forZones[].name`.
    pub hint_zones: NameList,
}

/// Names of which there are mostly none: eight bytes then. There are as many of these as endpoints in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameList(
    #[expect(clippy::box_collection, reason = "a vector alone is three times as large")] Option<Box<Vec<Arc<str>>>>,
);

impl std::ops::Deref for NameList {
    type Target = [Arc<str>];

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().map_or(&[], |names| names)
    }
}

impl FromIterator<Arc<str>> for NameList {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(names: I) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.shrink_to_fit();
        Self((!names.is_empty()).then(|| Box::new(names)))
    }
}

impl Service {
    /// Gives back memory that vectors hold for more elements; an object is kept much longer than it is made.
    pub fn shrink(&mut self) {
        self.cluster_ips.shrink_to_fit();
        self.external_ips.shrink_to_fit();
        self.load_balancer_ips.shrink_to_fit();
        self.source_ranges.shrink_to_fit();
        self.ports.shrink_to_fit();
    }
}

impl Slice {
    /// As [`Service::shrink`].
    pub fn shrink(&mut self) {
        self.ports.shrink_to_fit();
        self.endpoints.shrink_to_fit();
        self.hostnames.shrink_to_fit();
    }
}

/// The node this agent runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.addresses` of type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The node is about to be removed: deleted, or tainted `ToBeDeletedByClusterAutoscaler`.
    pub leaving: bool,
}

/// What a source reports. A source reports every object once, then `Synced`, then changes only; after a relist it
/// reports the difference, deletions included.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The Service is now this; `None`: it is gone, or no longer used.
    Service(ObjectName, Option<Box<Service>>),
    /// The Service is now this, and no longer load-balanced. Only where names are served.
    Unbalanced(ObjectName, Box<Unbalanced>),
    /// The slice is now this; `None`: it is gone, or no longer used.
    Slice(ObjectName, Option<Box<Slice>>),
    /// The own node is now this; `None`: it was deleted.
    Node(Option<Box<Node>>),
    /// Services and slices have both been listed completely. Sent once.
    Synced,
    /// An object, or a part of one, makes no sense and was skipped alone; an earlier problem of the object is replaced.
    Problem(Problem),
    /// The problems of kind `File` that this file had are over; those it has now follow. By path.
    Readable(String),
}

/// Something wrong in one object. The rest of the object, if any makes sense, is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{kind} {name}: {field}: {message}")]
pub struct Problem {
    /// `Service`, `EndpointSlice`, `Node`, or `File` for manifests that cannot be read.
    pub kind: &'static str,
    /// `namespace/name`, or the file's path.
    pub name: String,
    /// Path of the field (`spec.ports[2].port`), or `line:column` in a file.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Longest label of a DNS name, bytes.
pub const MAX_LABEL: usize = 63;

/// Whether a text is a label as names of hosts have it (RFC 1123): letters, digits and hyphens, none of these at an end.
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a name of an object can be in DNS: a label without capitals, so that no two objects have one name there.
pub fn is_object_label(text: &str) -> bool {
    is_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether a port's name can be in DNS: with an underscore before it, it must be a label still.
pub fn is_port_label(text: &str) -> bool {
    text.len() < MAX_LABEL && is_label(text)
}
