//! What the agent knows of its own node, from the Node object and from the interfaces: pure.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    compile::NodeContext,
    model::{Family, Node},
};

/// `--nodeport-addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// One address a family: the Node object's first InternalIP, else the uplink's first address.
    Primary,
    /// Every address of this machine within one of these prefixes.
    Within(Vec<IpNet>),
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// The first one of its family on an uplink.
    pub primary: bool,
}

/// What compilation must know of this node.
pub fn context(
    name: &Arc<str>,
    node: Option<&Node>,
    addresses: &[LocalAddress],
    chosen: &NodePortAddresses,
    loopback: bool,
) -> NodeContext {
    let loopbacks = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let (mut node_port_addresses, loopback_addresses) = match chosen {
        NodePortAddresses::Primary => (primary(node, addresses), loopbacks.to_vec()),
        NodePortAddresses::Within(prefixes) => {
            let within = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
            let local = addresses.iter().map(|local| local.address).filter(is_reachable).filter(within).collect();
            (local, loopbacks.into_iter().filter(within).collect())
        }
    };
    node_port_addresses.sort_unstable();
    node_port_addresses.dedup();
    NodeContext {
        name: name.clone(),
        zone: node.and_then(|node| node.zone.clone()),
        node_port_addresses,
        loopback_addresses: if loopback { loopback_addresses } else { Vec::new() },
    }
}

fn primary(node: Option<&Node>, addresses: &[LocalAddress]) -> Vec<IpAddr> {
    let of = |family| {
        let internal = node.into_iter().flat_map(|node| &node.addresses).copied();
        let mut internal = internal.filter(move |&address| Family::of(address) == family);
        let mut uplink = addresses.iter().filter(|local| local.primary).map(|local| local.address);
        internal.next().or_else(|| uplink.find(|&address| Family::of(address) == family && is_reachable(&address)))
    };
    [Family::V4, Family::V6].into_iter().filter_map(of).collect()
}

/// Not loopback, and not of a single link.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a test's address")
    }

    fn local(text: &str, primary: bool) -> LocalAddress {
        LocalAddress { address: address(text), primary }
    }

    fn node_ports(node: Option<&Node>, chosen: &NodePortAddresses) -> NodeContext {
        let addresses = [
            local("127.0.0.1", false),
            local("192.0.2.10", true),
            local("10.1.0.1", false),
            local("fe80::1", true),
            local("2001:db8::10", true),
        ];
        context(&Arc::from("n1"), node, &addresses, chosen, true)
    }

    #[test]
    fn the_uplinks_addresses_are_primary_without_a_node_object() {
        let context = node_ports(None, &NodePortAddresses::Primary);
        assert_eq!(context.node_port_addresses, [address("192.0.2.10"), address("2001:db8::10")]);
        assert_eq!(context.loopback_addresses, [address("127.0.0.1"), address("::1")]);
    }

    #[test]
    fn the_node_object_decides_for_the_families_it_names() {
        let node = Node {
            addresses: vec![address("10.1.0.1"), address("192.0.2.10")],
            zone: Some(Arc::from("z1")),
            ..Node::default()
        };
        let context = node_ports(Some(&node), &NodePortAddresses::Primary);
        assert_eq!(context.node_port_addresses, [address("10.1.0.1"), address("2001:db8::10")]);
        assert_eq!(context.zone.as_deref(), Some("z1"));
    }

    #[test]
    fn prefixes_pick_addresses_and_loopback_only_if_it_is_within() {
        let within = |text: &str| NodePortAddresses::Within(vec![text.parse().expect("a test's prefix")]);
        let all = node_ports(None, &within("0.0.0.0/0"));
        assert_eq!(all.node_port_addresses, [address("10.1.0.1"), address("192.0.2.10")]);
        assert_eq!(all.loopback_addresses, [address("127.0.0.1")]);
        let some = node_ports(None, &within("10.0.0.0/8"));
        assert_eq!(some.node_port_addresses, [address("10.1.0.1")]);
        assert_eq!(some.loopback_addresses, [] as [IpAddr; 0]);
    }
}
