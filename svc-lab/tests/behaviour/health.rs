//! What load balancers, kubelets and Prometheus ask an agent: `healthCheckNodePort` from outside, /healthz, /livez and
//! /metrics on the node.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use svc_lab::{Agent, Endpoint, Place, Protocol, Request, Service, Spec};

use crate::{
    feed::Feed,
    shop::{NODE_PORT, PORT, SMALL, Shop, TARGET, cluster_ips, eventually, external, service},
};

const HEALTH_PORT: u16 = 32_080;

/// An answer: status line, headers in lower case, body.
type Answer = (String, BTreeMap<String, String>, String);

/// A request from a place; `None` if nobody listens.
fn get(from: &Place, address: SocketAddr, path: &str) -> Result<Option<Answer>> {
    let limit = Duration::from_secs(10);
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = match from.enter(exchange)? {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => bail!("http://{address}{path}: {error}"),
    };
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text:?}"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Ok(Some((status, headers, body.to_owned())))
}

/// Waits until a node's `healthCheckNodePort` says at both addresses that so many endpoints are there, exactly as
/// kube-proxy would.
fn weighs(shop: &Shop, node: u8, endpoints: usize) -> Result<()> {
    let code = if endpoints > 0 { "HTTP/1.1 200 OK" } else { "HTTP/1.1 503 Service Unavailable" };
    let body = format!(
        r#"{{"service":{{"namespace":"shop","name":"web"}},"localEndpoints":{endpoints},"serviceProxyHealthy":true}}"#
    );
    let weight = endpoints.to_string();
    for address in shop.lab.node(node).addresses.both() {
        for path in ["/", "/healthz?any=path"] {
            eventually(&format!("{endpoints} endpoints on node{node}"), || {
                let answer = get(shop.lab.outside(), (address, HEALTH_PORT).into(), path)?;
                let (status, headers, text) = answer.context("nobody listens")?;
                ensure!((status.as_str(), text.as_str()) == (code, body.as_str()), "{status}: {text}");
                for (name, value) in [
                    ("content-type", "application/json"),
                    ("x-content-type-options", "nosniff"),
                    ("x-load-balancing-endpoint-weight", &weight),
                ] {
                    ensure!(headers.get(name).is_some_and(|it| it == value), "{name} is not {value}: {headers:?}");
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Waits until nobody listens on a node's port.
fn is_closed(shop: &Shop, node: u8, port: u16) -> Result<()> {
    for address in shop.lab.node(node).addresses.both() {
        eventually("the port to close", || {
            ensure!(get(shop.lab.outside(), (address, port).into(), "/")?.is_none(), "{address}:{port} answers");
            Ok(())
        })?;
    }
    Ok(())
}

fn balanced() -> Service {
    service("web", 1)
        .node_port(PORT, TARGET, NODE_PORT)
        .load_balancer(&external(1))
        .spec("externalTrafficPolicy", "Local")
        .spec("healthCheckNodePort", HEALTH_PORT)
}

#[test]
fn a_load_balancer_outside_learns_how_many_endpoints_each_node_has() -> Result<()> {
    let shop = Shop::of(Spec::default())?;
    let feed = Feed::manifests(&shop)?;
    let far = shop.lab.pod(2, "far")?;
    let web = balanced();
    let put =
        |endpoints: &[Endpoint<'_>]| feed.put("web", &[vec![web.object.clone()], web.slices_of(endpoints)].concat());
    put(&[Endpoint::ready(&shop.a), Endpoint::ready(&shop.b)])?;
    let _agents = shop.lab.start_agents(feed.source(), &SMALL)?;
    weighs(&shop, 1, 2)?;
    weighs(&shop, 2, 0)?;

    // The same address under another port, in another slice, is the same endpoint to a load balancer.
    let mut again = web.slices_of(&[Endpoint::ready(&shop.a)]);
    for slice in &mut again {
        slice["metadata"]["name"] = format!("again-{}", slice["addressType"].as_str().unwrap_or_default()).into();
        slice["ports"][0]["port"] = (TARGET + 1).into();
    }
    feed.put("again", &again)?;
    put(&[Endpoint::ready(&shop.a), Endpoint::terminating(&shop.b), Endpoint::ready(&far)])?;
    weighs(&shop, 1, 1)?;
    weighs(&shop, 2, 1)?;

    // What is leaving takes traffic for want of anything better, but asks for no more of it.
    feed.put("again", &[])?;
    put(&[Endpoint::terminating(&shop.a), Endpoint::ready(&far)])?;
    weighs(&shop, 1, 0)?;
    weighs(&shop, 2, 1)?;

    // Another number, then another policy, which needs no check.
    feed.put("web", &web.clone().spec("healthCheckNodePort", HEALTH_PORT + 1).with(&[&shop.a]))?;
    is_closed(&shop, 1, HEALTH_PORT)?;
    feed.put("web", &web.clone().with(&[&shop.a]))?;
    weighs(&shop, 1, 1)?;
    is_closed(&shop, 1, HEALTH_PORT + 1)?;
    let cluster = web.clone().spec("externalTrafficPolicy", "Cluster").spec("healthCheckNodePort", Value::Null);
    feed.put("web", &cluster.with(&[&shop.a]))?;
    (1..=2).try_for_each(|node| is_closed(&shop, node, HEALTH_PORT))
}

#[test]
fn a_dual_stack_pod_counts_once_and_a_single_stack_one_as_well() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let web = balanced();
    let _agent = {
        feed.put("web", &web.with(&[&shop.a]))?;
        shop.agent(feed.source(), &[])?
    };
    weighs(&shop, 1, 1)?;
    for family in 0..2 {
        let mut objects = web.with(&[&shop.a, &shop.b]);
        objects[0]["spec"]["ipFamilies"] = json!([if family == 0 { "IPv4" } else { "IPv6" }]);
        objects[0]["spec"]["clusterIPs"] = json!([cluster_ips(1)[family]]);
        objects[0]["spec"]["clusterIP"] = json!(cluster_ips(1)[family]);
        let slices = objects.split_off(1);
        feed.put("web", &[objects, vec![slices[family].clone()]].concat())?;
        weighs(&shop, 1, 2).with_context(|| format!("family {family}"))?;
        feed.put("web", &web.with(&[&shop.a]))?;
        weighs(&shop, 1, 1)?;
    }
    Ok(())
}

/// Waits until /healthz and /livez say these codes.
fn is_well(agent: &Agent, healthz: u16, livez: u16) -> Result<()> {
    eventually(&format!("/healthz {healthz} and /livez {livez}"), || {
        let found = ((agent.healthz("/healthz")?), (agent.healthz("/livez")?));
        ensure!((found.0.0, found.1.0) == (healthz, livez), "{found:?}");
        let eligible: Value = serde_json::from_str(&found.0.1)?;
        ensure!(eligible["nodeEligible"] == (healthz == 200), "{eligible}");
        Ok(())
    })
}

fn a_node_that_leaves(shop: &Shop, feed: &Feed) -> Result<()> {
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    let agent = shop.agent(feed.source(), &[])?;
    is_well(&agent, 200, 200)?;
    let mut objects = shop.lab.node_objects();
    objects[0]["spec"]["taints"] = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
    feed.put("nodes", &objects)?;
    objects[0]["spec"]["taints"] = json!([
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"},
    ]);
    feed.put("nodes", &objects)?;
    is_well(&agent, 503, 200)?;
    // The node is kept after all; then it is deleted, and comes back.
    feed.put("nodes", &shop.lab.node_objects())?;
    is_well(&agent, 200, 200)?;
    feed.put("nodes", &[])?;
    is_well(&agent, 503, 200)?;
    let success = shop.client.tcp((cluster_ips(1)[0], PORT))?;
    ensure!(success.answer.server == "a", "a node that leaves serves on, but {} answered", success.answer.server);
    feed.put("nodes", &shop.lab.node_objects())?;
    is_well(&agent, 200, 200)?;
    let metrics = agent.metrics()?;
    for (name, code) in [("healthz", 200), ("healthz", 503), ("livez", 200)] {
        let line = format!("kubeproxy_proxy_{name}_total{{code=\"{code}\"}} ");
        ensure!(metrics.contains(&line), "no {line} in {metrics}");
    }
    ensure!(!metrics.contains("kubeproxy_proxy_livez_total{code=\"503\"}"), "/livez looked at the node");
    Ok(())
}

#[test]
fn a_node_that_leaves_is_alive_but_not_healthy_by_manifests() -> Result<()> {
    let shop = Shop::open()?;
    a_node_that_leaves(&shop, &Feed::manifests(&shop)?)
}

#[test]
fn a_node_that_leaves_is_alive_but_not_healthy_by_the_api() -> Result<()> {
    let shop = Shop::open()?;
    a_node_that_leaves(&shop, &Feed::api(&shop)?)
}

/// Metrics as Prometheus reads them: name with labels → value.
fn samples(agent: &Agent) -> Result<BTreeMap<String, f64>> {
    let text = agent.metrics()?;
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    Ok(lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
}

/// The sum of a metric over the series that have all of these labels.
fn sum(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Result<f64> {
    let matches =
        |series: &&String| series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label));
    let found: Vec<f64> = samples.iter().filter(|(series, _)| matches(series)).map(|(_, value)| *value).collect();
    ensure!(!found.is_empty(), "no series {name} with {labels:?} in {:?}", samples.keys().collect::<Vec<_>>());
    Ok(found.into_iter().sum())
}

fn sum_is(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str], wanted: u32) -> Result<()> {
    let found = sum(samples, name, labels)?;
    ensure!((found - f64::from(wanted)).abs() < 0.5, "{name} {labels:?} is {found}, not {wanted}");
    Ok(())
}

#[test]
fn metrics_have_kube_proxys_names_and_count_services_and_backends() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let far = [json!({"addresses": ["10.244.2.10"], "nodeName": "node2"})];
    let mut away = service("away", 2).port(PORT, TARGET).spec("internalTrafficPolicy", "Local").with(&[]);
    away[1]["endpoints"] = json!(far);
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a, &shop.b]))?;
    feed.put("away", &away)?;
    let agent = shop.agent(feed.source(), &["--socket-lb", "off"])?;
    let before = samples(&agent)?;
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_duration_seconds_sum",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        "kubeproxy_network_programming_duration_seconds_count",
        "kubeproxy_network_programming_duration_seconds_bucket",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "kubeproxy_proxy_healthz_total",
    ] {
        sum(&before, name, &[])?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
        let at = sum(&before, &format!("kubeproxy_sync_proxy_rules_{name}"), &[])?;
        ensure!((now - at).abs() < 3600.0, "{name} is {at}, and it is {now}");
    }
    sum_is(&before, "kubeproxy_sync_proxy_rules_no_local_endpoints_total", &["traffic_policy=\"internal\""], 1)?;
    sum_is(&before, "kubeproxy_sync_proxy_rules_no_local_endpoints_total", &["traffic_policy=\"external\""], 0)?;

    // Exactly what is sent is counted, for the Service port it is sent to and for the backends together.
    let status: Value = serde_json::from_str(&shop.lab.svc(1, &["status", "-o", "json"])?)?;
    for (address, family, protocol, count) in [
        (cluster_ips(1)[0], "IPv4", Protocol::Tcp, 7),
        (cluster_ips(1)[1], "IPv6", Protocol::Tcp, 3),
        (cluster_ips(1)[0], "IPv4", Protocol::Udp, 5),
    ] {
        let request = Request::new(protocol, (address, PORT)).count(count).timeout_ms(10_000);
        shop.client.ask_all(&request)?.into_iter().try_for_each(|answer| answer.map(drop))?;
        let upper = protocol.as_str().to_uppercase();
        let labels =
            ["namespace=\"shop\"", "name=\"web\"", &format!("protocol=\"{upper}\""), &format!("family=\"{family}\"")];
        let after = samples(&agent)?;
        for of in ["service", "backend"] {
            sum_is(&after, &format!("svc_{of}_connections_total"), &labels, count)?;
            // A datagram and its answer; a TCP connection is seven packets and more.
            let least = f64::from(count) * if protocol == Protocol::Udp { 2.0 } else { 7.0 };
            let packets = sum(&after, &format!("svc_{of}_packets_total"), &labels)?;
            let bytes = sum(&after, &format!("svc_{of}_bytes_total"), &labels)?;
            ensure!(packets >= least && bytes >= packets * 28.0, "{of} {labels:?}: {packets} packets, {bytes} bytes");
        }
    }
    let silent = shop.client.ask(&Request::udp((cluster_ips(2)[0], PORT)).timeout_ms(300));
    ensure!(silent.is_err(), "nobody serves here: {silent:?}");
    let after = samples(&agent)?;
    let grown = sum(&after, "svc_drop_packets_total", &["policy_empty"])?
        - sum(&before, "svc_drop_packets_total", &["policy_empty"])?;
    ensure!(grown >= 1.0, "the drop is not counted: {grown}");
    for reason in status["drops"].as_array().into_iter().flatten().filter_map(|drop| drop["reason"].as_str()) {
        sum(&after, "svc_drop_packets_total", &[&format!("reason=\"{reason}\"")])?;
    }
    for (map, fill) in status["maps"].as_object().context("maps")? {
        let capacity = sum(&after, "svc_map_capacity", &[&format!("map=\"{map}\"")])?;
        ensure!(Some(capacity) == fill["capacity"].as_f64(), "{map}: {capacity}, and `svc status` says {fill}");
        if fill["entries"].is_u64() {
            sum(&after, "svc_map_entries", &[&format!("map=\"{map}\"")])?;
        }
    }
    let active = sum(&after, "svc_map_entries", &["map=\"FLOWS_V4\""])?;
    ensure!(active >= 2.0, "{active} flows");

    // One change of one slice, with the time it was made at.
    let mut slices = service("web", 1).port(PORT, TARGET).with(&[&shop.a]);
    let time = shop.lab.node(1).exec("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?;
    slices[1]["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time.trim()});
    feed.put("web", &slices)?;
    eventually("the latency of a change", || {
        let now = samples(&agent)?;
        sum_is(&now, "kubeproxy_network_programming_duration_seconds_count", &[], 1)?;
        let changes = "kubeproxy_sync_proxy_rules_endpoint_changes";
        let more = sum(&now, &format!("{changes}_total"), &[])? - sum(&before, &format!("{changes}_total"), &[])?;
        ensure!((more - 2.0).abs() < 0.5, "{more} slices changed, not two");
        sum_is(&now, &format!("{changes}_pending"), &[], 0)
    })
}
