//! What becomes of a flow when its endpoint goes, terminates or changes, when its port is used again, and when the flow
//! table loses a part of it.

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use svc_lab::{Cni, Endpoint, FailureKind, Place, Pod, Protocol, Request, Service, Spec, Steady, until};

use support::{
    Cluster, PORT, PROTOCOLS, TARGET, WEB,
    flow::{PATIENCE, entries, entries_where, forget, goes_on, moves_to, servers, settles},
    service, service_addresses,
};

/// Node port of the Service with policy Local.
const LOCAL: u16 = 30081;

/// Pods' sockets are not translated, so that their packets are.
const PACKETS: [&str; 2] = ["--socket-lb", "off"];

fn cluster(extra: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &web(), &[&cluster.near])?;
    cluster.start(extra)?;
    Ok(cluster)
}

fn web() -> Service {
    service("web", 10, WEB)
}

fn cluster_ips() -> Vec<IpAddr> {
    service_addresses(10).0
}

/// Where a pod of node 1 and a client outside find `web`, in both families.
fn ways(cluster: &Cluster) -> Vec<(&Place, SocketAddr)> {
    let client: &Place = &cluster.client;
    let inside = cluster_ips().into_iter().map(|address| (client, SocketAddr::new(address, PORT)));
    let node = cluster.lab.node(1).addresses.both();
    let outside = node.into_iter().map(|address| (cluster.lab.outside(), SocketAddr::new(address, WEB)));
    inside.chain(outside).collect()
}

fn streams(cluster: &Cluster, protocol: Protocol, ways: &[(&Place, SocketAddr)]) -> Result<Vec<Steady>> {
    ways.iter().map(|(who, asked)| cluster.stream(who, &Request::new(protocol, *asked))).collect()
}

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

/// Nothing was lost, and the socket's port is the first one.
fn is_whole(steady: Steady) -> Result<()> {
    let (port, peer) = (steady.first.source.port(), steady.first.peer);
    let report = steady.stop()?;
    ensure!(report.is_clean(), "{peer}: {report:?}");
    let last = report.last.context("no answer")?;
    ensure!(last.source.port() == port && last.peer == peer, "{last:?} is not from {port} and {peer}");
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
    let ways = ways(&cluster);
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

/// Removes the entries of a hook from the flow tables again and again while streams run; all must go on.
fn survives(
    protocol: Protocol,
    hook: &str,
    interval_ms: u64,
    pods: impl Fn(&Cluster) -> Vec<&Pod>,
    ways: impl Fn(&Cluster) -> Vec<(&Place, SocketAddr)>,
) -> Result<()> {
    let cluster = cluster(&PACKETS)?;
    let (pods, ways) = (pods(&cluster), ways(&cluster));
    cluster.publish("web", &web(), &pods)?;
    for (who, asked) in &ways {
        settles("all endpoints", || {
            let found = servers(who, &Request::new(protocol, *asked), *asked, 24)?;
            ensure!(found.len() == pods.len(), "{found:?}");
            Ok(())
        })?;
    }
    // Entries of what was just asked may have a stream's port.
    forget(&entries_where(&cluster, &|_| true)?)?;
    let mut streams = Vec::new();
    for (who, asked) in &ways {
        let log = cluster.lab.logs().join("stream.log");
        let request = Request::new(protocol, *asked).timeout_ms(5000);
        let request = if protocol == Protocol::Udp { request.connected() } else { request };
        let steady =
            who.steady(&request, interval_ms, &log).map_err(|failure| anyhow::anyhow!("{asked}: {failure}"))?;
        streams.push((*asked, steady));
    }
    for _ in 0..3 {
        for (asked, steady) in &mut streams {
            let port = steady.first.source.port();
            let found = entries(&cluster, port, hook)?;
            ensure!(!found.is_empty(), "{asked} from {port} has no entry at {hook}");
            // Just after an answer, so that none is under way: without its entry it would reach the client untranslated.
            let seen = steady.report()?.answered;
            until("an answer", PATIENCE, || {
                let report = steady.report().map_err(|error| error.to_string())?;
                if report.answered > seen || report.failure.is_some() { Ok(()) } else { Err(format!("{report:?}")) }
            })?;
            forget(&found)?;
            let before = steady.report()?;
            let after = until("more answers", PATIENCE, || {
                let report = steady.report().map_err(|error| error.to_string())?;
                let is_decided = report.answered >= before.answered + 3 || report.failure.is_some();
                if is_decided { Ok(report) } else { Err(format!("{report:?}")) }
            })?;
            ensure!(after.failure.is_none(), "{asked} from {port} without {found:?}: {after:?}");
            let rebuilt = entries(&cluster, port, hook)?;
            ensure!(rebuilt.len() == found.len(), "{asked} from {port}: {found:?} became {rebuilt:?}");
        }
    }
    for (asked, steady) in streams {
        let report = steady.stop()?;
        ensure!(report.is_clean(), "{asked}: {report:?}");
        ensure!(report.servers.len() == 1, "{asked}: the endpoint changed: {report:?}");
    }
    Ok(())
}

fn three(cluster: &Cluster) -> Vec<&Pod> {
    vec![&cluster.near, &cluster.far, &cluster.host]
}

fn itself(cluster: &Cluster) -> Vec<&Pod> {
    vec![&cluster.near]
}

/// Where a pod finds itself.
fn ways_to_itself(cluster: &Cluster) -> Vec<(&Place, SocketAddr)> {
    let near: &Place = &cluster.near;
    cluster_ips().into_iter().map(|address| (near, SocketAddr::new(address, PORT))).collect()
}

#[test]
fn connections_whose_forward_entry_was_evicted_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Tcp, "ingress", 20, three, ways)
}

#[test]
fn datagrams_whose_forward_entry_was_evicted_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Udp, "ingress", 20, three, ways)
}

// A table gives up what was not used for longest, so a reply entry is lost while its flow is idle: the streams are slower
// than the clock by which a flow is looked after.

#[test]
fn idle_connections_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, "egress", 1_500, three, ways)
}

#[test]
fn idle_datagram_flows_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Udp, "egress", 1_500, three, ways)
}

#[test]
fn connections_of_a_pod_to_itself_whose_forward_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, "ingress", 20, itself, ways_to_itself)
}

#[test]
fn datagrams_of_a_pod_to_itself_whose_forward_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Udp, "ingress", 20, itself, ways_to_itself)
}

#[test]
fn idle_connections_of_a_pod_to_itself_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, "egress", 1_500, itself, ways_to_itself)
}
