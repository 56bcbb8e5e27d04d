//! From changes to writes: which Service is programmed when, and what happens to a write that failed.
//!
//! It knows no channel, no clock and no kernel: changes, times and the maps are handed in. A Service is compiled only when
//! something of it changed, however many changes came at once.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use crate::{
    compile::{NodeContext, PortTable},
    health::node_ports::HealthPort,
    metrics::Metrics,
    model::{Change, Family, ObjectName},
    tables::{Observed, Op, Refused, Tables},
    world::World,
};

/// What operations are applied to.
pub trait Maps {
    /// Why an operation was not applied.
    type Error: fmt::Display;

    /// Applies operations in order, up to the first that fails: then its index comes back.
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, Self::Error)>;

    /// Notes in the maps that every Service has been programmed once.
    fn set_synced(&mut self) -> Result<(), Self::Error>;
}

/// Longest time between two attempts at a write, milliseconds.
const LONGEST_RETRY_MS: u64 = 30_000;
/// Time after which refused ports are tried again, milliseconds: what stood in their way may be gone.
const REFUSED_RETRY_MS: u64 = 5_000;

/// Operations that could not be applied: they, and what comes after them for the same Service, wait.
#[derive(Debug, Default)]
struct Waiting {
    ops: Vec<Op>,
    attempts: u32,
    retry_at_ms: u64,
}

/// The agent's state between a source and the maps.
#[derive(Debug)]
pub struct Engine<M> {
    world: World,
    tables: Tables,
    maps: M,
    metrics: Arc<Metrics>,
    /// The interfaces, and with them the node's addresses, have been listed once.
    interfaces_listed: bool,
    /// Every Service was handed to the maps once, and what nobody claimed was removed.
    complete: bool,
    /// The maps say so.
    synced: bool,
    /// Operations handed to the maps before that: none if an earlier agent left everything as it should be.
    first_writes: usize,
    queue: VecDeque<ObjectName>,
    queued: HashSet<ObjectName>,
    waiting: BTreeMap<ObjectName, Waiting>,
    refused: BTreeMap<ObjectName, Vec<Refused>>,
    refused_retry_ms: u64,
    health_ports: BTreeMap<ObjectName, HealthPort>,
    without_local: BTreeMap<ObjectName, (bool, bool)>,
    triggers: Triggers,
}

/// When the changes that wait for being programmed were made, milliseconds since 1970.
#[derive(Debug, Default)]
struct Triggers {
    /// By slice: the last one seen, so that an annotation which stays counts once.
    seen: HashMap<ObjectName, i64>,
    /// By Service: not programmed yet.
    open: HashMap<ObjectName, Vec<i64>>,
}

impl<M: Maps> Engine<M> {
    /// An engine that knows nothing yet and touches nothing until it does.
    pub fn new(tables: Tables, maps: M, metrics: Arc<Metrics>) -> Self {
        Self {
            world: World::new(),
            tables,
            maps,
            metrics,
            interfaces_listed: false,
            complete: false,
            synced: false,
            first_writes: 0,
            queue: VecDeque::new(),
            queued: HashSet::new(),
            waiting: BTreeMap::new(),
            refused: BTreeMap::new(),
            refused_retry_ms: 0,
            health_ports: BTreeMap::new(),
            without_local: BTreeMap::new(),
            triggers: Triggers::default(),
        }
    }

    /// Takes note of a change.
    pub fn change(&mut self, change: Change) {
        match &change {
            Change::Service(..) => self.metrics.service_change(),
            Change::Slice(name, slice) => {
                self.metrics.endpoint_change();
                match slice {
                    Some(slice) => {
                        let triggered = slice.triggered_ms.filter(|&ms| self.triggers.seen.get(name) != Some(&ms));
                        if let Some(ms) = triggered {
                            self.triggers.seen.insert(name.clone(), ms);
                            // What was there before this agent says nothing about its speed.
                            if self.complete {
                                self.triggers.open.entry(slice.service.clone()).or_default().push(ms);
                            }
                        }
                    }
                    None => {
                        self.triggers.seen.remove(name);
                    }
                }
            }
            Change::Node(_) | Change::Synced | Change::Problem(_) | Change::Readable(_) => {}
        }
        self.world.apply(change);
    }

