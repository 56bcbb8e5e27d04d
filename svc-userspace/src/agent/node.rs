//! What the agent knows of its own node, from the Node object and from the interfaces: pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    compile::NodeContext,
    kernel::Sources,
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
    /// Index of its interface.
    pub interface: u32,
}

/// The addresses that masqueraded packets get which leave by these interfaces: of each family the first one of the interface,
/// else the primary one, else any.
pub fn masquerade_sources(
    interfaces: impl IntoIterator<Item = u32>,
    addresses: &[LocalAddress],
) -> BTreeMap<u32, Sources> {
    let reachable = || addresses.iter().filter(|local| is_reachable(&local.address));
    let source = |index: u32, family: Family| {
        let of_family = || reachable().filter(move |local| Family::of(local.address) == family);
        let own = of_family().find(|local| local.interface == index);
        own.or_else(|| of_family().find(|local| local.primary))
            .or_else(|| of_family().next())
            .map(|local| local.address)
    };
    let sources = |index: u32| Sources {
        v4: source(index, Family::V4).and_then(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        v6: source(index, Family::V6).and_then(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
    };
    interfaces.into_iter().map(|index| (index, sources(index))).collect()
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
        LocalAddress { address: address(text), primary, interface: 2 }
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
    fn masqueraded_packets_get_an_address_of_the_interface_or_the_primary_one() {
        let on = |interface, text, primary| LocalAddress { address: address(text), primary, interface };
        let addresses = [
            on(3, "10.1.0.0", false),
            on(2, "192.0.2.9", false),
            on(2, "192.0.2.10", true),
            on(2, "fe80::1", false),
            on(4, "2001:db8::7", false),
        ];
        let sources = masquerade_sources([2, 3, 9], &addresses);
        let of =
            |index: u32| (sources[&index].v4.map(|v4| v4.to_string()), sources[&index].v6.map(|v6| v6.to_string()));
        let v6 = Some("2001:db8::7".to_owned());
        assert_eq!(of(2), (Some("192.0.2.9".to_owned()), v6.clone()));
        assert_eq!(of(3), (Some("10.1.0.0".to_owned()), v6.clone()));
        assert_eq!(of(9), (Some("192.0.2.10".to_owned()), v6));
        assert_eq!(masquerade_sources([2], &[])[&2], Sources::default());
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
