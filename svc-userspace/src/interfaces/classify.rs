//! Which interfaces carry Service traffic, and where packets on them come from: a pure function of what is there.

use std::collections::{BTreeMap, BTreeSet};

use svc_common::{
    Interface, Scope,
    config::{INTERFACE_BRIDGE_PORT, INTERFACE_UPPER},
};

use super::{
    InterfaceOptions, NodeAddress,
    link::{Link, LinkAddress},
};
use crate::kernel::{InterfaceSpec, LinkLayer};

/// Everything rtnetlink said.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses, in the kernel's order for each link.
    pub addresses: Vec<LinkAddress>,
    /// Indexes of interfaces that a default route leaves by.
    pub default_routes: BTreeSet<u32>,
}

/// Kinds that carry packets of other nodes in packets of an uplink.
const OVERLAYS: [&str; 12] =
    ["vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "ipip", "ip6tnl", "sit", "wireguard", "tun", "xfrm"];
/// Kinds whose packets are those of the device below, which sees them first.
const UPPERS: [&str; 5] = ["vlan", "macvlan", "ipvlan", "macvtap", "ipvtap"];
/// Kinds whose other end is a pod.
const POD_KINDS: [&str; 2] = ["veth", "netkit"];

/// The interfaces that carry Service traffic, by index.
pub fn classify(inventory: &Inventory, options: &InterfaceOptions) -> BTreeMap<u32, InterfaceSpec> {
    let scopes: BTreeMap<u32, Scope> =
        inventory.links.values().filter_map(|link| Some((link.index, scope(link, inventory, options)?))).collect();
    // A bridge is what its ports are: the one its host's own packets to pods leave by.
    let mut all = scopes.clone();
    for link in inventory.links.values().filter(|link| link.kind == "bridge" && !scopes.contains_key(&link.index)) {
        let ports = inventory.links.values().filter(|port| port.master == Some(link.index));
        if ports.filter_map(|port| scopes.get(&port.index)).any(|scope| *scope == Scope::Inside) {
            all.insert(link.index, Scope::Inside);
        }
    }
    let spec = |(index, scope): (&u32, &Scope)| {
        let link = inventory.links.get(index)?;
        let mut spec = describe(link, *scope, inventory);
        if is_upper(link, &all, inventory) {
            spec.entry.flags |= INTERFACE_UPPER;
        }
        Some((*index, spec))
    };
    all.iter().filter_map(spec).collect()
}

/// True if a link is on top of one that carries Service traffic, however far below: the kernel allows eight devices on top of
/// each other (`MAX_NEST_DEV`, include/linux/netdevice.h).
fn is_upper(link: &Link, carriers: &BTreeMap<u32, Scope>, inventory: &Inventory) -> bool {
    let mut level = vec![link];
    for _ in 0..8 {
        level = level.into_iter().flat_map(|link| below(link, inventory)).collect();
        if level.iter().any(|link| carriers.contains_key(&link.index)) {
            return true;
        }
    }
    false
}

/// The links whose packets a link gets.
fn below<'a>(link: &Link, inventory: &'a Inventory) -> Vec<&'a Link> {
    match link.kind.as_str() {
        "bridge" => inventory.links.values().filter(|port| port.master == Some(link.index)).collect(),
        kind if UPPERS.contains(&kind) && !link.peer_elsewhere => {
            link.link.and_then(|index| inventory.links.get(&index)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The scope of a link by itself; `None` if it carries no Service traffic, or only its ports tell.
fn scope(link: &Link, inventory: &Inventory, options: &InterfaceOptions) -> Option<Scope> {
    if link.loopback || is_slave(link, inventory) {
        return None;
    }
    if is_uplink(link, inventory, options) {
        return Some(Scope::Outside);
    }
    if OVERLAYS.contains(&link.kind.as_str()) {
        return Some(Scope::Overlay);
    }
    if is_pod(link, options) {
        return Some(Scope::Inside);
    }
    // A bridge may have an address and be the uplink only in name: its ports decide.
    let has_address = inventory.addresses.iter().any(|address| address.index == link.index && address.global);
    let physical = matches!(link.kind.as_str(), "" | "bond" | "team" | "vlan" | "macvlan" | "ipvlan");
    (physical && has_address).then_some(Scope::Outside)
}

fn is_uplink(link: &Link, inventory: &Inventory, options: &InterfaceOptions) -> bool {
    if options.uplinks.is_empty() {
        return inventory.default_routes.contains(&link.index) && !OVERLAYS.contains(&link.kind.as_str());
    }
    options.uplinks.contains(&link.name)
}

fn is_pod(link: &Link, options: &InterfaceOptions) -> bool {
    if options.pod_patterns.is_empty() {
        return POD_KINDS.contains(&link.kind.as_str()) && link.peer_elsewhere;
    }
    options.pod_patterns.iter().any(|pattern| matches(pattern, &link.name))
}

/// The kind of a link's master; empty if it has none.
fn master_kind<'a>(link: &Link, inventory: &'a Inventory) -> &'a str {
    link.master.and_then(|master| inventory.links.get(&master)).map_or("", |master| master.kind.as_str())
}

/// Packets of a bond's slave are seen a second time on the bond itself.
fn is_slave(link: &Link, inventory: &Inventory) -> bool {
    matches!(master_kind(link, inventory), "bond" | "team")
}

fn describe(link: &Link, scope: Scope, inventory: &Inventory) -> InterfaceSpec {
    let bridge = link.master.and_then(|master| inventory.links.get(&master)).filter(|master| master.kind == "bridge");
    let mut entry = Interface { scope: scope as u8, ..Interface::default() };
    if let Some(mac) = bridge.and_then(|bridge| bridge.mac) {
        entry.flags |= INTERFACE_BRIDGE_PORT;
        entry.bridge_mac = mac;
    }
    let layer = if link.ethernet { LinkLayer::Ethernet } else { LinkLayer::None };
    InterfaceSpec { index: link.index, name: link.name.clone(), link: layer, mac: link.mac, entry }
}

/// Global-scope addresses of the node, sorted by interface index and then in the kernel's order; those of pods' ends,
/// which are the node's as well, included.
pub fn node_addresses(inventory: &Inventory, options: &InterfaceOptions) -> Vec<NodeAddress> {
    let mut found = Vec::new();
    let mut primary_v4 = false;
    let mut primary_v6 = false;
    for link in inventory.links.values().filter(|link| !link.loopback) {
        let uplink = is_uplink(link, inventory, options);
        let of_link = inventory.addresses.iter().filter(|address| address.index == link.index && address.usable);
        for LinkAddress { address, .. } in of_link {
            let taken = if address.is_ipv4() { &mut primary_v4 } else { &mut primary_v6 };
            let primary = uplink && !*taken;
            *taken |= primary;
            found.push(NodeAddress { address: *address, index: link.index, interface: link.name.clone(), primary });
        }
    }
    found
}

/// True if `name` matches `pattern`, in which `*` is any text and `?` any one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests;
