//! EndpointSlices: which endpoints a Service has when several slices say so, and which parts of a slice count.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{Agent, Endpoint, Pod, Protocol};

use crate::{
    doors::{BOTH, Expected, Kind, doors, lead_to},
    feed::Feed,
    shop::{PORT, Shop, TARGET, cluster_ips, eventually, service},
};

/// The cluster addresses of the nth Service, with these pods behind them.
fn at<'a>(nth: u8, servers: &'a [&'a str]) -> Expected<'a> {
    lead_to(doors(Kind::ClusterIp, &cluster_ips(nth), PORT, &BOTH), servers)
}

/// Every one of a Service's pods answers, and nobody else.
fn all_answer(shop: &Shop, nth: u8, servers: &[&str]) -> Result<()> {
    for address in cluster_ips(nth) {
        for protocol in BOTH {
            let request = svc_lab::Request::new(protocol, (address, PORT)).count(24).timeout_ms(10_000);
            let answers = shop.client.ask_all(&request)?.into_iter().map(|it| it.map(|it| it.answer.server));
            let found: BTreeSet<String> = answers.collect::<Result<_, _>>()?;
            // One of two is missed in one of eight million runs.
            ensure!(found.iter().map(String::as_str).eq(servers.iter().copied()), "{address}: {found:?} answered");
        }
    }
    Ok(())
}

/// The backends of a Service that `svc backends` shows, without what traffic changes.
fn backends(shop: &Shop, name: &str) -> Result<BTreeSet<String>> {
    let rows = shop.said("backends")?.into_iter().filter(|row| row["service"]["name"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows
        .map(|row| format!("{} {} {}", text(&row["address"]), text(&row["service"]["protocol"]), text(&row["state"])))
        .collect())
}

/// Changes of slices that an agent has seen, and those of them that it has not programmed yet.
fn slice_changes(agent: &Agent) -> Result<(u64, u64)> {
    let metrics = agent.metrics()?;
    let value = |name: &str| -> Result<u64> {
        let name = format!("kubeproxy_sync_proxy_rules_endpoint_changes_{name} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.context(name.clone())?.parse().with_context(|| name)
    };
    Ok((value("total")?, value("pending")?))
}

/// The two slices of a Service under another name.
fn renamed(mut slices: Vec<Value>, name: &str) -> Vec<Value> {
    for slice in &mut slices {
        slice["metadata"]["name"] = format!("{name}-{}", slice["addressType"].as_str().unwrap_or_default()).into();
    }
    slices
}

#[test]
fn endpoints_are_those_of_all_slices_and_each_counts_once() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let web = service("web", 1).port(PORT, TARGET);
    feed.put("web", &web.with(&[&shop.a]))?;
    feed.put("second", &renamed(web.slices(&[&shop.b]), "second"))?;
    // The same endpoints again, one of them said to be leaving: what is ready somewhere is ready.
    feed.put("third", &renamed(web.slices_of(&[Endpoint::terminating(&shop.a), Endpoint::ready(&shop.b)]), "third"))?;
    let agent = shop.agent(feed.source(), &[])?;
    let pods = |pods: &[&Pod]| -> BTreeSet<String> {
        let addresses =
            pods.iter().flat_map(|pod| pod.addresses.both()).map(|it| std::net::SocketAddr::new(it, TARGET));
        addresses.flat_map(|it| ["TCP", "UDP"].map(|protocol| format!("{it} {protocol} active"))).collect()
    };
    let both = pods(&[&shop.a, &shop.b]);
    all_answer(&shop, 1, &["a", "b"])?;
    assert_eq!(backends(&shop, "web")?, both);
    // An endpoint stays as long as one slice has it.
    let seen = slice_changes(&agent)?;
    feed.put("second", &[])?;
    eventually("the end of two slices", || {
        let now = slice_changes(&agent)?;
        ensure!(now == (seen.0 + 2, 0), "{now:?} after {seen:?}");
        Ok(())
    })?;
    assert_eq!(backends(&shop, "web")?, both);
    feed.put("third", &[])?;
    let one = pods(&[&shop.a]);
    eventually("the end of b", || {
        let found = backends(&shop, "web")?;
        ensure!(found == one, "{found:?}");
        Ok(())
    })?;
    all_answer(&shop, 1, &["a"])
}

#[test]
fn a_named_target_port_has_the_number_of_each_slice() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    shop.lab.stop(&shop.b, TARGET)?;
    shop.lab.serve(&shop.b, 9090)?;
    let mut web = service("web", 1).port(PORT, TARGET);
    for port in web.object["spec"]["ports"].as_array_mut().context("ports")? {
        port["targetPort"] = "http".into();
    }
    let mut other = renamed(web.slices(&[&shop.b]), "other");
    for port in other.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = 9090.into();
    }
    feed.put("web", &web.with(&[&shop.a]))?;
    feed.put("other", &other)?;
    let _agent = shop.agent(feed.source(), &[])?;
    all_answer(&shop, 1, &["a", "b"])?;
    // The pods of the other slice are rolled out with another number.
    shop.lab.serve(&shop.b, 9091)?;
    for port in other.iter_mut().filter_map(|slice| slice["ports"].as_array_mut()).flatten() {
        port["port"] = 9091.into();
    }
    feed.put("other", &other)?;
    eventually("the new number", || {
        let found = backends(&shop, "web")?;
        ensure!(
            found.iter().any(|it| it.contains(":9091 ")) && !found.iter().any(|it| it.contains(":9090 ")),
            "{found:?}"
        );
        Ok(())
    })?;
    shop.lab.stop(&shop.b, 9090)?;
    all_answer(&shop, 1, &["a", "b"])
}

