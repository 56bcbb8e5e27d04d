//! Which of the announced addresses are this node's to answer for: a pure function of the pools, of the Services and of where
//! their endpoints are. Every node comes to the same owner without talking to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use svc_common::{Announced, AnnouncedKey};
use twox_hash::XxHash3_64;

use super::pools::{Layer2, Pools};
use crate::model::{ObjectName, Service, Slice};

/// Nodes with a ready endpoint of a Service, if only these may have its addresses.
type Local = Option<BTreeSet<Arc<str>>>;

/// What is announced where.
#[derive(Debug)]
pub struct Announcer {
    node: Arc<str>,
    pools: Pools,
    /// Addresses of each Service.
    services: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// Who has an address.
    users: BTreeMap<IpAddr, BTreeMap<ObjectName, Local>>,
    /// Name and hardware address of each uplink.
    links: BTreeMap<u32, (String, [u8; 6])>,
    dirty: bool,
}

impl Announcer {
    /// Nothing to announce yet.
    pub fn new(node: Arc<str>, pools: Pools) -> Self {
        Self { node, pools, services: BTreeMap::new(), users: BTreeMap::new(), links: BTreeMap::new(), dirty: true }
    }

    /// Other pools from now on.
    pub fn set_pools(&mut self, pools: Pools) {
        self.pools = pools;
        self.dirty = true;
    }

    /// A Service as it is now, and its slices; `None`: it is gone.
    pub fn set_service<'a>(
        &mut self,
        name: &ObjectName,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a Slice>,
    ) {
        let addresses = service.map(|service| service.load_balancer_ips.clone()).unwrap_or_default();
        if addresses.is_empty() && !self.services.contains_key(name) {
            return;
        }
        let local: Local = service.filter(|service| service.external_local).map(|_| {
            let endpoints = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
            endpoints.filter_map(|endpoint| endpoint.node.clone()).collect()
        });
        for address in self.services.remove(name).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&address)
                && !addresses.contains(&address)
            {
                users.remove(name);
                self.dirty = true;
            }
        }
        for address in &addresses {
            let before = self.users.entry(*address).or_default().insert(name.clone(), local.clone());
            self.dirty |= before != Some(local.clone());
        }
        self.users.retain(|_, users| !users.is_empty());
        if !addresses.is_empty() {
            self.services.insert(name.clone(), addresses);
        }
    }

    /// An uplink, with its hardware address; `None`: it is none, or gone.
    pub fn set_link(&mut self, index: u32, link: Option<(String, [u8; 6])>) {
        let before = match link {
            Some(link) => self.links.insert(index, link.clone()).is_some_and(|before| before == link),
            None => self.links.remove(&index).is_none(),
        };
        self.dirty |= !before;
    }

    /// What was taken last could not be written.
    pub fn again(&mut self) {
        self.dirty = true;
    }

    /// What ANNOUNCED shall hold, if it may be something else than it was.
    pub fn take(&mut self) -> Option<BTreeMap<AnnouncedKey, Announced>> {
        std::mem::take(&mut self.dirty).then(|| self.announced())
    }

    fn announced(&self) -> BTreeMap<AnnouncedKey, Announced> {
        let mut announced = BTreeMap::new();
        for (&address, users) in &self.users {
            let Some(layer2) = self.pools.layer2(address) else { continue };
            if owner(address, layer2, users) != Some(&self.node) {
                continue;
            }
            for (&interface, (name, mac)) in &self.links {
                if layer2.interfaces.is_empty() || layer2.interfaces.contains(name) {
                    let key = match address {
                        IpAddr::V4(address) => AnnouncedKey::v4(address.octets(), interface),
                        IpAddr::V6(address) => AnnouncedKey::v6(address.octets(), interface),
                    };
                    announced.insert(key, Announced { mac: *mac, pad: [0; 2] });
                }
            }
        }
        announced
    }
}

/// The node that answers for an address: of those that may, the one that rendezvous hashing finds, so that few addresses move
/// when one comes or goes.
fn owner<'a>(address: IpAddr, layer2: &'a Layer2, users: &BTreeMap<ObjectName, Local>) -> Option<&'a Arc<str>> {
    let locals: Vec<&BTreeSet<Arc<str>>> = users.values().filter_map(Option::as_ref).collect();
    let best = |serves: &dyn Fn(&Arc<str>) -> bool| {
        layer2.nodes.iter().filter(|node| serves(node)).max_by_key(|node| (weight(address, node), Arc::clone(node)))
    };
    // Of Services that share the address, as many as possible.
    best(&|node| locals.iter().all(|local| local.contains(node)))
        .or_else(|| best(&|node| locals.iter().any(|local| local.contains(node))))
}

