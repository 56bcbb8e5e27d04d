//! What needs more than one request to a path: source ports that meet, long transfers, narrow links, fragments. Who is
//! served on which path at all is the matrix's business (`tests/matrix/`).

mod support;

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Result, ensure};
use svc_lab::{Cni, Mtu, Place, Pod, Protocol, Request, Spec, Steady, until};

use support::{Cluster, PORT, PROTOCOLS, TARGET, WEB, service, service_addresses};

fn spec(cni: Cni, rp_filter: u8) -> Spec {
    Spec { cni, rp_filter, ..Spec::default() }
}

/// Waits until a probe has had so many answers more.
fn goes_on(steady: &mut Steady, what: &str) -> Result<()> {
    let before = steady.report()?.answered;
    Ok(until(what, Duration::from_secs(10), || {
        let report = steady.report().map_err(|error| error.to_string())?;
        if report.answered >= before + 20 { Ok(()) } else { Err(format!("{report:?}")) }
    })?)
}

#[test]
fn a_masqueraded_flow_of_a_pod_and_one_from_outside_with_the_same_port_both_work() -> Result<()> {
    let mut cluster = Cluster::build(spec(Cni::Routed, 1))?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.host])?;
    cluster.start(&[])?;
    let Cluster { lab, client, host, .. } = &cluster;
    let logs = lab.logs();
    let mut port = 40_000;
    for family in 0..2 {
        let (direct, asked) = (host.addresses.both()[family], lab.node(1).addresses.both()[family]);
        for protocol in PROTOCOLS {
            for pod_first in [true, false] {
                port += 1;
                let inside = || {
                    let request = Request::new(protocol, (direct, TARGET)).from_port(port).timeout_ms(500);
                    client.steady(&request, 5, &logs.join("inside.log"))
                };
                let outside = || {
                    let request = Request::new(protocol, (asked, WEB)).from_port(port).timeout_ms(500);
                    lab.outside().steady(&request, 5, &logs.join("outside.log"))
                };
                let (mut inside, mut outside) = if pod_first {
                    let inside = inside()?;
                    (inside, outside()?)
                } else {
                    let outside = outside()?;
                    (inside()?, outside)
                };
                let seen = [inside.first.answer.client, outside.first.answer.client];
                ensure!(seen.iter().all(|it| it.ip() == lab.node(1).addresses.like(it.ip())), "not node1: {seen:?}");
                ensure!(seen[0] != seen[1], "{asked} {}: both are {}", protocol.as_str(), seen[0]);
                goes_on(&mut inside, "answers to the pod")?;
                goes_on(&mut outside, "answers to the client outside")?;
                for report in [inside.stop()?, outside.stop()?] {
                    ensure!(report.is_clean(), "{asked} {}, pod first {pod_first}: {report:?}", protocol.as_str());
                }
            }
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn a_port_that_a_pod_has_just_closed_serves_a_client_outside() -> Result<()> {
    let mut cluster = Cluster::build(spec(Cni::Routed, 1))?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.host])?;
    cluster.start(&["--socket-lb", "off"])?;
    let Cluster { lab, client, host, .. } = &cluster;
    let (vips, _) = service_addresses(10);
    for (family, vip) in vips.into_iter().enumerate() {
        let (direct, asked) = (host.addresses.both()[family], lab.node(1).addresses.both()[family]);
        let far = lab.node(2).addresses.both()[family];
        for (number, inside) in [(0, (direct, TARGET)), (1, (vip, PORT)), (2, (far, WEB))] {
            for protocol in PROTOCOLS {
                if inside == (far, WEB) && protocol == Protocol::Udp {
                    // A datagram flow has no end that could be seen: docs/architecture.md, "Known limits".
                    continue;
                }
                let port = 42_000 + number;
                client.ask(&Request::new(protocol, inside).from_port(port))?;
                let success = lab
                    .outside()
                    .ask(&Request::new(protocol, (asked, WEB)).from_port(port))
                    .map_err(|failure| anyhow::anyhow!("{asked} {} after {inside:?}: {failure}", protocol.as_str()))?;
                ensure!(success.peer == (asked, WEB).into(), "{asked} answered as {}", success.peer);
            }
        }
    }
    Ok(())
}

/// Megabytes in both directions; the hashes are checked by the probe.
fn transfers(who: &Place, addresses: &[IpAddr], port: u16, server: &str) -> Result<()> {
    for &address in addresses {
        let request = || Request::tcp((address, port)).timeout_ms(8000);
        for (what, request) in [("download", request().download(2_000_000)), ("upload", request().upload(2_000_000))] {
            let success = who
                .ask(&request)
                .map_err(|failure| anyhow::anyhow!("{what} of {} from {server} at {address}: {failure}", who.name()))?;
            ensure!(success.answer.server == server, "{} answered", success.answer.server);
        }
    }
    Ok(())
}

