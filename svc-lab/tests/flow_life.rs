//! What becomes of a flow when its endpoint goes, terminates or changes.

mod support;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use svc_lab::{Endpoint, FailureKind, Place, Pod, Protocol, Request, Service, Steady, until};

use support::{
    Cluster, PORT, TARGET, WEB,
    flow::{PACKETS, PATIENCE, cluster, cluster_ips, is_whole, moves_to, servers, settles, streams, ways, web},
    service, service_addresses,
};

/// Node port of the Service with policy Local.
const LOCAL: u16 = 30081;

/// Swaps the only endpoint of `web` from `near` to another and back under streams of UDP; not a datagram may be lost.
fn swaps(cluster: &Cluster, service: &Service, other: &Pod, mut streams: Vec<Steady>) -> Result<()> {
    for pod in [other, &cluster.near, other] {
        cluster.publish("web", service, &[pod])?;
        for steady in &mut streams {
            moves_to(steady, pod.name())?;
        }
    }
    for steady in streams {
        is_whole(steady)?;
    }
    Ok(())
}

#[test]
fn the_next_datagram_of_a_pod_leaves_a_removed_endpoint_and_comes_back_with_the_same_port() -> Result<()> {
    let cluster = cluster(&[])?;
    let streams = streams(&cluster, Protocol::Udp, &ways(&cluster)[..2])?;
    swaps(&cluster, &web(), &cluster.far, streams)
}

#[test]
fn the_next_datagram_from_outside_leaves_a_removed_endpoint_and_comes_back_with_the_same_port() -> Result<()> {
    let cluster = cluster(&[])?;
    let streams = streams(&cluster, Protocol::Udp, &ways(&cluster)[2..])?;
    swaps(&cluster, &web(), &cluster.far, streams)
}

#[test]
fn the_next_datagram_of_a_connected_socket_of_a_pod_leaves_a_removed_endpoint() -> Result<()> {
    let cluster = cluster(&[])?;
    let mut streams = Vec::new();
    for address in cluster_ips() {
        streams.push(cluster.stream(&cluster.client, &Request::udp((address, PORT)).connected())?);
    }
    swaps(&cluster, &web(), &cluster.far, streams)
}

#[test]
fn the_next_datagram_of_a_process_of_the_host_leaves_a_removed_endpoint() -> Result<()> {
    let cluster = cluster(&[])?;
    let node: &Place = cluster.lab.node(1);
    let ways: Vec<_> = cluster_ips().into_iter().map(|address| (node, SocketAddr::new(address, PORT))).collect();
    let streams = streams(&cluster, Protocol::Udp, &ways)?;
    swaps(&cluster, &web(), &cluster.far, streams)
}

#[test]
fn the_next_datagram_leaves_a_removed_endpoint_for_one_in_the_network_of_a_node() -> Result<()> {
    let cluster = cluster(&[])?;
    let streams = streams(&cluster, Protocol::Udp, &ways(&cluster))?;
    swaps(&cluster, &web(), &cluster.host, streams)
}

#[test]
fn the_next_datagram_under_internal_policy_local_goes_to_the_other_local_endpoint() -> Result<()> {
    let cluster = cluster(&[])?;
    let twin = cluster.lab.pod(1, "twin")?;
    cluster.lab.serve(&twin, TARGET)?;
    let service = web().spec("internalTrafficPolicy", "Local");
    cluster.publish("web", &service, &[&cluster.near])?;
    let streams = streams(&cluster, Protocol::Udp, &ways(&cluster)[..2])?;
    swaps(&cluster, &service, &twin, streams)
}

#[test]
fn the_next_datagram_under_external_policy_local_goes_to_the_other_local_endpoint() -> Result<()> {
    let cluster = cluster(&[])?;
    let twin = cluster.lab.pod(1, "twin")?;
    cluster.lab.serve(&twin, TARGET)?;
    let service = service("web", 10, LOCAL).spec("externalTrafficPolicy", "Local");
    cluster.publish("web", &service, &[&cluster.near])?;
    let outside = cluster.lab.outside();
    let node = cluster.lab.node(1).addresses.both();
    let ways: Vec<_> = node.into_iter().map(|address| (outside, SocketAddr::new(address, LOCAL))).collect();
    for (who, asked) in &ways {
        until("the node port", PATIENCE, || who.udp(*asked).map_err(|failure| failure.to_string()))?;
    }
    let streams = streams(&cluster, Protocol::Udp, &ways)?;
    swaps(&cluster, &service, &twin, streams)
}

#[test]
fn the_next_datagram_goes_to_the_changed_target_port() -> Result<()> {
    let cluster = cluster(&[])?;
    cluster.lab.serve(&cluster.near, TARGET + 1)?;
    let moved = {
        let (cluster, balancer) = service_addresses(10);
        Service::new("shop", "web", &cluster).node_port(PORT, TARGET + 1, WEB).load_balancer(&balancer)
    };
    let mut streams = streams(&cluster, Protocol::Udp, &ways(&cluster))?;
    for (service, target) in [(moved, TARGET + 1), (web(), TARGET)] {
        cluster.publish("web", &service, &[&cluster.near])?;
        for steady in &mut streams {
            until(&format!("port {target}"), PATIENCE, || {
                let report = steady.report().map_err(|error| error.to_string())?;
                let port = report.last.as_ref().map(|last| last.answer.local.port());
                if port == Some(target) { Ok(()) } else { Err(format!("{report:?}")) }
            })?;
        }
    }
    streams.into_iter().try_for_each(is_whole)
}

