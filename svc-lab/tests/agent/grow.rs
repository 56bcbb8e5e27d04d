//! Maps grow while they are in use: whoever has a connection, opens one or asks from outside does not notice.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use svc_lab::{Request, Service, Source};

use crate::shop::{
    NODE_PORT, SMALL, Shop, eventually, lasting, logged, new_connections, progress, service, vips, works,
};

/// Far too small for what comes.
const TINY: [&str; 10] =
    ["--flows", "4096", "--services", "16", "--backends", "16", "--frontends", "16", "--slots", "4096"];
/// Services that come at run time, after the first two.
const LATER: std::ops::RangeInclusive<u8> = 3..=80;

#[test]
fn maps_grow_under_traffic_for_services_that_do_not_fit() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let ports = Service::new("shop", "ports", &vips(2)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &service(1).with(&[&shop.a, &shop.b]))?;
    manifests.write("ports", &ports.with(&[&shop.a, &shop.b]))?;
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &TINY)?;
    let mut steady = Vec::new();
    for address in vips(1) {
        steady.push(shop.steady(&Request::tcp((address, 80)))?);
        steady.push(shop.steady(&Request::udp((address, 80)))?);
    }
    let flows = lasting(&shop.lab, "flows")?;
    let new = || new_connections(&shop, &["a", "b"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let connections = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                new()?;
            }
            Ok(())
        });
        let mut grow = || -> Result<()> {
            for step in [3..=6, 7..=20, 21..=80] {
                let all: Vec<_> = step.clone().flat_map(|nth| service(nth).with(&[&shop.a])).collect();
                manifests.write(&format!("later-{}", step.end()), &all)?;
                for nth in step {
                    eventually("a Service that did not fit", || works(&shop.client, nth, &["a"]))?;
                }
                steady.iter_mut().try_for_each(|steady| progress(steady, None, 10).map(drop))?;
            }
            Ok(())
        };
        let grown = grow();
        done.store(true, Ordering::Release);
        grown?;
        connections.join().expect("the thread of connections").context("a new connection")
    })?;
    logged(agent.log(), &["maps have grown"])?;
    let after = lasting(&shop.lab, "flows")?;
    assert!(flows.is_subset(&after), "{flows:#?} became {after:#?}");

    // The next agent has the same flags, and goes on with the larger maps.
    let services = lasting(&shop.lab, "services")?;
    agent.kill()?;
    agent.start()?;
    agent.wait_ready()?;
    logged(agent.log(), &["every Service is programmed", "writes=0"])?;
    assert_eq!(lasting(&shop.lab, "services")?, services);
    works(&shop.client, *LATER.end(), &["a"])?;
    for steady in steady {
        let first = steady.first.answer.server.clone();
        let report = steady.stop()?;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.servers.keys().collect::<Vec<_>>(), [&first], "no flow changes its backend");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_into_memory_is_refused_by_name_and_served_when_there_is_room() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    // Two backends take 416 slots, and there are two families.
    let limited = [&SMALL[..], &["--slots", "4096", "--map-memory", "1"]].concat();
    let agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &limited)?;
    let later: Vec<_> = (3..=12).flat_map(|nth| service(nth).with(&[&shop.a, &shop.b])).collect();
    manifests.write("later", &later)?;
    logged(agent.log(), &["maps cannot grow", "raise --map-memory"])?;
    logged(agent.log(), &["refused", "Service shop/web-", "raise --"])?;
    works(&shop.client, 1, &["a"])?;
    manifests.write("later", &service(12).with(&[&shop.a, &shop.b]))?;
    eventually("the Service that fits now", || works(&shop.client, 12, &["a", "b"]))
}
