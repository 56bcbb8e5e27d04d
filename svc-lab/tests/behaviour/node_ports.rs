//! Which addresses of a node serve node ports, and what becomes of it when addresses change at run time.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::json;
use svc_lab::Node;

use crate::{
    doors::{BOTH, Expected, Kind, doors, lead_to, loopback},
    feed::Feed,
    shop::{NODE_PORT, PORT, Shop, TARGET, cluster_ips, service},
};

/// Further addresses of node 1 on its uplink, IPv4 first.
fn further(nth: u8) -> [IpAddr; 2] {
    [format!("192.168.50.{nth}"), format!("fd00:50::{nth}")].map(|text| text.parse().expect("an address"))
}

/// Adds (`add`) or removes (`del`) addresses of a node.
fn address(node: &Node, verb: &str, addresses: [IpAddr; 2]) -> Result<()> {
    let [v4, v6] = addresses;
    node.ip(&format!("addr {verb} {v4}/24 dev eth0\naddr {verb} {v6}/64 dev eth0\n"))?;
    Ok(())
}

/// The cluster addresses of `web`, and its node port where it is served and where it is not.
fn served<'a>(at: &[[IpAddr; 2]], not_at: &[[IpAddr; 2]], servers: &'a [&'a str]) -> Expected<'a> {
    let mut expected = lead_to(doors(Kind::ClusterIp, &cluster_ips(1), PORT, &BOTH), servers);
    for (all, servers) in [(at, servers), (not_at, &[])] {
        expected.extend(lead_to(doors(Kind::NodePort, &all.concat(), NODE_PORT, &BOTH), servers));
    }
    expected
}

#[test]
fn node_ports_are_served_on_the_first_address_of_the_node_object() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let node = shop.lab.node(1);
    let (own, more) = (node.addresses.both(), further(200));
    address(node, "add", more)?;
    feed.put("web", &service("web", 1).node_port(PORT, TARGET, NODE_PORT).with(&[&shop.a]))?;
    let _agent = shop.agent(feed.source(), &[])?;
    shop.has(&served(&[own, loopback()], &[more], &["a"]))?;
    // The Node object is given other addresses.
    let mut objects = shop.lab.node_objects();
    let listed = more.map(|it| json!({"type": "InternalIP", "address": it}));
    objects[0]["status"]["addresses"] = json!(listed);
    feed.put("nodes", &objects)?;
    shop.has(&served(&[more, loopback()], &[own], &["a"])).context("after the Node object changed")
}

#[test]
fn node_ports_follow_the_uplinks_first_address_where_there_is_no_node_object() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let node = shop.lab.node(1);
    let (own, more) = (node.addresses.both(), further(200));
    feed.put("nodes", &[])?;
    feed.put("web", &service("web", 1).node_port(PORT, TARGET, NODE_PORT).with(&[&shop.a]))?;
    let _agent = shop.agent(feed.source(), &[])?;
    shop.has(&served(&[own, loopback()], &[more], &["a"]))?;
    // A second address takes the place of the first one.
    node.set_sysctls(&[("net.ipv4.conf.eth0.promote_secondaries", "1")])?;
    address(node, "add", more)?;
    address(node, "del", own)?;
    shop.has(&served(&[more, loopback()], &[own], &["a"])).context("after the address changed")
}

#[test]
fn node_ports_are_served_within_prefixes_as_addresses_come_and_go() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let node = shop.lab.node(1);
    let (own, more, late) = (node.addresses.both(), further(200), further(201));
    address(node, "add", more)?;
    feed.put("web", &service("web", 1).node_port(PORT, TARGET, NODE_PORT).with(&[&shop.a]))?;
    let addresses = ["192.168.50.128/25,fd00:50::200/120", "192.168.50.0/24,fd00:50::/64,127.0.0.0/8,::1"];
    let mut agent = shop.agent(feed.source(), &["--nodeport-addresses", addresses[0]])?;
    shop.has(&served(&[more], &[own, loopback(), late], &["a"])).context("at the start")?;
    address(node, "add", late)?;
    shop.has(&served(&[more, late], &[own, loopback()], &["a"])).context("with a further address")?;
    address(node, "del", more)?;
    shop.has(&served(&[late], &[own, loopback(), more], &["a"])).context("with one address less")?;

    agent.terminate()?;
    let _agent = shop.agent(feed.source(), &["--nodeport-addresses", addresses[1]])?;
    shop.has(&served(&[own, late, loopback()], &[more], &["a"])).context("with wider prefixes")
}
