//! `svc explain` against what packets then do, from every kind of client; and that it leaves no trace.

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use svc_lab::{Place, Pod, Protocol, Request, Spec, plan};

use support::{
    Cluster, PORT, PROTOCOLS, TARGET, WEB,
    flow::{servers, settles},
    service, service_addresses,
};

fn explain(cluster: &Cluster, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Result<Value> {
    let protocol = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
    let arguments = ["explain", &source.to_string(), &format!("{destination}/{protocol}"), "-o", "json"];
    let said = cluster.lab.svc(1, &arguments)?;
    serde_json::from_str(&said).with_context(|| said)
}

/// What it says of `field`, or an error with the whole answer.
fn says(answer: &Value, field: &str, expected: &str) -> Result<()> {
    ensure!(answer[field] == expected, "{field} is {}, not {expected}: {answer:#}", answer[field]);
    Ok(())
}

/// A cluster with `web` on two pods, `empty` without endpoints, and `only-far` with externalTrafficPolicy Local.
fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    cluster.publish("web", &service("web", 1, WEB), &[&cluster.near, &cluster.far])?;
    cluster.publish("empty", &service("empty", 2, WEB + 1), &[])?;
    let only_far = service("only-far", 3, WEB + 2).spec("externalTrafficPolicy", "Local");
    cluster.publish("only-far", &only_far, &[&cluster.far])?;
    // Pods' connections are packets, not translated sockets.
    cluster.start(&["--socket-lb", "host"])?;
    Ok(cluster)
}

/// The pod that an endpoint's address belongs to.
fn name_of<'a>(pods: &[&'a Pod], endpoint: &Value) -> Result<&'a str> {
    let address: SocketAddr = endpoint.as_str().context("an endpoint")?.parse()?;
    ensure!(address.port() == TARGET, "{address}");
    let pod = pods.iter().find(|pod| pod.addresses.both().contains(&address.ip()));
    Ok(pod.with_context(|| format!("{address} is no pod's"))?.name())
}

#[test]
fn a_connection_goes_where_explain_says_it_will() -> Result<()> {
    let cluster = cluster()?;
    let pods = [&cluster.near, &cluster.far];
    let (inside, outside): (&Place, &Place) = (&cluster.client, cluster.lab.outside());
    let outside_addresses = plan::OUTSIDE.both();
    let mut met = std::collections::BTreeSet::new();
    for family in 0..2 {
        let node_port = SocketAddr::new(cluster.lab.node(1).addresses.both()[family], WEB);
        let (cluster_ips, balancers) = service_addresses(1);
        let cluster_ip = SocketAddr::new(cluster_ips[family], PORT);
        let balancer = SocketAddr::new(balancers[family], PORT);
        let clients: [(&Place, IpAddr, &str, [SocketAddr; 2]); 2] = [
            (inside, cluster.client.addresses.both()[family], "inside", [cluster_ip, node_port]),
            (outside, outside_addresses[family], "outside", [balancer, node_port]),
        ];
        for (who, address, scope, asked) in clients {
            for (nth, protocol) in PROTOCOLS.into_iter().enumerate() {
                for port in 5000..5004 {
                    let destination = asked[usize::from(port) % 2];
                    let source = SocketAddr::new(address, port);
                    let before = explain(&cluster, source, destination, protocol)?;
                    let flows = cluster.lab.svc(1, &["flows", "--source", &source.to_string(), "-o", "json"])?;
                    let none = serde_json::from_str::<Vec<Value>>(&flows)?;
                    let none = none.iter().all(|flow| flow["protocol"] != before["protocol"]);
                    ensure!(none, "explaining made a flow: {flows}");
                    says(&before, "scope", scope)?;
                    says(&before, "verdict", "forward")?;
                    ensure!(before["flow"]["exists"] == false && before["program_is_loaded"] == true, "{before:#}");
                    let expected = name_of(&pods, &before["endpoint"])?;
                    let remote = expected == cluster.far.name();
                    ensure!(before["flow"]["masquerade"] == (remote && scope == "outside"), "{before:#}");

                    let request = Request::new(protocol, destination).from_address(address).from_port(port);
                    let answered = servers(who, &request, destination, 1)?;
                    ensure!(answered == [expected], "{answered:?} answered, explain said {before:#}");
                    let after = explain(&cluster, source, destination, protocol)?;
                    ensure!(after["flow"]["exists"] == true && after["endpoint"] == before["endpoint"], "{after:#}");
                    met.insert((expected.to_owned(), scope, nth));
                }
            }
        }
    }
    ensure!(met.len() >= 6, "too few combinations to tell anything: {met:?}");
    Ok(())
}

#[test]
fn what_is_refused_dropped_or_nobodys_is_explained_and_not_counted() -> Result<()> {
    let cluster = cluster()?;
    settles("all three Services", || {
        let services = cluster.lab.svc(1, &["services", "-o", "json"])?;
        ensure!(serde_json::from_str::<Vec<Value>>(&services)?.len() == 12, "{services}");
        Ok(())
    })?;
    let drops = cluster.lab.svc(1, &["status", "-o", "json"])?;
    let outside = plan::OUTSIDE.both();
    for family in 0..2 {
        let client = SocketAddr::new(cluster.client.addresses.both()[family], 5000);
        let outside = SocketAddr::new(outside[family], 5000);
        let node = cluster.lab.node(1).addresses.both()[family];
        let ask = |source, destination| explain(&cluster, source, destination, Protocol::Tcp);

        let empty = ask(client, SocketAddr::new(service_addresses(2).0[family], PORT))?;
        says(&empty, "verdict", "refuse")?;
        ensure!(empty["service"]["name"] == "empty" && empty["endpoint"].is_null(), "{empty:#}");

        let unknown = ask(client, SocketAddr::new(service_addresses(1).0[family], PORT + 1))?;
        says(&unknown, "verdict", "refuse")?;
        ensure!(unknown["service"].is_null(), "{unknown:#}");

        let only_far = SocketAddr::new(service_addresses(3).1[family], PORT);
        let policy = ask(outside, only_far)?;
        says(&policy, "verdict", "drop")?;
        ensure!(policy["service"]["name"] == "only-far", "{policy:#}");
        let why = &policy["endpoints"][0]["why"];
        ensure!(why.as_str().is_some_and(|why| why.contains("policy")), "{policy:#}");
        says(&ask(client, only_far)?, "verdict", "forward")?;

        let nobody = ask(client, SocketAddr::new(outside.ip(), 9))?;
        says(&nobody, "verdict", "pass")?;

        let host = ask(SocketAddr::new(node, 5000), SocketAddr::new(service_addresses(1).0[family], PORT))?;
        says(&host, "verdict", "connect")?;
        ensure!(host["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == 2), "{host:#}");
    }
    let after = cluster.lab.svc(1, &["status", "-o", "json"])?;
    let counted = |status: &str| serde_json::from_str::<Value>(status).map(|status| status["drops"].clone());
    ensure!(counted(&drops)? == counted(&after)?, "explaining counted drops: {after}");
    Ok(())
}
