//! The move from kube-proxy: connections that netfilter translates already go on when the agent starts beside it, and new
//! ones are the agent's.

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use svc_lab::{Node, Pod, Protocol, Request, Steady};

use crate::{
    doors::BOTH,
    feed::Feed,
    shop::{NODE_PORT, PORT, Shop, TARGET, cluster_ips, eventually, external, service},
};

/// Netfilter rules of kube-proxy's shape on a node: every address of `web` leads to one pod, and what comes in by a node port or
/// a load balancer's address is masqueraded.
fn kube_proxy(node: &Node, pod: &Pod) -> Result<()> {
    let mut services = String::new();
    for family in 0..2 {
        let (ip, to) = if family == 0 { ("ip", pod.addresses.both()[0]) } else { ("ip6", pod.addresses.both()[1]) };
        let to = SocketAddr::new(to, TARGET);
        for (at, port, mark) in [
            (cluster_ips(1)[family], PORT, ""),
            (node.addresses.both()[family], NODE_PORT, "meta mark set meta mark or 0x4000 "),
            (external(1)[family], PORT, "meta mark set meta mark or 0x4000 "),
        ] {
            for protocol in BOTH.map(Protocol::as_str) {
                writeln!(services, "{ip} daddr {at} {protocol} dport {port} {mark}counter dnat {ip} to {to}")?;
            }
        }
    }
    let rules = format!(
        "table inet kube {{\n\
         chain services {{\n{services}}}\n\
         chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
         meta mark and 0x4000 == 0x4000 meta mark set meta mark xor 0x4000 masquerade\n}}\n}}\n"
    );
    node.exec_with("nft", &["-f", "-"], &rules)?;
    Ok(())
}

/// Connections that netfilter has translated so far.
fn translated(node: &Node) -> Result<u64> {
    let listed: Value = serde_json::from_str(&node.exec("nft", &["-j", "list", "chain", "inet", "kube", "services"])?)?;
    let rules = listed["nftables"].as_array().context("rules")?.iter();
    let expressions = rules.filter_map(|rule| rule["rule"]["expr"].as_array()).flatten();
    Ok(expressions.filter_map(|it| it["counter"]["packets"].as_u64()).sum())
}

/// Waits until a probe has had so many more answers.
fn goes_on(what: &str, steady: &mut Steady) -> Result<()> {
    let before = steady.report()?.answered;
    eventually(what, || {
        let report = steady.report()?;
        ensure!(report.failure.is_none() && report.answered >= before + 20, "{report:?}");
        Ok(())
    })
}

/// A shop that netfilter serves, with `web` written down for the agent to come.
fn before_the_move() -> Result<(Shop, Feed)> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let web = service("web", 1).node_port(PORT, TARGET, NODE_PORT).load_balancer(&external(1));
    feed.put("web", &web.with(&[&shop.a, &shop.b]))?;
    kube_proxy(shop.lab.node(1), &shop.a)?;
    Ok((shop, feed))
}

/// Several connections at once: with two backends, the agent's choice would be another one for some of them.
const SEVERAL: u16 = 4;