    /// Takes note of what is known of the node.
    pub fn set_node(&mut self, context: NodeContext) {
        self.world.set_node(context);
    }

    /// Takes note that interfaces and addresses have been listed.
    pub fn interfaces_listed(&mut self) {
        self.interfaces_listed = true;
    }

    /// The objects.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The maps, for what does not concern Services.
    pub fn maps(&mut self) -> &mut M {
        &mut self.maps
    }

    /// True once every Service has been programmed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// True while a change that was seen is not in the maps. Refused ports are not waited for.
    pub fn is_behind(&self) -> bool {
        !self.synced || !self.queue.is_empty() || !self.waiting.is_empty()
    }

    /// The `healthCheckNodePort` of every Service that has one.
    pub fn health_ports(&self) -> &BTreeMap<ObjectName, HealthPort> {
        &self.health_ports
    }

    /// True if [`Engine::step`] has something to do now.
    pub fn has_work(&mut self) -> bool {
        if !self.world.is_synced() || !self.interfaces_listed {
            return false;
        }
        for name in self.world.take_dirty() {
            self.enqueue(name);
        }
        !self.queue.is_empty() || !self.complete
    }

    fn enqueue(&mut self, name: ObjectName) {
        if self.queued.insert(name.clone()) {
            self.queue.push_back(name);
        }
    }

    /// Programs up to `most` Services. `now_ms` never goes back; `wall_ms` is milliseconds since 1970.
    pub fn step(&mut self, most: usize, now_ms: u64, wall_ms: i64) {
        if !self.has_work() {
            return;
        }
        for _ in 0..most {
            let Some(name) = self.queue.pop_front() else { break };
            self.queued.remove(&name);
            self.program(&name, now_ms, wall_ms);
        }
        if self.queue.is_empty() && !self.complete {
            let ops = self.tables.finish_adoption(now_ms);
            self.complete = true;
            self.apply(&adoption(), ops, now_ms);
        }
        self.note_synced();
        self.metrics.set_no_local(
            self.without_local.values().filter(|(internal, _)| *internal).count(),
            self.without_local.values().filter(|(_, external)| *external).count(),
        );
        self.metrics.set_fill(self.tables.fill());
        if self.queue.is_empty() {
            self.metrics.set_pending_to_none();
        }
    }

    fn program(&mut self, name: &ObjectName, now_ms: u64, wall_ms: i64) {
        let ports = self.world.compile(name);
        self.note_health_port(name);
        self.note_without_local(name, &ports);
        let (ops, refused) = self.tables.update(name, ports, now_ms);
        self.note_refused(name, refused);
        self.apply(name, ops, now_ms);
        if !self.waiting.contains_key(name) {
            for trigger in self.triggers.open.remove(name).unwrap_or_default() {
                self.metrics.programmed_after(wall_ms.saturating_sub(trigger));
            }
        }
    }

