//! Flows whose tuples meet: a client's port is used again, or for two addresses of one endpoint; a pod reaches itself.

mod support;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use svc_lab::{Cni, Endpoint, FailureKind, Place, Protocol, Request, Spec, until};

use support::{
    Cluster, PORT, PROTOCOLS, WEB,
    flow::{PACKETS, PATIENCE, cluster, goes_on, is_whole, servers, settles, ways, web},
    service_addresses,
};

/// The same client port again, as soon as the client's own kernel allows it.
fn again(who: &Place, request: &Request, server: &str) -> Result<()> {
    let success = until("the client's port", PATIENCE, || match who.ask(request) {
        // TIME_WAIT: EADDRNOTAVAIL or EADDRINUSE; no packet was sent.
        Err(failure) if failure.kind == FailureKind::Other => Err(failure.to_string()),
        outcome => Ok(outcome),
    })?;
    let success = success.map_err(|failure| anyhow::anyhow!("{} {request:?}: {failure}", who.name()))?;
    ensure!(success.answer.server == server, "{} answered, not {server}: {request:?}", success.answer.server);
    Ok(())
}

/// Lets a client use a port again for the same peer while an old connection of it is in TIME_WAIT.
fn may_reuse(places: &[&Place]) -> Result<()> {
    Ok(places.iter().try_for_each(|place| place.set_sysctls(&[("net.ipv4.tcp_tw_reuse", "1")]))?)
}

fn port_again(reset: bool) -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    may_reuse(&[&cluster.client, cluster.lab.outside()])?;
    let ways = ways(&cluster);
    let request = |asked: SocketAddr| {
        let request = Request::tcp(asked).from_port(if asked.is_ipv4() { 45_001 } else { 45_002 }).timeout_ms(5000);
        if reset { request.reset() } else { request }
    };
    for (who, asked) in &ways {
        again(who, &request(*asked), "near")?;
        again(who, &request(*asked), "near")?;
    }
    // The old endpoint serves on, so nothing but the end of its connection makes the SYN open a new flow.
    let endpoints = [Endpoint::terminating(&cluster.near), Endpoint::ready(&cluster.far)];
    cluster.publish_of("web", &web(), &endpoints)?;
    for (who, asked) in &ways {
        settles("new connections to go elsewhere", || {
            let found = servers(who, &Request::tcp(*asked), *asked, 4)?;
            ensure!(found == ["far"], "{found:?}");
            Ok(())
        })?;
        again(who, &request(*asked), "far")?;
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn a_client_port_that_was_closed_opens_a_new_flow() -> Result<()> {
    port_again(false)
}

#[test]
fn a_client_port_that_was_reset_opens_a_new_flow() -> Result<()> {
    port_again(true)
}

#[test]
fn a_syn_on_the_tuple_of_a_connection_whose_endpoint_is_gone_is_balanced_afresh() -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    let ways = ways(&cluster);
    let request = |asked: SocketAddr| {
        Request::tcp(asked).from_port(if asked.is_ipv4() { 45_001 } else { 45_002 }).timeout_ms(5000).reset()
    };
    // Clients that vanish without a word: nobody hears the reset.
    let places: [&Place; 2] = [&cluster.client, cluster.lab.outside()];
    let silence = "table inet silence {\n chain output {\n type filter hook output priority 0; policy accept;\n \
                   tcp flags & rst != 0 drop\n }\n }\n";
    for place in places {
        place.exec_with("nft", &["-f", "-"], silence)?;
    }
    for (who, asked) in &ways {
        again(who, &request(*asked), "near")?;
    }
    for place in places {
        place.exec("nft", &["delete", "table", "inet", "silence"])?;
    }
    cluster.publish("web", &web(), &[&cluster.far])?;
    for (who, asked) in &ways {
        settles("new connections to go elsewhere", || {
            let found = servers(who, &Request::tcp(*asked), *asked, 4)?;
            ensure!(found == ["far"], "{found:?}");
            Ok(())
        })?;
        again(who, &request(*asked), "far")?;
    }
    Ok(())
}

#[test]
fn two_addresses_of_one_endpoint_work_at_the_same_time_from_one_client_port() -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    let (cluster_ips, balancer) = service_addresses(10);
    for family in 0..2 {
        let node = cluster.lab.node(1).addresses.both()[family];
        let inside = [(cluster_ips[family], PORT), (balancer[family], PORT), (node, WEB)];
        let client: &Place = &cluster.client;
        for (who, addresses) in [(client, &inside[..]), (cluster.lab.outside(), &inside[1..])] {
            for protocol in PROTOCOLS {
                let port = if protocol == Protocol::Tcp { 45_010 } else { 45_020 } + family as u16;
                let mut streams = Vec::new();
                for asked in addresses {
                    let request = Request::new(protocol, *asked).from_port(port);
                    let request = if protocol == Protocol::Udp { request.connected() } else { request };
                    streams.push(cluster.stream(who, &request)?);
                }
                for (steady, asked) in streams.iter_mut().zip(addresses) {
                    goes_on(steady, "near")?;
                    ensure!(steady.first.peer == SocketAddr::from(*asked), "{:?}", steady.first);
                }
                streams.into_iter().try_for_each(is_whole)?;
            }
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn many_ports_of_a_client_work_through_two_addresses_of_one_endpoint() -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    let (cluster_ips, balancer) = service_addresses(10);
    for family in 0..2 {
        for protocol in PROTOCOLS {
            for port in 46_000..46_020 {
                for address in [cluster_ips[family], balancer[family]] {
                    let asked = SocketAddr::new(address, PORT);
                    let outcome = cluster.client.ask(&Request::new(protocol, asked).from_port(port));
                    outcome.with_context(|| format!("{asked} {} from {port}", protocol.as_str()))?;
                }
            }
        }
    }
    Ok(())
}

fn hairpin(cni: Cni, extra: &[&str]) -> Result<()> {
    let mut cluster = Cluster::build(Spec { cni, ..Spec::default() })?;
    cluster.publish("web", &web(), &[&cluster.near])?;
    cluster.start(extra)?;
    let (cluster_ips, balancer) = service_addresses(10);
    let node = cluster.lab.node(1).addresses.both();
    let mut streams = Vec::new();
    for family in 0..2 {
        for asked in [(cluster_ips[family], PORT), (balancer[family], PORT), (node[family], WEB)] {
            for protocol in PROTOCOLS {
                streams.push((asked, cluster.stream(&cluster.near, &Request::new(protocol, asked))?));
            }
        }
    }
    for (asked, mut steady) in streams {
        goes_on(&mut steady, "near")?;
        let first = steady.first.clone();
        ensure!(first.peer == SocketAddr::from(asked), "{first:?} is not from {asked:?}");
        is_whole(steady)?;
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn a_routed_pod_reaches_itself_through_its_service() -> Result<()> {
    hairpin(Cni::Routed, &[])
}

#[test]
fn a_routed_pod_reaches_itself_by_packets_through_its_service() -> Result<()> {
    hairpin(Cni::Routed, &PACKETS)
}

#[test]
fn a_bridged_pod_reaches_itself_by_packets_through_its_service() -> Result<()> {
    hairpin(Cni::Bridge, &PACKETS)
}
