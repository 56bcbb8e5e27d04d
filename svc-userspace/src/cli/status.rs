//! `svc status`: whether the dataplane works, from the pins, and whether its agent does, from /healthz.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde::Serialize;
use svc_common::{
    BackendState, LAYOUT_VERSION, Scope,
    config::{
        CONFIG_MASQUERADE, CONFIG_SOCKET_HOST, CONFIG_SOCKET_PODS_TCP, CONFIG_SOCKET_PODS_UDP, CONFIG_SYNCED,
        INTERFACE_BRIDGE_PORT,
    },
};

use super::{Output, OutputArg, agent::DEFAULT_HEALTHZ, names, render, table::Table};
use crate::kernel::view::{Attachment, MapFill, Pins, Snapshot};

/// Arguments of `svc status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the agent answers /healthz
    #[arg(long, env = "SVC_HEALTHZ_ADDRESS", value_name = "ADDR:PORT", default_value_t = DEFAULT_HEALTHZ)]
    pub healthz_address: SocketAddr,
    #[command(flatten)]
    output: OutputArg,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Directory of the pins.
    pub bpffs: String,
    /// Version of the map layout.
    pub layout: u32,
    /// Every Service has been programmed once since the dataplane was made.
    pub synced: bool,
    /// The agent, which the dataplane does not need to forward.
    pub agent: AgentStatus,
    /// Whose sockets are translated: `host`, `pods-tcp`, `pods-udp`.
    pub socket_lb: Vec<&'static str>,
    /// Who masquerades new flows: `nftables` or `programs`.
    pub masquerade: &'static str,
    /// Services, by namespace and name.
    pub services: usize,
    /// Service ports, each family for itself.
    pub service_ports: usize,
    /// Addresses and ports that lead to them.
    pub frontends: usize,
    /// Backends for new and existing connections.
    pub active_backends: usize,
    /// Backends for existing connections.
    pub terminating_backends: usize,
    /// Interfaces that carry Service traffic.
    pub interfaces: Vec<InterfaceStatus>,
    /// Attached programs.
    pub attachments: Vec<Attachment>,
    /// Fill of every map.
    pub maps: BTreeMap<String, MapFill>,
    /// Drops by reason; reasons without drops are included.
    pub drops: Vec<DropStatus>,
}

/// What the agent says.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// `healthy`, `unhealthy` or `unreachable`.
    pub state: &'static str,
    /// Where it was asked.
    pub address: String,
    /// Its answer, or why there is none.
    pub detail: String,
}

/// One interface.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Index.
    pub index: u32,
    /// Name, absent if no such interface is in this network namespace.
    pub name: Option<String>,
    /// `inside` (pods), `outside` (uplink) or `overlay`.
    pub scope: &'static str,
    /// Port of a bridge.
    pub bridge_port: bool,
}

/// One reason of drops.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DropStatus {
    /// The label that metrics use.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it means.
    pub explanation: &'static str,
}

/// Runs the command.
pub fn run(bpffs: &Path, args: &StatusArgs) -> anyhow::Result<()> {
    let snapshot = Pins::open(bpffs)?.snapshot()?;
    let status = status(bpffs, &snapshot, ask_agent(args.healthz_address));
    match args.output.output {
        Output::Json => render::print(&render::json(&status)?),
        output => render::print(&text(&status, output == Output::Wide)),
    }
}

/// GET /healthz, with a second of patience for each step.
fn ask_agent(address: SocketAddr) -> AgentStatus {
    let patience = Duration::from_secs(1);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let address = address.to_string();
    match ask() {
        Ok(answer) => {
            let code = answer.split(' ').nth(1).unwrap_or_default();
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_owned();
            AgentStatus { state: if code == "200" { "healthy" } else { "unhealthy" }, address, detail: body }
        }
        Err(error) => AgentStatus { state: "unreachable", address, detail: error.to_string() },
    }
}

/// Name of an interface of this network namespace. nix 0.31 reports one that does not exist as an empty name.
pub(super) fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    (!name.is_empty()).then_some(name)
}

