//! Everything the sources have reported so far, and which Services must be compiled again because of it.
//!
//! It never decides anything about endpoints (that is `compile`) and never sees an id or a map.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use self::claims::Claims;
pub use self::claims::{Owner, Withheld};
use crate::{
    compile::{NodeContext, PortTable, compile},
    model::{Change, Node, ObjectName, Service, Slice, Unbalanced},
};

mod claims;

/// Namespace and name of the Service that stands for the API server.
const API: (&str, &str) = ("default", "kubernetes");

/// The objects as last reported.
#[derive(Debug, Default)]
pub struct World {
    services: HashMap<ObjectName, Service>,
    unbalanced: HashMap<ObjectName, Unbalanced>,
    slices: HashMap<ObjectName, Slice>,
    /// By Service, sorted.
    slices_of: HashMap<ObjectName, Vec<ObjectName>>,
    node: Option<Node>,
    context: NodeContext,
    dirty: HashSet<ObjectName>,
    claims: Claims,
    /// The API server's slices may have changed.
    api_changed: bool,
    /// The node's own addresses.
    own_addresses: HashSet<IpAddr>,
    /// Dirty ones that may have to give way to others: they come before these.
    yielding: HashSet<ObjectName>,
    /// Services whose names may have changed; `None`: nobody asks.
    renamed: Option<HashSet<ObjectName>>,
    synced: bool,
}

