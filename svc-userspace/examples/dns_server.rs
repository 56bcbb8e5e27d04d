//! The DNS server alone, with a zone of made-up Services: something to ask as fast as one can (`docs/dns.md`, "What it costs").
//!
//! `dns_server ADDR:PORT SERVICES ENDPOINTS`: Services `s0`, `s1` … with cluster IPs in namespaces `n0` to `n99`, and one
//! headless Service `n0/members`. It serves until its standard input ends.

use std::{io::Read, net::IpAddr, sync::Arc};

use anyhow::{Context, Result};
use hickory_proto::rr::Name;
use svc_userspace::{
    dns::{self, client::DEFAULT_CLIENTS, upstream::Upstream},
    model::{
        Change, Endpoint, Family, NameList, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, Unbalanced,
    },
    world::World,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, services, endpoints] = arguments.as_slice() else {
        anyhow::bail!("usage: dns_server ADDR:PORT SERVICES ENDPOINTS");
    };
    let mut world = World::new();
    world.serve_names();
    let mut server = dns::start(
        dns::Options {
            addresses: vec![address.parse().context("ADDR:PORT")?],
            clients: DEFAULT_CLIENTS.split(',').map(str::parse).collect::<Result<_, _>>()?,
            domain: Name::from_ascii("cluster.local.")?,
            upstream: Upstream::Given(Vec::new()),
        },
        Arc::default(),
    )?;
    for n in 0..services.parse::<u32>()? {
        world.apply(service(n));
    }
    for (n, change) in members(endpoints.parse()?).into_iter().enumerate() {
        world.apply(change);
        if n == 0 {
            world.apply(Change::Unbalanced(ObjectName::new("n0", "members"), Box::new(Unbalanced::Headless)));
        }
    }
    world.apply(Change::Synced);
    let start = std::time::Instant::now();
    server.follow(&mut world);
    println!("ready; {} µs to make and send all records", start.elapsed().as_micros());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn service(n: u32) -> Change {
    let name = ObjectName::new(format!("n{}", n % 100), format!("s{n}"));
    let [_, high, middle, low] = n.to_be_bytes();
    Change::Service(
        name.clone(),
        Some(Box::new(Service {
            name,
            cluster_ips: vec![IpAddr::from([10, 96 + high, middle, low])],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            claim: None,
            ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
            external_local: false,
            internal_local: false,
            affinity_seconds: None,
            health_check_node_port: None,
        })),
    )
}

/// Slices of 1,000 endpoints each.
fn members(count: u32) -> Vec<Change> {
    let slices = (0..count).step_by(1000).map(|first| {
        let name = ObjectName::new("n0", format!("members-{first}"));
        let endpoint = |n: u32| {
            let [_, high, middle, low] = n.to_be_bytes();
            Endpoint {
                address: IpAddr::from([172, 16 + high, middle, low]),
                ready: true,
                serving: true,
                terminating: false,
                node: None,
                hint_nodes: NameList::default(),
                hint_zones: NameList::default(),
            }
        };
        let slice = Slice {
            name: name.clone(),
            service: ObjectName::new("n0", "members"),
            family: Family::V4,
            ports: vec![SlicePort { name: "gossip".into(), protocol: Protocol::Tcp, port: 7946 }],
            endpoints: (first..count.min(first + 1000)).map(endpoint).collect(),
            headless: true,
            hostnames: vec![],
            triggered_ms: None,
        };
        Change::Slice(name, Some(Box::new(slice)))
    });
    slices.collect()
}
