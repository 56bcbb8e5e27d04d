//! `--socket-lb`: which sockets are translated when they connect, and what each of them believes and sends in every mode.
//! What a socket sends to is asked of the kernel (`ss`), what it believes of getpeername.

mod support;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use svc_lab::{FailureKind, Place, Protocol, Request, Spec};

use support::{
    Cluster, PORT, PROTOCOLS, TARGET, WEB,
    flow::{mapped, servers},
    service, service_addresses,
};

/// Which connected sockets are translated.
#[derive(Clone, Copy)]
struct Translated {
    pods_tcp: bool,
    pods_udp: bool,
    host: bool,
}

fn cluster(mode: &str) -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.publish("empty", &service("empty", 11, WEB + 1), &[])?;
    cluster.start(&["--socket-lb", mode])?;
    Ok(cluster)
}

/// What the socket with this port sends to, as the kernel knows it.
fn peer_of_socket(who: &Place, protocol: Protocol, port: u16) -> Result<SocketAddr> {
    let kind = if protocol == Protocol::Tcp { "-t" } else { "-u" };
    let text = who.exec("ss", &["-H", "-n", kind, "state", "established", &format!("sport = :{port}")])?;
    // Queues, own address, peer.
    let peer = text.split_whitespace().nth(3).with_context(|| format!("no socket with port {port}: {text:?}"))?;
    let peer: SocketAddr = peer.parse().with_context(|| format!("peer of {text:?}"))?;
    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

/// Connects to `asked` and looks at both ends of the socket while it is open.
fn believes_and_sends(
    cluster: &Cluster,
    who: &Place,
    protocol: Protocol,
    asked: SocketAddr,
    translated: bool,
) -> Result<()> {
    let canonical = SocketAddr::new(asked.ip().to_canonical(), asked.port());
    let request = Request::new(protocol, asked);
    let request = if protocol == Protocol::Udp { request.connected() } else { request };
    let steady = cluster.stream(who, &request)?;
    let title = format!("{} → {asked} {}", who.name(), protocol.as_str());
    let (first, sent_to) = (&steady.first, peer_of_socket(who, protocol, steady.first.source.port()));
    let sent_to = sent_to.with_context(|| title.clone())?;
    let backend = SocketAddr::new(cluster.near.addresses.like(canonical.ip()), TARGET);
    ensure!(first.peer == canonical, "{title}: getpeername says {}", first.peer);
    ensure!(sent_to == if translated { backend } else { canonical }, "{title}: the socket sends to {sent_to}");
    let report = steady.stop()?;
    ensure!(report.is_clean(), "{title}: {report:?}");
    Ok(())
}

fn mode(mode: &str, translated: Translated) -> Result<()> {
    let cluster = cluster(mode)?;
    let (cluster_ips, balancer) = service_addresses(10);
    for family in 0..2 {
        let addresses = [
            SocketAddr::new(cluster_ips[family], PORT),
            SocketAddr::new(balancer[family], PORT),
            SocketAddr::new(cluster.lab.node(1).addresses.both()[family], WEB),
        ];
        let mapped = addresses.map(|asked| SocketAddr::new(mapped(asked.ip()), asked.port()));
        let all: Vec<SocketAddr> = if family == 0 { [addresses, mapped].concat() } else { addresses.into() };
        for protocol in PROTOCOLS {
            let of_pods = if protocol == Protocol::Tcp { translated.pods_tcp } else { translated.pods_udp };
            for &asked in &all {
                believes_and_sends(&cluster, &cluster.client, protocol, asked, of_pods)?;
                if translated.host {
                    believes_and_sends(&cluster, cluster.lab.node(1), protocol, asked, true)?;
                }
            }
            for asked in addresses {
                // Sockets that are not connected, or new each time, and a client that is no socket of this node.
                servers(&cluster.client, &Request::new(protocol, asked), asked, 2)?;
                if translated.host {
                    servers(cluster.lab.node(1), &Request::new(protocol, asked), asked, 2)?;
                }
                if asked != addresses[0] {
                    servers(cluster.lab.outside(), &Request::new(protocol, asked), asked, 2)?;
                }
            }
        }
    }
    refuses(&cluster, translated)
}

/// A Service without endpoints refuses the sockets that are translated.
fn refuses(cluster: &Cluster, translated: Translated) -> Result<()> {
    for address in service_addresses(11).0 {
        let requests = [Request::tcp((address, PORT)), Request::udp((address, PORT)).connected()];
        for (request, of_pods) in requests.iter().zip([translated.pods_tcp, translated.pods_udp]) {
            let (client, node): (&Place, &Place) = (&cluster.client, cluster.lab.node(1));
            for (who, is_translated) in [(client, of_pods), (node, translated.host)] {
                if is_translated {
                    let failure = who.ask(request).expect_err("there is no endpoint");
                    ensure!(failure.kind == FailureKind::Refused, "{} {request:?}: {failure}", who.name());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn in_mode_auto_sockets_of_the_host_and_tcp_of_pods_are_translated() -> Result<()> {
    mode("auto", Translated { pods_tcp: true, pods_udp: false, host: true })
}

#[test]
fn in_mode_all_every_socket_is_translated() -> Result<()> {
    mode("all", Translated { pods_tcp: true, pods_udp: true, host: true })
}

#[test]
fn in_mode_host_sockets_of_pods_see_the_address_they_asked_for_on_the_wire() -> Result<()> {
    mode("host", Translated { pods_tcp: false, pods_udp: false, host: true })
}

#[test]
fn in_mode_off_no_socket_is_translated_and_pods_are_served_all_the_same() -> Result<()> {
    mode("off", Translated { pods_tcp: false, pods_udp: false, host: false })
}

#[test]
fn a_service_with_affinity_is_left_to_the_packets_of_pods_in_every_mode() -> Result<()> {
    for name in ["auto", "all"] {
        let cluster = cluster(name)?;
        let sticky = service("sticky", 12, WEB + 2).spec("sessionAffinity", "ClientIP");
        cluster.publish("sticky", &sticky, &[&cluster.near])?;
        for address in service_addresses(12).0 {
            let asked = SocketAddr::new(address, PORT);
            for protocol in PROTOCOLS {
                for (who, translated) in [(&*cluster.client, false), (&**cluster.lab.node(1), true)] {
                    support::flow::settles("the Service", || servers(who, &Request::new(protocol, asked), asked, 1))?;
                    believes_and_sends(&cluster, who, protocol, asked, translated)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_change_of_the_mode_leaves_open_connections_alone() -> Result<()> {
    let mut cluster = cluster("all")?;
    let mut streams = Vec::new();
    for address in service_addresses(10).0 {
        for protocol in PROTOCOLS {
            let request = Request::new(protocol, (address, PORT));
            let request = if protocol == Protocol::Udp { request.connected() } else { request };
            streams.push(cluster.stream(&cluster.client, &request)?);
            streams.push(cluster.stream(cluster.lab.node(1), &request)?);
        }
    }
    for mode in ["off", "host", "auto", "all"] {
        cluster.start(&["--socket-lb", mode])?;
        for steady in &mut streams {
            support::flow::goes_on(steady, "near")?;
        }
    }
    for steady in streams {
        let report = steady.stop()?;
        ensure!(report.is_clean(), "{report:?}");
    }
    Ok(())
}
