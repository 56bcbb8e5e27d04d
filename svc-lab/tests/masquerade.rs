//! `--masquerade programs`: outside → endpoints of another node without nftables, packet by packet.

mod support;

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use serde_json::Value;
use svc_lab::{Cni, Mtu, Place, Pod, Protocol, Request, Spec};

use support::{
    Cluster, PORT, PROTOCOLS, TARGET, WEB,
    flow::{entries_where, forget, goes_on},
    service, service_addresses,
};

const PROGRAMS: [&str; 2] = ["--masquerade", "programs"];
/// The node port of `host`, whose endpoint is in node 2's own network.
const HOST: u16 = 30081;
/// First port that the programs masquerade with.
const FIRST: u16 = 49152;

/// `web` is served by `far` on node 2, `host` by node 2 itself.
fn cluster(spec: Spec, arguments: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::build(spec)?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.far])?;
    cluster.publish("host", &service("host", 11, HOST), &[&cluster.host])?;
    cluster.start(arguments)?;
    Ok(cluster)
}

/// What the outside may ask: node ports of node 1 and load balancers' addresses, and who answers.
fn doors(cluster: &Cluster) -> Vec<(SocketAddr, &Pod)> {
    let node = cluster.lab.node(1).addresses.both();
    let mut doors = Vec::new();
    for (nth, node_port, pod) in [(10, WEB, &cluster.far), (11, HOST, &cluster.host)] {
        doors.extend(node.map(|address| (SocketAddr::from((address, node_port)), pod)));
        doors.extend(service_addresses(nth).1.into_iter().map(|address| (SocketAddr::from((address, PORT)), pod)));
    }
    doors
}

/// The addresses that node 1 masquerades with towards a pod, one of each family.
fn is_node_1(cluster: &Cluster, cni: Cni, pod: &Pod, client: SocketAddr) -> Result<bool> {
    let node = cluster.lab.node(1);
    if cni == Cni::Vxlan && pod.name() == cluster.far.name() {
        let own = node.exec("ip", &["-o", "addr", "show", "dev", "flannel.1"])?;
        return Ok(own.contains(&format!(" {}/", client.ip())));
    }
    Ok(client.ip() == node.addresses.like(client.ip()))
}

fn ask(who: &Place, request: &Request) -> Result<(String, SocketAddr, SocketAddr)> {
    let success = who.ask(request).map_err(|failure| anyhow::anyhow!("{} {request:?}: {failure}", who.name()))?;
    Ok((success.answer.server, success.answer.client, success.peer))
}