#[test]
fn tcp_streams_that_netfilter_translates_go_on_and_new_connections_are_ours() -> Result<()> {
    let (shop, feed) = before_the_move()?;
    let (node, log) = (shop.lab.node(1), shop.lab.logs().join("streams.log"));
    let mut streams = Vec::new();
    for address in [cluster_ips(1), external(1)].concat() {
        for nth in 0..SEVERAL {
            // Segments of full size in both directions, each checked by its hash.
            let request = Request::tcp((address, PORT)).payload(20_000).timeout_ms(20_000);
            let title = format!("stream {nth} to {address}");
            streams.push((format!("{title} of a pod"), shop.client.steady(&request, 2, &log)?));
            if nth == 0 {
                streams.push((format!("{title} of the host"), node.steady(&request, 2, &log)?));
            }
        }
        let download = Request::tcp((address, PORT)).download(1 << 20);
        ensure!(shop.client.ask(&download)?.answer.server == "a", "netfilter leads to a");
    }
    let by_netfilter = translated(node)?;
    ensure!(by_netfilter >= u64::from(SEVERAL) * 4, "netfilter translated {by_netfilter} connections");

    let mut agent = shop.agent(feed.source(), &["--socket-lb", "off"])?;
    for (title, stream) in &mut streams {
        goes_on(title, stream)?;
    }
    let new = |count: u32| -> Result<()> {
        for address in cluster_ips(1) {
            for protocol in BOTH {
                let request = Request::new(protocol, (address, PORT)).count(count).timeout_ms(10_000);
                shop.client.ask_all(&request)?.into_iter().try_for_each(|it| it.map(drop))?;
            }
        }
        for (address, port) in [(node.addresses.v4.into(), NODE_PORT), (external(1)[1], PORT)] {
            let request = Request::tcp((address, port)).count(count).timeout_ms(10_000);
            shop.lab.outside().ask_all(&request)?.into_iter().try_for_each(|it| it.map(drop))?;
        }
        Ok(())
    };
    new(3)?;
    ensure!(translated(node)? == by_netfilter, "netfilter translated new connections");
    let counted: u64 = shop.said("services")?.iter().filter_map(|row| row["connections"].as_u64()).sum();
    ensure!(counted == 18, "{counted} connections are counted, not 18");
    ensure!(!shop.said("flows")?.is_empty(), "there are no flows");

    // The agent is restarted, then kube-proxy's rules go: what netfilter tracks it translates on without them.
    agent.terminate()?;
    agent.start()?;
    agent.wait_ready()?;
    node.exec("nft", &["delete", "table", "inet", "kube"])?;
    for (title, stream) in &mut streams {
        goes_on(title, stream)?;
    }
    new(1)?;
    for (title, stream) in streams {
        let report = stream.stop()?;
        ensure!(report.is_clean() && report.servers.keys().eq(["a"]), "{title}: {report:?}");
    }
    Ok(())
}

#[test]
fn datagram_flows_that_netfilter_translates_become_ours_without_a_loss() -> Result<()> {
    let (shop, feed) = before_the_move()?;
    let (node, outside, log) = (shop.lab.node(1), shop.lab.outside(), shop.lab.logs().join("flows.log"));
    let mut flows = Vec::new();
    for family in 0..2 {
        let (vip, own, balancer) = (cluster_ips(1)[family], node.addresses.both()[family], external(1)[family]);
        for nth in 0..SEVERAL {
            let inside = Request::udp((vip, PORT)).timeout_ms(20_000);
            flows.push((format!("flow {nth} of a pod to {vip}"), shop.client.steady(&inside, 2, &log)?));
            for at in [(own, NODE_PORT), (balancer, PORT)] {
                let request = Request::udp(at).timeout_ms(20_000);
                flows.push((format!("flow {nth} from outside to {at:?}"), outside.steady(&request, 2, &log)?));
            }
        }
        // A connected socket of the host is translated by nobody but netfilter: it was connected before the hooks were there.
        let connected = Request::udp((vip, PORT)).connected().timeout_ms(20_000);
        flows.push((format!("a connected socket of the host to {vip}"), node.steady(&connected, 2, &log)?));
        let free = Request::udp((vip, PORT)).timeout_ms(20_000);
        flows.push((format!("a socket of the host to {vip}"), node.steady(&free, 2, &log)?));
    }
    let by_netfilter = translated(node)?;
    let _agent = shop.agent(feed.source(), &[])?;
    for (title, flow) in &mut flows {
        goes_on(title, flow)?;
    }
    ensure!(translated(node)? == by_netfilter, "netfilter translated a new flow");
    let known = shop.said("flows")?;
    let ours = known.iter().filter(|row| row["protocol"] == "UDP" && row["hook"] == "ingress").count();
    ensure!(ours == usize::from(SEVERAL) * 6, "{ours} flows are ours: {known:?}");
    for (title, flow) in flows {
        let of_host = title.contains("connected");
        let report = flow.stop()?;
        ensure!(report.is_clean() && (!of_host || report.servers.keys().eq(["a"])), "{title}: {report:?}");
    }
    Ok(())
}
