//! Streams that must go on, and endpoints that come and go below them.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use svc_lab::{Endpoint, Place, Protocol, Report, Request, Service, Spec, Steady, until};

use super::{Cluster, PORT, WEB, service, service_addresses};

/// Longest wait for anything, a loaded machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

impl Cluster {
    /// Writes a Service with endpoints of any state.
    pub(crate) fn publish_of(&self, name: &str, service: &Service, endpoints: &[Endpoint<'_>]) -> Result<()> {
        let objects: Vec<_> = std::iter::once(service.object.clone()).chain(service.slices_of(endpoints)).collect();
        Ok(self.manifests.write(name, &objects)?)
    }

    /// A stream of requests, every 5 ms.
    pub(crate) fn stream(&self, who: &Place, request: &Request) -> Result<Steady> {
        let log = self.lab.logs().join(format!("stream-{}.log", who.name()));
        let steady = who.steady(&request.clone().timeout_ms(5000), 5, &log);
        steady.map_err(|failure| anyhow::anyhow!("{} {request:?}: {failure}", who.name()))
    }
}

/// Pods' sockets are not translated, so that their packets are.
pub(crate) const PACKETS: [&str; 2] = ["--socket-lb", "off"];

pub(crate) fn cluster(extra: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &web(), &[&cluster.near])?;
    cluster.start(extra)?;
    Ok(cluster)
}

pub(crate) fn web() -> Service {
    service("web", 10, WEB)
}

pub(crate) fn cluster_ips() -> Vec<IpAddr> {
    service_addresses(10).0
}

/// Where a pod of node 1 and a client outside find `web`, in both families.
pub(crate) fn ways(cluster: &Cluster) -> Vec<(&Place, SocketAddr)> {
    let client: &Place = &cluster.client;
    let inside = cluster_ips().into_iter().map(|address| (client, SocketAddr::new(address, PORT)));
    let node = cluster.lab.node(1).addresses.both();
    let outside = node.into_iter().map(|address| (cluster.lab.outside(), SocketAddr::new(address, WEB)));
    inside.chain(outside).collect()
}

pub(crate) fn streams(cluster: &Cluster, protocol: Protocol, ways: &[(&Place, SocketAddr)]) -> Result<Vec<Steady>> {
    ways.iter().map(|(who, asked)| cluster.stream(who, &Request::new(protocol, *asked))).collect()
}

/// Nothing was lost, and the socket's port is the first one.
pub(crate) fn is_whole(steady: Steady) -> Result<()> {
    let (port, peer) = (steady.first.source.port(), steady.first.peer);
    let report = steady.stop()?;
    ensure!(report.is_clean(), "{peer}: {report:?}");
    let last = report.last.context("no answer")?;
    ensure!(last.source.port() == port && last.peer == peer, "{last:?} is not from {port} and {peer}");
    Ok(())
}

fn answers(report: &Report, server: &str) -> u64 {
    report.servers.get(server).copied().unwrap_or(0)
}

/// Waits until this server has given twenty more answers.
pub(crate) fn goes_on(steady: &mut Steady, server: &str) -> Result<Report> {
    let wanted = answers(&steady.report()?, server) + 20;
    Ok(until(&format!("answers of {server}"), PATIENCE, || {
        let report = steady.report().map_err(|error| error.to_string())?;
        if answers(&report, server) >= wanted { Ok(report) } else { Err(format!("{report:?}")) }
    })?)
}

/// Waits until this server answers, and makes sure that it alone does from then on.
pub(crate) fn moves_to(steady: &mut Steady, server: &str) -> Result<Report> {
    let first = goes_on(steady, server)?;
    let second = goes_on(steady, server)?;
    let others = |report: &Report| report.answered - answers(report, server);
    ensure!(others(&first) == others(&second), "not only {server} answers: {first:?}, then {second:?}");
    Ok(second)
}

/// The servers that answer so many requests from sockets of their own; all must be answered, by the address that was
/// asked.
pub(crate) fn servers(who: &Place, request: &Request, asked: SocketAddr, count: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for outcome in who.ask_all(&request.clone().timeout_ms(5000).count(count))? {
        let success = outcome.map_err(|failure| anyhow::anyhow!("{} → {asked}: {failure}", who.name()))?;
        ensure!(success.peer == asked, "{} answered as {}, not as {asked}", success.answer.server, success.peer);
        names.push(success.answer.server);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// An IPv4 address as a socket of IPv6 names it.
pub(crate) fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 @ IpAddr::V6(_) => v6,
    }
}

/// Waits until a condition holds.
pub(crate) fn settles<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    Ok(until(what, PATIENCE, || look().map_err(|error| format!("{error:#}")))?)
}

/// An entry of a flow table of node 1: the map's pin, the key as bpftool takes it, and the fields of the key.
#[derive(Debug)]
pub(crate) struct Entry {
    map: PathBuf,
    key: Vec<String>,
    fields: Value,
}

/// Entries of node 1 for a client port, of the hook `ingress` or `egress`.
pub(crate) fn entries(cluster: &Cluster, client_port: u16, hook: &str) -> Result<Vec<Entry>> {
    let (port, number) = if hook == "ingress" { ("source_port", 0) } else { ("destination_port", 1) };
    entries_where(cluster, &|key| key[port] == client_port && key["hook"] == number)
}

/// Entries of node 1 by the fields of their keys.
pub(crate) fn entries_where(cluster: &Cluster, is_wanted: &dyn Fn(&Value) -> bool) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for family in ["V4", "V6"] {
        let map = cluster.lab.node(1).maps()?.join(format!("FLOWS_{family}"));
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&map).output()?;
        ensure!(output.status.success(), "{}: {}", map.display(), String::from_utf8_lossy(&output.stderr));
        for entry in serde_json::from_slice::<Vec<Value>>(&output.stdout)? {
            let fields = entry["formatted"]["key"].clone();
            if !is_wanted(&fields) {
                continue;
            }
            let bytes = entry["key"].as_array().cloned().unwrap_or_default();
            let key = bytes.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            found.push(Entry { map: map.clone(), key, fields });
        }
    }
    Ok(found)
}

/// Removes entries, as the table does with those that were not used for longest.
pub(crate) fn forget(entries: &[Entry]) -> Result<()> {
    for Entry { map, key, fields } in entries {
        let mut command = Command::new("bpftool");
        let output = command.args(["map", "delete", "pinned"]).arg(map).arg("key").args(key).output()?;
        ensure!(output.status.success(), "{fields}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
