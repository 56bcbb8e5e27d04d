//! Load balancers' addresses that exist nowhere, asked for by ARP and neighbour discovery on the nodes' own network.

use std::{fs, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use svc_lab::{Agent, Lab, Manifests, Place, Pod, Protocol, Request, Service, Source, Spec};

use crate::shop::{PORT, SMALL, TARGET, eventually, service};

/// A lab of two nodes with a pod on each, and agents whose pools are announced.
struct Network {
    lab: Lab,
    pods: [Pod; 2],
    file: PathBuf,
    manifests: Manifests,
}

/// Addresses of the nodes' network that nobody has, IPv4 first.
fn vips(last: u8) -> [IpAddr; 2] {
    [format!("192.168.50.{last}"), format!("fd00:50::{last}")].map(|text| text.parse().expect("an address"))
}

impl Network {
    fn open() -> Result<Self> {
        let lab = Lab::build(Spec::default())?;
        let pods = [lab.pod(1, "a")?, lab.pod(2, "b")?];
        for pod in &pods {
            lab.serve(pod, TARGET)?;
        }
        let manifests = lab.manifests("manifests")?;
        let file = lab.directory().join("pools.yaml");
        Ok(Self { lab, pods, file, manifests })
    }

    /// The pool, to be announced by these nodes.
    fn pools(&self, nodes: &[u8]) -> Result<()> {
        let names: Vec<&str> = nodes.iter().map(|&node| self.lab.node(node).name()).collect();
        let text = format!(
            "pools:\n- name: network\n  addresses: [192.168.50.200/29, 'fd00:50::200-fd00:50::207']\n  \
             announce:\n    layer2: {{nodes: {names:?}, interfaces: [eth0]}}\n"
        );
        let new = self.file.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(&new, &self.file)?)
    }

    fn agents(&self) -> Result<Vec<Agent>> {
        let file = self.file.to_str().context("a path")?;
        let arguments = [&SMALL[..], &["--pools", file, "--pools-default"]].concat();
        Ok(self.lab.start_agents(Source::Manifests(self.manifests.path()), &arguments)?)
    }

    /// A client in the nodes' network.
    fn neighbour(&self) -> &Place {
        self.lab.router()
    }

    /// The client is answered at an address by these pods only.
    fn answers(&self, address: IpAddr, by: &[&str]) -> Result<()> {
        eventually(&format!("an answer at {address}"), || {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let request = Request::new(protocol, (address, PORT)).timeout_ms(3000);
                let answer = self.neighbour().ask(&request)?;
                ensure!(by.contains(&&*answer.answer.server) && answer.peer.ip() == address, "{answer:?}");
            }
            Ok(())
        })
    }

    /// The node whose hardware address the client believes an address to be at.
    fn owner(&self, address: IpAddr) -> Result<u8> {
        let said = self.neighbour().exec("ip", &["neigh", "show", &address.to_string()])?;
        for node in self.lab.nodes() {
            let link = node.exec("ip", &["-o", "link", "show", "eth0"])?;
            let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("a MAC")?;
            if said.contains(mac) {
                return Ok(node.index);
            }
        }
        anyhow::bail!("nobody is at {address}: {said:?}")
    }

    fn has_owner(&self, address: IpAddr, node: u8) -> Result<()> {
        eventually(&format!("{address} at node {node}"), || {
            let owner = self.owner(address)?;
            ensure!(owner == node, "node {owner} has it");
            Ok(())
        })
    }
}

/// A load balancer that asks for both addresses.
fn balanced(name: &str, nth: u8, last: u8) -> Service {
    let mut service = service(name, nth).port(PORT, TARGET).spec("type", "LoadBalancer");
    let [v4, v6] = vips(last);
    service.object["metadata"]["annotations"] = json!({"svc/addresses": format!("{v4}, {v6}")});
    service
}

#[test]
fn addresses_that_exist_nowhere_are_found_by_neighbours_and_move_with_the_pools() -> Result<()> {
    let network = Network::open()?;
    network.pools(&[1])?;
    let [a, _] = &network.pods;
    let all: Vec<IpAddr> = (200..=203).flat_map(vips).collect();
    for nth in 0..4 {
        network
            .manifests
            .write(&format!("web-{nth}"), &balanced(&format!("web-{nth}"), nth + 1, 200 + nth).with(&[a]))?;
    }
    let _agents = network.agents()?;
    for &address in &all {
        network.answers(address, &["a"])?;
        assert_eq!(network.owner(address)?, 1);
    }
    // From farther away as well: the router asks for it.
    let far = network.lab.outside().ask(&Request::tcp((all[0], PORT)).timeout_ms(3000))?;
    assert_eq!(far.answer.server, "a");
    // Another address of the pool is nobody's.
    let nobody = network.neighbour().ask(&Request::tcp((vips(206)[0], PORT)).timeout_ms(500));
    assert!(nobody.is_err(), "{nobody:?}");

    // Who has spoken to the first node hears by itself that the second one answers now.
    network.pools(&[2])?;
    for &address in &all {
        network.has_owner(address, 2)?;
        network.answers(address, &["a"])?;
    }
    network.pools(&[1, 2])?;
    eventually("both nodes at work", || {
        let owners: Vec<u8> = all.iter().map(|&address| network.owner(address)).collect::<Result<_>>()?;
        ensure!(owners.contains(&1) && owners.contains(&2), "{owners:?}");
        Ok(())
    })?;
    for &address in &all {
        network.answers(address, &["a"])?;
    }
    Ok(())
}

#[test]
fn under_policy_local_the_node_with_the_pod_answers_and_goes_on_without_its_agent() -> Result<()> {
    let network = Network::open()?;
    network.pools(&[1, 2])?;
    let [a, b] = &network.pods;
    let web = balanced("web", 1, 204).spec("externalTrafficPolicy", "Local");
    network.manifests.write("web", &web.with(&[b]))?;
    let mut agents = network.agents()?;
    let client = network.neighbour();
    for address in vips(204) {
        network.answers(address, &["b"])?;
        assert_eq!(network.owner(address)?, 2);
        let seen = client.ask(&Request::tcp((address, PORT)).timeout_ms(3000))?.answer.client.ip();
        let own = client.exec("ip", &["-o", "addr", "show", "dev", "eth0"])?;
        assert!(own.contains(&format!(" {seen}/")), "the pod saw {seen}, not one of\n{own}");
    }
    network.manifests.write("web", &web.slices(&[a]))?;
    network.manifests.write("service", std::slice::from_ref(&web.object))?;
    for address in vips(204) {
        network.has_owner(address, 1)?;
        network.answers(address, &["a"])?;
    }
    // What is in the kernel answers on, for those who have never asked before.
    agents[0].kill()?;
    client.exec("ip", &["neigh", "flush", "dev", "eth0"])?;
    for address in vips(204) {
        network.answers(address, &["a"])?;
    }
    agents[0].start()?;
    agents[0].wait_ready()?;
    client.exec("ip", &["neigh", "flush", "dev", "eth0"])?;
    for address in vips(204) {
        network.answers(address, &["a"])?;
        assert_eq!(network.owner(address)?, 1);
    }
    Ok(())
}
