//! A cluster with agents, and the table of who may answer whom. It sends real packets and collects what is not right;
//! the tests decide what to build and when to look.

#![allow(dead_code, reason = "every test program uses a part of it")]

pub(crate) mod flow;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use svc_lab::{Agent, Lab, Manifests, Place, Pod, Protocol, Request, Service, Source, Spec, plan};

/// Both protocols.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Port that every Service has on its own addresses.
pub(crate) const PORT: u16 = 80;
/// Port that every pod serves on.
pub(crate) const TARGET: u16 = 8080;
/// Node port of `web`.
pub(crate) const WEB: u16 = 30080;
/// Node port of `local`.
pub(crate) const LOCAL: u16 = 30081;

/// Two nodes with an agent each. `near` is on node 1, `far` on node 2, `host` in node 2's own network.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) manifests: Manifests,
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) host: Pod,
    agents: Vec<Agent>,
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
        Ok(Self { lab, manifests, client, near, far, host, agents: Vec::new() })
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

/// What must be true of the client address that the backend sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    /// The client's own.
    Own,
    /// A pod reached itself: the address that was asked, or its own.
    Itself,
    /// One of this node's.
    Node(u8),
}

/// Who asks for what, and who answers: all of these, and nobody else.
pub(crate) struct Cell<'a> {
    pub(crate) who: &'a Place,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) expected: Vec<(&'a Pod, Seen)>,
}

impl Cell<'_> {
    /// Asks over both protocols and all addresses; what is not right.
    pub(crate) fn check(&self, protocols: &[Protocol]) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for &address in &self.addresses {
            for &protocol in protocols {
                let asked = SocketAddr::new(address, self.port);
                let found =
                    if self.expected.is_empty() { self.silence(protocol, asked) } else { self.ask(protocol, asked)? };
                let title = format!("{} → {asked} {}", self.who.name(), protocol.as_str());
                wrong.extend(found.into_iter().map(|what| format!("{title}: {what}")));
            }
        }
        Ok(wrong)
    }

    fn silence(&self, protocol: Protocol, asked: SocketAddr) -> Vec<String> {
        match self.who.ask(&Request::new(protocol, asked).timeout_ms(300)) {
            Err(failure) if failure.kind == svc_lab::FailureKind::Timeout => Vec::new(),
            Err(failure) => vec![format!("no silence but {failure}")],
            Ok(success) => vec![format!("{} answered", success.answer.server)],
        }
    }

    /// Asks in rounds until every backend has answered: with three, one is missed once in 10¹³ runs.
    fn ask(&self, protocol: Protocol, asked: SocketAddr) -> Result<Vec<String>> {
        let mut wrong = BTreeSet::new();
        let mut missing: BTreeSet<&str> = self.expected.iter().map(|(pod, _)| pod.name()).collect();
        let each = if self.expected.len() == 1 { 2 } else { 9 };
        for _ in 0..9 {
            let request = Request::new(protocol, asked).count(each).stop_at_failure();
            for outcome in self.who.ask_all(&request)? {
                let success = match outcome {
                    Ok(success) => success,
                    Err(failure) => {
                        wrong.insert(failure.to_string());
                        continue;
                    }
                };
                let (server, seen) = (success.answer.server.as_str(), success.answer.client.ip());
                missing.remove(server);
                if success.peer != asked {
                    wrong.insert(format!("{server} answered as {}", success.peer));
                }
                let expected = self.expected.iter().find(|(pod, _)| pod.name() == server);
                if !expected.is_some_and(|&(_, expected)| self.is_right(expected, seen, asked.ip())) {
                    wrong.insert(format!("{server} saw {seen}, not {:?}", expected.map(|(_, seen)| seen)));
                }
            }
            if missing.is_empty() || !wrong.is_empty() {
                break;
            }
        }
        if wrong.is_empty() {
            wrong.extend(missing.into_iter().map(|name| format!("{name} never answered")));
        }
        Ok(wrong.into_iter().collect())
    }

    fn is_right(&self, expected: Seen, seen: IpAddr, asked: IpAddr) -> bool {
        let own = || match self.who.name() {
            "outside" => seen == plan::OUTSIDE.like(seen),
            name => self.expected.iter().any(|(pod, _)| pod.name() == name && pod.addresses.like(seen) == seen),
        };
        match expected {
            // A client that is no backend of what it asks for has the first address of its node.
            Seen::Own => own() || (self.who.name() == "client" && seen == plan::pod(1, 0).like(seen)),
            Seen::Itself => seen == asked || own(),
            Seen::Node(index) => [plan::node(index), plan::gateway(index), plan::pod_net(index)]
                .iter()
                .any(|addresses| addresses.like(seen) == seen),
        }
    }
}
