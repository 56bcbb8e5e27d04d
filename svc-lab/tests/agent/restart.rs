//! An agent that ends and comes back is not missed, whatever its end.

use std::{
    os::unix::process::ExitStatusExt,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use svc_lab::{Agent, Request, Service, Source};

use crate::shop::{NODE_PORT, Shop, lasting, logged, new_connections, progress, service, vips};

/// Ends an agent and starts it again, with all kinds of traffic before, during and after.
fn outlived(end: fn(&mut Agent) -> Result<()>) -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let ports = Service::new("shop", "ports", &vips(2)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &service(1).with(&[&shop.a, &shop.b]))?;
    manifests.write("ports", &ports.with(&[&shop.a, &shop.b]))?;
    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut steady = Vec::new();
    for address in vips(1) {
        steady.push(shop.steady(&Request::tcp((address, 80)))?);
        steady.push(shop.steady(&Request::udp((address, 80)))?);
    }
    let download = Request::tcp((vips(1)[0], 80)).download(20_000_000);
    let services = lasting(&shop.lab, "services")?;
    let backends = lasting(&shop.lab, "backends")?;
    let flows = lasting(&shop.lab, "flows")?;
    ensure!(flows.len() >= 4, "two UDP flows have two entries each: {flows:?}");

    let new = || new_connections(&shop, &["a", "b"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let streams = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                shop.client.ask(&download)?;
            }
            Ok(())
        });
        let connections = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                new()?;
            }
            Ok(())
        });
        let mut restart = || -> Result<()> {
            end(&mut agent)?;
            steady.iter_mut().try_for_each(|steady| progress(steady, None, 20).map(drop))?;
            ensure!(lasting(&shop.lab, "services")? == services, "services changed without an agent");
            agent.start()?;
            agent.wait_ready()?;
            steady.iter_mut().try_for_each(|steady| progress(steady, None, 20).map(drop))
        };
        let restarted = restart();
        done.store(true, Ordering::Release);
        restarted?;
        streams.join().expect("the thread of streams").context("a stream")?;
        connections.join().expect("the thread of connections").context("a new connection")
    })?;

    assert_eq!(lasting(&shop.lab, "services")?, services);
    assert_eq!(lasting(&shop.lab, "backends")?, backends);
    let after = lasting(&shop.lab, "flows")?;
    assert!(flows.is_subset(&after), "{flows:#?} became {after:#?}");
    for steady in steady {
        let first = steady.first.answer.server.clone();
        let report = steady.stop()?;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.servers.keys().collect::<Vec<_>>(), [&first], "no flow changes its backend");
    }
    logged(agent.log(), &["dataplane started", &format!("adopted_services={}", services.len())])?;
    logged(agent.log(), &["every Service is programmed", "services=2", "writes=0"])?;
    Ok(())
}

#[test]
fn a_killed_agent_is_not_missed_and_the_next_one_finds_nothing_to_write() -> Result<()> {
    outlived(|agent| Ok(agent.kill()?))
}

#[test]
fn a_terminated_agent_is_not_missed_and_the_next_one_finds_nothing_to_write() -> Result<()> {
    outlived(|agent| {
        let status = agent.terminate()?;
        ensure!(status.code() == Some(0), "it ended with {status}, signal {:?}", status.signal());
        Ok(())
    })
}
