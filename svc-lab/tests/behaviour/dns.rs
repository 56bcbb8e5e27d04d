//! The node's DNS server, asked by `dig` and by libc's resolver from pods.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{Agent, Place, Pod, Service};

use crate::{
    feed::Feed,
    resolver::{LARGE, Resolver},
    shop::{PORT, Shop, TARGET, cluster_ips, eventually, service},
};

/// What `dig` has to say.
#[derive(Debug)]
struct Dug {
    status: String,
    /// Letters of the flags, each between blanks.
    flags: String,
    /// Type and data of each record of the answer.
    answers: BTreeSet<String>,
    /// The authority section has the SOA of the cluster domain.
    denied: bool,
}

/// Asks a server.
fn dig(place: &Place, server: IpAddr, name: &str, kind: &str, more: &[&str]) -> Result<Dug> {
    let server = format!("@{server}");
    let arguments =
        [&[&server, name, kind, "+noall", "+comments", "+answer", "+authority", "+time=5", "+tries=1"], more];
    let text = place.exec("dig", &arguments.concat())?;
    let between = |start: &str, end: &str| {
        let rest = text.split_once(start).map_or("", |(_, rest)| rest);
        rest.split(end).next().unwrap_or_default().to_owned()
    };
    let records =
        text.lines().filter(|line| !line.starts_with(';')).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let records: Vec<_> = records.filter(|words| words.len() > 4).collect();
    Ok(Dug {
        status: between("status: ", ","),
        flags: format!(" {} ", between("flags: ", ";")),
        answers: records.iter().filter(|words| words[3] != "SOA").map(|words| words[3..].join(" ")).collect(),
        denied: records.iter().any(|words| words[0] == "cluster.local." && words[3] == "SOA"),
    })
}

/// Where the agent of node 1 serves.
fn servers(shop: &Shop) -> [IpAddr; 2] {
    shop.lab.node(1).addresses.both()
}

/// Starts the agent of node 1 with a DNS server on both addresses of the node.
fn agent(shop: &Shop, feed: &Feed, more: &[&str]) -> Result<Agent> {
    let [v4, v6] = servers(shop);
    let listen = format!("{v4}:53,[{v6}]:53");
    shop.agent(feed.source(), &[&["--dns", &listen], more].concat())
}

