//! Addresses for load balancers out of a file of pools, where no API and no cloud gives any.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{Lab, Pod, Protocol, Request, Service, Source, Spec};

use crate::shop::{PORT, SMALL, TARGET, cluster_ips, eventually, external, service};

/// A lab of two nodes, agents with `--pools`, and a client outside; the router sends pools' addresses to node 1.
struct Pools {
    lab: Lab,
    pod: Pod,
    file: PathBuf,
    manifests: svc_lab::Manifests,
}

impl Pools {
    fn open(addresses: &str) -> Result<Self> {
        let lab = Lab::build(Spec::default())?;
        let pod = lab.pod(1, "a")?;
        lab.serve(&pod, TARGET)?;
        let manifests = lab.manifests("manifests")?;
        let file = lab.directory().join("pools.yaml");
        let pools = Self { lab, pod, file, manifests };
        pools.write(&format!("pools:\n- name: public\n  addresses: [{addresses}]\n"))?;
        Ok(pools)
    }

    /// Replaces the file, as a mounted ConfigMap is: whole.
    fn write(&self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(&new, &self.file)?)
    }

    fn publish(&self, service: &Service, name: &str) -> Result<()> {
        Ok(self.manifests.write(name, &service.with(&[&self.pod]))?)
    }

    fn start(&self) -> Result<Vec<svc_lab::Agent>> {
        let file = self.file.to_str().context("a path")?;
        let arguments = [&SMALL[..], &["--pools", file, "--pools-default"]].concat();
        Ok(self.lab.start_agents(Source::Manifests(self.manifests.path()), &arguments)?)
    }

    /// Load balancer addresses of each Service, as a node has them.
    fn given(&self, node: u8) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let mut given: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let said = self.lab.svc(node, &["services", "-o", "json"])?;
        for row in serde_json::from_str::<Vec<Value>>(&said)?.iter().filter(|row| row["protocol"] == "TCP") {
            let name = row["name"].as_str().context("a name")?.to_owned();
            let frontends = row["frontends"].as_array().context("frontends")?;
            let ours = frontends
                .iter()
                .filter(|it| it["kinds"].as_array().is_some_and(|kinds| kinds.contains(&json!("load-balancer"))));
            for frontend in ours {
                let address: SocketAddr = frontend["address"].as_str().context("an address")?.parse()?;
                given.entry(name.clone()).or_default().push(address.ip());
            }
        }
        Ok(given)
    }
}

fn balanced(name: &str, nth: u8) -> Service {
    service(name, nth).port(PORT, TARGET).spec("type", "LoadBalancer")
}

/// A client outside is answered at these addresses.
fn answers(lab: &Lab, addresses: &[IpAddr]) -> Result<()> {
    for &address in addresses {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = lab.outside().ask(&Request::new(protocol, (address, PORT)).timeout_ms(5000))?;
            ensure!(answer.answer.server == "a" && answer.peer.ip() == address, "{answer:?}");
        }
    }
    Ok(())
}

fn problem(metrics: &str, name: &str, part: &str) -> Result<()> {
    let line = metrics
        .lines()
        .find(|line| line.starts_with("svc_object_problem{") && line.contains(name) && line.ends_with(" 1"));
    ensure!(line.is_some_and(|line| line.contains(part)), "no problem of {name} ({part}) among\n{metrics}");
    Ok(())
}

