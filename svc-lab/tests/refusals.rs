//! Packets with nowhere to go, by real sockets: refused, dropped or, for echo requests, answered. Clients in pods, on the
//! host and outside, both families.

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};
use svc_lab::{FailureKind, Place, Protocol, Request, Spec, until};

use support::{Cluster, PORT, PROTOCOLS, TARGET, WEB, flow::PATIENCE, service, service_addresses};

/// Pods' sockets are not translated, so that their packets are.
const PACKETS: [&str; 4] = ["--socket-lb", "host", "--service-cidr", "10.96.0.0/16,fd00:10:96::/112"];

/// A request whose refusal is noticed: a datagram's needs a connected socket.
fn noticing(protocol: Protocol, asked: SocketAddr) -> Request {
    match protocol {
        Protocol::Tcp => Request::tcp(asked),
        Protocol::Udp => Request::udp(asked).connected(),
    }
}

/// What is wrong about refusals of these addresses. A SYN's first refusal may reach the socket within its own connect, which
/// the kernel then ignores until it sends the SYN again.
fn refusals(who: &Place, asked: &[SocketAddr]) -> Vec<String> {
    let mut wrong = Vec::new();
    for &asked in asked {
        for protocol in PROTOCOLS {
            match who.ask(&noticing(protocol, asked).timeout_ms(5000)) {
                Err(failure) if failure.kind == FailureKind::Refused => {}
                other => wrong.push(format!("{} → {asked} {}: {other:?}", who.name(), protocol.as_str())),
            }
        }
    }
    wrong
}

fn with_port(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
}

#[test]
fn a_service_without_endpoints_refuses_pods_the_host_and_the_outside() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("empty", &service("empty", 10, WEB), &[])?;
    cluster.start(&PACKETS)?;
    let Cluster { lab, client, .. } = &cluster;
    let (cluster_ips, balancer) = service_addresses(10);
    let node = with_port(&lab.node(1).addresses.both(), WEB);
    let inside = [with_port(&cluster_ips, PORT), with_port(&balancer, PORT), node.clone()].concat();
    let outside = [with_port(&balancer, PORT), node].concat();
    let before = cluster.drops(1, "no_endpoint")?;
    let mut wrong = refusals(client, &inside);
    wrong.extend(refusals(lab.outside(), &outside));
    ensure!(cluster.drops(1, "no_endpoint")? >= before + 20, "refused packets are not counted");
    let before = cluster.drops(1, "no_endpoint")?;
    wrong.extend(refusals(lab.node(1), &inside));
    let counted = cluster.drops(1, "no_endpoint")? - before;
    ensure!(counted == 2 * inside.len() as u64, "{counted} refused connects of the host are counted");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn an_unknown_port_of_a_vip_is_refused_and_an_address_nobody_owns_is_dropped() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&PACKETS)?;
    let Cluster { lab, client, .. } = &cluster;
    let (cluster_ips, balancer) = service_addresses(10);
    let unknown = PORT + 1;
    let mut wrong = refusals(client, &with_port(&cluster_ips, unknown));
    let before = cluster.drops(1, "unknown_port")?;
    wrong.extend(refusals(lab.node(1), &with_port(&cluster_ips, unknown)));
    ensure!(cluster.drops(1, "unknown_port")? == before + 4, "refused connects of the host are not counted");
    wrong.extend(refusals(lab.outside(), &with_port(&balancer, unknown)));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    let (unowned, _) = service_addresses(99);
    for asked in with_port(&unowned, PORT) {
        for protocol in PROTOCOLS {
            let before = cluster.drops(1, "unowned_address")?;
            let failure = client.ask(&noticing(protocol, asked).timeout_ms(300)).expect_err("nobody owns it");
            ensure!(failure.kind == FailureKind::Timeout, "{asked} {}: {failure}", protocol.as_str());
            ensure!(cluster.drops(1, "unowned_address")? > before, "{asked} {}: not counted", protocol.as_str());
            let before = cluster.drops(1, "unowned_address")?;
            let failure = lab.node(1).ask(&noticing(protocol, asked)).expect_err("nobody owns it");
            ensure!(failure.kind == FailureKind::Unreachable, "{asked} {}: {failure}", protocol.as_str());
            ensure!(cluster.drops(1, "unowned_address")? == before + 1, "{asked} {}: not counted", protocol.as_str());
        }
    }
    Ok(())
}

