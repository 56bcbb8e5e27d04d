//! Changes under traffic: what ends at once, and what goes on.

use anyhow::{Context, Result, ensure};
use svc_lab::{Endpoint, Request, Service, Source};

use crate::shop::{NODE_PORT, Shop, eventually, lasting, progress, said, service, vips, works};

#[test]
fn a_node_port_stops_at_once_when_a_service_becomes_cluster_ip() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let ports = Service::new("shop", "web", &vips(1)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &ports.with(&[&shop.a]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let asked: Vec<Request> =
        shop.node().addresses.both().into_iter().map(|it| Request::tcp((it, NODE_PORT))).collect();
    for request in &asked {
        shop.lab.outside().ask(request)?;
    }
    manifests.write("web", &Service::new("shop", "web", &vips(1)).port(80, 8080).with(&[&shop.a]))?;
    eventually("the frontends to go", || {
        let left = lasting(&shop.lab, "services")?.into_iter().filter(|row| row.contains("node-port")).count();
        ensure!(left == 0, "{left} rows with node ports");
        Ok(())
    })?;
    for request in asked {
        assert!(shop.lab.outside().ask(&request.timeout_ms(300)).is_err());
    }
    works(&shop.client, 1, &["a"])
}

#[test]
fn endpoints_that_terminate_or_go_lose_new_flows_then_udp_and_never_tcp() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let web = service(1);
    manifests.write("web", &web.with(&[&shop.a, &shop.b]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut tcp = shop.steady(&Request::tcp((vips(1)[0], 80)))?;
    let leaving = tcp.first.answer.server.clone();
    let staying = shop.other(&leaving).name().to_owned();
    // A UDP flow to the same pod, from a port of its own.
    let mut udp = (40_000..40_032)
        .map(|port| shop.steady(&Request::udp((vips(1)[1], 80)).from_port(port)))
        .find(|steady| !matches!(steady, Ok(steady) if steady.first.answer.server != leaving))
        .context("no flow out of 32 to one of two pods")??;

    let mut objects = vec![web.object.clone()];
    let ends = [Endpoint::terminating(shop.pod(&leaving)), Endpoint::ready(shop.pod(&staying))];
    objects.extend(web.slices_of(&ends));
    manifests.write("web", &objects)?;
    eventually("the backend to terminate", || {
        let rows = said(&shop.lab, "services")?;
        ensure!(rows.iter().all(|row| row["terminating_backends"] == 1), "{rows:?}");
        Ok(())
    })?;
    (0..4).try_for_each(|_| works(&shop.client, 1, &[&staying]))?;
    progress(&mut tcp, Some(&leaving), 5).context("TCP to a terminating endpoint")?;
    progress(&mut udp, Some(&leaving), 5).context("UDP to a terminating endpoint")?;

    manifests.write("web", &web.with(&[shop.pod(&staying)]))?;
    progress(&mut udp, Some(&staying), 5).context("UDP after its endpoint was removed")?;
    let before = udp.report()?.servers[&leaving];
    progress(&mut udp, Some(&staying), 20)?;
    let report = udp.stop()?;
    assert_eq!(report.servers[&leaving], before, "it does not go back");
    assert!(report.is_clean(), "{report:?}");
    progress(&mut tcp, Some(&leaving), 20).context("TCP after its endpoint was removed")?;
    let report = tcp.stop()?;
    assert!(report.is_clean() && report.servers.len() == 1, "{report:?}");
    Ok(())
}
