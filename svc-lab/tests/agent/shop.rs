//! A node with pods, Services they serve, and what tests look at. It judges nothing but what every answer must be.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use svc_lab::{
    Agent, Lab, LabError, Node, Place, Pod, Protocol, Report, Request, Service, Source, Spec, Steady, until,
};

/// Longest wait for anything, a loaded machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Tables small enough for many labs side by side.
pub(crate) const SMALL: [&str; 8] =
    ["--flows", "4096", "--services", "1024", "--backends", "16384", "--frontends", "4096"];
/// The node port of Services that have one.
pub(crate) const NODE_PORT: u16 = 30_080;

/// The addresses of the nth Service.
pub(crate) fn vips(nth: u8) -> [IpAddr; 2] {
    [format!("10.96.0.{nth}"), format!("fd00:10:96::{nth}")].map(|text| text.parse().expect("an address"))
}

/// The nth Service, which leads to port 8080 of its pods.
pub(crate) fn service(nth: u8) -> Service {
    Service::new("shop", &format!("web-{nth}"), &vips(nth)).port(80, 8080)
}

/// A lab of one node with two pods that serve and one that asks.
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) client: Pod,
}

impl Shop {
    pub(crate) fn open() -> Result<Self> {
        let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
        let (a, b, client) = (lab.pod(1, "a")?, lab.pod(1, "b")?, lab.pod(1, "client")?);
        lab.serve(&a, 8080)?;
        lab.serve(&b, 8080)?;
        Ok(Self { lab, a, b, client })
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node(1)
    }

    pub(crate) fn agent(&self, source: Source<'_>) -> Result<Agent, LabError> {
        self.lab.start_agent(1, source, &SMALL)
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        if name == "a" { &self.a } else { &self.b }
    }

    pub(crate) fn other(&self, name: &str) -> &Pod {
        if name == "a" { &self.b } else { &self.a }
    }

    pub(crate) fn steady(&self, request: &Request) -> Result<Steady> {
        Ok(self.client.steady(request, 5, &self.lab.logs().join("steady.log"))?)
    }
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    Ok(until(what, PATIENCE, || look().map_err(|error| format!("{error:#}")))?)
}

/// Opens new connections on every path: from a pod, from the node, and from outside to the node port.
pub(crate) fn new_connections(shop: &Shop, servers: &[&str]) -> Result<()> {
    works(&shop.client, 1, servers)?;
    works(shop.node(), 1, servers)?;
    let outside = Request::tcp((shop.node().addresses.v4, NODE_PORT)).count(4);
    shop.lab.outside().ask_all(&outside)?.into_iter().try_for_each(|answer| answer.map(drop))?;
    Ok(())
}

/// Asks the nth Service over both families and protocols from new sockets; all must answer, and nobody but these pods.
pub(crate) fn works(from: &Place, nth: u8, servers: &[&str]) -> Result<()> {
    for address in vips(nth) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let request = Request::new(protocol, (address, 80)).count(6).timeout_ms(2000);
            for answer in from.ask_all(&request)? {
                let server = answer.with_context(|| format!("{protocol:?} {address}"))?.answer.server;
                ensure!(servers.contains(&server.as_str()), "{server} answered for {address}");
            }
        }
    }
    Ok(())
}

/// Asks the nth Service the same way; none may answer.
pub(crate) fn is_silent(from: &Place, nth: u8) -> Result<()> {
    for address in vips(nth) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = from.ask(&Request::new(protocol, (address, 80)).timeout_ms(200));
            ensure!(answer.is_err(), "{protocol:?} {address} answers: {answer:?}");
        }
    }
    Ok(())
}

/// Waits until a probe has had so many more answers, of this server if one is named.
pub(crate) fn progress(steady: &mut Steady, server: Option<&str>, more: u64) -> Result<Report> {
    let count = |report: &Report| match server {
        Some(name) => report.servers.get(name).copied().unwrap_or(0),
        None => report.answered,
    };
    let wanted = count(&steady.report()?) + more;
    Ok(until("the probe's progress", PATIENCE, || {
        let report = steady.report().map_err(|error| error.to_string())?;
        if count(&report) >= wanted { Ok(report) } else { Err(format!("{report:?}")) }
    })?)
}

/// What `svc` says in JSON.
pub(crate) fn said(lab: &Lab, command: &str) -> Result<Vec<Value>> {
    let mut arguments = vec![command, "-o", "json"];
    if command == "flows" {
        arguments.extend(["--limit", "0"]);
    }
    match serde_json::from_str(&lab.svc(1, &arguments)?)? {
        Value::Array(rows) => Ok(rows),
        other => anyhow::bail!("svc {command} says {other}"),
    }
}

/// Rows of `svc` without what traffic and time change.
pub(crate) fn lasting(lab: &Lab, command: &str) -> Result<BTreeSet<String>> {
    let strip = |mut row: Value| {
        if let Some(fields) = row.as_object_mut() {
            for field in ["connections", "packets", "bytes", "idle_seconds", "state"] {
                // The state of a backend lasts; that of a flow does not.
                if field != "state" || command == "flows" {
                    fields.remove(field);
                }
            }
        }
        row.to_string()
    };
    Ok(said(lab, command)?.into_iter().map(strip).collect())
}

/// Waits until the log holds a line with all of these, and returns it.
pub(crate) fn logged(log: &Path, words: &[&str]) -> Result<String> {
    Ok(until(&format!("{words:?} in the log"), PATIENCE, || {
        let text = fs::read_to_string(log).map_err(|error| error.to_string())?;
        let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).ok_or(text)
    })?)
}
