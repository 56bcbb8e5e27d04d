//! What the agent counts, in Prometheus' OpenMetrics text. kube-proxy's names where the meaning is the same, `svc_` for
//! what is this project's own. What the maps know is read from them when somebody asks ([`scrape`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{
    agent::heap,
    balancer::elected,
    dns,
    health::server,
    kernel::view::{Snapshot, ViewError},
    model::{ObjectName, Problem},
    tables::{Fill, Usage},
};

mod scrape;

type Label = (&'static str, String);
type Seconds = Gauge<f64, AtomicU64>;

/// Every metric.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    service_changes: Gauge,
    service_pending: Gauge,
    endpoint_changes: Gauge,
    endpoint_pending: Gauge,
    sync_duration: Histogram,
    last_timestamp: Seconds,
    last_queued: Seconds,
    programming: Histogram,
    no_local: Family<[Label; 1], Gauge>,
    healthz: Family<[Label; 1], Counter>,
    livez: Family<[Label; 1], Counter>,
    apply_failures: Counter,
    attach_failures: Counter,
    interfaces_missing: Gauge,
    sockets_destroyed: Counter,
    socket_sweep_failures: Counter,
    problems: Family<[Label; 4], Gauge>,
    problem_fields: Mutex<BTreeMap<(String, String), BTreeSet<String>>>,
    refused: Family<[Label; 2], Gauge>,
    withheld: Family<[Label; 2], Gauge>,
    repairs: Family<[Label; 1], Counter>,
    repair_problems: Family<[Label; 1], Gauge>,
    repair_passes: Counter,
    repair_work: Seconds,
    repair_slice: Seconds,
    xdp_missing: Gauge,
    usage: Family<[Label; 2], Gauge>,
    capacity: Family<[Label; 1], Gauge>,
    dns: Arc<dns::metrics::Counters>,
    pools: Arc<elected::counters::Counters>,
}

