//! Flows that the flow table loses a part of. Every request is sent when the test says so, so that none is under way when an
//! entry is taken.

mod support;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use svc_lab::{Place, Pod, Protocol, Request, Service, until};

use support::{
    Cluster, PORT,
    flow::{
        Entry, PACKETS, PATIENCE, cluster, cluster_ips, entries, entries_where, forget, servers, settles, ways, web,
    },
    service_addresses,
};

/// Waits until the unit of time in which a flow is looked after once, 2^30 ns, is over. It is the programs' clock.
fn next_unit() -> Result<()> {
    let unit = || -> Result<u128, String> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|error| error.to_string())?;
        Ok(Duration::from(now).as_nanos() >> 30)
    };
    let before = unit().map_err(anyhow::Error::msg)?;
    until("the next unit of time", PATIENCE, || match unit()? {
        now if now > before => Ok(()),
        now => Err(format!("it is {now}")),
    })?;
    Ok(())
}

/// Removes the entries of hooks from the flow tables again and again below streams; all must go on.
fn survives(
    protocol: Protocol,
    hooks: &[&str],
    service: &Service,
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
    if service.object != web().object {
        cluster.publish("web", service, &pods)?;
        for (who, asked) in &ways {
            settles("one endpoint", || {
                let found = servers(who, &Request::new(protocol, *asked), *asked, 24)?;
                ensure!(found.len() == 1, "{found:?}");
                Ok(())
            })?;
        }
    }
    let entries = |port| -> Result<Vec<Entry>> {
        let found: Vec<Vec<Entry>> = hooks.iter().map(|hook| entries(&cluster, port, hook)).collect::<Result<_>>()?;
        ensure!(found.iter().all(|entries| !entries.is_empty()), "{port} has no entry at one of {hooks:?}: {found:?}");
        Ok(found.into_iter().flatten().collect())
    };
    // Entries of what was just asked may have a stream's port.
    forget(&entries_where(&cluster, &|_| true)?)?;
    let mut streams = Vec::new();
    for (who, asked) in &ways {
        let log = cluster.lab.logs().join("stream.log");
        let request = Request::new(protocol, *asked).timeout_ms(5000);
        let request = if protocol == Protocol::Udp { request.connected() } else { request };
        let steady = who.steady(&request, 0, &log).map_err(|failure| anyhow::anyhow!("{asked}: {failure}"))?;
        streams.push((*asked, steady));
    }
    for _ in 0..3 {
        for (asked, steady) in &mut streams {
            let port = steady.first.source.port();
            let found = entries(port)?;
            forget(&found)?;
            if hooks == ["egress"] {
                next_unit()?;
            }
            for _ in 0..3 {
                let report = steady.ask()?;
                let is_answered = report.answered == report.sent && report.failure.is_none();
                ensure!(is_answered, "{asked} from {port} without {found:?}: {report:?}");
            }
            let rebuilt = entries(port)?;
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

/// Where a client outside finds `web` at addresses that other nodes have as well.
fn external_ways(cluster: &Cluster) -> Vec<(&Place, SocketAddr)> {
    let addresses = service_addresses(10).1;
    addresses.into_iter().map(|address| (cluster.lab.outside(), SocketAddr::new(address, PORT))).collect()
}

fn sticky() -> Service {
    web().spec("sessionAffinity", "ClientIP")
}

#[test]
fn connections_whose_forward_entry_was_evicted_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Tcp, &["ingress"], &web(), three, ways)
}

#[test]
fn datagrams_whose_forward_entry_was_evicted_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Udp, &["ingress"], &web(), three, ways)
}

// A table gives up what was not used for longest, so a reply entry is lost while its flow is idle: the next request comes in
// another unit of the clock by which a flow is looked after.

#[test]
fn idle_connections_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, &["egress"], &web(), three, ways)
}

#[test]
fn idle_datagram_flows_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Udp, &["egress"], &web(), three, ways)
}

#[test]
fn connections_of_a_pod_to_itself_whose_forward_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, &["ingress"], &web(), itself, ways_to_itself)
}

#[test]
fn datagrams_of_a_pod_to_itself_whose_forward_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Udp, &["ingress"], &web(), itself, ways_to_itself)
}

#[test]
fn idle_connections_of_a_pod_to_itself_whose_reply_entry_was_evicted_go_on() -> Result<()> {
    survives(Protocol::Tcp, &["egress"], &web(), itself, ways_to_itself)
}

#[test]
fn connections_with_affinity_whose_forward_entry_was_evicted_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Tcp, &["ingress"], &sticky(), three, ways)
}

// As when a connection comes by another node from then on: nothing is left of it, and its hash says where it went.

#[test]
fn connections_of_an_external_address_that_lost_both_entries_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Tcp, &["ingress", "egress"], &web(), three, external_ways)
}

#[test]
fn connections_of_an_external_address_with_affinity_that_lost_both_entries_go_on() -> Result<()> {
    survives(Protocol::Tcp, &["ingress", "egress"], &sticky(), three, external_ways)
}

#[test]
fn datagram_flows_that_lost_both_entries_go_on_with_their_endpoint() -> Result<()> {
    survives(Protocol::Udp, &["ingress", "egress"], &web(), three, |cluster| {
        [ways(cluster), external_ways(cluster)].concat()
    })
}