fn every_door(cni: Cni) -> Result<()> {
    let cluster = cluster(Spec { cni, rp_filter: 1, ..Spec::default() }, &PROGRAMS)?;
    let status: Value = serde_json::from_str(&cluster.lab.svc(1, &["status", "-o", "json"])?)?;
    ensure!(status["masquerade"] == "programs", "{}", status["masquerade"]);
    let rules = cluster.lab.node(1).exec("nft", &["list", "ruleset"])?;
    ensure!(!rules.contains("table inet svc"), "{rules}");
    for (door, pod) in doors(&cluster) {
        for protocol in PROTOCOLS {
            let (server, client, peer) = ask(cluster.lab.outside(), &Request::new(protocol, door))?;
            ensure!(server == pod.name() && peer == door, "{server} answered as {peer}, not {} as {door}", pod.name());
            ensure!(client.port() >= FIRST, "{door} {}: {client}", protocol.as_str());
            ensure!(is_node_1(&cluster, cni, pod, client)?, "{door} {}: {client} is not node1", protocol.as_str());
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn every_door_leads_to_another_node_with_routed_pods() -> Result<()> {
    every_door(Cni::Routed)
}

#[test]
fn every_door_leads_to_another_node_with_bridged_pods() -> Result<()> {
    every_door(Cni::Bridge)
}

#[test]
fn every_door_leads_to_another_node_over_an_overlay() -> Result<()> {
    every_door(Cni::Vxlan)
}

#[test]
fn clients_with_the_same_port_get_ports_of_their_own() -> Result<()> {
    let cluster = cluster(Spec::default(), &PROGRAMS)?;
    // The router is a client as well.
    let clients = [cluster.lab.outside(), cluster.lab.router()];
    for (door, pod) in doors(&cluster) {
        for protocol in PROTOCOLS {
            let request = Request::new(protocol, door).from_port(45_000).timeout_ms(5000);
            let log = |who: &Place| cluster.lab.logs().join(format!("steady-{}.log", who.name()));
            let mut streams =
                clients.iter().map(|who| Ok(who.steady(&request, 5, &log(who))?)).collect::<Result<Vec<_>>>()?;
            let seen: BTreeSet<SocketAddr> = streams.iter().map(|stream| stream.first.answer.client).collect();
            ensure!(seen.len() == clients.len(), "{door} {}: {seen:?}", protocol.as_str());
            for stream in &mut streams {
                goes_on(stream, pod.name())?;
            }
            for stream in streams {
                let report = stream.stop()?;
                ensure!(report.is_clean(), "{door} {}: {report:?}", protocol.as_str());
            }
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

/// The pod's port is one of ours, and netfilter keeps it: both flows want node 1 with this port towards node 2.
#[test]
fn a_flow_that_netfilter_masquerades_with_one_of_our_ports_shares_it_with_nobody() -> Result<()> {
    let cluster = cluster(Spec::default(), &PROGRAMS)?;
    let (lab, client, host) = (&cluster.lab, &cluster.client, &cluster.host);
    let mut from = 46_000;
    for family in 0..2 {
        let (direct, asked) = (host.addresses.both()[family], lab.node(1).addresses.both()[family]);
        for protocol in PROTOCOLS {
            for pod_first in [true, false] {
                from += 1;
                let through = |who: &Place, to: (std::net::IpAddr, u16), port: u16, name: &str| {
                    let request = Request::new(protocol, to).from_port(port).timeout_ms(5000);
                    who.steady(&request, 5, &lab.logs().join(name))
                };
                // Which port the client outside gets is known once it has it: another time it is the same.
                let mut outside = through(lab.outside(), (asked, HOST), from, "outside.log")?;
                let ours = outside.first.answer.client.port();
                ensure!(ours >= FIRST, "{asked}: {ours}");
                if pod_first {
                    outside.stop()?;
                    let all = entries_where(&cluster, &|key| {
                        [&key["source_port"], &key["destination_port"]].into_iter().any(|it| *it == ours || *it == from)
                    })?;
                    forget(&all)?;
                    let inside = through(client, (direct, TARGET), ours, "inside.log")?;
                    ensure!(inside.first.answer.client.port() == ours, "{:?}", inside.first.answer.client);
                    outside = through(lab.outside(), (asked, HOST), from, "outside.log")?;
                    ensure!(outside.first.answer.client.port() != ours, "{asked} {}: shared", protocol.as_str());
                    both_go_on(inside, outside, host, protocol)?;
                } else {
                    let inside = through(client, (direct, TARGET), ours, "inside.log")?;
                    ensure!(inside.first.answer.client.port() != ours, "{asked} {}: shared", protocol.as_str());
                    both_go_on(inside, outside, host, protocol)?;
                }
            }
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

fn both_go_on(inside: svc_lab::Steady, outside: svc_lab::Steady, server: &Pod, protocol: Protocol) -> Result<()> {
    for mut stream in [inside, outside] {
        goes_on(&mut stream, server.name())?;
        let report = stream.stop()?;
        ensure!(report.is_clean(), "{}: {report:?}", protocol.as_str());
    }
    Ok(())
}

fn narrow_links(cni: Cni) -> Result<()> {
    let mtu = Mtu { outside: 1300, ..Mtu::default() };
    let cluster = cluster(Spec { cni, mtu, rp_filter: 1, ..Spec::default() }, &PROGRAMS)?;
    for (door, pod) in doors(&cluster) {
        let request = || Request::tcp(door).timeout_ms(20_000);
        for request in [request().download(2_000_000), request().upload(2_000_000)] {
            let (server, ..) = ask(cluster.lab.outside(), &request)?;
            ensure!(server == pod.name(), "{server} answered at {door}");
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    for (door, pod) in doors(&cluster) {
        // IPv6 is fragmented by its sender alone, who is told the narrow link's width first.
        let request = || Request::udp(door).payload(4_000).pad(4_000).timeout_ms(2000);
        let _told = cluster.lab.outside().ask(&request());
        for outcome in cluster.lab.outside().ask_all(&request().count(4))? {
            let success = outcome.map_err(|failure| anyhow::anyhow!("fragments to {door}: {failure}"))?;
            ensure!(success.answer.server == pod.name(), "{} answered at {door}", success.answer.server);
        }
    }
    Ok(())
}

#[test]
fn megabytes_and_fragments_cross_a_narrow_link_to_another_node() -> Result<()> {
    narrow_links(Cni::Routed)
}

#[test]
fn megabytes_and_fragments_cross_a_narrow_link_and_an_overlay_to_another_node() -> Result<()> {
    narrow_links(Cni::Vxlan)
}

/// Streams of both protocols and families, with both endpoints.
fn streams(cluster: &Cluster) -> Result<Vec<(svc_lab::Steady, String)>> {
    let mut port = 47_000;
    let mut streams = Vec::new();
    for (door, pod) in doors(cluster) {
        for protocol in PROTOCOLS {
            port += 1;
            let request = Request::new(protocol, door).from_port(port).timeout_ms(5000);
            let log = cluster.lab.logs().join(format!("stream-{port}.log"));
            streams.push((cluster.lab.outside().steady(&request, 20, &log)?, pod.name().to_owned()));
        }
    }
    Ok(streams)
}

fn all_go_on(streams: &mut [(svc_lab::Steady, String)]) -> Result<()> {
    for (stream, server) in streams {
        goes_on(stream, server)?;
    }
    Ok(())
}

#[test]
fn flows_outlive_the_agent_and_a_change_of_who_masquerades() -> Result<()> {
    let mut cluster = cluster(Spec::default(), &PROGRAMS)?;
    let mut streams = streams(&cluster)?;
    cluster.kill(1)?;
    all_go_on(&mut streams)?;
    cluster.start(&["--masquerade", "nftables"])?;
    all_go_on(&mut streams)?;
    // New flows are nftables' from now on, and go on when the programs take over again.
    let (door, pod) = doors(&cluster)[0];
    let request = Request::tcp(door).from_port(48_000).timeout_ms(5000);
    let newer = cluster.lab.outside().steady(&request, 20, &cluster.lab.logs().join("newer.log"))?;
    ensure!(newer.first.answer.client.port() < FIRST, "{:?}", newer.first.answer.client);
    streams.push((newer, pod.name().to_owned()));
    cluster.start(&PROGRAMS)?;
    all_go_on(&mut streams)?;
    for (stream, server) in streams {
        let report = stream.stop()?;
        ensure!(report.is_clean(), "{server}: {report:?}");
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn flows_go_on_when_an_entry_was_evicted() -> Result<()> {
    let cluster = cluster(Spec::default(), &PROGRAMS)?;
    let mut streams = streams(&cluster)?;
    let port = |key: &Value, name: &str| key[name].as_u64().unwrap_or_default();
    let outbound =
        entries_where(&cluster, &|key| key["hook"] == 1 && (47_000..48_000).contains(&port(key, "source_port")))?;
    ensure!(outbound.len() == streams.len(), "{} of {}: {outbound:?}", outbound.len(), streams.len());
    forget(&outbound)?;
    all_go_on(&mut streams)?;
    // A segment that comes before the entry is back is answered by the node itself, with a reset: datagrams only.
    let inbound = entries_where(&cluster, &|key| {
        key["hook"] == 0 && key["protocol"] == 17 && port(key, "destination_port") >= FIRST.into()
    })?;
    ensure!(inbound.len() == streams.len() / 2, "{} of {}: {inbound:?}", inbound.len(), streams.len());
    forget(&inbound)?;
    all_go_on(&mut streams)?;
    for (stream, server) in streams {
        let report = stream.stop()?;
        ensure!(report.servers.len() == 1, "{server}: {report:?}");
    }
    Ok(())
}

#[test]
fn ports_are_reserved_and_given_back() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    let setting = "net.ipv4.ip_local_reserved_ports";
    cluster.lab.node(1).set_sysctls(&[(setting, "8080,50000-50010")])?;
    cluster.start(&PROGRAMS)?;
    let read = |cluster: &Cluster| cluster.lab.node(1).exec("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"]);
    ensure!(read(&cluster)?.trim() == "8080,49152-65535", "{}", read(&cluster)?);
    // A successor finds them reserved, and knows who did it.
    cluster.start(&PROGRAMS)?;
    cluster.kill(1)?;
    let report = cluster.lab.svc(1, &["cleanup"])?;
    ensure!(report.contains("not reserved any more"), "{report}");
    ensure!(read(&cluster)?.trim() == "8080,50000-50010", "{}", read(&cluster)?);
    Ok(())
}
