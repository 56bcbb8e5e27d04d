//! Tables of interfaces and what becomes of them.

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.to_owned(),
        ethernet: true,
        mac: Some(MAC),
        peer_elsewhere: kind == "veth",
        ..Link::default()
    }
}

fn port(index: u32, name: &str, kind: &str, master: u32) -> Link {
    Link { master: Some(master), ..link(index, name, kind) }
}

fn inventory(links: Vec<Link>, addresses: &[(u32, &str)], default_routes: &[u32]) -> Inventory {
    let address = |(index, address): &(u32, &str)| LinkAddress {
        index: *index,
        address: address.parse().expect("an address"),
        usable: true,
        global: true,
    };
    Inventory {
        links: links.into_iter().map(|link| (link.index, link)).collect(),
        addresses: addresses.iter().map(address).collect(),
        default_routes: default_routes.iter().copied().collect(),
    }
}

fn options(uplinks: &[&str], patterns: &[&str]) -> InterfaceOptions {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    InterfaceOptions { uplinks: owned(uplinks), pod_patterns: owned(patterns) }
}

fn scopes(inventory: &Inventory, options: &InterfaceOptions) -> Vec<(String, Scope)> {
    let specs = classify(inventory, options);
    specs.into_values().map(|spec| (spec.name, Scope::from_u8(spec.entry.scope))).collect()
}

struct Case {
    what: &'static str,
    inventory: Inventory,
    options: InterfaceOptions,
    expected: &'static [(&'static str, Scope)],
}

#[test]
fn each_shape_of_node_gets_the_scopes_it_should() {
    let lo = || Link { loopback: true, ..link(1, "lo", "") };
    let eth0 = || link(2, "eth0", "");
    let everywhere = [(2, "192.0.2.1")];
    let cases = [
        Case {
            what: "routed veths behind an uplink",
            inventory: inventory(vec![lo(), eth0(), link(3, "cali1", "veth")], &everywhere, &[2]),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside), ("cali1", Scope::Inside)],
        },
        Case {
            what: "a bridge is inside when its ports are, and the overlay is an overlay",
            inventory: inventory(
                vec![
                    lo(),
                    eth0(),
                    link(3, "cni0", "bridge"),
                    port(4, "vethA", "veth", 3),
                    link(5, "flannel.1", "vxlan"),
                ],
                &[(2, "192.0.2.1"), (3, "10.244.1.1"), (5, "10.244.1.0")],
                &[2],
            ),
            options: options(&[], &[]),
            expected: &[
                ("eth0", Scope::Outside),
                ("cni0", Scope::Inside),
                ("vethA", Scope::Inside),
                ("flannel.1", Scope::Overlay),
            ],
        },
        Case {
            what: "a bridge without pods carries nothing",
            inventory: inventory(
                vec![eth0(), link(3, "virbr0", "bridge")],
                &[(2, "192.0.2.1"), (3, "192.0.2.9")],
                &[2],
            ),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside)],
        },
        Case {
            what: "a veth with its peer in the same namespace is no pod",
            inventory: inventory(
                vec![eth0(), Link { peer_elsewhere: false, ..link(3, "a", "veth") }],
                &everywhere,
                &[2],
            ),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside)],
        },
        Case {
            what: "patterns decide alone about pods",
            inventory: inventory(vec![eth0(), link(3, "cali1", "veth"), link(4, "docker1", "veth")], &everywhere, &[2]),
            options: options(&[], &["cali*"]),
            expected: &[("eth0", Scope::Outside), ("cali1", Scope::Inside)],
        },
        Case {
            what: "a named uplink is one, even if it is a veth; the default route is then no sign",
            inventory: inventory(vec![link(2, "up", "veth"), link(3, "pod", "veth")], &[], &[3]),
            options: options(&["up"], &[]),
            expected: &[("up", Scope::Outside), ("pod", Scope::Inside)],
        },
        Case {
            what: "a veth with the default route is the uplink of a node that is a container",
            inventory: inventory(vec![link(2, "eth0", "veth"), link(3, "pod", "veth")], &everywhere, &[2]),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside), ("pod", Scope::Inside)],
        },
        Case {
            what: "slaves of a bond are left to the bond",
            inventory: inventory(
                vec![link(2, "bond0", "bond"), port(3, "eth0", "", 2), port(4, "eth1", "", 2)],
                &everywhere,
                &[2],
            ),
            options: options(&[], &[]),
            expected: &[("bond0", Scope::Outside)],
        },
        Case {
            what: "other hardware is outside when it has an address",
            inventory: inventory(
                vec![eth0(), link(3, "eth1", ""), link(4, "eth2", ""), link(5, "eth0.7", "vlan")],
                &[(2, "192.0.2.1"), (3, "198.51.100.1"), (5, "203.0.113.1")],
                &[2],
            ),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside), ("eth1", Scope::Outside), ("eth0.7", Scope::Outside)],
        },
        Case {
            what: "an overlay stays one when the default route leaves by it",
            inventory: inventory(vec![eth0(), link(3, "wg0", "wireguard")], &everywhere, &[3]),
            options: options(&[], &[]),
            expected: &[("eth0", Scope::Outside), ("wg0", Scope::Overlay)],
        },
        Case {
            what: "an uplink that is a bridge is outside, and so it stays with pods on it",
            inventory: inventory(vec![link(2, "br0", "bridge"), port(3, "vethA", "veth", 2)], &everywhere, &[2]),
            options: options(&[], &[]),
            expected: &[("br0", Scope::Outside), ("vethA", Scope::Inside)],
        },
    ];
    for Case { what, inventory, options, expected } in cases {
        let expected: Vec<_> = expected.iter().map(|(name, scope)| ((*name).to_owned(), *scope)).collect();
        assert_eq!(scopes(&inventory, &options), expected, "{what}");
    }
}

