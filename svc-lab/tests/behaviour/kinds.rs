//! Every change from one kind of Service to another, at run time: what the new kind does not have stops working at once.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{Pod, Request, Service, Steady};

use crate::{
    doors::{self, BOTH, Door, Expected, doors, lead_to, loopback},
    feed::Feed,
    shop::{NODE_PORT, PORT, Shop, TARGET, cluster_ips, eventually, external, service},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    Headless,
    ExternalName,
}

const KINDS: [Kind; 5] = [Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer, Kind::Headless, Kind::ExternalName];

/// A way through all kinds that takes each step from one to another exactly once, back to the first.
fn walk() -> Vec<Kind> {
    fn visit(at: usize, path: &mut Vec<Kind>) {
        for (next, &kind) in KINDS.iter().enumerate().skip(at + 1) {
            path.push(kind);
            if next == at + 1 {
                visit(next, path);
            }
            path.push(KINDS[at]);
        }
    }
    let mut path = vec![KINDS[0]];
    visit(0, &mut path);
    path
}

#[test]
fn the_walk_takes_every_step_once() {
    let walk = walk();
    let steps: HashSet<_> = walk.windows(2).map(|step| (step[0], step[1])).collect();
    assert_eq!((walk.len() - 1, steps.len()), (20, 20), "{walk:?}");
}

/// The Service `web` as one kind, with the slices that Kubernetes would give it.
fn web(kind: Kind, pods: &[&Pod]) -> Vec<Value> {
    let all: Service = service("web", 1).node_port(PORT, TARGET, NODE_PORT).load_balancer(&external(1));
    let mut objects = match kind {
        Kind::ClusterIp | Kind::Headless => service("web", 1).port(PORT, TARGET).with(pods),
        Kind::NodePort => service("web", 1).node_port(PORT, TARGET, NODE_PORT).with(pods),
        Kind::LoadBalancer => all.with(pods),
        // All that a load balancer had is left on the object.
        Kind::ExternalName => all.spec("type", "ExternalName").spec("externalName", "web.example").with(pods),
    };
    if kind == Kind::Headless {
        objects[0]["spec"]["clusterIP"] = "None".into();
        objects[0]["spec"]["clusterIPs"] = json!(["None"]);
        for slice in &mut objects[1..] {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
        }
    }
    objects
}

/// What a kind has of everything that one of the kinds has.
fn expected<'a>(shop: &Shop, kind: Kind, servers: &'a [&'a str]) -> Expected<'a> {
    let node = shop.lab.node(1).addresses.both();
    let rows: [(Vec<Door>, &[Kind]); 4] = [
        (
            doors(doors::Kind::ClusterIp, &cluster_ips(1), PORT, &BOTH),
            &[Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer],
        ),
        (doors(doors::Kind::NodePort, &node, NODE_PORT, &BOTH), &[Kind::NodePort, Kind::LoadBalancer]),
        (doors(doors::Kind::NodePort, &loopback(), NODE_PORT, &BOTH), &[Kind::NodePort, Kind::LoadBalancer]),
        (doors(doors::Kind::LoadBalancer, &external(1), PORT, &BOTH), &[Kind::LoadBalancer]),
    ];
    let rows = rows.into_iter();
    rows.flat_map(|(doors, kinds)| lead_to(doors, if kinds.contains(&kind) { servers } else { &[] })).collect()
}

fn every_change(shop: &Shop, feed: &Feed, socket_lb: &str) -> Result<()> {
    let walk = walk();
    feed.put("web", &web(walk[0], &[&shop.a, &shop.b]))?;
    let _agent = shop.agent(feed.source(), &["--socket-lb", socket_lb])?;
    let mut before = walk[0];
    for kind in walk {
        feed.put("web", &web(kind, &[&shop.a, &shop.b]))?;
        shop.has(&expected(shop, kind, &["a", "b"])).with_context(|| format!("from {before:?} to {kind:?}"))?;
        before = kind;
    }
    Ok(())
}

#[test]
fn a_service_becomes_every_other_kind_by_manifests() -> Result<()> {
    let shop = Shop::open()?;
    every_change(&shop, &Feed::manifests(&shop)?, "auto")
}

#[test]
fn a_service_becomes_every_other_kind_by_the_api() -> Result<()> {
    let shop = Shop::open()?;
    every_change(&shop, &Feed::api(&shop)?, "host")
}

/// Waits until a probe has had another answer, or has lost another request.
fn next(steady: &mut Steady, answered: bool) -> Result<()> {
    let before = steady.report()?;
    eventually(if answered { "an answer" } else { "a loss" }, || {
        let now = steady.report()?;
        let more = if answered { now.answered > before.answered } else { now.lost > before.lost };
        ensure!(more, "{now:?}");
        Ok(())
    })
}

#[test]
fn a_datagram_flow_ends_with_its_address_and_goes_on_when_that_is_back() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    feed.put("web", &web(Kind::LoadBalancer, &[&shop.a]))?;
    let _agent = shop.agent(feed.source(), &[])?;
    let doors = [(shop.lab.node(1).addresses.both(), NODE_PORT), (external(1), PORT)];
    let mut flows = Vec::new();
    for (address, port) in doors.into_iter().flat_map(|(addresses, port)| addresses.map(|it| (it, port))) {
        // The answers to come are those of this port's own node, which has no such server: losses are quick.
        let request = Request::udp((address, port)).timeout_ms(300);
        flows.push(shop.lab.outside().steady(&request, 20, &shop.lab.logs().join("flows.log"))?);
    }
    feed.put("web", &web(Kind::ClusterIp, &[&shop.a]))?;
    shop.shows(&expected(&shop, Kind::ClusterIp, &["a"]))?;
    let answered = flows.iter_mut().map(|flow| Ok(flow.report()?.answered)).collect::<Result<Vec<_>>>()?;
    for (flow, before) in flows.iter_mut().zip(answered) {
        next(flow, false)?;
        let report = flow.report()?;
        // One answer may have been on its way.
        ensure!(report.answered <= before + 1, "it went on without its address, from {before} answers to {report:?}");
    }
    feed.put("web", &web(Kind::LoadBalancer, &[&shop.a]))?;
    shop.shows(&expected(&shop, Kind::LoadBalancer, &["a"]))?;
    for flow in &mut flows {
        next(flow, true)?;
    }
    Ok(())
}
