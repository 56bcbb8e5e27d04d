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
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use ipnet::IpNet;
use svc_common::Scope;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use self::{engine::Engine, links::Links, node::NodePortAddresses};
use crate::{
    balancer::{self, follow::News, local::Local},
    dns,
    health::{self, Health},
    interfaces::{self, InterfaceEvent, InterfaceOptions},
    kernel::{self, AttachMode, Dataplane, MASQUERADE_MARK, Xdp, check::Verdict, view::Pins},
    masquerade::{self, MasqueradeError},
    metrics::Metrics,
    model::{Change, Claims},
    sockets::{self, Gone},
    source::{self, SourceError, SourceOptions},
    tables::Capacity,
};

pub mod engine;
pub mod heap;
mod links;
mod maps;
pub mod node;

/// Services programmed before interface events get their turn.
const SERVICES_A_STEP: usize = 256;
/// Services programmed after which the heap is looked through for memory to give back, once there is nothing to do.
const SERVICES_A_TRIM: usize = 10_000;
/// Changes taken from the source at once.
const CHANGES_A_STEP: usize = 4096;

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The API, by a kubeconfig file or as a pod.
    Kubernetes(Option<PathBuf>),
    /// A directory.
    Manifests(PathBuf),
}

/// Who gives flows from outside to other nodes an address of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Masquerade {
    /// nftables where the kernel has it, else, and with XDP, the programs
    #[default]
    Auto,
    /// The kernel's NAT, by two rules in nftables
    Nftables,
    /// The programs, with the ports 49152-65535, which are reserved for them
    Programs,
}

/// Everything the agent has to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Own node name.
    pub node_name: Arc<str>,
    /// Where objects come from.
    pub source: Source,
    /// Names of uplinks; empty: found by their default routes.
    pub uplinks: Vec<String>,
    /// Patterns of interfaces towards pods; empty: guessed.
    pub pod_patterns: Vec<String>,
    /// Which addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Node ports are served on 127.0.0.1 and ::1, by the socket hooks.
    pub loopback_node_ports: bool,
    /// Who masquerades.
    pub masquerade: Masquerade,
    /// Whether uplinks get the XDP program.
    pub xdp: Xdp,
    /// `CONFIG_SOCKET_*`.
    pub config_flags: u32,
    /// Honour `spec.externalIPs`.
    pub external_ips: bool,
    /// Pools of addresses for Services of type LoadBalancer, and who may ask them.
    pub pools: Option<(PathBuf, Claims)>,
    /// Prefixes of cluster IPs, if known.
    pub service_cidrs: Vec<IpNet>,
    /// Root of the pins.
    pub bpffs: PathBuf,
    /// Where the socket hooks are attached; `None`: nowhere.
    pub cgroup: Option<PathBuf>,
    /// Metrics server.
    pub metrics_address: SocketAddr,
    /// Health server.
    pub healthz_address: SocketAddr,
    /// The DNS server, if there is to be one.
    pub dns: Option<dns::Options>,
    /// Entries of each flow table.
    pub flows: u32,
    /// Sizes of the other maps.
    pub capacity: Capacity,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    // A client that cannot be made is known before the kernel is touched.
    let source = connect(&options.source).await?;
    let (balancer, pools, claims) = match &options.pools {
        Some((file, claims)) => {
            let (pools, news) = balancer::follow::start(file).context("cannot use the pools")?;
            (Some(Local::new(pools)), Some(news), *claims)
        }
        None => (None, None, Claims::Nobody),
    };

    let programs_masquerade = match options.masquerade {
        Masquerade::Nftables => false,
        Masquerade::Programs => true,
        Masquerade::Auto => {
            options.xdp != Xdp::Off || matches!(masquerade::probe(), Err(MasqueradeError::Unsupported(_)))
        }
    };
    let wanted = kernel::Options {
        bpffs: options.bpffs.clone(),
        cgroup: options.cgroup.clone(),
        capacity: options.capacity,
        flows: options.flows,
        config_flags: options.config_flags,
        programs_masquerade,
        service_cidrs: options.service_cidrs.clone(),
        attach: AttachMode::Auto,
        xdp: options.xdp,
    };
    let (mut dataplane, observed) =
        Dataplane::start_with_object(&wanted, kernel::object::object()).context("cannot start the dataplane")?;
    kernel::object::release();
    if let Some(log) = dataplane.take_log() {
        tokio::spawn(async move {
            if let Err(error) = log.pass_on().await {
                tracing::warn!(%error, "the log of the programs is not passed on any more");
            }
        });
    }
    if programs_masquerade {
        // A table that stands there stays: connections that it masquerades go on.
        if let Err(error) = dataplane.reserve_ports() {
            let error = anyhow::Error::from(error);
            tracing::warn!("sockets of this host may get ports that the programs masquerade with: {error:#}");
        }
    } else {
        masquerade::install(MASQUERADE_MARK).context("cannot install the masquerade rule")?;
    }
    warn_about_lacks(&options);
    tracing::info!(
        node = %options.node_name,
        bpffs = %options.bpffs.display(),
        masquerade = if programs_masquerade { "programs" } else { "nftables" },
        adopted_services = observed.services.len(),
        "dataplane started"
    );

    let bpffs = options.bpffs.clone();
    let metrics = Arc::new(Metrics::new(move || Pins::open(&bpffs)?.snapshot()));
    let health = Arc::new(Health::new());
    tokio::spawn(health::endpoints::serve(options.healthz_address, health.clone(), metrics.clone()));
    tokio::spawn(crate::metrics::serve(options.metrics_address, metrics.clone()));
    let node_ports = health::node_ports::start(health.clone());

    let (changes_sender, changes) = mpsc::channel(CHANGES_A_STEP);
    let (events_sender, events) = mpsc::channel(1024);
    let watched = InterfaceOptions { uplinks: options.uplinks.clone(), pod_patterns: options.pod_patterns.clone() };
    let interfaces = tokio::spawn(interfaces::run(watched, events_sender));
    let source_options = SourceOptions {
        node_name: options.node_name.clone(),
        external_ips: options.external_ips,
        claims,
        names: options.dns.is_some(),
    };
    let source = source.start(source_options, changes_sender);

    // Without socket hooks, nobody has redirected a socket.
    let sockets = match &options.cgroup {
        Some(_) => Some(
            sockets::start(options.bpffs.clone(), metrics.clone()).context("cannot start the thread for sockets")?,
        ),
        None => None,
    };
    let capacity = dataplane.capacity().context("cannot read the sizes of the maps")?;
    let mut engine = Engine::new(engine::adopt(capacity, &observed), dataplane, metrics.clone());
    let dns = match &options.dns {
        Some(dns) => {
            engine.world_mut().serve_names();
            Some(dns::start(dns.clone(), metrics.dns()).context("cannot start the DNS server")?)
        }
        None => None,
    };
    // As large as all that is programmed, and of no use any more.
    drop(observed);
    let agent = Agent {
        options,
        engine,
        links: Links::default(),
        addresses: Vec::new(),
        ways_out: BTreeSet::new(),
        node_seen: false,
        health,
        metrics,
        node_ports,
        sockets,
        dns,
        balancer,
        pools,
        started: Instant::now(),
        untrimmed: SERVICES_A_TRIM,
        changes,
        events,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    agent.run(source, interfaces, stop).await
}

