//! Addresses for load balancers of the Kubernetes API: one agent of two is elected and writes them.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{
    Agent, Lab, Pod, Protocol, Request, Service, Source, Spec,
    api::{Api, Resource, serve, write_kubeconfig},
};
use tokio::runtime::Runtime;

use crate::shop::{PORT, SMALL, TARGET, eventually, external, service};

/// Port of the API server's double, on every address of node 1.
const API: u16 = 6443;

/// A lab of two nodes, the API server's double, and a file of pools.
struct Cluster {
    lab: Lab,
    pod: Pod,
    api: Api,
    kubeconfig: PathBuf,
    file: PathBuf,
    _runtime: Runtime,
}

impl Cluster {
    fn open(addresses: &str) -> Result<Self> {
        let lab = Lab::build(Spec::default())?;
        let pod = lab.pod(1, "a")?;
        lab.serve(&pod, TARGET)?;
        let api = Api::new();
        for node in lab.node_objects() {
            api.apply(node);
        }
        let listener = lab.node(1).enter(|| TcpListener::bind(("0.0.0.0", API)))??;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(serve(listener, api.clone()));
        let kubeconfig = lab.directory().join("kubeconfig");
        write_kubeconfig(&kubeconfig, SocketAddr::new(lab.node(1).addresses.v4.into(), API))?;
        let file = lab.directory().join("pools.yaml");
        let cluster = Self { lab, pod, api, kubeconfig, file, _runtime: runtime };
        cluster.pools(addresses)?;
        Ok(cluster)
    }