#[test]
fn every_node_gives_the_same_addresses_and_the_outside_reaches_them() -> Result<()> {
    let pools = Pools::open("203.0.113.64/26, '2001:db8:f::64-2001:db8:f::6f'")?;
    for nth in 1..=3 {
        pools.publish(&balanced(&format!("web-{nth}"), nth), &format!("web-{nth}"))?;
    }
    let wanted = external(70);
    let mut asks = balanced("asks", 4);
    asks.object["metadata"]["annotations"] = json!({"svc/addresses": format!("{}, {}", wanted[0], wanted[1])});
    pools.publish(&asks, "asks").context("outside of the pools, by one address")?;
    let agents = pools.start()?;
    eventually("addresses of three Services", || {
        let given = pools.given(1)?;
        ensure!(given.len() == 3 && given.values().all(|addresses| addresses.len() == 2), "{given:?}");
        Ok(())
    })?;
    let given = pools.given(1)?;
    ensure!(given == pools.given(2)?, "node 2 gives {:?}, not {given:?}", pools.given(2)?);
    let all: Vec<IpAddr> = given.values().flatten().copied().collect();
    ensure!(all.iter().collect::<std::collections::BTreeSet<_>>().len() == 6, "an address twice: {given:?}");
    answers(&pools.lab, &all)?;
    // 2001:db8:f::70 is not of the pool, so the Service gets neither address, and says why.
    eventually("the problem of `asks`", || problem(&agents[0].metrics()?, "name=\"asks\"", "status.loadBalancer"))?;
    asks.object["metadata"]["annotations"] = json!({"svc/addresses": wanted[0].to_string()});
    pools.publish(&asks, "asks")?;
    eventually("the address that was asked for", || {
        let given = pools.given(1)?;
        ensure!(given.get("asks").map(Vec::as_slice) == Some(&wanted[..1]), "{given:?}");
        Ok(())
    })?;
    answers(&pools.lab, &wanted[..1])
}

#[test]
fn pools_change_at_run_time_and_a_mistake_changes_nothing() -> Result<()> {
    let pools = Pools::open("203.0.113.80")?;
    pools.publish(&balanced("web", 1), "web")?;
    let agents = pools.start()?;
    let has = |address: &str| {
        let address: IpAddr = address.parse()?;
        eventually(&format!("web at {address}"), || {
            let given = pools.given(1)?;
            ensure!(given.get("web") == Some(&vec![address]), "{given:?}");
            Ok(())
        })?;
        answers(&pools.lab, &[address])
    };
    has("203.0.113.80")?;
    pools.write("pools:\n- name: public\n  addresses: [203.0.113.81/28]\n")?;
    let file = pools.file.display().to_string();
    eventually("the mistake in the file", || problem(&agents[0].metrics()?, &file, "3:"))?;
    has("203.0.113.80")?;
    pools.write("pools:\n- name: public\n  addresses: [203.0.113.81]\n")?;
    has("203.0.113.81")?;
    let gone = pools.lab.outside().ask(&Request::tcp((external(80)[0], PORT)).timeout_ms(500));
    ensure!(gone.is_err(), "the address that was taken away still answers: {gone:?}");
    let metrics = agents[0].metrics()?;
    ensure!(problem(&metrics, &file, "3:").is_err(), "the mistake is over: {metrics}");
    Ok(())
}

#[test]
fn who_finds_no_address_is_named_and_gets_one_when_it_is_free() -> Result<()> {
    let pools = Pools::open("203.0.113.90, 203.0.113.91")?;
    for nth in 1..=4 {
        pools.publish(&balanced(&format!("web-{nth}"), nth), &format!("web-{nth}"))?;
    }
    let agents = pools.start()?;
    let given = || pools.given(1);
    eventually("two Services with addresses", || {
        ensure!(given()?.len() == 2, "{:?}", given()?);
        Ok(())
    })?;
    let first = given()?;
    let waiting: Vec<String> =
        (1..=4).map(|nth| format!("web-{nth}")).filter(|name| !first.contains_key(name)).collect();
    for name in &waiting {
        eventually(name, || problem(&agents[0].metrics()?, &format!("name=\"{name}\""), "status.loadBalancer"))?;
    }
    // Those without an address are served within the cluster all the same.
    let nth: u8 = waiting[0].trim_start_matches("web-").parse()?;
    let inside = pools.lab.node(1).ask(&Request::tcp((cluster_ips(nth)[0], PORT)))?;
    ensure!(inside.answer.server == "a", "{inside:?}");
    let leaves = first.keys().next().context("one that has an address")?;
    pools.manifests.remove(leaves)?;
    eventually("another Service with its address", || {
        let now = given()?;
        ensure!(now.len() == 2 && !now.contains_key(leaves), "{now:?}");
        Ok(())
    })
}