/// A headless Service `db` of these pods, by name `db-0`, `db-1` …; the last one has no name.
fn headless(pods: &[&Pod]) -> Vec<Value> {
    let mut objects = service("db", 9).port(5432, 5432).with(pods);
    objects[0]["spec"]["clusterIP"] = "None".into();
    objects[0]["spec"]["clusterIPs"] = json!(["None"]);
    for slice in &mut objects[1..] {
        slice["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
        let Some(endpoints) = slice["endpoints"].as_array_mut() else { continue };
        let last = endpoints.len().saturating_sub(1);
        for (i, endpoint) in endpoints.iter_mut().enumerate().take(last) {
            endpoint["hostname"] = format!("db-{i}").into();
        }
    }
    objects
}

fn external_name(name: &str, target: &str) -> Value {
    let mut object = Service::new("shop", name, &[]).spec("type", "ExternalName").spec("externalName", target).object;
    object["spec"]["clusterIP"] = Value::Null;
    object
}

fn words<const N: usize>(texts: [String; N]) -> BTreeSet<String> {
    texts.into_iter().collect()
}

/// Every kind of name, over both transports and both families.
fn every_name(shop: &Shop, feed: &Feed) -> Result<()> {
    let resolver = Resolver::start(shop.lab.outside(), svc_lab::plan::OUTSIDE.v4.into())?;
    let mut other = service("other", 3).port(PORT, TARGET).object;
    other["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "somebody".into();
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    feed.put("db", &headless(&[&shop.a, &shop.b]))?;
    feed.put("other", &[other])?;
    let outside = external_name("outside", "www.example.com");
    feed.put(
        "aliases",
        &[
            outside,
            external_name("inside", "web.shop.svc.cluster.local"),
            external_name("circle", "circle.shop.svc.cluster.local"),
        ],
    )?;
    let agent = agent(shop, feed, &["--dns-upstream", &resolver.address.to_string()])?;

    let [web4, web6] = cluster_ips(1);
    let [other4, _] = cluster_ips(3);
    let (a, b) = (shop.a.addresses, shop.b.addresses);
    let dashed = b.v4.to_string().replace('.', "-");
    let in_db = |of: &str| format!("{of}.db.shop.svc.cluster.local.");
    let rows: Vec<(String, &str, BTreeSet<String>)> = vec![
        ("web.shop.svc".into(), "A", words([format!("A {web4}")])),
        ("web.shop.svc".into(), "AAAA", words([format!("AAAA {web6}")])),
        ("other.shop.svc".into(), "A", words([format!("A {other4}")])),
        ("_tcp-80._tcp.web.shop.svc".into(), "SRV", words(["SRV 0 100 80 web.shop.svc.cluster.local.".into()])),
        ("_udp-80._udp.web.shop.svc".into(), "SRV", words(["SRV 0 100 80 web.shop.svc.cluster.local.".into()])),
        ("db.shop.svc".into(), "A", words([format!("A {}", a.v4), format!("A {}", b.v4)])),
        ("db.shop.svc".into(), "AAAA", words([format!("AAAA {}", a.v6), format!("AAAA {}", b.v6)])),
        ("db-0.db.shop.svc".into(), "A", words([format!("A {}", a.v4)])),
        ("DB-0.db.Shop.SVC".into(), "AAAA", words([format!("AAAA {}", a.v6)])),
        (format!("{dashed}.db.shop.svc"), "A", words([format!("A {}", b.v4)])),
        (
            "_tcp-5432._tcp.db.shop.svc".into(),
            "SRV",
            words([
                format!("SRV 0 100 5432 {}", in_db("db-0")),
                format!("SRV 0 100 5432 {}", in_db(&dashed)),
                format!("SRV 0 100 5432 {}", in_db(&b.v6.to_string().replace(':', "-"))),
            ]),
        ),
        ("dns-version".into(), "TXT", words(["TXT \"1.1.0\"".into()])),
        ("10-1-2-3.shop.pod".into(), "A", words(["A 10.1.2.3".into()])),
        ("inside.shop.svc".into(), "A", words(["CNAME web.shop.svc.cluster.local.".into(), format!("A {web4}")])),
        ("outside.shop.svc".into(), "A", words(["CNAME www.example.com.".into(), "A 192.0.2.0".into()])),
    ];
    let client: &Place = &shop.client;
    eventually("the names", || {
        let found = dig(client, servers(shop)[0], "db.shop.svc.cluster.local", "A", &[])?;
        ensure!(found.answers.len() == 2, "{found:?}");
        Ok(())
    })?;
    for server in servers(shop) {
        for transport in ["+notcp", "+tcp"] {
            for (name, kind, want) in &rows {
                let found = dig(client, server, &format!("{name}.cluster.local"), kind, &[transport])?;
                let context = || format!("{name} {kind} {transport} @{server}: {found:?}");
                ensure!(found.status == "NOERROR" && found.answers == *want, "{}: want {want:?}", context());
                ensure!(found.flags.contains(" aa "), "{}", context());
            }
            for (address, want) in [
                (web4, "web.shop.svc.cluster.local.".to_owned()),
                (web6, "web.shop.svc.cluster.local.".to_owned()),
                (a.v4.into(), in_db("db-0")),
                (b.v4.into(), in_db(&dashed)),
            ] {
                let found = dig(client, server, &reverse(address), "PTR", &[transport])?;
                ensure!(found.answers == words([format!("PTR {want}")]), "{address}: {found:?}");
            }
            for (name, kind, status) in [
                ("nobody.shop.svc", "A", "NXDOMAIN"),
                ("nobody.db.shop.svc", "A", "NXDOMAIN"),
                ("www.example.com.shop.svc", "A", "NXDOMAIN"),
                ("_x._tcp.web.shop.svc", "SRV", "NXDOMAIN"),
                ("x.nobody.svc", "A", "NXDOMAIN"),
                ("nobody.svc", "A", "NXDOMAIN"),
                ("web.shop.svc", "MX", "NOERROR"),
                ("shop.svc", "A", "NOERROR"),
                ("_tcp.web.shop.svc", "SRV", "NOERROR"),
                ("dns-version", "A", "NOERROR"),
            ] {
                let found = dig(client, server, &format!("{name}.cluster.local"), kind, &[transport])?;
                ensure!(found.status == status && found.denied && found.answers.is_empty(), "{name} {kind}: {found:?}");
            }
            let circle = dig(client, server, "circle.shop.svc.cluster.local", "A", &[transport])?;
            ensure!(circle.status == "SERVFAIL", "{circle:?}");
        }
    }
    // Not a trace of what is not load-balanced in the maps.
    for command in ["services", "backends"] {
        let said = shop.said(command)?;
        let name = |row: &Value| row["name"].as_str().or(row["service"]["name"].as_str()).map(ToOwned::to_owned);
        let names: BTreeSet<_> = said.iter().filter_map(name).collect();
        ensure!(names == words(["web".into()]), "{command}: {names:?}");
    }
    ensure!(agent.metrics()?.contains("svc_dns_queries_total{transport=\"tcp\"}"), "queries are counted");
    Ok(())
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            digits.chars().rev().flat_map(|digit| [digit, '.']).collect::<String>() + "ip6.arpa"
        }
    }
}

