//! `svc agent`: source → world → tables → maps, with interfaces, health and metrics around it.
//!
//! One loop on one thread owns everything that is written. Writes to maps are system calls that wait for nobody (some
//! microseconds each), an attachment waits for two grace periods of the kernel (some milliseconds each), so both are made
//! right there: no lock, no queue, no reordering. Health, metrics, netlink and the API client run on the runtime's other
//! threads and are never kept waiting.
//!
//! It exits when it is told to (leaving everything forwarding), or when it cannot do its job at all; never because of
//! what an object says.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use svc_common::Scope;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::{
    announcing::Announcing,
    engine::Engine,
    links::Links,
    repair::{Repair, report},
};
pub use self::{
    options::{Masquerade, Options, Source},
    start::run,
};
use crate::{
    balancer::{elected::drive::Elected, follow::News, local::Local, pools::Pools},
    dns,
    health::{self, Health},
    interfaces::{self, InterfaceEvent},
    kernel::{Dataplane, Repaired},
    metrics::Metrics,
    model::Change,
    sockets::Gone,
    source::SourceError,
};

mod announcing;
pub mod engine;
mod flow_cache;
pub mod heap;
mod links;
mod maps;
pub mod node;
mod options;
mod repair;
mod start;

/// Services programmed before interface events get their turn.
const SERVICES_A_STEP: usize = 256;
/// Services programmed after which the heap is looked through for memory to give back, once there is nothing to do.
const SERVICES_A_TRIM: usize = 10_000;
/// Changes taken from the source at once.
const CHANGES_A_STEP: usize = 4096;

/// Everything the loop owns.
struct Agent {
    options: Options,
    engine: Engine<Dataplane>,
    links: Links,
    addresses: Vec<node::LocalAddress>,
    /// Interfaces that lead to other nodes and beyond.
    ways_out: BTreeSet<u32>,
    node_seen: bool,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    node_ports: health::node_ports::Handle,
    /// Who tells sockets that their backend is gone.
    sockets: Option<std::sync::mpsc::Sender<Vec<Gone>>>,
    dns: Option<dns::Handle>,
    /// Gives addresses of pools to Services, before anybody else sees them.
    balancer: Option<Local>,
    /// Gives them to those of the API, if it is elected.
    elected: Option<(Elected, watch::Sender<Pools>)>,
    pools: Option<mpsc::Receiver<News>>,
    /// Answers for addresses of pools on this node's networks.
    announcing: Option<Announcing>,
    started: Instant,
    repair: Repair,
    /// The addresses to masquerade with are not in the maps.
    lacks_sources: bool,
    /// Services programmed since memory was given back.
    untrimmed: usize,
    changes: mpsc::Receiver<Change>,
    events: mpsc::Receiver<InterfaceEvent>,
}

