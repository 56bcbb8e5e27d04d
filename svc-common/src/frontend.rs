//! FRONTENDS_V4/V6: an address and port that clients use, and what becomes of packets to it.

use bytemuck::{Pod, Zeroable};

use crate::{
    Address,
    backend::{BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL},
};

/// Key of FRONTENDS: one entry for each VIP:port and for each node address:nodePort.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// VIP or node address, *network order*.
    pub address: A,
    /// Port, *host order*.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl<A: Address> FrontendKey<A> {
    /// The key of `address:port/protocol`; `port` in *host order*.
    #[inline(always)]
    pub fn new(address: A, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// A run of entries in SLOTS: a consistent-hash table of backend ids.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct SlotRange {
    /// Index of the first slot.
    pub offset: u32,
    /// Number of slots; 0 when the set of backends is empty.
    pub len: u32,
}

/// Value of FRONTENDS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Frontend {
    /// Service port this frontend belongs to: index of its counters, key of its name in SERVICES.
    pub service: u32,
    /// `FLAG_*` below.
    pub flags: u32,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds`; 0 when there is no affinity.
    pub affinity_seconds: u32,
    /// Backends for traffic from pods of this node and from the node itself.
    pub inside: SlotRange,
    /// Backends for traffic from uplinks and overlays.
    pub outside: SlotRange,
}

/// The address is a `clusterIP`.
pub const FLAG_CLUSTER_IP: u32 = 1 << 0;
/// The address is one of this node's, the port a `nodePort`.
pub const FLAG_NODE_PORT: u32 = 1 << 1;
/// The address is in `status.loadBalancer.ingress`.
pub const FLAG_LOAD_BALANCER: u32 = 1 << 2;
/// The address is in `spec.externalIPs`.
pub const FLAG_EXTERNAL_IP: u32 = 1 << 3;
/// `inside` is empty because of a policy: drop. Without the flag an empty `inside` means: reject.
pub const FLAG_INSIDE_DROP: u32 = 1 << 4;
/// `outside` is empty because of a policy: drop. Without the flag an empty `outside` means: reject.
pub const FLAG_OUTSIDE_DROP: u32 = 1 << 5;
/// Only sockets of this host may use the entry (127.0.0.1 and ::1 as node addresses); packets never match it.
pub const FLAG_HOST_ONLY: u32 = 1 << 6;

/// Only clients within SOURCE_RANGES of the service may use the entry from outside.
pub const FLAG_SOURCE_RANGES: u32 = 1 << 7;
/// `inside` is the port's set of policy Local. Without the flag it is that of policy Cluster.
pub const FLAG_INSIDE_LOCAL: u32 = 1 << 8;
/// `outside` is the port's set of policy Local. Without the flag it is that of policy Cluster.
pub const FLAG_OUTSIDE_LOCAL: u32 = 1 << 9;

impl Frontend {
    /// The `BACKEND_IN_*` bit of the backends that a side's slots may lead to.
    #[inline(always)]
    pub fn membership(&self, inside: bool) -> u8 {
        let local = if inside { FLAG_INSIDE_LOCAL } else { FLAG_OUTSIDE_LOCAL };
        if self.flags & local == 0 { BACKEND_IN_CLUSTER } else { BACKEND_IN_LOCAL }
    }

    /// True where the outside may send connections to another node half-way: a load balancer's address or an external IP,
    /// not a node's own address.
    #[inline(always)]
    pub fn may_move(&self) -> bool {
        self.flags & (FLAG_LOAD_BALANCER | FLAG_EXTERNAL_IP) != 0
    }
}

const _: () = assert!(size_of::<FrontendKey<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<FrontendKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<Frontend>() == 28);
