//! `svc backends`: where connections go, one line for each endpoint of each Service port.

use std::path::Path;

use serde::Serialize;
use svc_common::{BackendState, Counters};

use super::{
    Output, OutputArg,
    names::{PortName, ServiceFilter, picked},
    render,
    table::Table,
};
use crate::kernel::view::{Pins, Snapshot};

/// Arguments of `svc backends`.
#[derive(Debug, clap::Args)]
pub struct BackendsArgs {
    /// Only backends of this Service: NAME or NAMESPACE/NAME
    pub service: Option<ServiceFilter>,
    /// Only backends of Services of this namespace
    #[arg(short, long, env = "SVC_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    output: OutputArg,
}

/// One backend.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    /// Backend id in the maps.
    pub id: u32,
    /// How often the id was given to another endpoint.
    pub generation: u32,
    /// The Service port it belongs to.
    pub service: PortName,
    /// `address:port` of the endpoint.
    pub address: String,
    /// `active`, or `terminating`: existing connections only, unless nothing else is left.
    pub state: &'static str,
    /// Runs on this node.
    pub local: bool,
    /// New connections since it was programmed.
    pub connections: u64,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes from the IP header on, both directions.
    pub bytes: u64,
}

/// Runs the command.
pub fn run(bpffs: &Path, args: &BackendsArgs) -> anyhow::Result<()> {
    let rows = rows(&Pins::open(bpffs)?.snapshot()?, args.namespace.as_deref(), args.service.as_ref());
    match args.output.output {
        Output::Json => render::print(&render::json(&rows)?),
        output => render::table(&table(&rows, output == Output::Wide), "backends"),
    }
}

/// The backends of a snapshot that the filters pick, by Service and address.
pub fn rows(snapshot: &Snapshot, namespace: Option<&str>, filter: Option<&ServiceFilter>) -> Vec<BackendRow> {
    let mut rows = Vec::new();
    for (&id, backend) in &snapshot.backends {
        let service = snapshot.services.get(&backend.service).map(|name| PortName::from(&**name)).unwrap_or_default();
        if !picked(&service, namespace, filter) {
            continue;
        }
        let Counters { packets, bytes, connections } = snapshot.backend_counters.get(&id).copied().unwrap_or_default();
        let state = match backend.state {
            BackendState::Active => "active",
            BackendState::Terminating => "terminating",
            BackendState::Gone => continue,
        };
        let row = BackendRow {
            id,
            generation: backend.generation,
            service,
            address: backend.address.to_string(),
            state,
            local: backend.local,
            connections,
            packets,
            bytes,
        };
        rows.push((backend.address, row));
    }
    rows.sort_by(|(a_address, a), (b_address, b)| (&a.service, a_address).cmp(&(&b.service, b_address)));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The rows as a table.
pub fn table(rows: &[BackendRow], wide: bool) -> Table {
    let mut headers =
        vec!["NAMESPACE", "SERVICE", "PORT", "BACKEND", "STATE", "LOCAL", "CONNECTIONS", "PACKETS", "BYTES"];
    if wide {
        headers.extend(["ID", "GENERATION"]);
    }
    let mut table = Table::new(headers);
    for row in rows {
        let mut cells = vec![
            row.service.namespace.clone(),
            row.service.name.clone(),
            row.service.port_text(),
            row.address.clone(),
            row.state.to_owned(),
            if row.local { "yes" } else { "no" }.to_owned(),
            render::count(row.connections),
            render::count(row.packets),
            render::bytes(row.bytes),
        ];
        if wide {
            cells.extend([row.id.to_string(), row.generation.to_string()]);
        }
        table.row(cells);
    }
    table
}