#[test]
fn services_that_share_their_endpoints_do_not_share_their_fate() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let pods = [&shop.a, &shop.b];
    for nth in 1..=3 {
        feed.put(&format!("web-{nth}"), &service(&format!("web-{nth}"), nth).port(PORT, TARGET).with(&pods))?;
    }
    let _agent = shop.agent(feed.source(), &[])?;
    let servers = ["a", "b"];
    shop.has(&[at(1, &servers), at(2, &servers), at(3, &servers)].concat())?;
    feed.put("web-1", &[])?;
    shop.has(&[at(1, &[]), at(2, &servers), at(3, &servers)].concat())?;
    feed.put("web-2", &service("web-2", 2).port(PORT, TARGET).with(&[&shop.b]))?;
    eventually("the smaller Service", || {
        ensure!(backends(&shop, "web-2")?.len() == 4, "{:?}", backends(&shop, "web-2")?);
        Ok(())
    })?;
    shop.has(&[at(1, &[]), at(2, &["b"]), at(3, &servers)].concat())?;
    all_answer(&shop, 3, &servers)
}

fn headless_slices(shop: &Shop, feed: &Feed, more: &[&str]) -> Result<()> {
    let web = service("web", 1).port(PORT, TARGET);
    let put = |headless: bool| {
        let mut slices = renamed(web.slices(&[&shop.b]), "other");
        for slice in slices.iter_mut().filter(|_| headless) {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
        }
        feed.put("other", &slices)
    };
    feed.put("web", &web.with(&[&shop.a]))?;
    put(true)?;
    let _agent = shop.agent(feed.source(), more)?;
    for headless in [true, false, true, false] {
        put(headless)?;
        let count = if headless { 4 } else { 8 };
        eventually("the endpoints", || {
            let found = backends(shop, "web")?;
            ensure!(found.len() == count, "{found:?}");
            Ok(())
        })?;
        let servers: &[&str] = if headless { &["a"] } else { &["a", "b"] };
        all_answer(shop, 1, servers).with_context(|| format!("headless: {headless}"))?;
    }
    Ok(())
}

#[test]
fn a_slice_counts_while_it_is_not_labelled_headless_in_manifests() -> Result<()> {
    let shop = Shop::open()?;
    headless_slices(&shop, &Feed::manifests(&shop)?, &[])
}