/// A source that is known to be usable.
enum Connected {
    Kubernetes(Box<::kube::Client>),
    Manifests(PathBuf),
}

async fn connect(source: &Source) -> anyhow::Result<Connected> {
    Ok(match source {
        Source::Manifests(dir) => Connected::Manifests(dir.clone()),
        Source::Kubernetes(kubeconfig) => {
            let client = source::kube::client(kubeconfig.as_deref()).await;
            Connected::Kubernetes(Box::new(client.context("cannot reach the Kubernetes API")?))
        }
    })
}

impl Connected {
    fn start(self, options: SourceOptions, changes: mpsc::Sender<Change>) -> JoinHandle<Result<(), SourceError>> {
        match self {
            Self::Kubernetes(client) => tokio::spawn(source::kube::run(*client, options, changes)),
            Self::Manifests(dir) => tokio::spawn(source::manifests::run(dir, options, changes)),
        }
    }
}

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
    pools: Option<mpsc::Receiver<News>>,
    started: Instant,
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
                    return Ok(());
                }
                _ = tick.tick() => self.tick(),
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
        self.report();
    }

    fn tick(&mut self) {
        let now_ms = self.now_ms();
        self.engine.tick(now_ms);
        self.links.retry(self.engine.maps(), &self.metrics, now_ms);
        self.report();
        if self.untrimmed >= SERVICES_A_TRIM && self.engine.is_synced() && !self.engine.has_work() {
            self.untrimmed = 0;
            heap::give_back();
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
                let leads_out = spec.entry.scope != Scope::Inside as u8;
                let is_new =
                    if leads_out { self.ways_out.insert(spec.index) } else { self.ways_out.remove(&spec.index) };
                if is_new {
                    // Before packets leave by it: they could not be masqueraded.
                    self.set_masquerade_sources();
                }
                self.links.set(spec, self.engine.maps(), &self.metrics, now_ms);
            }
            InterfaceEvent::Gone(index) => {
                self.links.gone(index, self.engine.maps());
                if self.ways_out.remove(&index) {
                    self.set_masquerade_sources();
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
                self.set_masquerade_sources();
            }
            InterfaceEvent::Synced => {
                self.set_node();
                self.links.retain(self.engine.maps());
                self.engine.interfaces_listed();
            }
        }
    }

    fn set_masquerade_sources(&mut self) {
        let sources = node::masquerade_sources(self.ways_out.iter().copied(), &self.addresses);
        if let Err(error) = self.engine.maps().set_masquerade_sources(&sources) {
            tracing::error!("cannot write the addresses to masquerade with: {:#}", anyhow::Error::from(error));
        }
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

/// Says what works less well than it could on this machine.
fn warn_about_lacks(options: &Options) {
    for finding in kernel::check::run(&options.bpffs, options.cgroup.as_deref()) {
        if finding.verdict != Verdict::Ok {
            tracing::warn!("{}: {}: {}", finding.what, finding.consequence, finding.remedy);
        }
    }
}