    /// Applies operations of a Service, behind those of it that wait.
    fn apply(&mut self, name: &ObjectName, ops: Vec<Op>, now_ms: u64) {
        if !self.synced {
            self.first_writes += ops.len();
        }
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.ops.extend(ops);
            waiting.retry_at_ms = now_ms;
            self.retry(now_ms);
        } else if !ops.is_empty() {
            self.attempt(name, Waiting { ops, ..Waiting::default() }, now_ms);
        }
    }

    fn attempt(&mut self, name: &ObjectName, mut waiting: Waiting, now_ms: u64) {
        match self.maps.apply(&waiting.ops) {
            Ok(()) if waiting.attempts > 0 => {
                tracing::info!(service = %name, attempts = waiting.attempts + 1, "programmed after failures");
            }
            Ok(()) => {}
            Err((index, error)) => {
                // Operations tolerate being applied twice, so an index too small costs nothing.
                waiting.ops.drain(..index.min(waiting.ops.len()));
                waiting.attempts += 1;
                let backoff = (100_u64 << waiting.attempts.min(16)).min(LONGEST_RETRY_MS);
                waiting.retry_at_ms = now_ms + backoff;
                self.metrics.apply_failed();
                tracing::error!(service = %name, %error, retry_ms = backoff, "cannot write to the maps, will try again");
                self.waiting.insert(name.clone(), waiting);
            }
        }
    }

    fn retry(&mut self, now_ms: u64) {
        let due: Vec<ObjectName> =
            self.waiting.iter().filter(|(_, w)| w.retry_at_ms <= now_ms).map(|(name, _)| name.clone()).collect();
        for name in due {
            if let Some(waiting) = self.waiting.remove(&name) {
                self.attempt(&name, waiting, now_ms);
            }
        }
    }

    /// What time brings: failed writes are tried again, refused ports too, ids and slots whose rest is over become free.
    pub fn tick(&mut self, now_ms: u64) {
        self.retry(now_ms);
        self.note_synced();
        // A range that is given again while a frontend still leads to its former content, because the write that
        // switches the frontend waits, would mix two Services.
        if self.waiting.is_empty() {
            self.tables.expire(now_ms);
        }
        if now_ms >= self.refused_retry_ms {
            self.refused_retry_ms = now_ms + REFUSED_RETRY_MS;
            for name in self.tables.refused() {
                self.enqueue(name);
            }
        }
    }

    fn note_synced(&mut self) {
        if self.synced || !self.complete || !self.waiting.is_empty() {
            return;
        }
        match self.maps.set_synced() {
            Ok(()) => {
                self.synced = true;
                let services = self.world.services().count();
                tracing::info!(services, writes = self.first_writes, "every Service is programmed");
            }
            Err(error) => tracing::error!(%error, "cannot note in CONFIG that every Service is programmed"),
        }
    }

    fn note_refused(&mut self, name: &ObjectName, refused: Vec<Refused>) {
        if self.refused.get(name).map_or(&[][..], Vec::as_slice) == refused {
            return;
        }
        for refusal in &refused {
            tracing::warn!(service = %name, "refused: {refusal}");
        }
        if refused.is_empty() {
            tracing::info!(service = %name, "no longer refused");
            self.refused.remove(name);
        } else {
            self.refused.insert(name.clone(), refused);
        }
        self.metrics.set_refused(name, self.refused.get(name).map_or(0, Vec::len));
    }

    fn note_health_port(&mut self, name: &ObjectName) {
        let service = self.world.service(name);
        let Some((service, port)) = service.and_then(|service| Some((service, service.health_check_node_port?))) else {
            self.health_ports.remove(name);
            return;
        };
        let own = &self.world.context().name;
        let endpoints = self.world.slices_of(name).flat_map(|slice| &slice.endpoints);
        let local = endpoints.filter(|endpoint| endpoint.ready && endpoint.node.as_ref() == Some(own));
        let addresses: HashSet<_> = local.map(|endpoint| endpoint.address).collect();
        // A pod of two families is one endpoint to a load balancer, as it is to kube-proxy, which counts by family.
        let of = |family| addresses.iter().filter(|&&address| Family::of(address) == family).count();
        let counts = service.cluster_ips.iter().map(|&address| of(Family::of(address)));
        let local_endpoints = counts.max().unwrap_or(0);
        self.health_ports.insert(name.clone(), HealthPort { port, local_endpoints });
    }

    fn note_without_local(&mut self, name: &ObjectName, ports: &[PortTable]) {
        let none = ports.iter().any(|port| !port.cluster.is_empty() && port.local.is_empty());
        let policies = self.world.service(name).map(|service| (service.internal_local, service.external_local));
        match policies.filter(|&(internal, external)| none && (internal || external)) {
            Some(policies) => self.without_local.insert(name.clone(), policies),
            None => self.without_local.remove(name),
        };
    }
}

/// The name under which the removal of what no Service claimed is reported and retried.
fn adoption() -> ObjectName {
    ObjectName::new("", "(left by an earlier agent)")
}

/// Tables that continue what was found in the maps.
pub fn adopt(capacity: crate::tables::Capacity, observed: &Observed) -> Tables {
    if *observed == Observed::default() { Tables::new(capacity) } else { Tables::adopt(capacity, observed) }
}

#[cfg(test)]
mod tests;