impl Metrics {
    /// All at zero. `read` reads the maps when metrics are asked for.
    pub fn new(read: impl Fn() -> Result<Snapshot, ViewError> + Send + Sync + 'static) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            service_changes: Gauge::default(),
            service_pending: Gauge::default(),
            endpoint_changes: Gauge::default(),
            endpoint_pending: Gauge::default(),
            sync_duration: Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.000_1, 2.0, 18)),
            last_timestamp: Seconds::default(),
            last_queued: Seconds::default(),
            programming: Histogram::new(PROGRAMMING_BUCKETS),
            no_local: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            apply_failures: Counter::default(),
            attach_failures: Counter::default(),
            interfaces_missing: Gauge::default(),
            sockets_destroyed: Counter::default(),
            socket_sweep_failures: Counter::default(),
            problems: Family::default(),
            problem_fields: Mutex::default(),
            refused: Family::default(),
            withheld: Family::default(),
            repairs: Family::default(),
            repair_problems: Family::default(),
            repair_passes: Counter::default(),
            repair_work: Seconds::default(),
            repair_slice: Seconds::default(),
            xdp_missing: Gauge::default(),
            usage: Family::default(),
            capacity: Family::default(),
            dns: Arc::default(),
            pools: Arc::default(),
        };
        let registry = metrics.register();
        metrics.registry = registry;
        metrics.registry.register_collector(Box::new(scrape::Maps::new(read)));
        metrics.set_no_local(0, 0);
        metrics
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::default();
        let r = &mut registry;
        let sync = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        r.register(sync("service_changes_total"), "Service changes seen", self.service_changes.clone());
        r.register(sync("service_changes_pending"), "Service changes not programmed yet", self.service_pending.clone());
        r.register(sync("endpoint_changes_total"), "EndpointSlice changes seen", self.endpoint_changes.clone());
        r.register(
            sync("endpoint_changes_pending"),
            "EndpointSlice changes not programmed yet",
            self.endpoint_pending.clone(),
        );
        r.register(sync("duration_seconds"), "Time to compile and program a batch", self.sync_duration.clone());
        r.register(sync("last_timestamp_seconds"), "When a batch was programmed last", self.last_timestamp.clone());
        r.register(sync("last_queued_timestamp_seconds"), "When a change was seen last", self.last_queued.clone());
        r.register(
            sync("no_local_endpoints_total"),
            "Services whose policy is Local and that have endpoints, but none here",
            self.no_local.clone(),
        );
        r.register(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of an endpoint (its trigger-time annotation) to the maps",
            self.programming.clone(),
        );
        r.register("kubeproxy_proxy_healthz", "Answers of /healthz by code", self.healthz.clone());
        r.register("kubeproxy_proxy_livez", "Answers of /livez by code", self.livez.clone());
        r.register("svc_apply_failures", "Writes to maps that failed and are tried again", self.apply_failures.clone());
        r.register(
            "svc_attach_failures",
            "Attempts to attach to an interface that failed",
            self.attach_failures.clone(),
        );
        r.register(
            "svc_interfaces_unattached",
            "Interfaces that should have programs and do not",
            self.interfaces_missing.clone(),
        );
        r.register(
            "svc_repairs",
            "Entries of maps, attachments, pins and settings that were changed from outside and are right again",
            self.repairs.clone(),
        );
        r.register(
            "svc_repair_problem",
            "1 for what could not be compared or repaired the last time it was tried",
            self.repair_problems.clone(),
        );
        r.register("svc_repair_passes", "Comparisons that came to their end", self.repair_passes.clone());
        r.register("svc_repair_work_seconds", "Work of the last of them, without its pauses", self.repair_work.clone());
        r.register("svc_repair_longest_slice_seconds", "The longest slice of it", self.repair_slice.clone());
        r.register(
            "svc_xdp_unattached",
            "Uplinks that should have the XDP program and do not; their packets go through tc",
            self.xdp_missing.clone(),
        );
        r.register(
            "svc_sockets_destroyed",
            "UDP sockets of the host that were told that their backend is gone",
            self.sockets_destroyed.clone(),
        );
        r.register(
            "svc_socket_sweep_failures",
            "Failures to find or tell such sockets",
            self.socket_sweep_failures.clone(),
        );
        r.register(
            "svc_object_problem",
            "A field of an object that makes no sense and is not used",
            self.problems.clone(),
        );
        r.register("svc_refused_ports", "Ports of a Service that are not programmed, by Service", self.refused.clone());
        r.register(
            "svc_withheld_addresses",
            "Addresses and ports that a Service names and that are another's, by Service",
            self.withheld.clone(),
        );
        r.register("svc_table_usage", "Ids, entries and slots in use or resting, by table", self.usage.clone());
        r.register("svc_table_capacity", "Most of them that can be in use, by table", self.capacity.clone());
        self.dns.register(r);
        self.pools.register(r);
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("svc_build", "Version of the agent", Info::new(version));
        registry
    }

    /// What the DNS server counts.
    pub fn dns(&self) -> Arc<dns::metrics::Counters> {
        self.dns.clone()
    }

    /// What the writer of load-balancer addresses counts.
    pub fn pools(&self) -> Arc<elected::counters::Counters> {
        self.pools.clone()
    }

    /// Everything as OpenMetrics text. Reads the maps: not for a thread that must not wait.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A Service change was seen.
    pub fn service_change(&self) {
        self.service_changes.inc();
        self.service_pending.inc();
        self.last_queued.set(now_seconds());
    }

    /// An EndpointSlice change was seen.
    pub fn endpoint_change(&self) {
        self.endpoint_changes.inc();
        self.endpoint_pending.inc();
        self.last_queued.set(now_seconds());
    }

    /// Nothing waits any more.
    pub fn set_pending_to_none(&self) {
        self.service_pending.set(0);
        self.endpoint_pending.set(0);
    }

    /// A batch took this long, and was done at this time since 1970.
    pub fn synced_in(&self, duration: Duration, now: Duration) {
        self.sync_duration.observe(duration.as_secs_f64());
        self.last_timestamp.set(now.as_secs_f64());
    }

    /// The maps have a change that was triggered this many milliseconds ago.
    pub fn programmed_after(&self, milliseconds: i64) {
        let milliseconds = u32::try_from(milliseconds.max(0)).unwrap_or(u32::MAX);
        self.programming.observe(f64::from(milliseconds) / 1000.0);
    }

    /// Services with a Local policy and without a local endpoint.
    pub fn set_no_local(&self, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            self.no_local.get_or_create(&[("traffic_policy", policy.to_owned())]).set(whole(count));
        }
    }

    /// /healthz was asked.
    pub fn healthz(&self, code: StatusCode) {
        self.healthz.get_or_create(&[("code", code.as_str().to_owned())]).inc();
    }

    /// /livez was asked.
    pub fn livez(&self, code: StatusCode) {
        self.livez.get_or_create(&[("code", code.as_str().to_owned())]).inc();
    }

    /// A write failed.
    pub fn apply_failed(&self) {
        self.apply_failures.inc();
    }

    /// An attachment failed.
    pub fn attach_failed(&self) {
        self.attach_failures.inc();
    }

    /// Sockets were told that their backend is gone.
    pub fn sockets_destroyed(&self, count: usize) {
        self.sockets_destroyed.inc_by(count as u64);
    }

    /// Sockets could not be found or told.
    pub fn socket_sweep_failed(&self) {
        self.socket_sweep_failures.inc();
    }

    /// Interfaces without the programs they should have.
    pub fn set_interfaces_missing(&self, count: usize) {
        self.interfaces_missing.set(whole(count));
    }

    /// Something of this kind (a map's name, or what else it is) was changed from outside, and is right again.
    pub fn repaired(&self, what: &'static str, count: u64) {
        self.repairs.get_or_create(&[("what", what.to_owned())]).inc_by(count);
    }

    /// Whether something of this kind could not be repaired; true if that is news.
    pub fn set_repair_problem(&self, what: &'static str, exists: bool) -> bool {
        let labels = [("what", what.to_owned())];
        if exists {
            return self.repair_problems.get_or_create(&labels).set(1) == 0;
        }
        self.repair_problems.remove(&labels)
    }

    /// Everything was compared once more, with so much work in all and at once.
    pub fn repair_passed(&self, work: Duration, longest: Duration) {
        self.repair_passes.inc();
        self.repair_work.set(work.as_secs_f64());
        self.repair_slice.set(longest.as_secs_f64());
    }

    /// Uplinks without the XDP program that they should have.
    pub fn set_xdp_missing(&self, count: usize) {
        self.xdp_missing.set(whole(count));
    }

    /// A field makes no sense. The source that found it has logged it.
    pub fn problem(&self, problem: &Problem) {
        let mut fields = self.problem_fields.lock().unwrap_or_else(PoisonError::into_inner);
        let object = (problem.kind.to_owned(), problem.name.clone());
        fields.entry(object).or_default().insert(problem.field.clone());
        self.problems.get_or_create(&labels(problem.kind, &problem.name, &problem.field)).set(1);
    }

    /// An object was reported anew: what was wrong with it before no longer is.
    pub fn no_problem(&self, kind: &str, name: &str) {
        let mut fields = self.problem_fields.lock().unwrap_or_else(PoisonError::into_inner);
        for field in fields.remove(&(kind.to_owned(), name.to_owned())).unwrap_or_default() {
            self.problems.remove(&labels(kind, name, &field));
        }
    }

    /// Ports of a Service that are refused.
    pub fn set_refused(&self, service: &ObjectName, ports: usize) {
        let labels = [("namespace", service.namespace.to_string()), ("name", service.name.to_string())];
        if ports == 0 {
            self.refused.remove(&labels);
        } else {
            self.refused.get_or_create(&labels).set(whole(ports));
        }
    }

    /// Addresses and ports that a Service names and does not get.
    pub fn set_withheld(&self, service: &ObjectName, addresses: usize) {
        let labels = [("namespace", service.namespace.to_string()), ("name", service.name.to_string())];
        if addresses == 0 {
            self.withheld.remove(&labels);
        } else {
            self.withheld.get_or_create(&labels).set(whole(addresses));
        }
    }

    /// How full the tables are.
    pub fn set_fill(&self, fill: Fill) {
        let Fill { services, backends, frontends_v4, frontends_v6, slots, source_ranges_v4, source_ranges_v6 } = fill;
        for (table, Usage { used, resting, capacity }) in [
            ("services", services),
            ("backends", backends),
            ("frontends_v4", frontends_v4),
            ("frontends_v6", frontends_v6),
            ("slots", slots),
            ("source_ranges_v4", source_ranges_v4),
            ("source_ranges_v6", source_ranges_v6),
        ] {
            for (state, count) in [("used", used), ("resting", resting)] {
                self.usage.get_or_create(&[("table", table.to_owned()), ("state", state.to_owned())]).set(count.into());
            }
            self.capacity.get_or_create(&[("table", table.to_owned())]).set(capacity.into());
        }
    }
}

