//! Doors: addresses and ports that may lead to a Service. A test says which are open and which are shut; both what `svc`
//! shows and what packets find must be exactly that.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use svc_lab::{FailureKind, Place, Protocol, Request};

use crate::shop::{Shop, eventually};

/// Both protocols.
pub(crate) const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What an address is to its Service, as `svc services` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::NodePort => "node-port",
            Self::LoadBalancer => "load-balancer",
            Self::ExternalIp => "external-ip",
        }
    }
}

/// An address and port, over one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) kind: Kind,
    pub(crate) at: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// Doors of one kind and port at several addresses.
pub(crate) fn doors(kind: Kind, addresses: &[IpAddr], port: u16, protocols: &[Protocol]) -> Vec<Door> {
    let at = addresses.iter().map(|&address| SocketAddr::new(address, port));
    at.flat_map(|at| protocols.iter().map(move |&protocol| Door { kind, at, protocol })).collect()
}

/// 127.0.0.1 and ::1.
pub(crate) fn loopback() -> [IpAddr; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

/// Doors and the pods behind them; nobody behind those that are shut.
pub(crate) type Expected<'a> = Vec<(Door, &'a [&'a str])>;

/// All of these doors lead to these pods.
pub(crate) fn lead_to<'a>(doors: Vec<Door>, servers: &'a [&'a str]) -> Expected<'a> {
    doors.into_iter().map(|door| (door, servers)).collect()
}

impl Shop {
    /// Waits until `svc services` shows the doors that are open and no others, then asks at all of them.
    pub(crate) fn has(&self, expected: &Expected<'_>) -> Result<()> {
        self.shows(expected)?;
        self.answers(expected)
    }

    /// Waits until `svc services` shows the doors that are open and no others.
    pub(crate) fn shows(&self, expected: &Expected<'_>) -> Result<()> {
        let open = expected.iter().filter(|(_, servers)| !servers.is_empty());
        let wanted: BTreeSet<String> = open.map(|(door, _)| door.text()).collect();
        eventually("the frontends", || {
            let shown: BTreeSet<String> = self.said("services")?.iter().flat_map(shown).collect();
            let (more, less) = (shown.difference(&wanted), wanted.difference(&shown));
            ensure!(
                shown == wanted,
                "too many: {:?}; missing: {:?}",
                more.collect::<Vec<_>>(),
                less.collect::<Vec<_>>()
            );
            Ok(())
        })
    }

    /// Asks at every door, from everywhere it is for, all at the same time.
    pub(crate) fn answers(&self, expected: &Expected<'_>) -> Result<()> {
        let asked = expected
            .iter()
            .flat_map(|&(door, servers)| self.clients(door).into_iter().map(move |client| (client, door, servers)));
        let asked: Vec<_> = asked.collect();
        let mut wrong = Vec::new();
        // As many at a time as a small machine bears.
        for batch in asked.chunks(16) {
            std::thread::scope(|scope| {
                let asking: Vec<_> = batch
                    .iter()
                    .map(|&(client, door, servers)| scope.spawn(move || ask(client, door, servers)))
                    .collect();
                wrong.extend(asking.into_iter().filter_map(|it| it.join().expect("a probe does not panic").err()));
            });
        }
        let wrong: Vec<String> = wrong.iter().map(|error| format!("{error:#}")).collect();
        ensure!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), asked.len(), wrong.join("\n"));
        Ok(())
    }

    fn clients(&self, door: Door) -> Vec<&Place> {
        let (node, pod, outside): (&Place, &Place, &Place) = (self.lab.node(1), &self.client, self.lab.outside());
        match door.kind {
            _ if door.at.ip().is_loopback() => vec![node],
            Kind::ClusterIp => vec![pod, node],
            Kind::NodePort => vec![pod, node, outside],
            Kind::LoadBalancer | Kind::ExternalIp => vec![pod, outside],
        }
    }
}

impl Door {
    fn text(&self) -> String {
        format!("{} {}/{}", self.kind.name(), self.at, self.protocol.as_str().to_uppercase())
    }
}

/// The doors that a row of `svc services -o json` has.
fn shown(row: &Value) -> Vec<String> {
    let frontends = row["frontends"].as_array().cloned().unwrap_or_default();
    let kinds = |frontend: &Value| {
        let kinds = frontend["kinds"].as_array().into_iter().flatten().filter_map(Value::as_str);
        kinds.collect::<Vec<_>>().join(" ")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    frontends.iter().map(|it| format!("{} {}/{}", kinds(it), text(&it["address"]), text(&row["protocol"]))).collect()
}

/// A port that no client of these tests had before, below those that the kernel gives. The next datagram of a flow of a moment
/// ago goes where the flow went, for up to a second (`keeps_backend`, svc-ebpf/src/decide.rs); one from another port does not.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 30_000, "no port is left that nobody had");
    port
}

fn ask(client: &Place, door: Door, servers: &[&str]) -> Result<()> {
    let title = format!("{} → {}", client.name(), door.text());
    // Nobody answers a door that is shut, however long one waits; at an open one a loaded machine is waited for.
    let patience = if servers.is_empty() { 300 } else { 10_000 };
    let mut request = Request::new(door.protocol, door.at).timeout_ms(patience);
    if servers.is_empty() && door.protocol == Protocol::Udp {
        request = request.from_port(fresh_port());
    }
    match client.ask(&request) {
        Ok(success) => {
            let server = success.answer.server.as_str();
            ensure!(servers.contains(&server), "{title}: {server} answered, not one of {servers:?}");
            ensure!(success.peer == door.at, "{title}: {server} answered as {}", success.peer);
            Ok(())
        }
        Err(failure) if failure.kind == FailureKind::Other => bail!("{title}: {failure}"),
        Err(_) if servers.is_empty() => Ok(()),
        Err(failure) => bail!("{title}: {failure}, not one of {servers:?}"),
    }
}