    fn pools(&self, addresses: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("pools:\n- name: public\n  addresses: [{addresses}]\n"))?;
        Ok(fs::rename(&new, &self.file)?)
    }

    /// An agent of each node, with pools.
    fn agents(&self) -> Result<Vec<Agent>> {
        let file = self.file.to_str().context("a path")?;
        let arguments = [&SMALL[..], &["--pools", file, "--pools-default"]].concat();
        Ok(self.lab.start_agents(Source::Kubeconfig(&self.kubeconfig), &arguments)?)
    }

    fn publish(&self, service: &Service) {
        for object in service.with(&[&self.pod]) {
            self.api.apply(object);
        }
    }

    /// Changes a Service as somebody else would.
    fn change(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.api.get(Resource::Services, "shop", name).context("the Service")?;
        change(&mut object);
        self.api.apply(object);
        Ok(())
    }

    fn status(&self, name: &str) -> Value {
        self.api.get(Resource::Services, "shop", name).map(|object| object["status"].clone()).unwrap_or_default()
    }

    /// Addresses in the status of a Service.
    fn given(&self, name: &str) -> Vec<IpAddr> {
        let status = self.status(name);
        let ingress = status["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        ingress.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
    }

    /// Waits until a Service has so many addresses.
    fn has(&self, name: &str, count: usize) -> Result<Vec<IpAddr>> {
        eventually(&format!("{count} addresses of {name}"), || {
            ensure!(self.given(name).len() == count, "{}", self.status(name));
            Ok(())
        })?;
        Ok(self.given(name))
    }

    /// Waits for an Event on a Service.
    fn told(&self, name: &str, reason: &str) -> Result<()> {
        eventually(&format!("an Event {reason} on {name}"), || {
            let events = self.api.events();
            let of = |event: &&Value| event["regarding"]["name"] == name && event["regarding"]["kind"] == "Service";
            let of: Vec<&Value> = events.iter().filter(of).collect();
            ensure!(of.iter().any(|event| event["reason"] == reason), "{of:?}");
            Ok(())
        })
    }

    /// How often somebody has written to a Service's status.
    fn writes(&self, name: &str) -> usize {
        self.api.writes(Resource::Services).iter().filter(|(_, of)| of == name).count()
    }

    /// A client outside is answered at these addresses.
    fn answers(&self, addresses: &[IpAddr]) -> Result<()> {
        for &address in addresses {
            eventually(&format!("an answer at {address}"), || {
                let request = Request::new(Protocol::Tcp, (address, PORT)).timeout_ms(2000);
                let answer = self.lab.outside().ask(&request)?;
                ensure!(answer.answer.server == "a" && answer.peer.ip() == address, "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn balanced(name: &str, nth: u8) -> Service {
    service(name, nth).port(PORT, TARGET).spec("type", "LoadBalancer")
}

fn metric(agent: &Agent, line: &str) -> Result<()> {
    let metrics = agent.metrics()?;
    let pools: Vec<&str> = metrics.lines().filter(|line| line.starts_with("svc_pools")).collect();
    ensure!(pools.contains(&line), "no {line:?} among {pools:?}");
    Ok(())
}

/// Which of the agents gives addresses.
fn leader(agents: &[Agent]) -> Result<usize> {
    let mut found = None;
    eventually("one that is elected", || {
        let leads: Vec<usize> = (0..agents.len())
            .filter(|&at| agents[at].id().is_some() && metric(&agents[at], "svc_pools_leads 1").is_ok())
            .collect();
        ensure!(leads.len() == 1, "{leads:?} lead");
        found = leads.first().copied();
        Ok(())
    })?;
    found.context("one")
}

#[test]
fn an_elected_agent_gives_addresses_and_when_it_is_killed_another_one_does() -> Result<()> {
    let cluster = Cluster::open("203.0.113.64/29, '2001:db8:f::64-2001:db8:f::6f'")?;
    let api = &cluster.api;
    let theirs = json!({"ingress": [{"ip": "203.0.113.65", "ipMode": "VIP"}]});
    let mut foreign = balanced("foreign", 7).spec("loadBalancerClass", "example.com/other");
    foreign.object["status"] = json!({"loadBalancer": theirs});
    // Of nobody's class, and somebody gave it an address that is in no pool.
    let mut elsewhere = balanced("elsewhere", 8);
    elsewhere.object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
    cluster.publish(&foreign);
    cluster.publish(&elsewhere);
    cluster.publish(&balanced("web-1", 1));
    let mut agents = cluster.agents()?;
    let given = cluster.has("web-1", 2)?;
    let status = cluster.status("web-1");
    assert_eq!(status["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(status["conditions"][0]["type"], "svc/AddressesGiven");
    assert!(!given.contains(&"203.0.113.65".parse()?), "that one is somebody else's: {given:?}");
    cluster.answers(&given)?;
    cluster.told("web-1", "AddressesGiven")?;

    let first = leader(&agents)?;
    let traffic =
        cluster.lab.outside().steady(&Request::udp((given[0], PORT)), 5, &cluster.lab.logs().join("steady.log"))?;
    agents[first].kill()?;
    let second = leader(&agents)?;
    assert_ne!(first, second);
    assert_eq!(cluster.status("web-1"), status, "nothing was written");
    assert_eq!(cluster.writes("web-1"), 1);
    // What is written may be lost on the way back.
    api.lose_answers(Resource::Services, 2);
    let mut asks = balanced("web-2", 2);
    let wanted = external(66);
    asks.object["metadata"]["annotations"] = json!({"svc/addresses": wanted[0].to_string()});
    cluster.publish(&asks);
    assert_eq!(cluster.has("web-2", 1)?, [wanted[0]]);
    assert!(traffic.stop()?.is_clean(), "every datagram was answered");

    // The first one comes back, and the second one leaves in good order: no waiting for the Lease to end.
    agents[first].start()?;
    agents[first].wait_ready()?;
    cluster.answers(&wanted[..1])?;
    agents[second].terminate()?;
    assert_eq!(leader(&agents)?, first);
    let lease = api.get(Resource::Leases, "kube-system", "svc-pools").context("the Lease")?;
    assert!(lease["spec"]["leaseTransitions"].as_u64() >= Some(3), "{lease}");
    assert_eq!((cluster.status("web-1"), cluster.given("web-2")), (status, wanted[..1].to_vec()));
    assert_eq!(cluster.status("foreign")["loadBalancer"], theirs);
    assert_eq!((cluster.writes("foreign"), cluster.writes("elsewhere")), (0, 0));
    Ok(())
}

#[test]
fn who_finds_no_address_is_told_by_an_event_and_gets_the_next_that_is_free() -> Result<()> {
    let cluster = Cluster::open("203.0.113.70, 203.0.113.71")?;
    let agents = cluster.agents()?;
    let leader = &agents[leader(&agents)?];
    for nth in 1..=2 {
        cluster.publish(&balanced(&format!("web-{nth}"), nth));
        cluster.has(&format!("web-{nth}"), 1)?;
    }
    let given: BTreeMap<&str, IpAddr> =
        ["web-1", "web-2"].into_iter().filter_map(|name| Some((name, *cluster.given(name).first()?))).collect();
    assert_ne!(given["web-1"], given["web-2"]);
    cluster.publish(&balanced("web-3", 3));
    cluster.told("web-3", "PoolsExhausted")?;
    let mut slip = balanced("slip", 4);
    slip.object["metadata"]["annotations"] = json!({"svc/addresses": "203.0.113.x"});
    cluster.publish(&slip);
    cluster.told("slip", "BadRequest")?;
    eventually("the metric", || metric(leader, "svc_pools_refused 2"))?;

    // By its end, an address goes to who waits for it.
    cluster.api.delete(Resource::Services, "shop", "web-1");
    assert_eq!(cluster.has("web-3", 1)?, [given["web-1"]]);
    cluster.answers(&[given["web-1"]])?;
    // By another type: what was written is taken back, and given again.
    cluster.publish(&balanced("web-5", 5));
    cluster.told("web-5", "PoolsExhausted")?;
    cluster.change("web-2", |object| object["spec"]["type"] = "ClusterIP".into())?;
    cluster.has("web-2", 0)?;
    assert_eq!(cluster.status("web-2")["conditions"], Value::Null);
    assert_eq!(cluster.has("web-5", 1)?, [given["web-2"]]);
    cluster.told("web-2", "AddressesTakenBack")?;

    // Pools change at run time: a longer list helps who waits, a shorter one moves whom it concerns.
    cluster.change("slip", |object| object["metadata"]["annotations"] = json!({}))?;
    cluster.told("slip", "PoolsExhausted")?;
    cluster.pools("203.0.113.70, 203.0.113.71, 203.0.113.72")?;
    assert_eq!(cluster.has("slip", 1)?, [external(72)[0]]);
    cluster.pools("203.0.113.71, 203.0.113.72, 203.0.113.73")?;
    eventually("the move of who has 203.0.113.70", || {
        let all = ["web-3", "web-5", "slip"].map(|name| cluster.given(name));
        let mut last: Vec<String> = all.iter().flatten().map(ToString::to_string).collect();
        last.sort();
        ensure!(last == ["203.0.113.71", "203.0.113.72", "203.0.113.73"], "{all:?}");
        Ok(())
    })?;
    for name in ["web-3", "web-5", "slip"] {
        cluster.answers(&cluster.given(name))?;
    }
    Ok(())
}
