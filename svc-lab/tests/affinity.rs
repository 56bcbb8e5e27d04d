//! Session affinity: clients in pods and outside through the packet path, processes of the host through the socket hooks,
//! each in both families.

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use svc_lab::{Endpoint, Place, Pod, Protocol, Request, Service, Spec, until};

use support::{
    Cluster, PORT, PROTOCOLS, WEB,
    flow::{PATIENCE, servers, settles},
    service, service_addresses,
};

/// Enough connections that three backends at random would not all be one: once in 3^11 runs.
const MANY: u32 = 12;

fn sticky(nth: u16, seconds: u32) -> Service {
    service(&format!("web-{nth}"), nth, node_port(nth))
        .spec("sessionAffinity", "ClientIP")
        .spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
}

fn node_port(nth: u16) -> u16 {
    WEB + nth - 10
}

fn publish(cluster: &Cluster, service: &Service, nth: u16, pods: &[&Pod]) -> Result<()> {
    cluster.publish(&format!("web-{nth}"), service, pods)
}

/// Who can be a client.
#[derive(Clone, Copy, Debug)]
enum Who {
    Pod,
    Outside,
    Host,
}

const EVERYBODY: [Who; 3] = [Who::Pod, Who::Outside, Who::Host];

impl Who {
    fn place(self, cluster: &Cluster) -> &Place {
        match self {
            Self::Pod => &cluster.client,
            Self::Outside => cluster.lab.outside(),
            Self::Host => cluster.lab.node(1),
        }
    }

    /// All addresses of the nth Service that node 1 translates for this client, of one family.
    fn addresses(self, cluster: &Cluster, nth: u16, family: usize) -> Vec<SocketAddr> {
        let (cluster_ips, balancer) = service_addresses(nth);
        let node = cluster.lab.node(1).addresses.both()[family];
        let mut found = vec![
            SocketAddr::new(node, node_port(nth)),
            SocketAddr::new(balancer[family], PORT),
            SocketAddr::new(cluster_ips[family], PORT),
        ];
        match self {
            Self::Outside => found.truncate(2),
            Self::Pod => {}
            Self::Host if family == 0 => {
                found.push(SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), node_port(nth)));
            }
            Self::Host => found.push(SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), node_port(nth))),
        }
        found
    }
}

/// A cluster with agents and Services that have `near` as their only endpoint.
fn cluster(seconds: u32, services: std::ops::Range<u16>) -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    for nth in services {
        publish(&cluster, &sticky(nth, seconds), nth, &[&cluster.near])?;
    }
    cluster.start(&[])?;
    Ok(cluster)
}

/// The one server that answers many connections to all addresses; an error if there are two.
fn the_server(who: Who, cluster: &Cluster, nth: u16, family: usize, protocol: Protocol) -> Result<String> {
    let mut found = Vec::new();
    for asked in who.addresses(cluster, nth, family) {
        found.extend(servers(who.place(cluster), &Request::new(protocol, asked), asked, MANY / 2)?);
    }
    found.sort_unstable();
    found.dedup();
    ensure!(found.len() == 1, "{who:?}, family {family}, {protocol:?}: {found:?} answer");
    Ok(found.remove(0))
}

/// Calls `check` for every client, family and protocol.
fn for_everybody(mut check: impl FnMut(Who, usize, Protocol) -> Result<()>) -> Result<()> {
    for who in EVERYBODY {
        for family in 0..2 {
            for protocol in PROTOCOLS {
                check(who, family, protocol)?;
            }
        }
    }
    Ok(())
}

/// Waits until everything that was published before is in effect: until a Service that is published now has come, and
/// gone again.
fn in_effect(cluster: &Cluster) -> Result<()> {
    const NODE_PORT: u16 = WEB + 99;
    let asked = SocketAddr::new(cluster.lab.node(1).addresses.v4.into(), NODE_PORT);
    let outside = cluster.lab.outside();
    cluster.publish("zz-marker", &service("marker", 99, NODE_PORT), &[&cluster.near])?;
    settles("the marker", || servers(outside, &Request::tcp(asked), asked, 1).map(drop))?;
    cluster.manifests.remove("zz-marker")?;
    Ok(until("the end of the marker", PATIENCE, || match outside.ask(&Request::tcp(asked).timeout_ms(300)) {
        Err(_) => Ok(()),
        Ok(success) => Err(format!("{success:?}")),
    })?)
}

