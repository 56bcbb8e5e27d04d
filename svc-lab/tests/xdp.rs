//! `--xdp`: flows from outside to another node that leave the uplink before the stack sees them, and what does not.
//!
//! The uplink is a veth; `svc_lab::xdp` says what its other end needs.

mod support;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::Value;
use svc_lab::{Cni, Mtu, Place, Pod, Request, Spec, Steady};

use support::{Cluster, PORT, PROTOCOLS, WEB, flow::goes_on, service, service_addresses};

/// The node port of `host`, whose endpoint is in node 2's own network.
const HOST: u16 = 30081;
/// The node port of `near`, whose endpoint is on node 1.
const NEAR: u16 = 30082;
/// First port that the programs masquerade with.
const FIRST: u16 = 49152;
/// Index of `eth0`, the first interface of its namespace but `lo`.
const UPLINK: u32 = 2;

/// `web` is served by `far` on node 2, `host` by node 2 itself, `near` on node 1.
fn cluster(spec: Spec, mode: &str) -> Result<Cluster> {
    let mut cluster = Cluster::build(spec)?;
    for node in ["node1", "node2"] {
        cluster.keep(svc_lab::xdp::partner(cluster.lab.switch(), node)?);
    }
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.far])?;
    cluster.publish("host", &service("host", 11, HOST), &[&cluster.host])?;
    cluster.publish("near", &service("near", 12, NEAR), &[&cluster.near])?;
    cluster.start(&["--xdp", mode])?;
    Ok(cluster)
}

/// What the outside may ask: node ports of node 1 and load balancers' addresses, and who answers.
fn doors(cluster: &Cluster) -> Vec<(SocketAddr, &Pod)> {
    let node = cluster.lab.node(1).addresses.both();
    let mut doors = Vec::new();
    for (nth, node_port, pod) in [(10, WEB, &cluster.far), (11, HOST, &cluster.host), (12, NEAR, &cluster.near)] {
        doors.extend(node.map(|address| (SocketAddr::from((address, node_port)), pod)));
        doors.extend(service_addresses(nth).1.into_iter().map(|address| (SocketAddr::from((address, PORT)), pod)));
    }
    doors
}

/// How `svc_xdp` is attached on node 1's uplink, as `ip link` has it.
fn attached(cluster: &Cluster) -> Result<String> {
    cluster.lab.node(1).exec("ip", &["-d", "link", "show", "dev", "eth0"]).map_err(Into::into)
}

/// Connections that node 1's conntrack knows for a port of the outside.
fn tracked(cluster: &Cluster, port: u16) -> Result<usize> {
    let table = cluster.lab.node(1).exec("cat", &["/proc/net/nf_conntrack"])?;
    Ok(table.lines().filter(|line| line.contains(&format!("sport={port} "))).count())
}

/// A stream of each protocol through each door, with who answers and the client's port.
fn streams(cluster: &Cluster, doors: &[(SocketAddr, String)], from: u16) -> Result<Vec<(Steady, String, u16)>> {
    let mut port = from;
    let mut streams = Vec::new();
    for (door, server) in doors {
        for protocol in PROTOCOLS {
            port += 1;
            let request = Request::new(protocol, *door).from_port(port).timeout_ms(5000);
            let log = cluster.lab.logs().join(format!("stream-{port}.log"));
            streams.push((cluster.lab.outside().steady(&request, 20, &log)?, server.clone(), port));
        }
    }
    Ok(streams)
}

