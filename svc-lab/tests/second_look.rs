//! Packets that two devices with programs see, one after the other: a device and another one on top of it. The kernel of
//! the tests has no VLAN devices; macvlan is the same to the programs.

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use svc_lab::{Cni, Place, Protocol, Request, Spec, until};

use support::{Cluster, PORT, PROTOCOLS, TARGET, WEB, service, service_addresses};

/// Addresses of node 1 on its device on top.
const ABOVE: [&str; 2] = ["192.0.2.2", "2001:db8:7::2"];

/// The prefix that holds one address.
fn alone(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Makes a macvlan device on top of its uplink what node 1 is reached by.
fn build() -> Result<Cluster> {
    let cluster = Cluster::build(Spec { cni: Cni::Routed, rp_filter: 1, ..Spec::default() })?;
    let (router, node) = (cluster.lab.router(), cluster.lab.node(1));
    router.ip("addr add 192.0.2.1/30 dev eth0\naddr add 2001:db8:7::1/64 dev eth0 nodad\n")?;
    node.ip("link add link eth0 name upper0 type macvlan mode bridge\nlink set upper0 up\n\
         addr add 192.0.2.2/30 dev upper0\naddr add 2001:db8:7::2/64 dev upper0 nodad\n\
         route replace default via 192.0.2.1\nroute replace default via 2001:db8:7::1\n")?;
    let (_, balancers) = service_addresses(10);
    for (address, via) in balancers.iter().zip(ABOVE) {
        cluster.lab.route(&alone(*address), via.parse::<IpAddr>()?)?;
    }
    Ok(cluster)
}

#[test]
fn what_a_device_and_the_one_below_it_see_is_translated_once() -> Result<()> {
    let mut cluster = build()?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&["--uplink", "eth0", "--uplink", "upper0"])?;
    let status = cluster.lab.svc(1, &["status"])?;
    for device in ["eth0", "upper0"] {
        ensure!(status.contains(&format!("{device} ")), "{device} has no programs: {status}");
    }
    let outside = cluster.lab.outside();
    let (_, balancers) = service_addresses(10);
    for (family, vip) in balancers.into_iter().enumerate() {
        let backend = SocketAddr::new(cluster.near.addresses.both()[family], TARGET);
        for (number, protocol) in (0..).zip(PROTOCOLS) {
            let port = 45_000 + number;
            let ask = |to: SocketAddr| {
                let request = Request::new(protocol, to).from_port(port).count(3).kept();
                let outcomes = outside.ask_all(&request)?;
                outcomes
                    .into_iter()
                    .collect::<Result<Vec<_>, _>>()
                    .with_context(|| format!("{to} {}", protocol.as_str()))
            };
            for success in ask((vip, PORT).into())? {
                ensure!(success.answer.server == "near" && success.peer == (vip, PORT).into(), "{success:?}");
                ensure!(success.answer.client.port() == port, "the client's port was changed: {success:?}");
            }
            if protocol == Protocol::Udp {
                cluster.lab.route(&alone(backend.ip()), ABOVE[family].parse::<IpAddr>()?)?;
                both_ways(outside, port, (vip, PORT).into(), backend)?;
            }
        }
    }
    until("nothing was lost", std::time::Duration::from_secs(5), || {
        let losses = cluster.losses(&[]).map_err(|error| error.to_string())?;
        if losses.is_empty() { Ok(()) } else { Err(format!("{losses:?}")) }
    })?;
    Ok(())
}

/// Datagrams from one port through a Service and directly to its endpoint, in turn: the later of the two flows gets another
/// port towards the endpoint, and each has its own answers.
fn both_ways(client: &Place, port: u16, vip: SocketAddr, backend: SocketAddr) -> Result<()> {
    let mut seen = Vec::new();
    for to in [vip, backend, vip, backend] {
        let success = client
            .ask(&Request::udp(to).from_port(port))
            .with_context(|| format!("{} at {to}, in turn", client.name()))?;
        ensure!(success.peer == to, "asked {to}: {success:?}");
        seen.push(success.answer.client.port());
    }
    ensure!(seen[0] != seen[1] && seen[..2] == seen[2..], "ports at the endpoint: {seen:?}");
    Ok(())
}

#[test]
fn a_bridge_and_its_ports_tell_a_services_answers_from_direct_ones() -> Result<()> {
    let mut cluster = Cluster::build(Spec { cni: Cni::Bridge, rp_filter: 1, ..Spec::default() })?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.publish("far", &service("far", 11, WEB + 1), &[&cluster.far])?;
    cluster.start(&["--socket-lb", "off"])?;
    for (nth, pod) in [(10, &cluster.near), (11, &cluster.far)] {
        for (family, vip) in service_addresses(nth).0.into_iter().enumerate() {
            let backend = (pod.addresses.both()[family], TARGET).into();
            both_ways(&cluster.client, 45_000 + nth, (vip, PORT).into(), backend)?;
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}
