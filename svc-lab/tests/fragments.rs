//! Datagrams in fragments whose first one does not come first: through Services, directly, and to the node itself.

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use svc_lab::{Cni, Place, Service, Spec, until};

use support::{
    Cluster, PORT,
    fragments::{End, ORDERS, Order, exchange, payload},
    service_addresses,
};

/// Port of the servers of this file.
const SERVER: u16 = 9000;

/// The size to cut for, so that nobody on the way has to cut again: routers do not cut IPv6.
fn mtu(cni: Cni) -> usize {
    if cni == Cni::Vxlan { 1400 } else { 1500 }
}

/// A cluster with a Service for each of `near` and `far`, the nth with node port 30200 + n.
fn build(cni: Cni) -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec { cni, rp_filter: 1, ..Spec::default() })?;
    for (nth, pod) in (0..).zip([&cluster.near, &cluster.far]) {
        let (cluster_ips, balancer) = service_addresses(50 + nth);
        let service = Service::new("shop", pod.name(), &cluster_ips);
        let service = service.node_port(PORT, SERVER, 30200 + nth).load_balancer(&balancer);
        cluster.publish(pod.name(), &service, &[pod])?;
    }
    cluster.start(&[])?;
    Ok(cluster)
}

/// Nothing was lost, dropped or left, and netfilter held nothing for invalid.
fn nothing_is_lost(cluster: &Cluster) -> Result<()> {
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

fn any_order(cni: Cni) -> Result<()> {
    let cluster = build(cni)?;
    for (nth, pod) in (0..).zip([&cluster.near, &cluster.far]) {
        let (cluster_ips, balancer) = service_addresses(50 + nth);
        let node = cluster.lab.node(1).addresses.both();
        for family in 0..2 {
            let server = End::open(pod, pod.addresses.both()[family], SERVER)?;
            let outside = cluster.lab.outside();
            let rows: [(&Place, IpAddr, SocketAddr); 3] = [
                (&cluster.client, cluster.client.addresses.both()[family], (cluster_ips[family], PORT).into()),
                (outside, outside_address(family), (node[family], 30200 + nth).into()),
                (outside, outside_address(family), (balancer[family], PORT).into()),
            ];
            for (place, address, asked) in rows {
                for length in [2_000, 60_000] {
                    for order in ORDERS {
                        let client = End::open(place, address, 0)?;
                        exchange(&client, asked, &server, length, mtu(cni), order).with_context(|| {
                            format!("{length} bytes {order:?}, {} → {} at {asked}", place.name(), pod.name())
                        })?;
                    }
                }
            }
        }
    }
    nothing_is_lost(&cluster)
}

fn outside_address(family: usize) -> IpAddr {
    svc_lab::plan::OUTSIDE.both()[family]
}

#[test]
fn fragments_in_any_order_reach_routed_pods_and_so_do_those_of_the_answers() -> Result<()> {
    any_order(Cni::Routed)
}

#[test]
fn fragments_in_any_order_reach_bridged_pods_and_so_do_those_of_the_answers() -> Result<()> {
    any_order(Cni::Bridge)
}

#[test]
fn fragments_in_any_order_reach_pods_of_an_overlay_and_so_do_those_of_the_answers() -> Result<()> {
    any_order(Cni::Vxlan)
}

#[test]
fn the_fragments_of_two_datagrams_may_come_in_turn() -> Result<()> {
    let cluster = build(Cni::Routed)?;
    for (family, asked) in service_addresses(50).0.into_iter().enumerate() {
        let server = End::open(&cluster.near, cluster.near.addresses.both()[family], SERVER)?;
        let to = SocketAddr::new(asked, PORT);
        let address = cluster.client.addresses.both()[family];
        let clients = [End::open(&cluster.client, address, 0)?, End::open(&cluster.client, address, 0)?];
        for length in [2_000, 60_000] {
            let datagrams = clients.each_ref().map(|client| client.cut(to, &payload(length), 1500, Order::Reversed));
            for (one, other) in datagrams[0].iter().zip(&datagrams[1]) {
                clients[0].send(to, &[one.clone(), other.clone()])?;
            }
            let mut seen = Vec::new();
            for _ in &clients {
                let (got, from) = server.receive()?;
                ensure!(got == payload(length), "{} bytes of {length} arrived, or other ones", got.len());
                seen.push(from);
            }
            seen.sort();
            let mut expected = clients.each_ref().map(|client| client.address);
            expected.sort();
            ensure!(seen == expected, "{seen:?} in place of {expected:?}");
        }
    }
    nothing_is_lost(&cluster)
}

fn nobodys(cni: Cni) -> Result<()> {
    let cluster = build(cni)?;
    let node = cluster.lab.node(1);
    for family in 0..2 {
        let [client, near, far] =
            [&cluster.client, &cluster.near, &cluster.far].map(|pod| pod.addresses.both()[family]);
        let rows: [(&Place, IpAddr, &Place, IpAddr); 4] = [
            (cluster.lab.outside(), outside_address(family), node, node.addresses.both()[family]),
            (&cluster.client, client, node, node.addresses.both()[family]),
            (&cluster.client, client, &cluster.near, near),
            (&cluster.client, client, &cluster.far, far),
        ];
        for (place, address, other, to) in rows {
            let (client, server) = (End::open(place, address, 0)?, End::open(other, to, 0)?);
            for length in [2_000, 60_000] {
                for order in ORDERS {
                    client.send_cut(server.address, &payload(length), mtu(cni), order)?;
                    let (got, _) = server
                        .receive()
                        .with_context(|| format!("{length} bytes {order:?}, {} → {}", place.name(), other.name()))?;
                    ensure!(got == payload(length), "{} bytes of {length} arrived, or other ones", got.len());
                }
            }
        }
    }
    nothing_is_lost(&cluster)
}

#[test]
fn fragments_for_nobodys_service_arrive_in_any_order_with_routed_pods() -> Result<()> {
    nobodys(Cni::Routed)
}

#[test]
fn fragments_for_nobodys_service_arrive_in_any_order_with_bridged_pods() -> Result<()> {
    nobodys(Cni::Bridge)
}

#[test]
fn fragments_whose_first_one_never_comes_make_room_and_are_counted() -> Result<()> {
    let cluster = build(Cni::Routed)?;
    let to = SocketAddr::new(service_addresses(50).0[0], PORT);
    let client = End::open(&cluster.client, cluster.client.addresses.v4.into(), 0)?;
    let late = || client.cut(to, &payload(3_000), 1500, Order::AsCut)[1..].to_vec();
    // There is room for 256; what comes on top is passed on, and after three seconds the places are given again.
    until("fragments are given up", std::time::Duration::from_secs(60), || {
        client.send(to, &late()).map_err(|error| error.to_string())?;
        let drops = |reason: &str| cluster.drops(1, reason).map_err(|error| error.to_string());
        match (drops("fragment_not_held")?, drops("fragment_lost")?) {
            (1.., 1..) => Ok(()),
            counted => Err(format!("{counted:?}")),
        }
    })?;
    let server = End::open(&cluster.near, cluster.near.addresses.v4.into(), SERVER)?;
    exchange(&client, to, &server, 2_000, 1500, Order::AsCut)?;
    Ok(())
}
