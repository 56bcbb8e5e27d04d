//! CONFIG and INTERFACES: what the programs must know of this node.

use bytemuck::{Pod, Zeroable};

/// The only value of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Cookie of the network namespace of this host's processes (`SO_NETNS_COOKIE`).
    pub host_netns_cookie: u64,
    /// Bit set in `skb->mark` of packets that the agent's nftables rule masquerades; the rule clears it.
    pub masquerade_mark: u32,
    /// `CONFIG_*` flags below.
    pub flags: u32,
}

impl Config {
    /// True if a frontend was removed in this unit of the clock or in the one before: who looks frontends up once in a unit
    /// may not have seen it. (Once in 256 units it says so for nothing.)
    #[inline(always)]
    pub fn has_removal(&self, now: u32) -> bool {
        now.wrapping_sub(self.flags >> CONFIG_REMOVAL_SHIFT) & 0xff <= 1
    }

    /// Notes that a frontend is removed in this unit of the clock.
    pub fn set_removal(&mut self, now: u32) {
        self.flags = self.flags & !CONFIG_REMOVAL | (now & 0xff) << CONFIG_REMOVAL_SHIFT;
    }
}

/// Sockets of this host's processes are translated at connect and sendmsg.
pub const CONFIG_SOCKET_HOST: u32 = 1 << 0;
/// TCP sockets of pods are translated at connect.
pub const CONFIG_SOCKET_PODS_TCP: u32 = 1 << 1;
/// UDP sockets of pods are translated at connect and sendmsg.
pub const CONFIG_SOCKET_PODS_UDP: u32 = 1 << 2;
/// FILTER and UNUSUAL know everything that is in the maps: packets they know nothing of need not be looked up.
pub const CONFIG_FILTER: u32 = 1 << 3;
/// Some interface is a port of a bridge.
pub const CONFIG_BRIDGES: u32 = 1 << 4;
/// SERVICE_CIDRS is not empty.
pub const CONFIG_SERVICE_CIDRS: u32 = 1 << 5;
/// The programs masquerade flows that open from now on; otherwise nftables does.
pub const CONFIG_MASQUERADE: u32 = 1 << 6;
/// When a frontend was removed last: the eight bits of the monotonic clock's unit of 2^30 ns (1.07 s), in flags.
pub const CONFIG_REMOVAL: u32 = 0xff << CONFIG_REMOVAL_SHIFT;
const CONFIG_REMOVAL_SHIFT: u32 = 8;
/// The agent has programmed every Service once. The programs never read it; it stays set while the dataplane forwards
/// without an agent, because the maps stay complete.
pub const CONFIG_SYNCED: u32 = 1 << 16;
/// The agent has reserved the ports of [`crate::masquerade`]; RESERVED says which of them were reserved before. It stays when
/// nftables masquerades from then on, since flows with such ports may be there for long.
pub const CONFIG_PORTS_RESERVED: u32 = 1 << 17;

/// Value of INTERFACES; the key is the interface index in the host's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Interface {
    /// [`Scope`] as a number.
    pub scope: u8,
    /// `INTERFACE_*` flags below.
    pub flags: u8,
    /// Hardware address of the bridge this interface is a port of, if `INTERFACE_BRIDGE_PORT` is set.
    pub bridge_mac: [u8; 6],
}

/// The interface is a port of a bridge: replies are steered up the stack so that conntrack sees both directions.
pub const INTERFACE_BRIDGE_PORT: u8 = 1 << 0;
/// The interface is on top of another one that has programs (a bridge of its ports, a VLAN or macvlan device of the device
/// below it): what arrives on it was seen, and perhaps translated, there.
pub const INTERFACE_UPPER: u8 = 1 << 1;
/// The XDP program is attached to the interface, so that frames may leave by it without the stack.
pub const INTERFACE_XDP: u8 = 1 << 2;

/// Where packets that arrive on an interface come from.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// An uplink: everything beyond this node.
    Outside = 0,
    /// The host end of a pod's veth, or the bridge such veths are ports of.
    Inside = 1,
    /// An overlay device: traffic of other nodes, which policies treat as outside.
    Overlay = 2,
}

impl Scope {
    /// The scope a map's byte stands for; unknown values mean [`Scope::Outside`], the scope that is trusted least.
    pub fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Inside,
            2 => Self::Overlay,
            _ => Self::Outside,
        }
    }

    /// Its name for people and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
            Self::Overlay => "overlay",
        }
    }
}

const _: () = assert!(size_of::<Config>() == 16);
const _: () = assert!(size_of::<Interface>() == 8);
