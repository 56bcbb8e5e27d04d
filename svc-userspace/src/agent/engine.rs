//! From changes to writes: which Service is programmed when, and what happens to a write that failed.
//!
//! It knows no channel, no clock and no kernel: changes, times and the maps are handed in. A Service is compiled only when
//! something of it changed, however many changes came at once.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use svc_common::{BackendState, SlotRange, filter::FILTER_BITS};

use crate::{
    compile::NodeContext,
    hash::{HashMap, HashSet},
    health::node_ports::HealthPort,
    metrics::Metrics,
    model::{Change, ObjectName},
    sockets::Gone,
    tables::{Capacity, Difference, FilterWords, Observed, Op, Reason, Refused, Tables, Walked},
    world::{Withheld, World},
};

mod notes;
mod repair;

/// What operations are applied to.
pub trait Maps {
    /// Why an operation was not applied.
    type Error: fmt::Display;

    /// Applies operations in order, up to the first that fails: then its index comes back.
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, Self::Error)>;

    /// Gives maps room for `wanted` where that is more than they have; returns what they have room for then. `None`: they keep
    /// their sizes.
    fn grow(&mut self, _wanted: &Capacity) -> Result<Option<Capacity>, Self::Error> {
        Ok(None)
    }

    /// Leaves in FILTER the bits of `used` and those that flows still need, which is what it returns.
    fn sweep_filter(&mut self, used: FilterWords) -> Result<FilterWords, Self::Error>;

    /// Says whether FILTER knows of all that is in the maps; where it does not, programs do not ask it.
    fn trust_filter(&mut self, trusted: bool) -> Result<(), Self::Error>;

    /// Notes in the maps that every Service has been programmed once.
    fn set_synced(&mut self) -> Result<(), Self::Error>;

    /// Which of these writes the maps do not show, by index.
    fn differing(&mut self, ops: &[Op]) -> Result<Vec<(usize, Difference)>, Self::Error>;

    /// The backend ids in these slots.
    fn slots(&mut self, range: SlotRange) -> Result<Vec<u32>, Self::Error>;

    /// Adds the next entries of a map to what was found, the first ones if `first`; true once there are no more.
    fn next_entries(&mut self, map: Walked, first: bool, found: &mut Observed) -> Result<bool, Self::Error>;
}

/// Longest time between two attempts at a write, milliseconds.
const LONGEST_RETRY_MS: u64 = 30_000;
/// Time after which refused ports are tried again, milliseconds: what stood in their way may be gone.
const REFUSED_RETRY_MS: u64 = 5_000;

/// Least time between two attempts to enlarge the maps, milliseconds, if the last one failed.
const GROWTH_RETRY_MS: u64 = 60_000;

/// Bits of FILTER without a Service that are no reason to sweep it: one in thirty.
const MOST_STALE_BITS: u32 = FILTER_BITS / 32;
/// Least time between two sweeps, milliseconds: each looks at every flow.
const SWEEP_MS: u64 = 60_000;
/// The same while FILTER cannot be trusted.
const DISTRUST_MS: u64 = 5_000;