#[test]
fn names_of_every_kind_are_resolved_by_manifests() -> Result<()> {
    let shop = Shop::open()?;
    every_name(&shop, &Feed::manifests(&shop)?)
}

#[test]
fn names_of_every_kind_are_resolved_by_the_api() -> Result<()> {
    let shop = Shop::open()?;
    every_name(&shop, &Feed::api(&shop)?)
}

#[test]
fn a_pods_libc_finds_names_by_kubelets_search_domains() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let resolver = Resolver::start(shop.lab.outside(), svc_lab::plan::OUTSIDE.v4.into())?;
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    feed.put("db", &headless(&[&shop.a, &shop.b]))?;
    let _agent = agent(&shop, &feed, &["--dns-upstream", &resolver.address.to_string()])?;
    let both = |pods: &[IpAddr]| pods.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let (a, b) = (shop.a.addresses.both(), shop.b.addresses.both());
    for (i, server) in servers(&shop).into_iter().enumerate() {
        let file = shop.lab.directory().join(format!("resolv-{i}.conf"));
        let search = "search shop.svc.cluster.local svc.cluster.local cluster.local";
        std::fs::write(&file, format!("{search}\nnameserver {server}\noptions ndots:5 timeout:5 attempts:2\n"))?;
        // The file is this process's /etc/resolv.conf in a mount namespace that ends with it.
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\"";
        for (name, want) in [
            ("web", both(&cluster_ips(1))),
            ("web.shop", both(&cluster_ips(1))),
            ("web.shop.svc.cluster.local.", both(&cluster_ips(1))),
            ("db", both(&[a, b].concat())),
            ("db-0.db", both(&a)),
            // Four times NXDOMAIN before the resolver outside is asked.
            ("www.example.com", words(["192.0.2.0".into()])),
        ] {
            let path = file.to_str().context("a path in UTF-8")?;
            let text = shop.client.exec("unshare", &["-m", "sh", "-c", script, path, name])?;
            let found: BTreeSet<_> =
                text.lines().filter_map(|line| line.split_whitespace().next()).map(Into::into).collect();
            ensure!(found == want, "{name} by {server}: {text}");
        }
    }
    Ok(())
}

#[test]
fn endpoints_and_services_come_and_go_in_the_answers() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::api(&shop)?;
    feed.put("db", &headless(&[&shop.a]))?;
    let _agent = agent(&shop, &feed, &[])?;
    let shows = |want: &[&Pod], status: &str| {
        let want: BTreeSet<_> = want.iter().map(|pod| format!("A {}", pod.addresses.v4)).collect();
        eventually("the pods of db", || {
            let found = dig(&shop.client, servers(&shop)[0], "db.shop.svc.cluster.local", "A", &[])?;
            ensure!(found.status == status && found.answers == want, "{found:?}");
            Ok(())
        })
    };
    shows(&[&shop.a], "NOERROR")?;
    feed.put("db", &headless(&[&shop.a, &shop.b]))?;
    shows(&[&shop.a, &shop.b], "NOERROR")?;
    let mut unready = headless(&[&shop.a, &shop.b]);
    unready[1]["endpoints"][0]["conditions"]["ready"] = false.into();
    feed.put("db", &unready)?;
    shows(&[&shop.b], "NOERROR")?;
    // A Service without a ready endpoint has no name.
    feed.put("db", &headless(&[]))?;
    shows(&[], "NXDOMAIN")?;
    // It becomes another kind, and headless again.
    feed.put("db", &service("db", 9).port(PORT, TARGET).with(&[&shop.a]))?;
    eventually("the cluster address of db", || {
        let found = dig(&shop.client, servers(&shop)[0], "db.shop.svc.cluster.local", "A", &[])?;
        ensure!(found.answers == words([format!("A {}", cluster_ips(9)[0])]), "{found:?}");
        ensure!(!shop.said("services")?.is_empty(), "not load-balanced yet");
        Ok(())
    })?;
    feed.put("db", &headless(&[&shop.b]))?;
    shows(&[&shop.b], "NOERROR")?;
    eventually("no trace in the maps", || {
        let said = shop.said("services")?;
        ensure!(said.is_empty(), "{said:?}");
        Ok(())
    })?;
    feed.put("db", &[])?;
    shows(&[], "NXDOMAIN")
}