impl Agent {
    async fn run(
        mut self,
        mut source: JoinHandle<Result<(), SourceError>>,
        mut interfaces: JoinHandle<Result<(), interfaces::InterfaceError>>,
        stop: impl Future<Output = &'static str>,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        tokio::pin!(stop);
        loop {
            let work = self.engine.has_work();
            tokio::select! {
                // Not biased: of what is ready, chance picks, so that neither a burst of interfaces (attaching takes the
                // kernel two grace periods, some 20 ms) nor a long list of changes keeps the other waiting. All changes
                // that are there come in one batch, so those which came together are compiled together.
                signal = &mut stop => {
                    tracing::info!(signal, "stopping; the dataplane keeps forwarding");
                    if let Some((elected, _)) = self.elected.take() {
                        elected.resign().await;
                    }
                    return Ok(());
                }
                _ = tick.tick() => self.tick(),
                () = self.repair.is_due() => self.repair(),
                result = &mut source => {
                    result.context("the source stopped unexpectedly")?.context("cannot read Services")?;
                    anyhow::bail!("the source ended although nobody stopped it");
                }
                result = &mut interfaces => {
                    result.context("the interface watcher stopped unexpectedly")?.context("cannot follow interfaces")?;
                    anyhow::bail!("the interface watcher ended although nobody stopped it");
                }
                Some(event) = self.events.recv() => self.interface(event),
                Some(news) = next(&mut self.pools) => self.pools(news),
                1.. = self.changes.recv_many(&mut batch, CHANGES_A_STEP) => {
                    self.health.changed(Instant::now());
                    batch.drain(..).for_each(|change| self.pass(change));
                    if let Some(dns) = &mut self.dns {
                        dns.follow(self.engine.world_mut());
                    }
                }
                () = std::future::ready(()), if work => self.step(),
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn step(&mut self) {
        let start = Instant::now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = self.now_ms();
        let wall_ms = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
        self.untrimmed += self.engine.step(SERVICES_A_STEP, now_ms, wall_ms);
        self.metrics.synced_in(start.elapsed(), wall);
        self.announce(false);
        self.report();
    }

    fn tick(&mut self) {
        self.announce(true);
        let now_ms = self.now_ms();
        self.engine.tick(now_ms);
        self.links.retry(self.engine.maps(), &self.metrics, now_ms);
        if self.lacks_sources {
            self.set_masquerade_sources(false);
        }
        self.report();
        if self.untrimmed >= SERVICES_A_TRIM && self.engine.is_synced() && !self.engine.has_work() {
            self.untrimmed = 0;
            heap::give_back();
        }
    }

    /// Brings up to date what this node answers for; `again`: says again what is to be said again.
    fn announce(&mut self, again: bool) {
        if let Some(announcing) = &mut self.announcing {
            announcing.follow(&mut self.engine, again);
        }
    }

    /// Tells health and sockets what the engine has come to.
    fn report(&mut self) {
        let gone = self.engine.take_gone();
        if let Some(sockets) = self.sockets.as_ref().filter(|_| !gone.is_empty())
            && sockets.send(gone).is_err()
        {
            tracing::error!("the thread for sockets has ended; sockets are not told of vanished backends any more");
            self.sockets = None;
        }
        if self.engine.is_synced() {
            self.health.set_synced();
        }
        if !self.engine.is_behind() && !self.engine.has_work() {
            self.health.caught_up();
        }
        let addresses = &self.engine.world().context().node_port_addresses;
        self.node_ports.set(addresses, self.engine.health_ports());
    }

    /// Takes a change of the source, and what it means for addresses out of pools.
    fn pass(&mut self, change: Change) {
        match &mut self.balancer {
            Some(balancer) => balancer.pass(change).into_iter().for_each(|change| self.change(change)),
            None => self.change(change),
        }
    }

    /// Takes other pools, or notes that the file makes no sense.
    fn pools(&mut self, news: News) {
        let file = self.options.pools.as_ref().map(|(file, _)| file.display().to_string()).unwrap_or_default();
        match news {
            Ok(pools) => {
                self.metrics.no_problem("File", &file);
                if let Some(announcing) = &mut self.announcing {
                    announcing.announcer.set_pools(pools.clone());
                }
                if let Some((_, elected)) = &self.elected {
                    elected.send_replace(pools);
                    return;
                }
                self.health.changed(Instant::now());
                let changes = self.balancer.as_mut().map(|balancer| balancer.set_pools(pools)).unwrap_or_default();
                for change in changes {
                    self.change(change);
                }
            }
            Err(problem) => self.metrics.problem(&problem),
        }
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Problem(problem) => self.metrics.problem(problem),
            Change::Readable(file) => self.metrics.no_problem("File", file),
            Change::Service(name, _) | Change::Unbalanced(name, _) => {
                self.metrics.no_problem("Service", &name.to_string());
            }
            Change::Slice(name, _) => self.metrics.no_problem("EndpointSlice", &name.to_string()),
            Change::Node(node) => {
                let leaving = node.as_ref().map_or(self.node_seen, |node| node.leaving);
                self.node_seen |= node.is_some();
                if node.is_some() {
                    self.metrics.no_problem("Node", &self.options.node_name);
                }
                self.health.set_leaving(leaving);
            }
            Change::Synced => {}
        }
        let node = matches!(change, Change::Node(_));
        self.engine.change(change);
        if node {
            self.set_node();
        }
    }

    fn interface(&mut self, event: InterfaceEvent) {
        let now_ms = self.now_ms();
        match event {
            InterfaceEvent::Set(spec) => {
                if let Some(announcing) = &mut self.announcing {
                    announcing.link(&spec);
                }
                let leads_out = spec.entry.scope != Scope::Inside as u8;
                let is_new =
                    if leads_out { self.ways_out.insert(spec.index) } else { self.ways_out.remove(&spec.index) };
                if is_new {
                    // Before packets leave by it: they could not be masqueraded.
                    self.set_masquerade_sources(false);
                }
                self.links.set(spec, self.engine.maps(), &self.metrics, now_ms);
            }
            InterfaceEvent::Gone(index) => {
                if let Some(announcing) = &mut self.announcing {
                    announcing.announcer.set_link(index, None);
                }
                self.links.gone(index, self.engine.maps());
                if self.ways_out.remove(&index) {
                    self.set_masquerade_sources(false);
                }
            }
            InterfaceEvent::Addresses(addresses) => {
                let local = |address: interfaces::NodeAddress| node::LocalAddress {
                    address: address.address,
                    primary: address.primary,
                    interface: address.index,
                };
                self.addresses = addresses.into_iter().map(local).collect();
                self.set_node();
                self.set_masquerade_sources(false);
            }
            InterfaceEvent::Synced => {
                self.set_node();
                self.links.retain(self.engine.maps());
                self.engine.interfaces_listed();
                // Now that no program of an earlier agent is left, which would open flows and know nothing of it.
                if let Some(cache) = self.engine.maps().flow_cache() {
                    flow_cache::start(cache);
                }
            }
        }
    }

    /// Writes the addresses to masquerade with; `unchanged`: they are expected to be there already.
    fn set_masquerade_sources(&mut self, unchanged: bool) {
        let sources = node::masquerade_sources(self.ways_out.iter().copied(), &self.addresses);
        let written = self.engine.maps().set_masquerade_sources(&sources);
        self.lacks_sources = written.is_err();
        let repaired = written.map(|count| {
            let message = || format!("{count} addresses to masquerade with had been changed");
            let changed = unchanged && count > 0;
            if changed { vec![Repaired { what: "MASQUERADE", message: message() }] } else { Vec::new() }
        });
        report("masquerade_sources", repaired, &self.metrics);
    }

    fn set_node(&mut self) {
        let Options { node_name, node_port_addresses, loopback_node_ports, .. } = &self.options;
        let node = self.engine.world().node();
        let context = node::context(node_name, node, &self.addresses, node_port_addresses, *loopback_node_ports);
        let known: &[IpAddr] = &self.engine.world().context().node_port_addresses;
        if known != context.node_port_addresses {
            tracing::info!(addresses = ?context.node_port_addresses, "node ports are served on these addresses");
        }
        let listed = node.into_iter().flat_map(|node| &node.addresses).copied();
        let own = self.addresses.iter().map(|local| local.address).chain(listed).collect();
        let now_ms = self.now_ms();
        self.engine.set_node(context);
        self.engine.set_own_addresses(own, now_ms);
    }
}

/// What comes next; nothing ever does where there is no sender.
async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}