/// Up to a second finer than kube-proxy's, since most changes take milliseconds; from there on the same.
const PROGRAMMING_BUCKETS: [f64; 23] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0,
    120.0, 180.0, 240.0, 300.0,
];

fn labels(kind: &str, name: &str, field: &str) -> [Label; 4] {
    let (namespace, name) = match name.split_once('/') {
        // The name of a file is a path.
        Some((namespace, name)) if kind != "File" => (namespace, name),
        _ => ("", name),
    };
    [
        ("kind", kind.to_owned()),
        ("namespace", namespace.to_owned()),
        ("name", name.to_owned()),
        ("field", field.to_owned()),
    ]
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn now_seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Serves /metrics, for as long as the future is polled.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) {
    let router = Router::new().route("/metrics", get(async move || answer(metrics).await));
    match server::keep(address, "/metrics", router).await {}
}

/// Texts beyond this leave much behind in the heap.
const LARGE: usize = 1 << 20;

async fn answer(metrics: Arc<Metrics>) -> Response {
    // Reading the maps is many short system calls: not on a thread that serves others.
    match tokio::task::spawn_blocking(move || metrics.encode()).await {
        Ok(Ok(text)) => {
            if text.len() > LARGE {
                heap::give_back();
            }
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The number of scrapes that could not read the maps.
#[derive(Debug, Default)]
struct Failures(AtomicU64);

impl Failures {
    fn add(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
