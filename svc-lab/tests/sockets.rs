//! UDP sockets of the host whose backend goes away: connected ones are told, the others choose anew by themselves.

mod support;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use svc_lab::{FailureKind, Request, Spec, until};

use support::{
    Cluster, PORT, TARGET, WEB,
    flow::{PATIENCE, goes_on, mapped, moves_to},
    service, service_addresses,
};

fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&[])?;
    Ok(cluster)
}

/// A connected socket of node 1, which is opened again when it fails, while the backend is replaced twice.
fn is_told(asked: (IpAddr, u16)) -> Result<()> {
    let cluster = cluster()?;
    let mut steady = cluster.stream(cluster.lab.node(1), &Request::udp(asked).connected().reopened())?;
    let mut lost = 0;
    for pod in [&cluster.far, &cluster.near] {
        goes_on(&mut steady, if pod.name() == "far" { "near" } else { "far" })?;
        cluster.publish("web", &service("web", 10, WEB), &[pod])?;
        let report = moves_to(&mut steady, pod.name())?;
        lost += 1;
        ensure!(report.lost == lost, "only the backend's end is told: {report:?}");
        let failure = report.failure.as_ref().map(|failure| failure.kind);
        ensure!(failure == Some(FailureKind::Aborted), "not ended by us: {report:?}");
    }
    let destroyed = cluster.metric(1, "svc_sockets_destroyed_total")?;
    ensure!(destroyed == Some(2.0), "{destroyed:?} sockets were destroyed");
    ensure!(cluster.metric(1, "svc_socket_sweep_failures_total")? == Some(0.0), "a sweep failed");
    Ok(())
}

#[test]
fn a_connected_socket_is_told_when_its_backend_vanishes_and_its_next_connection_goes_elsewhere() -> Result<()> {
    is_told((service_addresses(10).0[0], PORT))
}

#[test]
fn a_connected_socket_of_ipv6_is_told_when_its_backend_vanishes() -> Result<()> {
    is_told((service_addresses(10).0[1], PORT))
}

#[test]
fn a_socket_of_ipv6_that_talks_ipv4_is_told_when_its_backend_vanishes() -> Result<()> {
    is_told((mapped(service_addresses(10).0[0]), PORT))
}

#[test]
fn a_socket_that_is_connected_to_a_node_port_of_the_loopback_address_is_told_when_its_backend_vanishes() -> Result<()> {
    is_told((std::net::Ipv4Addr::LOCALHOST.into(), WEB))
}

#[test]
fn sockets_that_went_to_a_backend_directly_or_through_another_service_are_left_alone() -> Result<()> {
    let cluster = cluster()?;
    cluster.publish("other", &service("other", 11, WEB + 1), &[&cluster.near])?;
    let node = cluster.lab.node(1);
    let (vips, others) = (service_addresses(10).0, service_addresses(11).0);
    let mut untouched = Vec::new();
    for address in cluster.near.addresses.both() {
        untouched.push(cluster.stream(node, &Request::udp((address, TARGET)).connected())?);
    }
    for &address in &others {
        until("the other Service", PATIENCE, || {
            node.ask(&Request::udp((address, PORT)).connected()).map_err(|failure| failure.to_string())
        })?;
        untouched.push(cluster.stream(node, &Request::udp((address, PORT)).connected())?);
    }
    untouched.push(cluster.stream(node, &Request::udp((mapped(others[0]), PORT)).connected())?);
    let mut told = Vec::new();
    for &address in &vips {
        told.push(cluster.stream(node, &Request::udp((address, PORT)).connected().reopened())?);
    }
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.far])?;
    for steady in &mut told {
        moves_to(steady, "far")?;
    }
    for mut steady in untouched {
        goes_on(&mut steady, "near")?;
        let report = steady.stop()?;
        ensure!(report.is_clean(), "{report:?}");
    }
    Ok(())
}

#[test]
fn a_connected_socket_whose_service_is_removed_is_told() -> Result<()> {
    let cluster = cluster()?;
    for address in service_addresses(10).0 {
        cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
        let node = cluster.lab.node(1);
        until("the Service", PATIENCE, || {
            node.ask(&Request::udp((address, PORT)).connected()).map_err(|failure| failure.to_string())
        })?;
        let mut steady = cluster.stream(node, &Request::udp((address, PORT)).connected())?;
        cluster.manifests.remove("web")?;
        until("the end of the socket", PATIENCE, || {
            let report = steady.report().map_err(|error| error.to_string())?;
            if report.failure.is_some() { Ok(()) } else { Err(format!("{report:?}")) }
        })?;
    }
    ensure!(cluster.metric(1, "svc_sockets_destroyed_total")? == Some(2.0), "not two sockets were destroyed");
    Ok(())
}

#[test]
fn a_connected_socket_stays_with_a_backend_that_terminates_and_serves() -> Result<()> {
    let cluster = cluster()?;
    let web = service("web", 10, WEB);
    let mut streams = Vec::new();
    for address in service_addresses(10).0 {
        streams.push(cluster.stream(cluster.lab.node(1), &Request::udp((address, PORT)).connected().reopened())?);
    }
    let endpoints = [svc_lab::Endpoint::terminating(&cluster.near), svc_lab::Endpoint::ready(&cluster.far)];
    cluster.publish_of("web", &web, &endpoints)?;
    for address in service_addresses(10).0 {
        let node = cluster.lab.node(1);
        until("new sockets to go elsewhere", PATIENCE, || match node.udp((address, PORT)) {
            Ok(success) if success.answer.server == "far" => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    for steady in &mut streams {
        let report = goes_on(steady, "near")?;
        ensure!(report.is_clean(), "{report:?}");
    }
    cluster.publish_of("web", &web, &endpoints[1..])?;
    for steady in &mut streams {
        moves_to(steady, "far")?;
    }
    Ok(())
}

#[test]
fn a_socket_that_is_not_connected_chooses_anew_without_losing_a_datagram() -> Result<()> {
    let cluster = cluster()?;
    let mut streams = Vec::new();
    let [v4, v6] = service_addresses(10).0[..] else { anyhow::bail!("two families") };
    for address in [v4, v6, mapped(v4)] {
        streams.push(cluster.stream(cluster.lab.node(1), &Request::udp((address, PORT)))?);
    }
    for pod in [&cluster.far, &cluster.near] {
        cluster.publish("web", &service("web", 10, WEB), &[pod])?;
        for steady in &mut streams {
            moves_to(steady, pod.name())?;
        }
    }
    for steady in streams {
        let port = steady.first.source.port();
        let report = steady.stop()?;
        ensure!(report.is_clean(), "{report:?}");
        ensure!(report.last.is_some_and(|last| last.source.port() == port), "the socket is not the same");
    }
    ensure!(cluster.metric(1, "svc_sockets_destroyed_total")? == Some(0.0), "a socket was destroyed");
    Ok(())
}