#[test]
fn a_service_that_loses_its_last_endpoint_refuses_and_serves_again_when_it_has_one() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&PACKETS)?;
    let (cluster_ips, _) = service_addresses(10);
    for _ in 0..2 {
        cluster.publish("web", &service("web", 10, WEB), &[])?;
        for &address in &cluster_ips {
            until("a refusal", PATIENCE, || {
                match cluster.client.ask(&Request::tcp((address, PORT)).timeout_ms(3000)) {
                    Err(failure) if failure.kind == FailureKind::Refused => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
        }
        cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
        for &address in &cluster_ips {
            until("an answer", PATIENCE, || {
                cluster.client.tcp((address, PORT)).map_err(|failure| failure.to_string())
            })?;
        }
    }
    Ok(())
}

#[test]
fn source_ranges_bind_clients_outside_to_the_load_balancers_address_alone() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    let web = |ranges: &[&str]| service("web", 10, WEB).spec("loadBalancerSourceRanges", ranges);
    let own = ["203.0.112.0/22", "198.51.100.0/24", "192.0.2.0/24", "2001:db8::/32"];
    cluster.publish("web", &web(&["10.99.0.0/16", "fd99::/16"]), &[&cluster.near])?;
    cluster.start(&["--socket-lb", "off"])?;
    let Cluster { lab, client, near, .. } = &cluster;
    let (_, balancer) = service_addresses(10);
    let outside = lab.outside();
    for &address in &balancer {
        for protocol in PROTOCOLS {
            let before = cluster.drops(1, "source_range")?;
            let request = Request::new(protocol, (address, PORT));
            let failure = outside.ask(&request.clone().timeout_ms(300)).expect_err("not admitted");
            ensure!(failure.kind == FailureKind::Timeout, "{address} {}: {failure}", protocol.as_str());
            ensure!(cluster.drops(1, "source_range")? > before, "{address}: not counted");
            ensure!(client.ask(&request)?.answer.server == near.name(), "a pod is not outside");
        }
    }
    for address in lab.node(1).addresses.both() {
        for protocol in PROTOCOLS {
            let answer = outside.ask(&Request::new(protocol, (address, WEB)))?.answer;
            ensure!(answer.server == near.name(), "a node port has no ranges: {answer:?}");
        }
    }
    let ranges: Vec<String> = svc_lab::plan::OUTSIDE
        .both()
        .iter()
        .map(|it| format!("{it}/{}", if it.is_ipv4() { 32 } else { 128 }))
        .collect();
    let admitted: Vec<&str> = ranges.iter().map(String::as_str).chain(own).collect();
    cluster.publish("web", &web(&admitted), &[near])?;
    for &address in &balancer {
        until("an answer", PATIENCE, || outside.tcp((address, PORT)).map_err(|failure| failure.to_string()))?;
    }
    cluster.publish("web", &web(&["10.99.0.0/16", "fd99::/16"]), &[near])?;
    for &address in &balancer {
        until("silence", PATIENCE, || match outside.ask(&Request::tcp((address, PORT)).timeout_ms(300)) {
            Err(failure) if failure.kind == FailureKind::Timeout => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        })?;
    }
    // Everybody; the space around a prefix does not count.
    cluster.publish("web", &web(&[" 0.0.0.0/0 ", " ::/0"]), &[near])?;
    for &address in &balancer {
        for protocol in PROTOCOLS {
            let request = Request::new(protocol, (address, PORT));
            until("an answer", PATIENCE, || outside.ask(&request).map_err(|failure| failure.to_string()))?;
        }
    }
    cluster.publish("web", &web(&["10.99.0.0/16", "fd99::/16"]), &[])?;
    for &address in &balancer {
        until("silence", PATIENCE, || match outside.ask(&Request::tcp((address, PORT)).timeout_ms(300)) {
            Err(failure) if failure.kind == FailureKind::Timeout => Ok(()),
            other => Err(format!("without an endpoint, but also out of range: {other:?}")),
        })?;
    }
    Ok(())
}

/// Sends an echo request and waits for the reply; the source address of what came.
fn ping(who: &Place, to: IpAddr) -> Result<()> {
    who.enter(|| echo(to))?.with_context(|| format!("{} pings {to}", who.name()))
}

fn echo(to: IpAddr) -> Result<()> {
    let (family, protocol, [request, reply], header) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, [8_u8, 0_u8], 20),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, [128, 129], 0),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
    // Identifier and sequence number are this thread's and the address's own, so that it takes no other's reply.
    let mark = std::process::id().to_be_bytes();
    let mut packet = vec![request, 0, 0, 0, mark[2], mark[3], 0, 1];
    packet.extend_from_slice(b"are you there");
    packet.push(0);
    if to.is_ipv4() {
        let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    let address = SockaddrStorage::from(SocketAddr::new(to, 0));
    sendto(std::os::fd::AsRawFd::as_raw_fd(&socket), &packet, &address, MsgFlags::empty())?;
    let mut buffer = [0; 1500];
    loop {
        let len = recv(std::os::fd::AsRawFd::as_raw_fd(&socket), &mut buffer, MsgFlags::empty()).context("no reply")?;
        let icmp = &buffer[header..len];
        if icmp[0] == reply && icmp[4..] == packet[4..] {
            return Ok(());
        }
    }
}

#[test]
fn vips_answer_pings_of_pods_the_host_and_the_outside() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&[])?;
    let Cluster { lab, client, near, .. } = &cluster;
    let (cluster_ips, balancer) = service_addresses(10);
    for &address in &cluster_ips {
        ping(client, address)?;
        ping(near, address)?;
        ping(lab.node(1), address)?;
    }
    for &address in &balancer {
        ping(lab.outside(), address)?;
    }
    ensure!(lab.outside().tcp((lab.node(1).addresses.both()[0], WEB))?.answer.server == near.name(), "{TARGET}");
    Ok(())
}
