//! `svc services`: what is programmed, one line for each Service port and family.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use svc_common::{
    BackendState, Counters, Frontend, SlotRange,
    frontend::{
        FLAG_CLUSTER_IP, FLAG_EXTERNAL_IP, FLAG_HOST_ONLY, FLAG_INSIDE_DROP, FLAG_LOAD_BALANCER, FLAG_NODE_PORT,
        FLAG_OUTSIDE_DROP,
    },
};

use super::{
    Output, OutputArg,
    names::{PortName, ServiceFilter, picked},
    render,
    table::Table,
};
use crate::kernel::view::{Pins, Snapshot};

/// Arguments of `svc services`.
#[derive(Debug, clap::Args)]
pub struct ServicesArgs {
    /// Only this Service: NAME or NAMESPACE/NAME
    pub service: Option<ServiceFilter>,
    /// Only Services of this namespace
    #[arg(short, long, env = "SVC_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    output: OutputArg,
}

/// One Service port of one family.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Service id in the maps.
    pub id: u32,
    /// Which Service port it is.
    #[serde(flatten)]
    pub port: PortName,
    /// Time-out of `sessionAffinity: ClientIP`, 0 without.
    pub affinity_seconds: u32,
    /// Addresses that lead to it.
    pub frontends: Vec<FrontendRow>,
    /// Backends for new and existing connections.
    pub active_backends: usize,
    /// Backends for existing connections.
    pub terminating_backends: usize,
    /// New connections since the Service was programmed.
    pub connections: u64,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes from the IP header on, both directions.
    pub bytes: u64,
}

/// An address of a Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    /// `address:port`.
    pub address: String,
    /// `cluster-ip`, `node-port`, `load-balancer`, `external-ip`.
    pub kinds: Vec<&'static str>,
    /// Only sockets of this host use it.
    pub host_only: bool,
    /// What happens to traffic from pods and from the node: `balance`, `reject` (no endpoint) or `drop` (policy).
    pub inside: &'static str,
    /// The same for traffic from elsewhere.
    pub outside: &'static str,
}

/// Runs the command.
pub fn run(bpffs: &Path, args: &ServicesArgs) -> anyhow::Result<()> {
    let rows = rows(&Pins::open(bpffs)?.snapshot()?, args.namespace.as_deref(), args.service.as_ref());
    match args.output.output {
        Output::Json => render::print(&render::json(&rows)?),
        output => render::table(&table(&rows, output == Output::Wide), "services"),
    }
}

/// The Service ports of a snapshot that the filters pick, by namespace, name, port.
pub fn rows(snapshot: &Snapshot, namespace: Option<&str>, filter: Option<&ServiceFilter>) -> Vec<ServiceRow> {
    let mut frontends: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (address, frontend) in &snapshot.frontends {
        frontends.entry(frontend.service).or_default().push((address.address, frontend));
    }
    let mut backends: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for backend in snapshot.backends.values() {
        let (active, terminating) = backends.entry(backend.service).or_default();
        match backend.state {
            BackendState::Active => *active += 1,
            BackendState::Terminating => *terminating += 1,
            BackendState::Gone => {}
        }
    }
    let mut rows = Vec::new();
    for (&id, name) in &snapshot.services {
        let port = PortName::from(&**name);
        if !picked(&port, namespace, filter) {
            continue;
        }
        let own = frontends.remove(&id).unwrap_or_default();
        let (active_backends, terminating_backends) = backends.get(&id).copied().unwrap_or_default();
        let Counters { packets, bytes, connections } = snapshot.service_counters.get(&id).copied().unwrap_or_default();
        rows.push(ServiceRow {
            id,
            port,
            affinity_seconds: own.iter().map(|(_, frontend)| frontend.affinity_seconds).max().unwrap_or(0),
            frontends: own.iter().map(|(address, frontend)| frontend_row(address.to_string(), frontend)).collect(),
            active_backends,
            terminating_backends,
            connections,
            packets,
            bytes,
        });
    }
    rows.sort_by(|a, b| a.port.cmp(&b.port));
    rows
}

fn frontend_row(address: String, frontend: &Frontend) -> FrontendRow {
    let kinds = [
        (FLAG_CLUSTER_IP, "cluster-ip"),
        (FLAG_NODE_PORT, "node-port"),
        (FLAG_LOAD_BALANCER, "load-balancer"),
        (FLAG_EXTERNAL_IP, "external-ip"),
    ];
    let fate = |range: SlotRange, drop: u32| match range.len {
        0 if frontend.flags & drop != 0 => "drop",
        0 => "reject",
        _ => "balance",
    };
    FrontendRow {
        address,
        kinds: kinds.iter().filter(|(flag, _)| frontend.flags & flag != 0).map(|&(_, kind)| kind).collect(),
        host_only: frontend.flags & FLAG_HOST_ONLY != 0,
        inside: fate(frontend.inside, FLAG_INSIDE_DROP),
        outside: fate(frontend.outside, FLAG_OUTSIDE_DROP),
    }
}

/// The rows as a table.
pub fn table(rows: &[ServiceRow], wide: bool) -> Table {
    let mut headers = vec![
        "NAMESPACE",
        "NAME",
        "PORT",
        "FAMILY",
        "CLUSTER-IP",
        "EXTERNAL",
        "NODE-PORT",
        "BACKENDS",
        "CONNECTIONS",
        "PACKETS",
        "BYTES",
    ];
    if wide {
        headers.extend(["ID", "AFFINITY", "ADDRESSES"]);
    }
    let mut table = Table::new(headers);
    for row in rows {
        let of = |kind: &'static str| {
            row.frontends.iter().filter(move |f| f.kinds.contains(&kind)).map(|f| split(&f.address))
        };
        let external: Vec<_> = of("load-balancer").chain(of("external-ip")).map(|(address, _)| address).collect();
        let backends = match row.terminating_backends {
            0 => row.active_backends.to_string(),
            n => format!("{} (+{n} terminating)", row.active_backends),
        };
        let mut cells = vec![
            row.port.namespace.clone(),
            row.port.name.clone(),
            row.port.port_text(),
            row.port.family.clone(),
            of("cluster-ip").map(|(address, _)| address).collect::<Vec<_>>().join(","),
            external.join(","),
            of("node-port").next().map(|(_, port)| port.to_owned()).unwrap_or_default(),
            backends,
            render::count(row.connections),
            render::count(row.packets),
            render::bytes(row.bytes),
        ];
        if wide {
            let affinity = if row.affinity_seconds == 0 { String::new() } else { format!("{}s", row.affinity_seconds) };
            let addresses = row.frontends.iter().map(address_text).collect::<Vec<_>>();
            cells.extend([row.id.to_string(), affinity, addresses.join(" ")]);
        }
        table.row(cells);
    }
    table
}

fn address_text(frontend: &FrontendRow) -> String {
    if frontend.inside == frontend.outside && frontend.inside == "balance" {
        return frontend.address.clone();
    }
    format!("{}[inside:{},outside:{}]", frontend.address, frontend.inside, frontend.outside)
}

/// `address:port` apart, without the brackets of IPv6.
fn split(address: &str) -> (&str, &str) {
    let (address, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (address.trim_start_matches('[').trim_end_matches(']'), port)
}