/// Operations that could not be applied: they, and what comes after them for the same Service, wait.
#[derive(Debug, Default)]
struct Waiting {
    ops: Vec<Op>,
    /// Backends that are gone once all of these are applied.
    gone: Vec<Gone>,
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
    /// Addresses that Services name and do not get.
    withheld: BTreeMap<ObjectName, Vec<Withheld>>,
    /// Refused since the maps could last be enlarged: nobody is told before that has failed.
    lacking: BTreeMap<ObjectName, Vec<Refused>>,
    /// When maps may be enlarged again.
    grow_ms: u64,
    /// FILTER has every bit that `tables` says it has.
    filter_trusted: bool,
    /// When FILTER may be swept again.
    sweep_ms: u64,
    health_ports: BTreeMap<ObjectName, HealthPort>,
    without_local: BTreeMap<ObjectName, (bool, bool)>,
    triggers: Triggers,
    /// UDP backends that are gone from the maps, until somebody asks.
    gone: Vec<Gone>,
    /// Services that have been programmed, until somebody asks; `None`: nobody will.
    programmed: Option<Vec<ObjectName>>,
    /// How far the comparison of the maps has come.
    pass: repair::Pass,
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
            queued: HashSet::default(),
            waiting: BTreeMap::new(),
            refused: BTreeMap::new(),
            refused_retry_ms: 0,
            withheld: BTreeMap::new(),
            lacking: BTreeMap::new(),
            grow_ms: 0,
            filter_trusted: false,
            sweep_ms: 0,
            health_ports: BTreeMap::new(),
            without_local: BTreeMap::new(),
            triggers: Triggers::default(),
            gone: Vec::new(),
            programmed: None,
            pass: repair::Pass::default(),
        }
    }

    /// From now on, remembers which Services were programmed, for [`Engine::take_programmed`].
    pub fn note_programmed(&mut self) {
        self.programmed.get_or_insert_default();
    }

    /// Services that have been programmed since this was asked last.
    pub fn take_programmed(&mut self) -> Vec<ObjectName> {
        self.programmed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes note of a change.
    pub fn change(&mut self, change: Change) {
        match &change {
            Change::Service(..) | Change::Unbalanced(..) => self.metrics.service_change(),
            Change::Slice(name, slice) => {
                self.metrics.endpoint_change();
                match slice {
                    Some(slice) => {
                        let triggered = slice.triggered_ms.filter(|_| !slice.headless);
                        let triggered = triggered.filter(|&ms| self.triggers.seen.get(name) != Some(&ms));
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

    /// Takes note of the node's own addresses.
    pub fn set_own_addresses(&mut self, addresses: HashSet<IpAddr>, now_ms: u64) {
        self.world.set_own_addresses(addresses.clone());
        let ops = self.tables.set_own_addresses(addresses);
        self.apply(&adoption(), ops, Vec::new(), now_ms);
    }

    /// Takes note that interfaces and addresses have been listed.
    pub fn interfaces_listed(&mut self) {
        self.interfaces_listed = true;
    }

    /// The objects.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The objects, for what follows their names.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
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

    /// True while a port is refused.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty() || !self.lacking.is_empty()
    }

    /// The `healthCheckNodePort` of every Service that has one.
    pub fn health_ports(&self) -> &BTreeMap<ObjectName, HealthPort> {
        &self.health_ports
    }

    /// UDP backends that have gone from the maps since this was asked last.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.gone)
    }

    /// True if [`Engine::step`] has something to do now.
    pub fn has_work(&mut self) -> bool {
        if !self.interfaces_listed {
            return false;
        }
        if !self.world.is_synced() {
            return self.world.has_arrived() && self.tables.is_empty();
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

    /// Programs up to `most` Services and returns how many these were. `now_ms` never goes back; `wall_ms` is milliseconds
    /// since 1970.
    pub fn step(&mut self, most: usize, now_ms: u64, wall_ms: i64) -> usize {
        if !self.has_work() {
            return 0;
        }
        if !self.world.is_synced() {
            self.prepare(most);
            return 0;
        }
        let mut programmed = 0;
        while programmed < most
            && let Some(name) = self.queue.pop_front()
        {
            self.queued.remove(&name);
            self.program(&name, now_ms, wall_ms);
            if let Some(programmed) = &mut self.programmed {
                programmed.push(name);
            }
            programmed += 1;
        }
        if self.queue.is_empty() {
            self.grow(now_ms);
        }
        if self.queue.is_empty() && !self.complete {
            self.tables.forget_prepared();
            let ops = self.tables.finish_adoption(now_ms);
            self.complete = true;
            // Of what no Service claims, nobody knows the protocol.
            let gone = gone(&ops, |_| true);
            self.apply(&adoption(), ops, gone, now_ms);
        }
        self.note_synced(now_ms);
        self.metrics.set_no_local(
            self.without_local.values().filter(|(internal, _)| *internal).count(),
            self.without_local.values().filter(|(_, external)| *external).count(),
        );
        self.metrics.set_fill(self.tables.fill());
        if self.queue.is_empty() {
            self.metrics.set_pending_to_none();
        }
        programmed
    }

    /// Builds what Services will need while others are still being listed; nothing is decided by it, nor written.
    fn prepare(&mut self, most: usize) {
        for name in std::iter::from_fn(|| self.world.take_arrived()).take(most).collect::<HashSet<_>>() {
            self.tables.prepare(&self.world.compile(&name).0);
        }
    }

    fn program(&mut self, name: &ObjectName, now_ms: u64, wall_ms: i64) {
        let (ports, withheld) = self.world.compile(name);
        self.note_withheld(name, withheld);
        self.note_health_port(name);
        self.note_without_local(name, &ports);
        let udp = self.tables.udp_ports(name);
        let (ops, refused) = self.tables.update(name, ports, now_ms);
        if refused.iter().any(|refused| matches!(refused.reason, Reason::Full { .. })) && now_ms >= self.grow_ms {
            self.lacking.insert(name.clone(), refused);
        } else {
            self.lacking.remove(name);
            self.note_refused(name, refused);
        }
        let gone = gone(&ops, |service| udp.contains(&service));
        self.apply(name, ops, gone, now_ms);
        if !self.waiting.contains_key(name) {
            for trigger in self.triggers.open.remove(name).unwrap_or_default() {
                self.metrics.programmed_after(wall_ms.saturating_sub(trigger));
            }
        }
    }

    /// Enlarges maps that something did not fit into, and has that tried again; else it is refused, and that is said.
    fn grow(&mut self, now_ms: u64) {
        if self.lacking.is_empty() {
            return;
        }
        let grown = match self.tables.wanted() {
            Some(wanted) => self.maps.grow(&wanted),
            None => Ok(None),
        };
        match grown {
            Ok(Some(capacity)) => {
                tracing::info!(?capacity, "maps have grown");
                self.tables.grown(capacity);
                for name in self.tables.refused() {
                    self.enqueue(name);
                }
                self.lacking.clear();
                return;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "maps cannot grow, will try again"),
        }
        self.grow_ms = now_ms + GROWTH_RETRY_MS;
        for (name, refused) in std::mem::take(&mut self.lacking) {
            self.note_refused(&name, refused);
        }
    }

    /// Applies operations of a Service, behind those of it that wait.
    ///
    /// Bits of FILTER wait behind nothing: other Services count on them from now on, and too many do no harm.
    ///
    /// What Services have in common has a line of its own: of two Services' writes to one of its entries, the later one must
    /// not be overtaken by the retry of the earlier one.
    fn apply(&mut self, name: &ObjectName, ops: Vec<Op>, gone: Vec<Gone>, now_ms: u64) {
        let (bits, ops): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(|op| matches!(op, Op::SetFilter(..)));
        if !self.synced {
            self.first_writes += bits.len();
        }
        if !bits.is_empty()
            && let Err((_, error)) = self.maps.apply(&bits)
        {
            self.distrust_filter(&error, now_ms);
        }
        let is_shared = |op: &Op| vip(op).is_some();
        let (shared, own) = ops.into_iter().partition(is_shared);
        self.apply_in_line(name, own, gone, now_ms);
        self.apply_in_line(&self::shared(), latest(shared), Vec::new(), now_ms);
    }

    fn apply_in_line(&mut self, name: &ObjectName, ops: Vec<Op>, gone: Vec<Gone>, now_ms: u64) {
        if !self.synced {
            self.first_writes += ops.len();
        }
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.ops.extend(ops);
            waiting.gone.extend(gone);
            waiting.retry_at_ms = now_ms;
            self.retry(now_ms);
        } else if !ops.is_empty() {
            self.attempt(name, Waiting { ops, gone, ..Waiting::default() }, now_ms);
            self.note_waiting(now_ms);
        }
    }

    /// Keeps what waiting operations release from being given to others before they are carried out.
    fn note_waiting(&mut self, now_ms: u64) {
        if self.waiting.is_empty() {
            self.tables.resume(now_ms);
            return;
        }
        let removed = self.waiting.iter().flat_map(|(name, waiting)| {
            waiting.ops.iter().filter_map(move |op| match op {
                Op::RemoveFrontend(address) => Some((*address, name.clone())),
                _ => None,
            })
        });
        self.tables.hold(removed.collect());
    }

    fn attempt(&mut self, name: &ObjectName, mut waiting: Waiting, now_ms: u64) {
        match self.maps.apply(&waiting.ops) {
            Ok(()) => {
                self.gone.append(&mut waiting.gone);
                if waiting.attempts > 0 {
                    tracing::info!(service = %name, attempts = waiting.attempts + 1, "programmed after failures");
                }
            }
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
        self.note_waiting(now_ms);
    }

    /// What time brings: failed writes are tried again, refused ports too, ids and slots whose rest is over become free.
    pub fn tick(&mut self, now_ms: u64) {
        self.retry(now_ms);
        self.note_synced(now_ms);
        self.tables.expire(now_ms);
        if self.complete && self.queue.is_empty() {
            // Changes that concern no map are done with as well.
            self.metrics.set_pending_to_none();
        }
        // What waits to be removed is in the maps still, and needs its bits.
        let is_whole = self.synced && self.waiting.is_empty();
        let is_due = !self.filter_trusted || self.tables.stale_bits() > MOST_STALE_BITS;
        if is_due && is_whole && now_ms >= self.sweep_ms {
            self.sweep_ms = now_ms + SWEEP_MS;
            self.sweep_filter(now_ms);
        }
        if now_ms >= self.refused_retry_ms {
            self.refused_retry_ms = now_ms + REFUSED_RETRY_MS;
            for name in self.tables.refused() {
                self.enqueue(name);
            }
        }
    }

    fn note_synced(&mut self, now_ms: u64) {
        if self.synced || !self.complete || !self.waiting.is_empty() {
            return;
        }
        match self.maps.set_synced() {
            Ok(()) => {
                self.synced = true;
                self.sweep_filter(now_ms);
                let services = self.world.services().count();
                tracing::info!(services, writes = self.first_writes, "every Service is programmed");
            }
            Err(error) => tracing::error!(%error, "cannot note in CONFIG that every Service is programmed"),
        }
    }

    /// Makes FILTER hold the bits of Services and flows and no others, and lets programs ask it from then on.
    fn sweep_filter(&mut self, now_ms: u64) {
        let used = self.tables.filter();
        match self.maps.sweep_filter(used.clone()) {
            Ok(words) => {
                self.tables.filter_swept(words);
                match self.maps.trust_filter(true) {
                    Ok(()) => self.filter_trusted = true,
                    Err(error) => self.distrust_filter(&error, now_ms),
                }
            }
            Err(error) => {
                // It may have ended anywhere: what only flows need is not to be counted on.
                self.tables.filter_swept(used);
                self.distrust_filter(&error, now_ms);
            }
        }
    }

    /// Has every packet looked up until a sweep succeeds.
    fn distrust_filter(&mut self, error: &M::Error, now_ms: u64) {
        tracing::warn!(%error, "cannot write FILTER: every packet is looked up until that succeeds");
        self.filter_trusted = false;
        self.sweep_ms = now_ms + DISTRUST_MS;
        if let Err(error) = self.maps.trust_filter(false) {
            tracing::error!(%error, "cannot say in CONFIG that FILTER is not whole: packets may pass untranslated");
        }
    }
}

/// Of writes to VIPS, the last one to each address: of several Services that end at once, one may have left an address to another,
/// whose frontends are gone by now as well.
fn latest(ops: Vec<Op>) -> Vec<Op> {
    let mut seen = HashSet::default();
    let mut latest: Vec<Op> = ops.into_iter().rev().filter(|op| seen.insert(vip(op))).collect();
    latest.reverse();
    latest
}

/// The address of a write to VIPS.
fn vip(op: &Op) -> Option<IpAddr> {
    match op {
        Op::SetVip(address, _) | Op::RemoveVip(address) => Some(*address),
        _ => None,
    }
}

/// The backends that operations take from Service ports of interest.
fn gone(ops: &[Op], is_of_interest: impl Fn(u32) -> bool) -> Vec<Gone> {
    let gone = ops.iter().filter_map(|op| match op {
        Op::SetBackend(_, backend) if backend.state == BackendState::Gone => {
            Some(Gone { address: backend.address, service: backend.service })
        }
        _ => None,
    });
    gone.filter(|gone| is_of_interest(gone.service)).collect()
}

/// The name under which the removal of what no Service claimed is reported and retried.
fn adoption() -> ObjectName {
    ObjectName::new("", "(left by an earlier agent)")
}

/// The name under which writes to what Services have in common are reported and retried.
fn shared() -> ObjectName {
    ObjectName::new("", "(what Services share)")
}

/// Tables that continue what was found in the maps.
pub fn adopt(capacity: crate::tables::Capacity, observed: &Observed) -> Tables {
    if *observed == Observed::default() { Tables::new(capacity) } else { Tables::adopt(capacity, observed) }
}

#[cfg(test)]
mod tests;