fn weight(address: IpAddr, node: &str) -> u64 {
    XxHash3_64::oneshot(format!("{address} {node}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Family, NameList};

    const FILE: &str = "\
pools:
- name: a
  addresses: [192.0.2.0/24, '2001:db8::/64']
  announce:
    layer2: {nodes: [n1, n2, n3], interfaces: [eth0]}
- name: quiet
  addresses: [198.51.100.0/24]
";

    fn service(name: &str, addresses: &[&str], local: bool) -> Service {
        Service {
            name: ObjectName::new("shop", name),
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            claim: None,
            source_ranges: Vec::new(),
            ports: Vec::new(),
            external_local: local,
            internal_local: false,
            affinity_seconds: None,
            health_check_node_port: None,
        }
    }

    fn slice(nodes: &[&str]) -> Slice {
        let endpoint = |node: &&str| Endpoint {
            address: IpAddr::from([10, 0, 0, 1]),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(Arc::from(*node)),
            hint_nodes: NameList::default(),
            hint_zones: NameList::default(),
        };
        Slice {
            name: ObjectName::new("shop", "slice"),
            service: ObjectName::new("shop", "web"),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: nodes.iter().map(endpoint).collect(),
            headless: false,
            hostnames: Vec::new(),
            triggered_ms: None,
        }
    }

    /// How many addresses each of three nodes announces.
    fn counts(file: &str, change: impl Fn(&mut Announcer)) -> Vec<usize> {
        let nodes = ["n1", "n2", "n3"].iter();
        let counts = nodes.map(|node| {
            let mut announcer = Announcer::new(Arc::from(*node), Pools::parse(file).expect("a good file"));
            announcer.set_link(2, Some(("eth0".to_owned(), [2; 6])));
            announcer.set_link(3, Some(("eth1".to_owned(), [3; 6])));
            change(&mut announcer);
            let taken = announcer.take().expect("something is new");
            assert!(taken.keys().all(|key| key.interface == 2), "{taken:?}");
            assert_eq!(announcer.take(), None, "nothing is new");
            taken.len()
        });
        counts.collect()
    }

    fn many(announcer: &mut Announcer) {
        for nth in 1..=90 {
            let service = service(&format!("web-{nth}"), &[&format!("192.0.2.{nth}")], false);
            announcer.set_service(&service.name, Some(&service), std::iter::empty());
        }
    }

    #[test]
    fn every_address_has_one_owner_and_they_share_the_work() {
        let all = counts(FILE, many);
        assert_eq!(all.iter().sum::<usize>(), 90, "{all:?}");
        assert!(all.iter().all(|&count| count > 15), "{all:?}");
        // Without n3, what n1 and n2 had stays theirs.
        let fewer = counts(&FILE.replace(", n3", ""), many);
        assert_eq!((fewer[0] + fewer[1], fewer[2]), (90, 0));
        assert!(fewer[0] >= all[0] && fewer[1] >= all[1], "{all:?} {fewer:?}");
    }

    #[test]
    fn what_is_in_no_announced_pool_is_left_to_others() {
        let quiet = service("web", &["198.51.100.1", "203.0.113.1"], false);
        let none = |announcer: &mut Announcer| announcer.set_service(&quiet.name, Some(&quiet), std::iter::empty());
        assert_eq!(counts(FILE, none), [0, 0, 0]);
    }

    #[test]
    fn under_policy_local_the_owner_has_an_endpoint() {
        let web = service("web", &["192.0.2.1", "2001:db8::1"], true);
        for (nodes, expected) in [(&["n2"][..], [0, 2, 0]), (&["n3"], [0, 0, 2]), (&[], [0, 0, 0]), (&["n9"], [0; 3])] {
            let slices = [slice(nodes)];
            let set = |announcer: &mut Announcer| announcer.set_service(&web.name, Some(&web), slices.iter());
            assert_eq!(counts(FILE, set), expected, "{nodes:?}");
        }
    }

    #[test]
    fn a_service_that_is_gone_takes_its_addresses_along() {
        let web = service("web", &["192.0.2.1"], true);
        let slices = [slice(&["n1"])];
        let come_and_go = |announcer: &mut Announcer| {
            announcer.set_service(&web.name, Some(&web), slices.iter());
            announcer.set_service(&web.name, None, std::iter::empty());
        };
        assert_eq!(counts(FILE, come_and_go), [0, 0, 0]);
    }
}