#[test]
fn names_of_others_are_forwarded_remembered_retried_and_given_up() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let resolver = Resolver::start(shop.lab.outside(), svc_lab::plan::OUTSIDE.v4.into())?;
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    let agent = agent(&shop, &feed, &["--dns-upstream", &resolver.address.to_string()])?;
    let ask = |name: &str, more: &[&str]| dig(&shop.client, servers(&shop)[0], name, "A", more);
    for transport in ["+notcp", "+tcp", "+notcp"] {
        let found = ask("www.example.com", &[transport])?;
        ensure!(found.answers == words(["A 192.0.2.0".into()]) && !found.flags.contains(" aa "), "{found:?}");
    }
    ensure!(resolver.asked("www") == 1, "the answer was not remembered: asked {} times", resolver.asked("www"));
    // Truncated by the resolver: asked again over TCP, and truncated towards the client, who does the same.
    let large = ask("large.example.com", &[])?;
    ensure!(large.answers.len() == usize::from(LARGE), "{} addresses", large.answers.len());
    let cut = ask("large.example.com", &["+ignore"])?;
    ensure!(cut.flags.contains(" tc "), "{cut:?}");
    let lost = ask("lost.example.com", &[])?;
    ensure!(lost.answers.len() == 1 && resolver.asked("lost") > 1, "{lost:?}");
    ensure!(ask("none.example.com", &[])?.status == "NXDOMAIN", "a denial is passed on");
    ensure!(ask("other.example.com", &[])?.status == "REFUSED", "a refusal is passed on");
    ensure!(ask("silent.example.com", &[])?.status == "SERVFAIL", "silence is given up within the client's time");
    ensure!(resolver.asked("silent") > 1, "asked again");
    let metrics = agent.metrics()?;
    for metric in ["svc_dns_forwards_total{outcome=\"cached\"} 4", "svc_dns_cache_entries 3"] {
        ensure!(metrics.lines().any(|line| line == metric), "{metric}: {metrics}");
    }
    Ok(())
}

