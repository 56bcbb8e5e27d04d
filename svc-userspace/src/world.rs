//! Everything the sources have reported so far, and which Services must be compiled again because of it.
//!
//! It never decides anything about endpoints (that is `compile`) and never sees an id or a map.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    compile::{NodeContext, PortTable, compile},
    model::{Change, Node, ObjectName, Service, Slice},
};

/// The objects as last reported.
#[derive(Debug, Default)]
pub struct World {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, Slice>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    node: Option<Node>,
    context: NodeContext,
    dirty: BTreeSet<ObjectName>,
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
                let changed = match service {
                    Some(service) if self.services.get(&name) == Some(&*service) => false,
                    Some(service) => {
                        self.services.insert(name.clone(), *service);
                        true
                    }
                    None => self.services.remove(&name).is_some(),
                };
                if changed {
                    self.dirty.insert(name);
                }
            }
            Change::Slice(name, slice) => self.apply_slice(name, slice.map(|slice| *slice)),
            Change::Node(node) => self.node = node.map(|node| *node),
            Change::Synced => self.synced = true,
            // Problems change no object; the agent logs and counts them before they come here.
            Change::Problem(_) => {}
        }
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Slice>) {
        let old = self.slices.remove(&name);
        if old == slice {
            self.slices.extend(slice.map(|slice| (name, slice)));
            return;
        }
        if let Some(old) = old {
            if let Some(names) = self.slices_of.get_mut(&old.service) {
                names.remove(&name);
                if names.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            self.dirty.insert(old.service);
        }
        if let Some(slice) = slice {
            self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
            self.dirty.insert(slice.service.clone());
            self.slices.insert(name, slice);
        }
    }

    /// Sets what compilation must know of this node; if it differs, every Service becomes dirty.
    pub fn set_node(&mut self, context: NodeContext) {
        if self.context != context {
            self.context = context;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Names that may have to be programmed anew, sorted, Services that are gone included. Each is returned once.
    pub fn take_dirty(&mut self) -> Vec<ObjectName> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// The tables of a Service; none if it does not exist.
    pub fn compile(&self, name: &ObjectName) -> Vec<PortTable> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let slices: Vec<&Slice> = self.slices_of(name).collect();
        compile(service, &slices, &self.context)
    }

    /// Services and slices have both been listed once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// A Service by name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Services, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The slices of a Service, sorted by name. They may be there before the Service is.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
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