fn every_door(mode: &str, shown: &str) -> Result<()> {
    let cluster = cluster(Spec { rp_filter: 1, ..Spec::default() }, mode)?;
    ensure!(attached(&cluster)?.contains(shown), "{}", attached(&cluster)?);
    warm_up(&cluster)?;
    let doors: Vec<(SocketAddr, String)> =
        doors(&cluster).into_iter().map(|(door, pod)| (door, pod.name().to_owned())).collect();
    let mut past = 0;
    for (mut stream, server, port) in streams(&cluster, &doors, 50_000)? {
        goes_on(&mut stream, &server)?;
        let is_near = server == cluster.near.name();
        let client = stream.first.answer.client;
        ensure!(is_near == (client.ip() == svc_lab::plan::OUTSIDE.like(client.ip())), "{client}");
        ensure!(is_near || client.port() >= FIRST, "{client}");
        // conntrack knows what goes through the stack.
        past += usize::from(tracked(&cluster, port)? == 0);
        let report = stream.stop()?;
        ensure!(report.is_clean(), "{server}: {report:?}");
    }
    ensure!(past == 16, "{past} of 16 flows went past the stack");
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

/// Asks every door once. The first packets to another node wait in the stack for its hardware address, and the flows that they
/// opened stay there.
fn warm_up(cluster: &Cluster) -> Result<()> {
    for (door, pod) in doors(cluster) {
        for protocol in PROTOCOLS {
            let success = ask(cluster.lab.outside(), &Request::new(protocol, door))?;
            ensure!(success.answer.server == pod.name() && success.peer == door, "{door}: {:?}", success.answer);
        }
    }
    Ok(())
}

fn all_go_on(streams: &mut [(Steady, String, u16)]) -> Result<()> {
    for (stream, server, _) in streams {
        goes_on(stream, server)?;
    }
    Ok(())
}

fn ask(who: &Place, request: &Request) -> Result<svc_lab::Success> {
    who.ask(request).map_err(|failure| anyhow::anyhow!("{} {request:?}: {failure}", who.name()))
}

#[test]
fn flows_to_another_node_go_past_the_stack_in_the_driver() -> Result<()> {
    every_door("native", " xdp qdisc")
}

#[test]
fn flows_to_another_node_go_past_the_stack_in_generic_xdp() -> Result<()> {
    every_door("generic", " xdpgeneric qdisc")
}

/// A narrow link tells both ends by ICMP errors, which have to find the flow although conntrack does not know it.
fn narrow_link(mode: &str) -> Result<()> {
    let mtu = Mtu { outside: 1300, ..Mtu::default() };
    let cluster = cluster(Spec { mtu, rp_filter: 1, ..Spec::default() }, mode)?;
    warm_up(&cluster)?;
    for (door, pod) in doors(&cluster) {
        let request = || Request::tcp(door).timeout_ms(20_000);
        for request in [request().download(2_000_000), request().upload(2_000_000)] {
            let success = ask(cluster.lab.outside(), &request)?;
            ensure!(success.answer.server == pod.name(), "{} answered at {door}", success.answer.server);
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn megabytes_cross_a_narrow_link_past_the_stack_in_the_driver() -> Result<()> {
    narrow_link("native")
}

#[test]
fn megabytes_cross_a_narrow_link_past_the_stack_in_generic_xdp() -> Result<()> {
    narrow_link("generic")
}

/// What no XDP program may do alone: fragments, an overlay, checksums that are left to a device.
#[test]
fn what_xdp_cannot_do_the_stack_does() -> Result<()> {
    let cluster = cluster(Spec { cni: Cni::Vxlan, rp_filter: 1, ..Spec::default() }, "native")?;
    cluster.lab.switch().exec("ethtool", &["-K", "node1", "tx", "on"])?;
    for (door, pod) in doors(&cluster) {
        for protocol in PROTOCOLS {
            let success = ask(cluster.lab.outside(), &Request::new(protocol, door).timeout_ms(5000))?;
            ensure!(success.answer.server == pod.name() && success.peer == door, "{door}: {:?}", success.answer);
        }
        // The first fragments of IPv6 may be too long for the overlay, which tells their sender.
        let request = Request::udp(door).payload(4_000).pad(4_000).timeout_ms(2000);
        let _told = cluster.lab.outside().ask(&request);
        let success = ask(cluster.lab.outside(), &request)?;
        ensure!(success.answer.server == pod.name(), "{door}: {:?}", success.answer);
    }
    Ok(())
}

#[test]
fn flows_outlive_the_agent_and_the_end_of_xdp() -> Result<()> {
    let mut cluster = cluster(Spec::default(), "native")?;
    warm_up(&cluster)?;
    let doors: Vec<(SocketAddr, String)> =
        doors(&cluster).into_iter().map(|(door, pod)| (door, pod.name().to_owned())).collect();
    let mut all = streams(&cluster, &doors, 51_000)?;
    let before = xdp_link(&cluster)?;
    cluster.kill(1)?;
    all_go_on(&mut all)?;
    cluster.start(&["--xdp", "native"])?;
    all_go_on(&mut all)?;
    let after = xdp_link(&cluster)?;
    ensure!(before.0 == after.0 && before.1 != after.1, "the program is replaced in its link: {before:?}, {after:?}");
    // Without XDP the stack carries the same flows, with the same entries.
    cluster.start(&["--masquerade", "programs"])?;
    ensure!(!attached(&cluster)?.contains("prog/xdp"), "{}", attached(&cluster)?);
    all_go_on(&mut all)?;
    for (stream, server, _) in all {
        let report = stream.stop()?;
        ensure!(report.is_clean(), "{server}: {report:?}");
    }
    Ok(())
}

/// Ids of the link of node 1's uplink and of the program in it.
fn xdp_link(cluster: &Cluster) -> Result<(u64, u64)> {
    let node = cluster.lab.node(1);
    let pin = node.maps()?.with_file_name("links").join(format!("{UPLINK}-xdp")).display().to_string();
    let link: Value = serde_json::from_str(&node.exec("bpftool", &["-j", "link", "show", "pinned", &pin])?)?;
    let number = |field: &str| link[field].as_u64().ok_or_else(|| anyhow::anyhow!("{link}"));
    Ok((number("id")?, number("prog_id")?))
}

#[test]
fn another_xdp_program_is_left_alone_and_cleanup_removes_ours() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.far])?;
    let theirs = svc_lab::xdp::pass(cluster.lab.node(1), "eth0")?;
    let before = attached(&cluster)?;
    cluster.start(&["--xdp", "native"])?;
    ensure!(attached(&cluster)? == before, "{before}, then {}", attached(&cluster)?);
    ensure!(cluster.log(1)?.contains("another XDP program is there"), "{}", cluster.log(1)?);
    let door = SocketAddr::from((cluster.lab.node(1).addresses.v4, WEB));
    ensure!(ask(cluster.lab.outside(), &Request::tcp(door))?.answer.server == "far");
    drop(theirs);
    cluster.start(&["--xdp", "auto"])?;
    ensure!(attached(&cluster)?.contains("prog/xdp"), "{}", attached(&cluster)?);
    let status: Value = serde_json::from_str(&cluster.lab.svc(1, &["status", "-o", "json"])?)?;
    let has_xdp = |it: &Value| it["program"] == "svc_xdp" && it["how"] == "xdp" && it["to"] == "eth0";
    ensure!(status["attachments"].as_array().is_some_and(|all| all.iter().any(has_xdp)), "{status:#}");
    cluster.kill(1)?;
    cluster.lab.svc(1, &["cleanup"])?;
    ensure!(!attached(&cluster)?.contains("prog/xdp"), "{}", attached(&cluster)?);
    Ok(())
}