#[test]
fn a_port_knows_its_bridge_and_a_tunnel_its_missing_header() {
    let tunnel = Link { ethernet: false, mac: None, ..link(5, "tunl0", "ipip") };
    let bridge = Link { mac: Some([2, 0, 0, 0, 0, 7]), ..link(3, "cni0", "bridge") };
    let inventory = inventory(vec![bridge, port(4, "vethA", "veth", 3), tunnel], &[], &[]);
    let specs = classify(&inventory, &options(&[], &[]));
    assert_eq!(specs[&4].entry.bridge_mac, [2, 0, 0, 0, 0, 7]);
    assert_eq!(specs[&4].entry.flags, INTERFACE_BRIDGE_PORT);
    let bridge = Interface { scope: Scope::Inside as u8, flags: INTERFACE_UPPER, ..Interface::default() };
    assert_eq!(specs[&3].entry, bridge);
    assert_eq!((specs[&3].link, specs[&5].link), (LinkLayer::Ethernet, LinkLayer::None));
}

#[test]
fn a_device_on_top_of_one_that_has_programs_is_known_as_such() {
    let on = |index, name, kind, below| Link { link: Some(below), ..link(index, name, kind) };
    let links = || {
        vec![
            link(2, "eth0", ""),
            on(3, "eth0.7", "vlan", 2),
            on(4, "eth0.7.8", "vlan", 3),
            on(5, "mac0", "macvlan", 2),
            // Its number is that of another namespace's link.
            Link { peer_elsewhere: true, ..on(6, "mac1", "macvlan", 2) },
            // A peer is not below.
            on(7, "veth0", "veth", 2),
            link(8, "br0", "bridge"),
            port(9, "eth1", "", 8),
        ]
    };
    let addresses: Vec<(u32, String)> = (2..=8).map(|index| (index, format!("192.0.2.{index}"))).collect();
    let addresses: Vec<(u32, &str)> = addresses.iter().map(|(index, address)| (*index, address.as_str())).collect();
    let uppers = |addresses: &[(u32, &str)]| -> Vec<String> {
        let specs = classify(&inventory(links(), addresses, &[8]), &options(&[], &[]));
        let uppers = specs.into_values().filter(|spec| spec.entry.flags & INTERFACE_UPPER != 0);
        uppers.map(|spec| spec.name).collect()
    };
    assert_eq!(uppers(&addresses), ["eth0.7", "eth0.7.8", "mac0"]);
    // Without programs on eth0 they see their packets first; what is two levels above a device with programs does not.
    assert_eq!(uppers(&addresses[1..]), ["eth0.7.8"]);
    assert_eq!(uppers(&[addresses[0], addresses[2]]), ["eth0.7.8"]);
}

#[test]
fn the_first_usable_address_of_each_family_on_an_uplink_is_primary() {
    let mut inventory = inventory(
        vec![link(2, "eth0", ""), link(3, "pod", "veth"), Link { loopback: true, ..link(1, "lo", "") }],
        &[
            (1, "203.0.113.9"),
            (3, "10.0.0.1"),
            (2, "192.0.2.1"),
            (2, "192.0.2.2"),
            (2, "2001:db8::1"),
            (2, "2001:db8::2"),
        ],
        &[2],
    );
    inventory.addresses[4].usable = false;
    let found = node_addresses(&inventory, &options(&[], &[]));
    let found: Vec<_> = found.iter().map(|a| (a.address.to_string(), a.interface.as_str(), a.primary)).collect();
    assert_eq!(
        found,
        [
            ("192.0.2.1".to_owned(), "eth0", true),
            ("192.0.2.2".to_owned(), "eth0", false),
            ("2001:db8::2".to_owned(), "eth0", true),
            ("10.0.0.1".to_owned(), "pod", false),
        ]
    );
}

#[test]
fn patterns_match_as_in_a_shell() {
    for (pattern, name, expected) in [
        ("cali*", "cali12", true),
        ("cali*", "cal", false),
        ("*", "", true),
        ("veth?", "veth1", true),
        ("veth?", "veth", false),
        ("*a*b", "xaxxab", true),
        ("*a*b", "xaxxa", false),
        ("lxc", "lxc1", false),
        ("", "x", false),
    ] {
        assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
    }
}