impl World {
    /// An empty world, not synced.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a change; the Services it concerns become dirty. A report that changes nothing makes nothing dirty.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(name, service) => {
                let was_unbalanced = self.forget_unbalanced(&name);
                let changed = match service {
                    Some(service) if self.services.get(&name) == Some(&*service) => false,
                    Some(mut service) => {
                        service.shrink();
                        self.forget_service(&name);
                        let touched = self.claims.count(&name, &service.cluster_ips, Some(&service), true);
                        self.give_way(touched);
                        self.services.insert(name.clone(), *service);
                        true
                    }
                    None => self.forget_service(&name),
                };
                if changed || was_unbalanced {
                    self.rename(&name);
                }
                if changed {
                    self.dirty.insert(name);
                }
            }
            Change::Unbalanced(name, service) => {
                if self.forget_service(&name) {
                    self.dirty.insert(name.clone());
                    self.rename(&name);
                }
                if self.unbalanced.get(&name) != Some(&*service) {
                    self.rename(&name);
                    self.forget_unbalanced(&name);
                    let touched = self.claims.count(&name, cluster_ips(&service), None, true);
                    self.give_way(touched);
                    self.unbalanced.insert(name, *service);
                }
            }
            Change::Slice(name, slice) => self.apply_slice(name, slice.map(|slice| *slice)),
            Change::Node(node) => self.node = node.map(|node| *node),
            Change::Synced => self.synced = true,
            // Problems change no object; the agent logs and counts them before they come here.
            Change::Problem(_) | Change::Readable(_) => {}
        }
    }

    fn forget_service(&mut self, name: &ObjectName) -> bool {
        let Some(old) = self.services.remove(name) else { return false };
        let touched = self.claims.count(name, &old.cluster_ips, Some(&old), false);
        self.give_way(touched);
        true
    }

    fn forget_unbalanced(&mut self, name: &ObjectName) -> bool {
        let Some(old) = self.unbalanced.remove(name) else { return false };
        let touched = self.claims.count(name, cluster_ips(&old), None, false);
        self.give_way(touched);
        true
    }

    /// Has Services compiled again that may not have an address any more, or may have it again.
    fn give_way(&mut self, touched: Vec<ObjectName>) {
        self.dirty.extend(touched.iter().cloned());
        self.yielding.extend(touched);
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Slice>) {
        let old = self.slices.remove(&name);
        if old == slice {
            self.slices.extend(slice.map(|slice| (name, slice)));
            return;
        }
        if let Some(old) = old {
            if let Some(names) = self.slices_of.get_mut(&old.service) {
                names.retain(|other| *other != name);
                if names.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            self.touch(&old);
        }
        if let Some(mut slice) = slice {
            slice.shrink();
            let names = self.slices_of.entry(slice.service.clone()).or_default();
            if let Err(at) = names.binary_search(&name) {
                names.reserve_exact(1);
                names.insert(at, name.clone());
            }
            self.touch(&slice);
            self.slices.insert(name, slice);
        }
    }

    /// A slice came, changed or went.
    fn touch(&mut self, slice: &Slice) {
        if !slice.headless {
            self.dirty.insert(slice.service.clone());
        }
        self.rename(&slice.service);
        self.api_changed |= (&*slice.service.namespace, &*slice.service.name) == API;
    }

    /// Sets where the agent reaches the API server.
    pub fn set_api(&mut self, address: SocketAddr) {
        self.claims.configure_api(address);
    }

    /// Sets the node's own addresses, which no cluster IP can be.
    pub fn set_own_addresses(&mut self, addresses: HashSet<IpAddr>) {
        let changed = self.own_addresses.symmetric_difference(&addresses);
        if self.claims.has_cluster_ip(changed) {
            self.dirty.extend(self.services.keys().cloned());
        }
        self.own_addresses = addresses;
    }

    fn rename(&mut self, name: &ObjectName) {
        if let Some(renamed) = &mut self.renamed {
            renamed.insert(name.clone());
        }
    }

    /// From now on, [`World::take_renamed`] is asked.
    pub fn serve_names(&mut self) {
        self.renamed = Some(HashSet::new());
    }

    /// Services whose names may have to be made anew, sorted, Services that are gone included. Each is returned once.
    pub fn take_renamed(&mut self) -> Vec<ObjectName> {
        let mut renamed: Vec<_> = self.renamed.as_mut().map(std::mem::take).into_iter().flatten().collect();
        renamed.sort_unstable();
        renamed
    }

    /// Sets what compilation must know of this node; if it differs, every Service becomes dirty.
    pub fn set_node(&mut self, context: NodeContext) {
        if self.context != context {
            self.context = context;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Names that may have to be programmed anew, sorted, those before others that may have to give way to them, Services that are
    /// gone included. Each is returned once.
    pub fn take_dirty(&mut self) -> Vec<ObjectName> {
        if std::mem::take(&mut self.api_changed) {
            let api = ObjectName::new(API.0, API.1);
            let slices = self.slices_of(&api);
            let addresses = slices.flat_map(|slice| {
                let ports = slice.ports.iter();
                ports.flat_map(|port| slice.endpoints.iter().map(|it| SocketAddr::new(it.address, port.port)))
            });
            let addresses = addresses.collect();
            let touched = self.claims.set_api(addresses);
            self.give_way(touched);
        }
        let mut dirty: Vec<_> = self.dirty.drain().collect();
        // A burst leaves room behind that is looked through each time.
        self.dirty.shrink_to(64);
        let yielding = std::mem::take(&mut self.yielding);
        dirty.sort_unstable_by(|a, b| (!yielding.contains(a), a).cmp(&(!yielding.contains(b), b)));
        dirty
    }

    /// The tables of a Service, none if it does not exist, and what it names and does not get.
    pub fn compile(&self, name: &ObjectName) -> (Vec<PortTable>, Vec<Withheld>) {
        let Some(service) = self.services.get(name) else { return Default::default() };
        let slices: Vec<&Slice> = self.slices_of(name).collect();
        let mut tables = compile(service, &slices, &self.context);
        let withheld = self.claims.withhold(service, &self.own_addresses, &mut tables);
        (tables, withheld)
    }

    /// Services and slices have both been listed once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// A Service by name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// A Service by name that only has names.
    pub fn unbalanced(&self, name: &ObjectName) -> Option<&Unbalanced> {
        self.unbalanced.get(name)
    }

    /// The slices of a Service that are load-balanced, sorted by name. They may be there before the Service is.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        self.every_slice_of(service).filter(|slice| !slice.headless)
    }

    /// The slices of a Service, sorted by name, headless ones included.
    pub fn every_slice_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The own node, if it has been reported and was not deleted.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// What [`World::set_node`] was last told.
    pub fn context(&self) -> &NodeContext {
        &self.context
    }
}

fn cluster_ips(service: &Unbalanced) -> &[IpAddr] {
    match service {
        Unbalanced::Elsewhere { cluster_ips, .. } => cluster_ips,
        Unbalanced::Headless | Unbalanced::ExternalName(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Family, NameList, Problem, Protocol, ServicePort, SlicePort};

    fn name(text: &str) -> ObjectName {
        ObjectName::new("default", text)
    }

    fn service(text: &str) -> Change {
        let service = Service {
            name: name(text),
            cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
            external_ips: vec![],
            load_balancer_ips: vec![],
            claim: None,
            source_ranges: vec![],
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) }],
            external_local: false,
            internal_local: false,
            affinity_seconds: None,
            health_check_node_port: None,
        };
        Change::Service(name(text), Some(Box::new(service)))
    }

    fn slice(text: &str, service: &str) -> Change {
        let endpoint = Endpoint {
            address: "10.0.0.1".parse().expect("an address"),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hint_nodes: NameList::default(),
            hint_zones: NameList::default(),
        };
        let slice = Slice {
            name: name(text),
            service: name(service),
            family: Family::V4,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: vec![endpoint],
            headless: false,
            hostnames: vec![],
            triggered_ms: None,
        };
        Change::Slice(name(text), Some(Box::new(slice)))
    }

    fn dirty_after(world: &mut World, change: Change) -> Vec<ObjectName> {
        world.apply(change);
        world.take_dirty()
    }

    #[test]
    fn a_change_makes_its_own_services_dirty_and_a_repetition_none() {
        let mut world = World::new();
        assert_eq!(dirty_after(&mut world, slice("a", "web")), [name("web")]);
        assert_eq!(dirty_after(&mut world, slice("a", "web")), []);
        assert_eq!(dirty_after(&mut world, service("web")), [name("web")]);
        assert_eq!(dirty_after(&mut world, service("web")), []);
        assert_eq!(world.compile(&name("web")).0[0].cluster, [0]);
        assert_eq!(dirty_after(&mut world, slice("a", "other")), [name("other"), name("web")], "it moved");
        assert_eq!(world.slices_of(&name("web")).count(), 0);
        assert_eq!(dirty_after(&mut world, Change::Slice(name("a"), None)), [name("other")]);
        assert_eq!(dirty_after(&mut world, Change::Service(name("web"), None)), [name("web")]);
        assert_eq!(dirty_after(&mut world, Change::Service(name("web"), None)), []);
        assert_eq!(world.compile(&name("web")).0, []);
    }

    #[test]
    fn another_node_context_makes_every_service_dirty() {
        let mut world = World::new();
        world.apply(service("web"));
        world.take_dirty();
        let context = NodeContext { name: "node-a".into(), ..NodeContext::default() };
        world.set_node(context.clone());
        assert_eq!(world.take_dirty(), [name("web")]);
        world.set_node(context);
        assert_eq!(world.take_dirty(), []);
    }

    /// Addresses that a Service gets, and what is withheld from it.
    fn gets(world: &World, of: &str) -> (Vec<String>, Vec<String>) {
        let (tables, withheld) = world.compile(&name(of));
        let frontends = tables.iter().flat_map(|table| &table.frontends).map(|it| it.address.to_string());
        (frontends.collect(), withheld.iter().map(ToString::to_string).collect())
    }

    fn with(text: &str, cluster: &str, balancer: &[&str], external: &[&str]) -> Change {
        let Change::Service(name, Some(mut service)) = service(text) else { unreachable!() };
        let addresses = |texts: &[&str]| texts.iter().map(|it| it.parse().expect("an address")).collect();
        service.cluster_ips = addresses(&[cluster]);
        service.load_balancer_ips = addresses(balancer);
        service.external_ips = addresses(external);
        Change::Service(name, Some(service))
    }

    #[test]
    fn nobody_gets_a_cluster_ip_of_another_service_whoever_came_first() {
        let mut world = World::new();
        world.apply(with("thief", "10.96.0.1", &["10.96.0.9"], &["10.96.0.9", "10.96.0.1"]));
        assert_eq!(gets(&world, "thief").0, ["10.96.0.1:80", "10.96.0.9:80"], "nobody else's so far, and its own");
        world.take_dirty();
        world.apply(with("a-victim", "10.96.0.9", &[], &[]));
        assert_eq!(world.take_dirty(), [name("thief"), name("a-victim")], "who gives way comes first");
        let (has, withheld) = gets(&world, "thief");
        assert_eq!(has, ["10.96.0.1:80"]);
        assert_eq!(withheld, ["10.96.0.9:80 is another Service's cluster IP: remove it"]);
        assert_eq!(gets(&world, "a-victim").0, ["10.96.0.9:80"]);
        assert_eq!(dirty_after(&mut world, Change::Service(name("a-victim"), None)), [name("thief"), name("a-victim")]);
        assert_eq!(gets(&world, "thief").0, ["10.96.0.1:80", "10.96.0.9:80"]);
        let elsewhere = Unbalanced::Elsewhere { cluster_ips: vec!["10.96.0.9".parse().expect("it")], ports: vec![] };
        world.apply(Change::Unbalanced(name("a-victim"), Box::new(elsewhere)));
        assert_eq!(gets(&world, "thief").0, ["10.96.0.1:80"], "another proxy's is nobody's either");
    }

    #[test]
    fn an_external_ip_gives_way_to_a_load_balancers_address_of_another_service() {
        let mut world = World::new();
        world.apply(with("thief", "10.96.0.1", &[], &["203.0.113.7"]));
        world.apply(with("victim", "10.96.0.2", &["203.0.113.7"], &["203.0.113.7"]));
        let (has, withheld) = gets(&world, "thief");
        assert_eq!(has, ["10.96.0.1:80"]);
        assert_eq!(withheld, ["203.0.113.7:80 is a load balancer's address of default/victim: remove it"]);
        assert_eq!(gets(&world, "victim"), (vec!["10.96.0.2:80".into(), "203.0.113.7:80".into()], vec![]));
    }

    #[test]
    fn the_api_server_and_the_node_are_nobodys_address() {
        let mut world = World::new();
        world.set_api("192.0.2.9:80".parse().expect("an address"));
        world.apply(with("thief", "10.96.0.1", &["192.0.2.9"], &["10.0.0.1"]));
        let (has, withheld) = gets(&world, "thief");
        assert_eq!(has, ["10.0.0.1:80", "10.96.0.1:80"]);
        assert_eq!(withheld, ["192.0.2.9:80 is the API server: use another address or port"]);
        let Change::Slice(api, Some(mut slice)) = slice("kubernetes", "kubernetes") else { unreachable!() };
        slice.ports[0].port = 80;
        world.take_dirty();
        assert!(dirty_after(&mut world, Change::Slice(api, Some(slice))).contains(&name("thief")));
        assert_eq!(gets(&world, "thief").0, ["10.96.0.1:80"], "10.0.0.1:80 is an endpoint of default/kubernetes");
        world.set_own_addresses(["10.96.0.1".parse().expect("an address")].into());
        assert_eq!(world.take_dirty(), [name("thief")]);
        assert_eq!(gets(&world, "thief").0, [] as [&str; 0]);
    }

    #[test]
    fn the_node_and_the_first_sync_are_remembered() {
        let mut world = World::new();
        assert!(!world.is_synced() && world.node().is_none());
        let problem =
            Problem { kind: "Service", name: "default/web".into(), field: "spec".into(), message: "is wrong".into() };
        for change in [Change::Node(Some(Box::default())), Change::Problem(problem), Change::Synced] {
            assert_eq!(dirty_after(&mut world, change), []);
        }
        assert!(world.is_synced() && world.node().is_some());
        world.apply(Change::Node(None));
        assert!(world.node().is_none());
    }
}
