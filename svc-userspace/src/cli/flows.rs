//! `svc flows`: the connections of now, as the flow tables have them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
};

use ipnet::IpNet;
use serde::Serialize;
use svc_common::ServiceName;

use super::{
    Output, OutputArg,
    names::{PortName, ServiceFilter, picked},
    render,
    table::Table,
};
use crate::kernel::view::{FlowEntry, Pins};

/// Arguments of `svc flows`.
#[derive(Debug, clap::Args)]
pub struct FlowsArgs {
    /// Only flows of this Service: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub service: Option<ServiceFilter>,
    /// Only flows of Services of this namespace
    #[arg(short, long, env = "SVC_NAMESPACE")]
    pub namespace: Option<String>,
    /// Only flows with this source: ADDRESS, ADDRESS:PORT or PREFIX/LENGTH
    #[arg(long)]
    pub source: Option<EndpointFilter>,
    /// Only flows with this destination: ADDRESS, ADDRESS:PORT or PREFIX/LENGTH
    #[arg(long)]
    pub destination: Option<EndpointFilter>,
    /// At most this many; 0: all
    #[arg(long, env = "SVC_LIMIT", default_value_t = 0)]
    pub limit: usize,
    #[command(flatten)]
    output: OutputArg,
}

/// `ADDRESS`, `ADDRESS:PORT` or `PREFIX/LENGTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFilter {
    /// One address, any port.
    Address(IpAddr),
    /// One address and port.
    Socket(SocketAddr),
    /// Any address of a prefix.
    Prefix(IpNet),
}

impl FromStr for EndpointFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(Self::Address).ok();
        let socket = || text.parse().map(Self::Socket).ok();
        let prefix = || text.parse().map(Self::Prefix).ok();
        address
            .or_else(socket)
            .or_else(prefix)
            .ok_or_else(|| "write ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT or PREFIX/LENGTH".to_owned())
    }
}

impl EndpointFilter {
    fn matches(&self, endpoint: SocketAddr) -> bool {
        match self {
            Self::Address(address) => *address == endpoint.ip(),
            Self::Socket(socket) => *socket == endpoint,
            Self::Prefix(prefix) => prefix.contains(&endpoint.ip()),
        }
    }
}

/// A flow with the name of its Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    /// The Service port, absent if it is gone.
    pub service_port: Option<PortName>,
    /// The entry.
    #[serde(flatten)]
    pub flow: FlowEntry,
}

/// Runs the command.
pub fn run(bpffs: &Path, args: &FlowsArgs) -> anyhow::Result<()> {
    let pins = Pins::open(bpffs)?;
    let names = pins.snapshot()?.services;
    let mut rows = Vec::new();
    let mut more = 0_usize;
    pins.flows(&mut |flow| {
        if let Some(row) = row(flow, &names, args) {
            if args.limit == 0 || rows.len() < args.limit {
                rows.push(row);
            } else {
                more += 1;
            }
        }
    })?;
    sort(&mut rows);
    match args.output.output {
        Output::Json => render::print(&render::json(&rows)?)?,
        output => render::table(&table(&rows, output == Output::Wide), "flows")?,
    }
    if more > 0 {
        eprintln!("{more} more flows match; raise --limit to see them.");
    }
    Ok(())
}

/// The row of a flow, if the filters pick it.
fn row(flow: FlowEntry, names: &BTreeMap<u32, Box<ServiceName>>, args: &FlowsArgs) -> Option<FlowRow> {
    let picked_ends = args.source.is_none_or(|filter| filter.matches(flow.source))
        && args.destination.is_none_or(|filter| filter.matches(flow.destination));
    let service_port = names.get(&flow.service).map(|name| PortName::from(&**name));
    let name = service_port.clone().unwrap_or_default();
    let picked_name = picked(&name, args.namespace.as_deref(), args.service.as_ref());
    (picked_ends && picked_name).then_some(FlowRow { service_port, flow })
}

fn sort(rows: &mut [FlowRow]) {
    rows.sort_by(|a, b| {
        let key = |row: &FlowRow| (row.flow.source, row.flow.destination, row.flow.protocol, row.flow.hook);
        a.service_port.cmp(&b.service_port).then_with(|| key(a).cmp(&key(b)))
    });
}

/// The rows as a table.
pub fn table(rows: &[FlowRow], wide: bool) -> Table {
    let mut headers = vec!["SERVICE", "PROTOCOL", "SOURCE", "DESTINATION", "HOOK", "REWRITE", "STATE", "IDLE"];
    if wide {
        headers.extend(["PEER-PORT", "MASQUERADE", "SERVICE-ID", "BACKEND-ID"]);
    }
    let mut table = Table::new(headers);
    for FlowRow { service_port, flow } in rows {
        let side = if flow.hook == "egress" { "source" } else { "destination" };
        let mut cells = vec![
            service_port.as_ref().map(PortName::object).unwrap_or_default(),
            flow.protocol.to_string(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.hook.to_owned(),
            format!("{side}={}", flow.rewrite),
            flow.state.to_owned(),
            format!("{}s", flow.idle_seconds),
        ];
        if wide {
            cells.extend([
                if flow.peer_port == 0 { String::new() } else { flow.peer_port.to_string() },
                if flow.masquerade { "yes" } else { "no" }.to_owned(),
                flow.service.to_string(),
                flow.backend.to_string(),
            ]);
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_filter_takes_an_address_a_socket_or_a_prefix() -> Result<(), Box<dyn std::error::Error>> {
        let web: SocketAddr = "10.0.0.1:80".parse()?;
        for (filter, expected) in [
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("10.0.0.1:80", true),
            ("10.0.0.1:81", false),
            ("10.0.0.0/8", true),
            ("fd00::/8", false),
        ] {
            assert_eq!(filter.parse::<EndpointFilter>()?.matches(web), expected, "{filter}");
        }
        assert!("10.0.0.1:x".parse::<EndpointFilter>().is_err());
        Ok(())
    }
}