#[test]
fn datagrams_stay_with_their_endpoint_while_there_is_no_other_and_leave_it_when_there_is_one() -> Result<()> {
    let cluster = cluster(&[])?;
    let mut ways = ways(&cluster);
    let node: &Place = cluster.lab.node(1);
    ways.extend(cluster_ips().into_iter().map(|address| (node, SocketAddr::new(address, PORT))));
    let mut streams = streams(&cluster, Protocol::Udp, &ways)?;
    cluster.publish("web", &web(), &[])?;
    for (who, asked) in &ways {
        settles("the end of the last endpoint", || {
            let new = who.ask(&Request::udp(*asked).timeout_ms(300));
            ensure!(new.is_err(), "{} → {asked}: {new:?}", who.name());
            Ok(())
        })?;
    }
    for steady in &mut streams {
        moves_to(steady, "near")?;
    }
    cluster.publish("web", &web(), &[&cluster.far])?;
    for steady in &mut streams {
        moves_to(steady, "far")?;
    }
    streams.into_iter().try_for_each(is_whole)
}

#[test]
fn datagrams_are_dropped_where_policy_leaves_no_endpoint_while_others_serve() -> Result<()> {
    let cluster = cluster(&[])?;
    let local = web().spec("internalTrafficPolicy", "Local").spec("externalTrafficPolicy", "Local");
    cluster.publish("web", &local, &[&cluster.near])?;
    let node: &Place = cluster.lab.node(1);
    let mut ways = ways(&cluster);
    ways.extend(cluster_ips().into_iter().map(|address| (node, SocketAddr::new(address, PORT))));
    let mut streams = Vec::new();
    for (who, asked) in &ways {
        settles("the local endpoint", || {
            let found = servers(who, &Request::udp(*asked), *asked, 8)?;
            ensure!(found == ["near"], "{found:?}");
            Ok(())
        })?;
        let log = cluster.lab.logs().join("stream.log");
        let steady = who.steady(&Request::udp(*asked).timeout_ms(500), 0, &log);
        streams.push((*who, *asked, steady.map_err(|failure| anyhow::anyhow!("{asked}: {failure}"))?));
    }
    cluster.publish("web", &local, &[&cluster.far])?;
    for (who, asked, steady) in &mut streams {
        settles("silence", || {
            let report = steady.ask()?;
            let again = steady.ask()?;
            ensure!(again.answered == report.answered, "{asked}: {again:?}");
            Ok(())
        })?;
        let dropped = cluster.drops(1, "policy_empty")?;
        let report = steady.ask()?;
        ensure!(report.servers.keys().eq(["near"]), "{asked}: another node's endpoint answers: {report:?}");
        // What a drop is to a packet, EHOSTUNREACH is to a socket that is translated.
        let is_host = std::ptr::eq(*who, node);
        let kind = report.failure.as_ref().map(|failure| failure.kind);
        let expected = if is_host { FailureKind::Unreachable } else { FailureKind::Timeout };
        ensure!(kind == Some(expected), "{asked}: {report:?}");
        let counted = cluster.drops(1, "policy_empty")?;
        ensure!(counted == dropped + 1, "{asked}: {counted} drops, {dropped} before");
    }
    cluster.publish("web", &local, &[&cluster.far, &cluster.near])?;
    for (_, asked, steady) in &mut streams {
        settles("the local endpoint again", || {
            let before = steady.report()?.answered;
            let report = steady.ask()?;
            ensure!(report.answered > before && report.servers.keys().eq(["near"]), "{asked}: {report:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn connections_stay(extra: &[&str]) -> Result<()> {
    let cluster = cluster(extra)?;
    let mut ways = ways(&cluster);
    if extra.is_empty() {
        ways.push((cluster.lab.node(1), SocketAddr::new(cluster_ips()[0], PORT)));
        ways.push((cluster.lab.node(1), SocketAddr::new(cluster_ips()[1], PORT)));
    }
    let mut streams = streams(&cluster, Protocol::Tcp, &ways)?;
    let endpoints = [Endpoint::terminating(&cluster.near), Endpoint::ready(&cluster.far)];
    cluster.publish_of("web", &web(), &endpoints)?;
    for (who, asked) in &ways {
        settles("new connections to go elsewhere", || {
            let found = servers(who, &Request::tcp(*asked), *asked, 6)?;
            ensure!(found == ["far"], "{found:?}");
            Ok(())
        })?;
    }
    for steady in &mut streams {
        moves_to(steady, "near")?;
    }
    streams.into_iter().try_for_each(is_whole)
}

#[test]
fn connections_stay_with_an_endpoint_that_terminates_and_new_ones_go_elsewhere() -> Result<()> {
    connections_stay(&[])
}

#[test]
fn connections_of_packets_stay_with_an_endpoint_that_terminates_and_new_ones_go_elsewhere() -> Result<()> {
    connections_stay(&PACKETS)
}

#[test]
fn connections_stay_when_their_endpoint_is_removed_before_it_stops_serving() -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    let mut streams = streams(&cluster, Protocol::Tcp, &ways(&cluster))?;
    cluster.publish("web", &web(), &[&cluster.far])?;
    for (who, asked) in ways(&cluster) {
        settles("new connections to go elsewhere", || {
            let found = servers(who, &Request::tcp(asked), asked, 6)?;
            ensure!(found == ["far"], "{found:?}");
            Ok(())
        })?;
    }
    for steady in &mut streams {
        moves_to(steady, "near")?;
    }
    streams.into_iter().try_for_each(is_whole)
}
