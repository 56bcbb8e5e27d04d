//! From options to a running agent: the source, the dataplane, and all that runs beside the loop, in the order in which one
//! needs another. Nothing here runs a second time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    Agent, CHANGES_A_STEP, SERVICES_A_TRIM,
    announcing::Announcing,
    engine::{self, Engine},
    links::Links,
    options::{Masquerade, Options, Source},
    repair::Repair,
};
use crate::{
    balancer::{
        self,
        elected::{self, drive::Elected},
        local::Local,
        pools::Pools,
    },
    dns,
    health::{self, Health},
    interfaces::{self, InterfaceOptions},
    kernel::{self, AttachMode, Dataplane, MASQUERADE_MARK, Xdp, check::Verdict, view::Pins},
    masquerade::{self, MasqueradeError},
    metrics::Metrics,
    model::{Change, Claims},
    privileges, sockets,
    source::{self, SourceError, SourceOptions},
};

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    // A client that cannot be made is known before the kernel is touched.
    let source = connect(&options.source).await?;
    let (pools, pools_news) = match &options.pools {
        Some((file, _)) => {
            let (pools, news) = balancer::follow::start(file).context("cannot use the pools")?;
            (Some(pools), Some(news))
        }
        None => (None, None),
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
        growth_limit: options.growth_limit,
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
    // A table that stands there stays while the programs masquerade: connections that it masquerades go on.
    if !programs_masquerade {
        masquerade::install(MASQUERADE_MARK).context("cannot install the masquerade rule")?;
    }
    warn_about_lacks(&options);
    let aside = if wanted.growth_limit == 0 { privileges::drop_loading() } else { privileges::lay_loading_aside() };
    aside.context("cannot start the agent")?;
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
    let announcing = pools.clone().map(|pools| Announcing::new(options.node_name.clone(), pools));
    let (balancer, elected) = match (&source, pools) {
        (_, None) => (None, None),
        (Connected::Manifests(_), Some(pools)) => (Some(Local::new(pools)), None),
        (Connected::Kubernetes(client, _), Some(pools)) => (None, Some(elect(client, &options, pools, &metrics))),
    };
    // The API's own objects say which addresses they have.
    let claims = options.pools.as_ref().filter(|_| balancer.is_some()).map_or(Claims::Nobody, |(_, claims)| *claims);
    let source_options = SourceOptions {
        node_name: options.node_name.clone(),
        external_ips: options.external_ips,
        claims,
        names: options.dns.is_some(),
    };
    let api = source.server();
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
    if let Some(api) = api {
        engine.world_mut().set_api(api);
    }
    let dns = match &options.dns {
        Some(dns) => {
            engine.world_mut().serve_names();
            Some(dns::start(dns.clone(), metrics.dns()).context("cannot start the DNS server")?)
        }
        None => None,
    };
    // Without pools nothing is announced, whatever an earlier agent has left.
    if announcing.is_some() {
        engine.note_programmed();
    } else if let Err(error) = engine.maps().set_announced(&BTreeMap::new()) {
        tracing::error!("what an earlier agent announced stays announced: {:#}", anyhow::Error::from(error));
    }
    // As large as all that is programmed, and of no use any more.
    drop(observed);
    let mut agent = Agent {
        repair: Repair::new(options.repair_interval),
        lacks_sources: false,
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
        elected,
        pools: pools_news,
        announcing,
        started: Instant::now(),
        untrimmed: SERVICES_A_TRIM,
        changes,
        events,
    };
    // From here on `auto` is what it has come to.
    agent.options.masquerade = if programs_masquerade { Masquerade::Programs } else { Masquerade::Nftables };
    if programs_masquerade {
        agent.reserve_ports();
    }
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
    /// The client, and where the server is if that is known.
    Kubernetes(Box<::kube::Client>, Option<SocketAddr>),
    Manifests(PathBuf),
}

/// One of those who may give addresses to the Services of the API.
fn elect(
    client: &::kube::Client,
    options: &Options,
    pools: Pools,
    metrics: &Metrics,
) -> (Elected, watch::Sender<Pools>) {
    let (sender, pools) = watch::channel(pools);
    let elected = elected::drive::Options {
        node: options.node_name.clone(),
        namespace: options.lease_namespace.clone(),
        claims: options.pools.as_ref().map_or(Claims::Nobody, |(_, claims)| *claims),
        pools,
    };
    (elected::drive::start(client.clone(), elected, metrics.pools()), sender)
}

async fn connect(source: &Source) -> anyhow::Result<Connected> {
    Ok(match source {
        Source::Manifests(dir) => Connected::Manifests(dir.clone()),
        Source::Kubernetes(kubeconfig) => {
            let connection = source::kube::connection(kubeconfig.as_deref()).await;
            let (client, server) = connection.context("cannot reach the Kubernetes API")?;
            Connected::Kubernetes(Box::new(client), server)
        }
    })
}

impl Connected {
    /// Where the API server is, if it was given as an address.
    fn server(&self) -> Option<SocketAddr> {
        match self {
            Self::Kubernetes(_, server) => *server,
            Self::Manifests(_) => None,
        }
    }

    fn start(self, options: SourceOptions, changes: mpsc::Sender<Change>) -> JoinHandle<Result<(), SourceError>> {
        match self {
            Self::Kubernetes(client, _) => tokio::spawn(source::kube::run(*client, options, changes)),
            Self::Manifests(dir) => tokio::spawn(source::manifests::run(dir, options, changes)),
        }
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
