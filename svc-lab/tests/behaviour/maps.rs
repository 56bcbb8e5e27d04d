//! What is never load-balanced is in no map: every entry of every map is looked at, byte by byte.

use std::{collections::BTreeMap, fs, net::IpAddr, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::Service;

use crate::{
    doors::{BOTH, Kind, doors, lead_to},
    feed::Feed,
    shop::{NODE_PORT, PORT, SMALL, Shop, TARGET, cluster_ips, external, service},
};

/// The bytes of each map's entries, by map: keys and values of all that is pinned.
fn dump(shop: &Shop) -> Result<BTreeMap<String, Vec<Vec<u8>>>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(shop.lab.node(1).maps()?)? {
        let path = entry?.path();
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&path).output()?;
        ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        let dumped: Value = serde_json::from_slice(&output.stdout).with_context(|| path.display().to_string())?;
        let mut found = Vec::new();
        bytes(&dumped, &mut found)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        maps.insert(name, found);
    }
    ensure!(maps.len() >= 12, "there are only {:?}", maps.keys().collect::<Vec<_>>());
    Ok(maps)
}

/// The runs of bytes in what bpftool prints: lists of "0x…".
fn bytes(value: &Value, found: &mut Vec<Vec<u8>>) -> Result<()> {
    match value {
        Value::Array(items) if items.first().is_some_and(is_byte) => {
            let byte =
                |item: &Value| Ok(u8::from_str_radix(item.as_str().context("a byte")?.trim_start_matches("0x"), 16)?);
            found.push(items.iter().map(byte).collect::<Result<_>>()?);
        }
        Value::Array(items) => items.iter().try_for_each(|item| bytes(item, found))?,
        // `formatted` says the same with names.
        Value::Object(fields) => {
            let raw = fields.iter().filter(|(name, _)| *name != "formatted");
            raw.map(|(_, value)| value).try_for_each(|value| bytes(value, found))?;
        }
        _ => {}
    }
    Ok(())
}

fn is_byte(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with("0x"))
}

/// The maps that hold these bytes.
fn holders<'a>(maps: &'a BTreeMap<String, Vec<Vec<u8>>>, wanted: &[u8]) -> Vec<&'a str> {
    let holds = |entries: &[Vec<u8>]| entries.iter().any(|entry| entry.windows(wanted.len()).any(|it| it == wanted));
    maps.iter().filter(|(_, entries)| holds(entries)).map(|(name, _)| name.as_str()).collect()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

fn absent(shop: &Shop, feed: &Feed, more: &[&str]) -> Result<()> {
    // Nobody but these Services knows these pods, and they never send or get a packet before the maps have been read.
    let (alone, called) = (shop.lab.pod(1, "alone")?, shop.lab.pod(1, "called")?);
    let headless = |name: &str, single: Value, list: Value| {
        let service: Service = service(name, 9).port(PORT, TARGET);
        let mut objects = service.with(&[&alone]);
        objects[0]["spec"]["clusterIP"] = single;
        objects[0]["spec"]["clusterIPs"] = list;
        for slice in &mut objects[1..] {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
        }
        objects
    };
    // Slices without their label, as of a controller that does not know it.
    let mut unlabelled = headless("bare-head", "None".into(), json!(["None"]));
    for slice in &mut unlabelled[1..] {
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "bare-head"});
    }
    let left_over = service("called-name", 8)
        .node_port(PORT, TARGET, NODE_PORT + 8)
        .load_balancer(&external(8))
        .spec("type", "ExternalName")
        .spec("externalName", "elsewhere.example")
        .spec("externalIPs", json!(external(88)));
    feed.put("headless", &headless("headless-name", "None".into(), json!(["None"])))?;
    feed.put("old", &headless("old-headless", "None".into(), Value::Null))?;
    feed.put("unlabelled", &unlabelled)?;
    feed.put("called", &left_over.with(&[&called]))?;
    feed.put("web", &service("web-name", 1).port(PORT, TARGET).with(&[&shop.a]))?;
    let _agent = shop.lab.start_agent(1, feed.source(), &[&SMALL[..], &["--external-ips"], more].concat())?;
    let expected = lead_to(doors(Kind::ClusterIp, &cluster_ips(1), PORT, &BOTH), &["a"]);
    shop.shows(&expected)?;

    let maps = dump(shop)?;
    // The search finds what is there.
    for (what, bytes, map) in [
        ("the name of a Service", b"web-name".to_vec(), "SERVICES"),
        ("an address", octets(cluster_ips(1)[0]), "FRONTENDS_V4"),
        ("an IPv6 address", octets(cluster_ips(1)[1]), "FRONTENDS_V6"),
        ("an endpoint", octets(shop.a.addresses.v4.into()), "BACKENDS_V4"),
        ("an IPv6 endpoint", octets(shop.a.addresses.v6.into()), "BACKENDS_V6"),
    ] {
        ensure!(holders(&maps, &bytes).contains(&map), "{what} is not in {map}: the search is broken");
    }
    let names = ["headless-name", "old-headless", "bare-head", "called-name"].map(|name| name.as_bytes().to_vec());
    let pods = [&alone, &called].into_iter().flat_map(|pod| pod.addresses.both());
    let addresses = cluster_ips(8).into_iter().chain(external(8)).chain(external(88)).chain(cluster_ips(9)).chain(pods);
    for unwanted in names.into_iter().chain(addresses.map(octets)) {
        let found = holders(&maps, &unwanted);
        ensure!(found.is_empty(), "{:?} is in {found:?}", String::from_utf8_lossy(&unwanted));
    }
    shop.answers(&expected)
}

#[test]
fn headless_services_and_external_names_are_in_no_map_by_manifests() -> Result<()> {
    let shop = Shop::open()?;
    absent(&shop, &Feed::manifests(&shop)?, &[])
}

#[test]
fn headless_services_and_external_names_are_in_no_map_by_the_api() -> Result<()> {
    let shop = Shop::open()?;
    absent(&shop, &Feed::api(&shop)?, &[])
}

#[test]
fn they_are_in_no_map_where_dns_is_served_by_manifests() -> Result<()> {
    let shop = Shop::open()?;
    absent(&shop, &Feed::manifests(&shop)?, &["--dns", "127.0.0.1:53"])
}

#[test]
fn they_are_in_no_map_where_dns_is_served_by_the_api() -> Result<()> {
    let shop = Shop::open()?;
    absent(&shop, &Feed::api(&shop)?, &["--dns", "127.0.0.1:53"])
}