/// One Service for each backend.
fn one_by_one(cluster: &Cluster) -> Result<[(&Pod, u16, u16); 3]> {
    let rows = [(&cluster.near, 20, 30100), (&cluster.far, 21, 30101), (&cluster.host, 22, 30102)];
    for (pod, nth, node_port) in rows {
        cluster.publish(pod.name(), &service(pod.name(), nth, node_port), &[pod])?;
    }
    Ok(rows)
}

fn narrow_link_outside(cni: Cni) -> Result<()> {
    let mtu = Mtu { outside: 1300, ..Mtu::default() };
    let mut cluster = Cluster::build(Spec { mtu, ..spec(cni, 1) })?;
    one_by_one(&cluster)?;
    cluster.start(&[])?;
    for (pod, _, node_port) in one_by_one(&cluster)? {
        transfers(cluster.lab.outside(), &cluster.lab.node(1).addresses.both(), node_port, pod.name())?;
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn megabytes_cross_a_narrow_link_outside_from_routed_pods() -> Result<()> {
    narrow_link_outside(Cni::Routed)
}

#[test]
fn megabytes_cross_a_narrow_link_outside_from_bridged_pods() -> Result<()> {
    narrow_link_outside(Cni::Bridge)
}

#[test]
fn megabytes_cross_a_narrow_link_outside_from_an_overlay() -> Result<()> {
    narrow_link_outside(Cni::Vxlan)
}

#[test]
fn pods_that_do_not_know_the_overlays_mtu_find_it_through_a_service() -> Result<()> {
    let mtu = Mtu { pods: Some(1500), ..Mtu::default() };
    let mut cluster = Cluster::build(Spec { mtu, ..spec(Cni::Vxlan, 1) })?;
    one_by_one(&cluster)?;
    for masquerade in ["nftables", "programs"] {
        cluster.start(&["--socket-lb", "off", "--masquerade", masquerade])?;
        let node = cluster.lab.node(1).addresses.both();
        for (pod, nth, node_port) in one_by_one(&cluster)? {
            transfers(&cluster.client, &service_addresses(nth).0, PORT, pod.name())?;
            // The client outside learns of the overlay by errors about what was translated and masqueraded.
            transfers(cluster.lab.outside(), &node, node_port, pod.name())?;
        }
    }
    Ok(())
}

fn fragments(cni: Cni) -> Result<()> {
    let mut cluster = Cluster::build(spec(cni, 1))?;
    one_by_one(&cluster)?;
    cluster.start(&[])?;
    for (pod, nth, node_port) in one_by_one(&cluster)? {
        let (cluster_ips, _) = service_addresses(nth);
        let node: Vec<IpAddr> = cluster.lab.node(1).addresses.both().into();
        let rows: [(&Place, Vec<IpAddr>, u16); 2] =
            [(&cluster.client, cluster_ips, PORT), (cluster.lab.outside(), node, node_port)];
        for (who, addresses, port) in rows {
            for address in addresses {
                for length in [2_000, 9_000] {
                    let request = || Request::udp((address, port)).payload(length).pad(length);
                    // Routers do not fragment IPv6: where links of an overlay are narrower, the first request or its
                    // answer is lost, and an error tells its sender to make smaller fragments from then on.
                    let first = who.ask(&request());
                    let may_be_lost = cni == Cni::Vxlan && address.is_ipv6();
                    ensure!(first.is_ok() || may_be_lost, "{length} bytes to {address}: {first:?}");
                    for outcome in who.ask_all(&request().count(4))? {
                        let success = outcome.map_err(|failure| {
                            anyhow::anyhow!("{length} bytes {} → {} at {address}: {failure}", who.name(), pod.name())
                        })?;
                        assert_eq!(success.answer.server, pod.name());
                        assert_eq!(success.peer, (address, port).into());
                    }
                }
            }
        }
    }
    let losses = cluster.losses(&[])?;
    ensure!(losses.is_empty(), "{losses:?}");
    Ok(())
}

#[test]
fn datagrams_in_fragments_reach_routed_pods_and_their_answers_come_back() -> Result<()> {
    fragments(Cni::Routed)
}

#[test]
fn datagrams_in_fragments_reach_bridged_pods_and_their_answers_come_back() -> Result<()> {
    fragments(Cni::Bridge)
}

#[test]
fn datagrams_in_fragments_reach_pods_of_an_overlay_and_their_answers_come_back() -> Result<()> {
    fragments(Cni::Vxlan)
}

#[test]
fn bpftool_prints_the_fields_of_the_frontends_by_name() -> Result<()> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.near])?;
    cluster.start(&[])?;
    for family in ["V4", "V6"] {
        let map = cluster.lab.node(1).maps()?.join(format!("FRONTENDS_{family}"));
        let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&map).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{map:?}: {}", String::from_utf8_lossy(&output.stderr));
        for field in ["\"address\"", "\"port\"", "\"service\""] {
            ensure!(text.contains(field), "{map:?} has no {field}: {text}");
        }
    }
    Ok(())
}
