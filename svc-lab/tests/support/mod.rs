//! A cluster with agents, and the Services that tests publish in it. It judges nothing but what every test forbids.

#![allow(dead_code, reason = "every test program uses a part of it")]

pub(crate) mod flow;
pub(crate) mod fragments;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::Value;
use svc_lab::{Agent, Lab, Manifests, Place, Pod, Protocol, Service, Source, Spec};

/// Both protocols.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Port that every Service has on its own addresses.
pub(crate) const PORT: u16 = 80;
/// Port that every pod serves on.
pub(crate) const TARGET: u16 = 8080;
/// Node port of `web`.
pub(crate) const WEB: u16 = 30080;

/// Two nodes with an agent each. `near` is on node 1, `far` on node 2, `host` in node 2's own network.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) manifests: Manifests,
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) host: Pod,
    agents: Vec<Agent>,
    kept: Vec<std::os::fd::OwnedFd>,
}

impl Cluster {
    /// Builds the lab and starts the pods; no Services and no agents yet.
    pub(crate) fn build(spec: Spec) -> Result<Self> {
        let lab = Lab::build(spec)?;
        let (client, near, far) = (lab.pod(1, "client")?, lab.pod(1, "near")?, lab.pod(2, "far")?);
        let host = lab.host_pod(2, "host")?;
        for pod in [&near, &far, &host] {
            lab.serve(pod, TARGET)?;
        }
        // No client gets another's source port by chance: what happens then has tests of its own.
        let clients: [(&Place, &str); 4] = [
            // Above the ports the agent listens on: a poll of a port nobody listens on yet could connect to itself.
            (lab.node(1), "11000 19999"),
            (&client, "20000 29999"),
            (&near, "33000 39999"),
            (lab.outside(), "43000 60999"),
        ];
        for (place, range) in clients {
            place.set_sysctls(&[("net.ipv4.ip_local_port_range", range)])?;
        }
        let manifests = lab.manifests("manifests")?;
        Ok(Self { lab, manifests, client, near, far, host, agents: Vec::new(), kept: Vec::new() })
    }

    /// Keeps something open for as long as the cluster is there.
    pub(crate) fn keep(&mut self, it: std::os::fd::OwnedFd) {
        self.kept.push(it);
    }

    /// Writes a Service that these pods serve.
    pub(crate) fn publish(&self, name: &str, service: &Service, pods: &[&Pod]) -> Result<()> {
        Ok(self.manifests.write(name, &service.with(pods))?)
    }

    /// Starts the agents, or replaces those that run by new ones with other arguments.
    pub(crate) fn start(&mut self, extra: &[&str]) -> Result<()> {
        for agent in &mut self.agents {
            agent.terminate()?;
        }
        self.agents = self.lab.start_agents(Source::Manifests(self.manifests.path()), extra)?;
        Ok(())
    }

    /// The agent of a node, to be ended and started by the test.
    pub(crate) fn take_agent(&mut self, node: u8) -> Result<Agent> {
        let at = self.agents.iter().position(|agent| agent.node().index == node);
        at.map(|at| self.agents.remove(at)).ok_or_else(|| anyhow::anyhow!("no agent on node {node}"))
    }

    /// The log of the agent of a node.
    pub(crate) fn log(&self, node: u8) -> Result<String> {
        let agent = self.agents.iter().find(|agent| agent.node().index == node);
        let agent = agent.ok_or_else(|| anyhow::anyhow!("node{node} has no agent"))?;
        Ok(std::fs::read_to_string(agent.log())?)
    }

    /// Kills the agent of a node.
    pub(crate) fn kill(&mut self, node: u8) -> Result<()> {
        let at = self.agents.iter().position(|agent| agent.node().index == node);
        let at = at.ok_or_else(|| anyhow::anyhow!("node{node} has no agent"))?;
        Ok(self.agents.remove(at).kill()?)
    }

    /// A metric of the agent of a node, one without labels; `None` if it does not have it.
    pub(crate) fn metric(&self, node: u8, name: &str) -> Result<Option<f64>> {
        let agent = self.agents.iter().find(|agent| agent.node().index == node);
        let text = agent.ok_or_else(|| anyhow::anyhow!("node{node} has no agent"))?.metrics()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.and_then(|value| value.parse().ok()))
    }

    /// Drops of one reason that a node has counted.
    pub(crate) fn drops(&self, node: u8, reason: &str) -> Result<u64> {
        let drops = self.all_drops(node)?;
        Ok(drops.into_iter().find(|(name, _)| name == reason).map_or(0, |(_, packets)| packets))
    }

    fn all_drops(&self, node: u8) -> Result<Vec<(String, u64)>> {
        let status: Value = serde_json::from_str(&self.lab.svc(node, &["status", "-o", "json"])?)?;
        let drops = status["drops"].as_array().cloned().unwrap_or_default();
        ensure!(!drops.is_empty(), "`svc status` of node{node} lists no reasons of drops: {status}");
        let entry = |drop: &Value| {
            (drop["reason"].as_str().unwrap_or_default().to_owned(), drop["packets"].as_u64().unwrap_or(u64::MAX))
        };
        Ok(drops.iter().map(entry).collect())
    }

    /// What netfilter held for invalid and what the dataplane dropped for reasons other than those, on all nodes.
    pub(crate) fn losses(&self, allowed: &[&str]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for node in self.lab.nodes() {
            let rules = node.exec("nft", &["list", "table", "inet", "lab"])?;
            let counters: Vec<&str> = rules.lines().filter(|line| line.contains("ct state invalid counter")).collect();
            ensure!(counters.len() == 3, "{} does not count invalid packets in three chains: {rules}", node.name());
            let held = counters.iter().filter(|line| !line.contains("packets 0 "));
            found.extend(held.map(|line| format!("{}: {}", node.name(), line.trim())));
            let drops = self.all_drops(node.index)?;
            let drops = drops.iter().filter(|(reason, packets)| *packets > 0 && !allowed.contains(&reason.as_str()));
            found.extend(drops.map(|(reason, packets)| format!("{}: {packets} drops for {reason}", node.name())));
        }
        Ok(found)
    }
}

/// Addresses of the nth Service: of the cluster, and of the load balancer.
pub(crate) fn service_addresses(nth: u16) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let address = |text: String| text.parse().expect("an address of the plan");
    let cluster = [format!("10.96.0.{nth}"), format!("fd00:10:96::{nth}")].map(address);
    let balancer = [format!("203.0.113.{nth}"), format!("2001:db8:f::{nth}")].map(address);
    (cluster.into(), balancer.into())
}

/// The nth Service, of type LoadBalancer with all that belongs to it.
pub(crate) fn service(name: &str, nth: u16, node_port: u16) -> Service {
    let (cluster, balancer) = service_addresses(nth);
    Service::new("shop", name, &cluster).node_port(PORT, TARGET, node_port).load_balancer(&balancer)
}
