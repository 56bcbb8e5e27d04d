//! A cluster with pods that serve and clients of every sort, and what `svc` says in it. It judges nothing.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use serde_json::Value;
use svc_lab::{Agent, Lab, Pod, Service, Source, Spec, until};

/// Longest wait for anything, a loaded machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Port that every pod serves on.
pub(crate) const TARGET: u16 = 8080;
/// Port of Services on their own addresses.
pub(crate) const PORT: u16 = 80;
/// Node port of Services that have one.
pub(crate) const NODE_PORT: u16 = 30_080;
/// Tables small enough for many labs side by side, and for a look at every entry.
pub(crate) const SMALL: [&str; 10] =
    ["--flows", "1024", "--services", "64", "--backends", "256", "--frontends", "256", "--slots", "16384"];

/// A lab with two pods on node 1 that serve and one that asks.
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) client: Pod,
}

impl Shop {
    pub(crate) fn open() -> Result<Self> {
        Self::of(Spec { nodes: 1, ..Spec::default() })
    }

    pub(crate) fn of(spec: Spec) -> Result<Self> {
        let lab = Lab::build(spec)?;
        let (a, b, client) = (lab.pod(1, "a")?, lab.pod(1, "b")?, lab.pod(1, "client")?);
        for pod in [&a, &b] {
            lab.serve(pod, TARGET)?;
        }
        // No client gets another's source port by chance, and no poll of an agent's port connects to itself.
        for (place, range) in
            [(&**lab.node(1), "11000 19999"), (&client, "20000 29999"), (lab.outside(), "43000 60999")]
        {
            place.set_sysctls(&[("net.ipv4.ip_local_port_range", range)])?;
        }
        Ok(Self { lab, a, b, client })
    }

    /// Starts the agent of node 1 with small tables.
    pub(crate) fn agent(&self, source: Source<'_>, extra: &[&str]) -> Result<Agent> {
        Ok(self.lab.start_agent(1, source, &[&SMALL, extra].concat())?)
    }

    /// What `svc` of node 1 says in JSON, if it is a list.
    pub(crate) fn said(&self, command: &str) -> Result<Vec<Value>> {
        let mut arguments = vec![command, "-o", "json"];
        if command == "flows" {
            arguments.extend(["--limit", "0"]);
        }
        match serde_json::from_str(&self.lab.svc(1, &arguments)?)? {
            Value::Array(rows) => Ok(rows),
            other => bail!("svc {command} says {other}"),
        }
    }
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    Ok(until(what, PATIENCE, || look().map_err(|error| format!("{error:#}")))?)
}

/// Cluster addresses of the nth Service, IPv4 first.
pub(crate) fn cluster_ips(nth: u8) -> [IpAddr; 2] {
    [format!("10.96.0.{nth}"), format!("fd00:10:96::{nth}")].map(|text| text.parse().expect("an address"))
}

/// Addresses that are routed to node 1 for load balancers and external addresses, IPv4 first.
pub(crate) fn external(nth: u8) -> [IpAddr; 2] {
    [format!("203.0.113.{nth}"), format!("2001:db8:f::{nth}")].map(|text| text.parse().expect("an address"))
}

/// The nth Service, without ports.
pub(crate) fn service(name: &str, nth: u8) -> Service {
    Service::new("shop", name, &cluster_ips(nth))
}
