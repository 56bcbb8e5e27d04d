//! Metrics out of the maps, read when they are asked for: counters of Services and backends, drops, fill.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};
use svc_common::{BackendState, Counters};

use super::Failures;
use crate::{
    cli::names::PortName,
    kernel::view::{Snapshot, ViewError},
};

type Read = Box<dyn Fn() -> Result<Snapshot, ViewError> + Send + Sync>;
type Labels = Vec<(&'static str, String)>;

/// The maps as a source of metrics.
pub(super) struct Maps {
    read: Read,
    failures: Failures,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("failures", &self.failures).finish_non_exhaustive()
    }
}

impl Maps {
    pub(super) fn new(read: impl Fn() -> Result<Snapshot, ViewError> + Send + Sync + 'static) -> Self {
        Self { read: Box::new(read), failures: Failures::default() }
    }
}

impl Collector for Maps {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshot = match (self.read)() {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                if self.failures.add() == 1 {
                    tracing::warn!(%error, "cannot read the maps for metrics");
                }
                None
            }
        };
        let failures = [(Labels::new(), self.failures.get())];
        counter(&mut encoder, "svc_scrape_failures", "Scrapes that could not read the maps", failures)?;
        snapshot.map_or(Ok(()), |snapshot| encode(&mut encoder, &snapshot))
    }
}

fn encode(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> Result<(), fmt::Error> {
    let services: Vec<_> = snapshot.services.iter().map(|(id, name)| (id, service(&PortName::from(&**name)))).collect();
    let of_service = |field: fn(&Counters) -> u64| {
        let counters = services.iter().filter_map(|(id, labels)| Some((labels, snapshot.service_counters.get(id)?)));
        counters.map(move |(labels, counters)| (labels.clone(), field(counters))).collect::<Vec<_>>()
    };
    counter(encoder, "svc_service_packets", "Packets of a Service port, both directions", of_service(|c| c.packets))?;
    counter(encoder, "svc_service_bytes", "Bytes of a Service port, both directions", of_service(|c| c.bytes))?;
    counter(encoder, "svc_service_connections", "New connections of a Service port", of_service(|c| c.connections))?;

    let backend = |id: &u32| {
        let value = snapshot.backends.get(id)?;
        let mut labels = service(&PortName::from(&**snapshot.services.get(&value.service)?));
        labels.push(("backend", value.address.to_string()));
        Some(labels)
    };
    let backends: Vec<_> = snapshot.backend_counters.iter().filter_map(|(id, c)| Some((backend(id)?, c))).collect();
    let of_backend = |field: fn(&Counters) -> u64| {
        backends.iter().map(move |(labels, counters)| (labels.clone(), field(counters))).collect::<Vec<_>>()
    };
    counter(encoder, "svc_backend_packets", "Packets of a backend, both directions", of_backend(|c| c.packets))?;
    counter(encoder, "svc_backend_bytes", "Bytes of a backend, both directions", of_backend(|c| c.bytes))?;
    counter(encoder, "svc_backend_connections", "New connections of a backend", of_backend(|c| c.connections))?;

    let reason = |field: fn(&Counters) -> u64| {
        let drops = snapshot.drops.iter();
        drops.map(move |(reason, counters)| (vec![("reason", reason.label().to_owned())], field(counters)))
    };
    counter(encoder, "svc_drop_packets", "Packets that were not delivered, by reason", reason(|c| c.packets))?;
    counter(encoder, "svc_drop_bytes", "Bytes that were not delivered, by reason", reason(|c| c.bytes))?;

    let map = |name: &String| vec![("map", name.clone())];
    let entries = snapshot.maps.iter().filter_map(|(name, fill)| Some((map(name), fill.entries?)));
    gauge(encoder, "svc_map_entries", "Entries of a map", entries)?;
    let capacity = snapshot.maps.iter().map(|(name, fill)| (map(name), fill.capacity));
    gauge(encoder, "svc_map_capacity", "Most entries of a map", capacity)?;
    let memory = snapshot.maps.iter().map(|(name, fill)| (map(name), fill.bytes));
    gauge(encoder, "svc_map_memory_bytes", "Kernel memory of a map", memory)?;

    let in_state = |state| snapshot.backends.values().filter(|backend| backend.state == state).count() as u64;
    let states = [("active", BackendState::Active), ("terminating", BackendState::Terminating)];
    let states = states.map(|(label, state)| (vec![("state", label.to_owned())], in_state(state)));
    gauge(encoder, "svc_backends", "Backends by state", states)?;
    gauge(
        encoder,
        "svc_service_ports",
        "Service ports, each family for itself",
        [(Labels::new(), snapshot.services.len() as u64)],
    )?;
    gauge(encoder, "svc_attachments", "Attached programs", [(Labels::new(), snapshot.attachments.len() as u64)])
}

fn service(port: &PortName) -> Labels {
    vec![
        ("namespace", port.namespace.clone()),
        ("name", port.name.clone()),
        ("port", port.port.to_string()),
        ("protocol", port.protocol.clone()),
        ("port_name", port.port_name.clone()),
        ("family", port.family.clone()),
    ]
}

fn counter(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, u64)>,
) -> Result<(), fmt::Error> {
    samples(encoder, (name, help, MetricType::Counter), values, |value, encoder| {
        encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
    })
}

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, u64)>,
) -> Result<(), fmt::Error> {
    samples(encoder, (name, help, MetricType::Gauge), values, |value, encoder| encoder.encode_gauge(&value))
}

fn samples(
    encoder: &mut DescriptorEncoder,
    (name, help, kind): (&str, &str, MetricType),
    values: impl IntoIterator<Item = (Labels, u64)>,
    encode: fn(u64, &mut MetricEncoder) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    // The registry ends the texts of its own metrics with a full stop.
    let help = format!("{help}.");
    let mut metric = encoder.encode_descriptor(name, &help, None, kind)?;
    for (labels, value) in values {
        if labels.is_empty() {
            encode(value, &mut metric)?;
        } else {
            encode(value, &mut metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