#[test]
fn a_client_keeps_its_endpoint_across_connections_addresses_and_node_ports() -> Result<()> {
    let cluster = cluster(600, 10..11)?;
    publish(&cluster, &sticky(10, 600), 10, &[&cluster.near, &cluster.far, &cluster.host])?;
    in_effect(&cluster)?;
    for_everybody(|who, family, protocol| {
        let first = the_server(who, &cluster, 10, family, protocol)?;
        let second = the_server(who, &cluster, 10, family, protocol)?;
        ensure!(first == second, "{who:?}, family {family}, {protocol:?}: first {first}, then {second}");
        Ok(())
    })
}

#[test]
fn a_client_keeps_its_endpoint_when_others_come() -> Result<()> {
    let cluster = cluster(600, 10..14)?;
    for nth in 10..14 {
        for_everybody(|who, family, protocol| the_server(who, &cluster, nth, family, protocol).map(drop))?;
        publish(&cluster, &sticky(nth, 600), nth, &[&cluster.far, &cluster.near, &cluster.host])?;
    }
    in_effect(&cluster)?;
    for nth in 10..14 {
        for_everybody(|who, family, protocol| {
            let server = the_server(who, &cluster, nth, family, protocol)?;
            ensure!(server == "near", "web-{nth}: {who:?}, family {family}, {protocol:?} moved to {server}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_removed_is_replaced_and_its_successor_kept() -> Result<()> {
    let cluster = cluster(600, 10..11)?;
    for_everybody(|who, family, protocol| the_server(who, &cluster, 10, family, protocol).map(drop))?;
    publish(&cluster, &sticky(10, 600), 10, &[&cluster.far, &cluster.host])?;
    in_effect(&cluster)?;
    let mut chosen = Vec::new();
    for_everybody(|who, family, protocol| {
        let server = the_server(who, &cluster, 10, family, protocol)?;
        ensure!(server != "near", "{who:?}, family {family}, {protocol:?} is still with near");
        chosen.push(server);
        Ok(())
    })?;
    publish(&cluster, &sticky(10, 600), 10, &[&cluster.near, &cluster.far, &cluster.host])?;
    in_effect(&cluster)?;
    let mut chosen = chosen.into_iter();
    for_everybody(|who, family, protocol| {
        let server = the_server(who, &cluster, 10, family, protocol)?;
        ensure!(chosen.next().as_ref() == Some(&server), "{who:?}, family {family}, {protocol:?} moved to {server}");
        Ok(())
    })
}

#[test]
fn a_client_leaves_its_endpoint_when_a_policy_or_hints_take_it_away() -> Result<()> {
    let cluster = cluster(600, 10..12)?;
    let far = |nth| publish(&cluster, &sticky(nth, 600), nth, &[&cluster.far]);
    (10..12).try_for_each(far)?;
    in_effect(&cluster)?;
    let ask = |nth: u16, expected: &str| {
        for_everybody(|who, family, protocol| {
            // Policy Local holds for the outside at node ports, and for all others at cluster IPs.
            let addresses = who.addresses(&cluster, nth, family);
            let asked = addresses[if matches!(who, Who::Outside) { 0 } else { 2 }];
            let found = servers(who.place(&cluster), &Request::new(protocol, asked), asked, MANY / 2)?;
            ensure!(found == [expected], "web-{nth}, {who:?}, family {family}, {protocol:?}: {found:?}");
            Ok(())
        })
    };
    (10..12).try_for_each(|nth| ask(nth, "far"))?;
    let local = sticky(10, 600).spec("externalTrafficPolicy", "Local").spec("internalTrafficPolicy", "Local");
    publish(&cluster, &local, 10, &[&cluster.near, &cluster.far])?;
    let nodes = ["node1", "node2"].map(|node| [node.to_owned()]);
    let hinted = [(&cluster.near, &nodes[0]), (&cluster.far, &nodes[1])];
    let hinted = hinted.map(|(pod, node)| Endpoint { for_nodes: node, ..Endpoint::ready(pod) });
    cluster.publish_of("web-11", &sticky(11, 600), &hinted)?;
    in_effect(&cluster)?;
    (10..12).try_for_each(|nth| ask(nth, "near"))
}

#[test]
fn affinity_is_switched_on_and_off_while_the_service_runs() -> Result<()> {
    let cluster = cluster(600, 10..11)?;
    let pods = [&cluster.near, &cluster.far, &cluster.host];
    // A datagram flow keeps its endpoint whatever is switched: no time uses a port of an earlier one.
    let ports_of = |time: u16| -> Result<()> {
        let clients: [(&Place, u16, u16); 3] = [
            (&cluster.client, 20_000, 2_500),
            (cluster.lab.outside(), 43_000, 4_000),
            (cluster.lab.node(1), 11_000, 2_000),
        ];
        for (who, first, count) in clients {
            let from = first + time * count;
            let range = format!("{from} {}", from + count - 1);
            who.set_sysctls(&[("net.ipv4.ip_local_port_range", &range)])?;
        }
        Ok(())
    };
    for round in 0..2 {
        ports_of(2 * round)?;
        publish(&cluster, &sticky(10, 600).spec("sessionAffinity", "None"), 10, &pods)?;
        for_everybody(|who, family, protocol| {
            let asked = who.addresses(&cluster, 10, family)[0];
            settles("different endpoints without affinity", || {
                let found = servers(who.place(&cluster), &Request::new(protocol, asked), asked, MANY)?;
                ensure!(found.len() > 1, "{who:?}, {asked}, {protocol:?}: {found:?}");
                Ok(())
            })
        })?;
        publish(&cluster, &sticky(10, 600), 10, &pods)?;
        in_effect(&cluster)?;
        ports_of(2 * round + 1)?;
        for_everybody(|who, family, protocol| the_server(who, &cluster, 10, family, protocol).map(drop))?;
    }
    Ok(())
}

#[test]
fn affinity_ends_when_a_client_was_silent_for_longer_than_the_time_out() -> Result<()> {
    // A client that is bound no more is balanced by its address, to one endpoint of the three in every Service: two of them
    // had another one.
    let cluster = cluster(1, 10..13)?;
    let first = [&cluster.near, &cluster.far, &cluster.host];
    for (nth, only) in (10..13).zip(first) {
        publish(&cluster, &sticky(nth, 1), nth, &[only])?;
    }
    in_effect(&cluster)?;
    let ask_all = |who: Who, family: usize| -> Result<Vec<String>> {
        let mut found = Vec::new();
        for nth in 10..13 {
            let asked = who.addresses(&cluster, nth, family)[0];
            found.extend(servers(who.place(&cluster), &Request::tcp(asked), asked, 1)?);
        }
        Ok(found)
    };
    let names = first.map(|pod| pod.name().to_owned());
    for who in EVERYBODY {
        for family in 0..2 {
            settles("the only endpoint", || {
                let found = ask_all(who, family)?;
                ensure!(found == names, "{found:?}");
                Ok(())
            })?;
        }
    }
    for nth in 10..13 {
        publish(&cluster, &sticky(nth, 1), nth, &first)?;
    }
    in_effect(&cluster)?;
    for who in EVERYBODY {
        for family in 0..2 {
            // Each question starts the time anew, so they are asked with silence between them.
            let mut silent_since = Instant::now();
            settles("another endpoint after the time-out", || {
                ensure!(silent_since.elapsed() > Duration::from_secs(3), "silence");
                let found = ask_all(who, family)?;
                silent_since = Instant::now();
                ensure!(found != names, "{who:?}, family {family}: {found:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn every_new_connection_starts_the_time_out_anew() -> Result<()> {
    const SECONDS: u32 = 6;
    let services = 10..11;
    let cluster = cluster(SECONDS, services.clone())?;
    let ask = |who: Who, nth: u16, family: usize| {
        let asked = who.addresses(&cluster, nth, family)[0];
        servers(who.place(&cluster), &Request::tcp(asked), asked, 1)
    };
    let all = || EVERYBODY.into_iter().flat_map(|who| [(who, 0), (who, 1)]);
    settles("connections that never paused for long", || {
        for nth in services.clone() {
            publish(&cluster, &sticky(nth, SECONDS), nth, &[&cluster.near])?;
        }
        in_effect(&cluster)?;
        let start = Instant::now();
        let mut round = start;
        let mut others_are_there = false;
        while start.elapsed() < Duration::from_secs(3 * u64::from(SECONDS)) {
            for (who, family) in all() {
                for nth in services.clone() {
                    let found = ask(who, nth, family)?;
                    // On a machine that stood still for too long, the time was over: once more.
                    ensure!(round.elapsed() < Duration::from_secs(u64::from(SECONDS) - 1), "a pause");
                    if found != ["near"] {
                        return Ok(Err(format!("web-{nth}: {who:?}, family {family} moved to {found:?}")));
                    }
                }
            }
            round = Instant::now();
            if !others_are_there {
                for nth in services.clone() {
                    publish(&cluster, &sticky(nth, SECONDS), nth, &[&cluster.near, &cluster.far, &cluster.host])?;
                }
                others_are_there = true;
            }
        }
        Ok(Ok(()))
    })?
    .map_err(anyhow::Error::msg)
}