#[test]
fn bad_input_costs_itself_alone() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    // 10,000 endpoints in slices of 1,000.
    let mut many = headless(&[]);
    many.truncate(1);
    for slice in 0..10_u8 {
        let endpoints: Vec<Value> = (0..1000_u16)
            .map(|i| json!({"addresses": [format!("10.{}.{}.{}", 100 + slice, i / 250, i % 250)], "conditions": {"ready": true}}))
            .collect();
        many.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": format!("db-{slice}"), "labels": {
                "kubernetes.io/service-name": "db", "service.kubernetes.io/headless": "",
            }},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": endpoints,
        }));
    }
    feed.put("db", &many)?;
    let mut bad = service("web", 2).port(PORT, TARGET).object;
    bad["metadata"]["name"] = "Not_A_Label".into();
    feed.put("bad", &[bad, external_name("nowhere", "..")])?;
    let agent = agent(&shop, &feed, &["--dns-upstream", "192.0.2.250"])?;
    let server = servers(&shop)[0];
    let large = dig(&shop.client, server, "db.shop.svc.cluster.local", "A", &["+ignore"])?;
    ensure!(
        large.flags.contains(" tc ") && large.answers.len() > 60,
        "{} addresses, {}",
        large.answers.len(),
        large.flags
    );
    // Every endpoint has its turn, and over TCP as many as 64 KiB hold come at once.
    let (first, second) = (
        dig(&shop.client, server, "db.shop.svc.cluster.local", "A", &[])?,
        dig(&shop.client, server, "db.shop.svc.cluster.local", "A", &[])?,
    );
    ensure!(first.answers.len() > 4000, "{} addresses", first.answers.len());
    ensure!(first.answers != second.answers, "the order does not turn");
    ensure!(
        dig(&shop.client, server, "not_a_label.shop.svc.cluster.local", "A", &[])?.status == "NXDOMAIN",
        "no label"
    );
    ensure!(shop.said("services")?.len() >= 4, "what DNS cannot name is load-balanced all the same");

    let sizes: &[usize] = &[0, 1, 11, 12, 13, 100, 4097, 9000];
    shop.client.enter(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        for &size in sizes {
            socket.send_to(&vec![0; size], (server, 53))?;
        }
        Ok(())
    })??;
    let metric = |name: &str| -> Result<u64> {
        let metrics = agent.metrics()?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
    };
    eventually("malformed queries to be counted", || {
        let dropped = metric("svc_dns_dropped_total{reason=\"malformed\"}")?;
        let refused = metric("svc_dns_answers_total{code=\"FORMERR\"}")?;
        ensure!((dropped, refused) == (3, 5), "{dropped} dropped, {refused} refused");
        Ok(())
    })?;
    let problems = agent.metrics()?;
    for field in ["metadata.name", "spec.externalName"] {
        ensure!(problems.contains(&format!("field=\"{field}\"")), "{field} is not reported");
    }
    let web = dig(&shop.client, server, "web.shop.svc.cluster.local", "A", &[])?;
    ensure!(web.answers.len() == 1, "{web:?}");
    Ok(())
}

#[test]
fn clients_outside_are_answered_if_they_are_named_only() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    feed.put("web", &service("web", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    let outside = shop.lab.outside();
    let ask = |place: &Place, server, transport| {
        dig(place, server, "web.shop.svc.cluster.local", "A", &[transport, "+time=2"])
    };
    let answered = || {
        eventually("an answer for a pod and the node", || {
            for server in servers(&shop) {
                for place in [&*shop.client, &**shop.lab.node(1)] {
                    ensure!(ask(place, server, "+notcp")?.answers.len() == 1, "{server}");
                    ensure!(ask(place, server, "+tcp")?.answers.len() == 1, "{server} by TCP");
                }
            }
            Ok(())
        })
    };
    let mut first = agent(&shop, &feed, &[])?;
    answered()?;
    for server in servers(&shop) {
        for transport in ["+notcp", "+tcp"] {
            ensure!(ask(outside, server, transport).is_err(), "{server} {transport}: answered");
        }
    }
    let metrics = first.metrics()?;
    let count = metrics.lines().find_map(|line| line.strip_prefix("svc_dns_dropped_total{reason=\"client\"} "));
    ensure!(count.is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count >= 4)), "{count:?}");
    ensure!(metrics.lines().any(|line| line == "svc_dns_up 1"), "it is not up");
    first.kill()?;
    let (v4, v6) = (svc_lab::plan::OUTSIDE.v4, svc_lab::plan::OUTSIDE.v6);
    let _second = agent(&shop, &feed, &["--dns-clients", &format!("{v4}/32,{v6}/128,10.0.0.0/8,fc00::/7")])?;
    answered()?;
    for server in servers(&shop) {
        for transport in ["+notcp", "+tcp"] {
            let found = ask(outside, server, transport)?;
            ensure!(found.answers.len() == 1, "{server} {transport}: {found:?}");
        }
    }
    Ok(())
}

#[test]
fn a_restarted_agent_answers_again() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    feed.put("db", &headless(&[&shop.a, &shop.b]))?;
    let mut agent = agent(&shop, &feed, &[])?;
    let answers = || {
        eventually("both pods of db", || {
            let found = dig(&shop.client, servers(&shop)[1], "db.shop.svc.cluster.local", "AAAA", &[])?;
            ensure!(found.answers.len() == 2, "{found:?}");
            Ok(())
        })
    };
    answers()?;
    agent.kill()?;
    agent.start()?;
    answers()
}