/// The answer out of a snapshot.
pub fn status(bpffs: &Path, snapshot: &Snapshot, agent: AgentStatus) -> Status {
    let flag = |flag: u32| snapshot.config.flags & flag != 0;
    let socket_lb =
        [(CONFIG_SOCKET_HOST, "host"), (CONFIG_SOCKET_PODS_TCP, "pods-tcp"), (CONFIG_SOCKET_PODS_UDP, "pods-udp")];
    let services: BTreeSet<_> =
        snapshot.services.values().map(|name| (names::text(&name.namespace), names::text(&name.name))).collect();
    let in_state = |state| snapshot.backends.values().filter(|backend| backend.state == state).count();
    let interface = |(&index, interface): (&u32, &svc_common::Interface)| InterfaceStatus {
        index,
        name: interface_name(index),
        scope: Scope::from_u8(interface.scope).label(),
        bridge_port: interface.flags & INTERFACE_BRIDGE_PORT != 0,
    };
    Status {
        bpffs: bpffs.display().to_string(),
        layout: LAYOUT_VERSION,
        synced: flag(CONFIG_SYNCED),
        agent,
        socket_lb: socket_lb.iter().filter(|&&(bit, _)| flag(bit)).map(|&(_, name)| name).collect(),
        masquerade: if flag(CONFIG_MASQUERADE) { "programs" } else { "nftables" },
        services: services.len(),
        service_ports: snapshot.services.len(),
        frontends: snapshot.frontends.len(),
        active_backends: in_state(BackendState::Active),
        terminating_backends: in_state(BackendState::Terminating),
        interfaces: snapshot.interfaces.iter().map(interface).collect(),
        attachments: snapshot.attachments.clone(),
        maps: snapshot.maps.clone(),
        drops: snapshot
            .drops
            .iter()
            .map(|(reason, counters)| DropStatus {
                reason: reason.label(),
                packets: counters.packets,
                bytes: counters.bytes,
                explanation: reason.explanation(),
            })
            .collect(),
    }
}

/// The answer for people: facts, then a table for each kind of thing.
pub fn text(status: &Status, wide: bool) -> String {
    let synced = if status.synced { "yes" } else { "no: Services were never programmed completely" };
    let socket_lb = if status.socket_lb.is_empty() { "off".to_owned() } else { status.socket_lb.join(", ") };
    let agent = match status.agent.state {
        "healthy" => format!("healthy at {}", status.agent.address),
        state => format!("{state} at {}: {}", status.agent.address, status.agent.detail),
    };
    let backends = match status.terminating_backends {
        0 => status.active_backends.to_string(),
        n => format!("{} (+{n} terminating)", status.active_backends),
    };
    let facts = [
        ("Dataplane", format!("{} (layout {})", status.bpffs, status.layout)),
        ("Synced", synced.to_owned()),
        ("Agent", agent),
        ("Socket LB", socket_lb),
        ("Masquerade", status.masquerade.to_owned()),
        ("Services", format!("{} ({})", status.services, render::number(status.service_ports, "port"))),
        ("Frontends", status.frontends.to_string()),
        ("Backends", backends),
    ];
    let mut text = String::new();
    for (name, value) in facts {
        let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
    }
    let sections = [interfaces(status), maps(status, wide), drops(status)];
    for section in sections.iter().filter(|section| !section.is_empty()) {
        let _ = write!(text, "\n{section}");
    }
    text
}

fn interfaces(status: &Status) -> Table {
    let mut table = Table::new(["ATTACHED-TO", "SCOPE", "HOW", "PROGRAMS"]);
    // What is attached to an interface that is gone goes by its index, as it does in `attachments`.
    let place = |interface: &InterfaceStatus| interface.name.clone().unwrap_or_else(|| interface.index.to_string());
    let interfaces: BTreeMap<_, _> = status.interfaces.iter().map(|interface| (place(interface), interface)).collect();
    let mut places: BTreeMap<&str, Vec<&Attachment>> = BTreeMap::new();
    for attachment in &status.attachments {
        places.entry(&attachment.to).or_default().push(attachment);
    }
    for interface in interfaces.keys() {
        places.entry(interface).or_default();
    }
    for (place, attachments) in places {
        let scope = interfaces.get(place).map_or_else(String::new, |interface| {
            format!("{}{}", interface.scope, if interface.bridge_port { " (bridge port)" } else { "" })
        });
        let how: BTreeSet<_> = attachments.iter().map(|attachment| attachment.how).collect();
        let programs: Vec<_> = attachments.iter().map(|attachment| attachment.program.as_str()).collect();
        table.row([place.to_owned(), scope, how.into_iter().collect::<Vec<_>>().join(","), programs.join(",")]);
    }
    table
}

fn maps(status: &Status, wide: bool) -> Table {
    let mut table = Table::new(["MAP", "ENTRIES", "CAPACITY", "USED", "MEMORY"]);
    for (name, fill) in &status.maps {
        if !wide && fill.entries.is_none() {
            continue;
        }
        let entries = fill.entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string());
        let used = fill.entries.map_or_else(|| "-".to_owned(), |entries| render::percent(entries, fill.capacity));
        table.row([name.clone(), entries, fill.capacity.to_string(), used, render::bytes(fill.bytes)]);
    }
    table
}

fn drops(status: &Status) -> Table {
    let mut table = Table::new(["DROPS", "PACKETS", "BYTES", "BECAUSE"]);
    for drop in &status.drops {
        table.row([
            drop.reason.to_owned(),
            drop.packets.to_string(),
            render::bytes(drop.bytes),
            drop.explanation.to_owned(),
        ]);
    }
    table
}