#[test]
fn a_slice_counts_while_it_is_not_labelled_headless_in_the_api() -> Result<()> {
    let shop = Shop::open()?;
    headless_slices(&shop, &Feed::api(&shop)?, &[])
}

#[test]
fn a_slice_counts_while_it_is_not_labelled_headless_where_dns_is_served() -> Result<()> {
    let shop = Shop::open()?;
    headless_slices(&shop, &Feed::api(&shop)?, &["--dns", "127.0.0.1:53"])
}

#[test]
fn parts_of_slices_that_lead_nowhere_are_passed_over() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let web = service("web", 1).one_port(Protocol::Tcp, PORT, TARGET, None);
    let [v4, v6] = shop.a.addresses.both();
    let other = shop.b.addresses.both();
    let slice = |name: &str, family: &str, fields: Value| {
        let mut slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "tcp-80", "protocol": "TCP", "port": TARGET}], "endpoints": [],
        });
        for (key, value) in fields.as_object().into_iter().flatten() {
            slice[key] = value.clone();
        }
        slice
    };
    let mut unlabelled = slice("unlabelled", "IPv4", json!({"endpoints": [{"addresses": [other[0]]}]}));
    unlabelled["metadata"]["labels"] = json!({});
    feed.put(
        "web",
        &[
            web.object.clone(),
            // Conditions that are absent mean ready; of several addresses the first one counts.
            slice("good-v4", "IPv4", json!({"endpoints": [{"addresses": [v4, other[0]]}]})),
            slice("good-v6", "IPv6", json!({"endpoints": [{"addresses": [v6], "conditions": {}}]})),
            slice(
                "no-number",
                "IPv4",
                json!({"ports": [{"name": "tcp-80", "protocol": "TCP"}],
            "endpoints": [{"addresses": [other[0]]}]}),
            ),
            slice(
                "zero",
                "IPv4",
                json!({"ports": [{"name": "tcp-80", "protocol": "TCP", "port": 0}],
            "endpoints": [{"addresses": [other[0]]}]}),
            ),
            slice("other-family", "IPv4", json!({"endpoints": [{"addresses": [other[1]]}]})),
            slice("name", "FQDN", json!({"endpoints": [{"addresses": ["b.example"]}]})),
            slice(
                "other-port",
                "IPv4",
                json!({"ports": [{"name": "else", "protocol": "TCP", "port": TARGET}],
            "endpoints": [{"addresses": [other[0]]}]}),
            ),
            slice(
                "not-ready",
                "IPv4",
                json!({"endpoints": [{"addresses": [other[0]],
            "conditions": {"ready": false, "serving": false}}]}),
            ),
            unlabelled,
        ],
    )?;
    // A Service that asks for endpoints before they are ready has slices that say they are: nothing else is looked at.
    let early = service("early", 2).one_port(Protocol::Tcp, PORT, TARGET, None).spec("publishNotReadyAddresses", true);
    let mut not_ready = Endpoint::ready(&shop.b);
    (not_ready.ready, not_ready.serving) = (false, false);
    let slices = early.slices_of(&[Endpoint::ready(&shop.a), not_ready]);
    feed.put("early", &[vec![early.object.clone()], slices].concat())?;
    let _agent = shop.agent(feed.source(), &[])?;
    let only_a: Expected<'_> = at(1, &["a"]).into_iter().chain(at(2, &["a"])).collect();
    let tcp: Expected<'_> = only_a.into_iter().filter(|(door, _)| door.protocol == Protocol::Tcp).collect();
    shop.has(&tcp)?;
    let wanted: BTreeSet<String> =
        [v4, v6].map(|it| format!("{} TCP active", std::net::SocketAddr::new(it, TARGET))).into();
    assert_eq!(backends(&shop, "web")?, wanted);
    assert_eq!(backends(&shop, "early")?, wanted);
    Ok(())
}
