//! ICMP errors about translated datagrams reach the socket that sent them: it hears of the address it asked, or nothing.
//! What path-MTU discovery needs is in `paths`.

mod support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use svc_lab::{Cni, FailureKind, Place, Pod, Request, Service, Spec};

use support::{Cluster, PORT, TARGET, flow::settles, service_addresses};

/// A port that no pod serves on.
const CLOSED: u16 = 9;

fn node_port(nth: u16) -> u16 {
    support::WEB + nth
}

/// The nth Service leads to one pod alone.
fn publish(cluster: &Cluster, nth: u16, target: u16, pod: &Pod) -> Result<()> {
    let (cluster_ips, balancers) = service_addresses(nth);
    let name = format!("web-{nth}");
    let service =
        Service::new("shop", &name, &cluster_ips).node_port(PORT, target, node_port(nth)).load_balancer(&balancers);
    cluster.publish(&name, &service, &[pod])
}

/// Every client and the addresses of the nth Service that it may ask.
fn clients(cluster: &Cluster, nth: u16) -> Vec<(&Place, Vec<SocketAddr>)> {
    let (cluster_ips, balancers) = service_addresses(nth);
    let node: Vec<SocketAddr> =
        cluster.lab.node(1).addresses.both().map(|node| SocketAddr::new(node, node_port(nth))).into();
    let port = |addresses: Vec<IpAddr>| addresses.into_iter().map(|address| SocketAddr::new(address, PORT));
    vec![
        (&cluster.client, port(cluster_ips.clone()).chain(node.clone()).collect()),
        (cluster.lab.outside(), port(balancers).chain(node).collect()),
    ]
}

/// Waits until a connected socket is told this: routers and hosts limit how often they tell.
fn hears(who: &Place, request: &Request, expected: FailureKind) -> Result<()> {
    let what = format!("{} {request:?}: {expected:?}", who.name());
    settles(&what, || match who.ask(&request.clone().connected().timeout_ms(1000)) {
        Err(failure) if failure.kind == expected => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
}

fn closed_ports(cni: Cni) -> Result<()> {
    let mut cluster = Cluster::build(Spec { cni, ..Spec::default() })?;
    publish(&cluster, 1, CLOSED, &cluster.near)?;
    publish(&cluster, 2, CLOSED, &cluster.far)?;
    // Pods' datagrams are packets, not those of translated sockets.
    cluster.start(&["--socket-lb", "host"])?;
    for nth in [1, 2] {
        for (who, addresses) in clients(&cluster, nth) {
            for address in addresses {
                hears(who, &Request::udp(address), FailureKind::Refused)?;
            }
        }
    }
    // The pods said so, not the dataplane.
    ensure!(cluster.drops(1, "no_endpoint")? == 0 && cluster.drops(1, "unknown_port")? == 0, "the dataplane refused");
    Ok(())
}

#[test]
fn a_closed_port_of_a_routed_pod_is_heard_of() -> Result<()> {
    closed_ports(Cni::Routed)
}

#[test]
fn a_closed_port_of_a_bridged_pod_is_heard_of() -> Result<()> {
    closed_ports(Cni::Bridge)
}

#[test]
fn a_closed_port_of_a_pod_of_an_overlay_is_heard_of() -> Result<()> {
    closed_ports(Cni::Vxlan)
}

/// Datagrams that end on their way, at every router, before and behind the translation.
#[test]
fn a_datagram_that_passed_too_many_routers_is_heard_of() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    publish(&cluster, 1, TARGET, &cluster.far)?;
    cluster.start(&["--socket-lb", "host"])?;
    // Routers from the client on: a pod's are both nodes; the client outside has one more before them.
    let routers = BTreeMap::from([(cluster.client.name(), 2), (cluster.lab.outside().name(), 3)]);
    for (who, addresses) in clients(&cluster, 1) {
        let routers = routers[who.name()];
        for address in addresses {
            let request = Request::udp(address);
            for hops in 1..=routers {
                hears(who, &request.clone().hops(hops), FailureKind::Unreachable)?;
            }
            let arrived = who.ask(&request.connected().hops(routers + 1))?;
            ensure!(arrived.answer.server == cluster.far.name(), "{arrived:?}");
        }
    }
    Ok(())
}
