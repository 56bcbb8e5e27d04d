//! Who gets which address. Pure: the same spec always gives the same addresses, in every lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 and an IPv6 address of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// The one of the same family as `other`.
    pub fn like(self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

/// Network of the nodes.
pub const NODE_NETS: [&str; 2] = ["192.168.50.0/24", "fd00:50::/64"];
/// All pods of the cluster.
pub const POD_NETS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Load balancer addresses, routed to one of the nodes.
pub const VIP_NETS: [&str; 2] = ["203.0.113.0/24", "2001:db8:f::/64"];
/// The router on the nodes' network.
pub const ROUTER: Addresses =
    Addresses { v4: Ipv4Addr::new(192, 168, 50, 1), v6: Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 1) };
/// The router on the clients' network.
pub const ROUTER_OUTSIDE: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1) };
/// The client outside.
pub const OUTSIDE: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 10), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10) };

/// Most nodes a lab can have.
pub const MAX_NODES: u8 = 40;
/// Most pods a node can have.
pub const MAX_PODS: u8 = 200;

/// Address of a node, counted from 1: 192.168.50.11, fd00:50::11.
pub fn node(index: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 50, 10 + index),
        v6: Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, digits(10 + index)),
    }
}

/// Address of a pod: the nth (from 0) on a node; 10.244.1.10, fd00:10:244:1::10.
pub fn pod(node: u8, nth: u8) -> Addresses {
    host(node, 10 + nth)
}

/// Gateway of a node's pods on a bridge: 10.244.1.1, fd00:10:244:1::1.
pub fn gateway(node: u8) -> Addresses {
    host(node, 1)
}

/// Network address of a node's pods, which is also the address of its overlay device: 10.244.1.0, fd00:10:244:1::.
pub fn pod_net(node: u8) -> Addresses {
    host(node, 0)
}

fn host(node: u8, number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, digits(node), 0, 0, 0, digits(number)),
    }
}

/// The hexadecimal number that is written with the digits of the decimal one, so that both families read alike.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_families_read_alike() {
        assert_eq!(super::node(1).v6.to_string(), "fd00:50::11");
        assert_eq!(super::node(12).v4.to_string(), "192.168.50.22");
        assert_eq!(super::node(12).v6.to_string(), "fd00:50::22");
        assert_eq!(super::pod(2, 115).v4.to_string(), "10.244.2.125");
        assert_eq!(super::pod(2, 115).v6.to_string(), "fd00:10:244:2::125");
    }
}
