//! An agent that is killed and started again and again, at any moment of its life, while every path carries connections: nothing
//! is lost, nobody fails, and counters go on.
//!
//! `SVC_LAB_RESTARTS` says how many times (each takes some seconds).

mod support;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use svc_lab::{Agent, Cni, Place, Request, Spec, Steady, until};

use support::{Cluster, PORT, PROTOCOLS, WEB, service, service_addresses};

/// Times that the agent is killed, unless told otherwise.
const RESTARTS: u32 = 6;
/// Longest wait for anything, a loaded machine included.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer that takes longer is lost.
const LOST_MS: u64 = 10_000;

fn restarts() -> Result<u32> {
    match std::env::var("SVC_LAB_RESTARTS") {
        Ok(text) => text.parse().with_context(|| format!("SVC_LAB_RESTARTS={text}")),
        Err(_) => Ok(RESTARTS),
    }
}

/// Packets, bytes and connections of every Service port.
fn counters(agent: &Agent) -> Result<BTreeMap<String, [u64; 3]>> {
    let rows: Vec<Value> = serde_json::from_str(&agent.svc(&["services", "-o", "json"])?)?;
    let counts = |row: &Value| {
        let port = format!("{} {} {} {}", row["name"], row["port"], row["protocol"], row["family"]);
        (port, ["packets", "bytes", "connections"].map(|field| row[field].as_u64().unwrap_or(0)))
    };
    Ok(rows.iter().map(counts).collect())
}

/// Waits until a probe has had so many answers more.
fn goes_on(steady: &mut Steady, more: u64) -> Result<()> {
    let before = steady.report()?.answered;
    Ok(until("a probe's progress", PATIENCE, || {
        let report = steady.report().map_err(|error| error.to_string())?;
        if report.answered >= before + more { Ok(()) } else { Err(format!("{report:?}")) }
    })?)
}

/// Waits until the log has another line with this in it.
fn logged(agent: &Agent, text: &str, before: usize) -> Result<()> {
    Ok(until(&format!("{text:?} in the log"), PATIENCE, || {
        let log = std::fs::read_to_string(agent.log()).map_err(|error| error.to_string())?;
        if log.matches(text).count() > before { Ok(()) } else { Err(log) }
    })?)
}

#[test]
fn an_agent_that_is_killed_at_any_moment_again_and_again_is_never_missed() -> Result<()> {
    let mut cluster = Cluster::build(Spec { cni: Cni::Routed, ..Spec::default() })?;
    let web = service("web", 10, WEB);
    cluster.publish("web", &web, &[&cluster.near, &cluster.far])?;
    cluster.publish("remote", &service("remote", 11, WEB + 1), &[&cluster.far])?;
    cluster.start(&[])?;
    let mut agent = cluster.take_agent(1)?;
    let lab = &cluster.lab;
    // Every path: inside and outside, the node itself; to a backend here and there; a pod to itself.
    let node = lab.node(1);
    let places: [(&Place, &str); 4] =
        [(&cluster.client, "client"), (node, "node"), (lab.outside(), "outside"), (&cluster.near, "near")];
    let destinations = |place: &str| -> Vec<(IpAddr, u16)> {
        let of = |nth: u16, node_port: u16| -> Vec<(IpAddr, u16)> {
            let (cluster, balancer) = service_addresses(nth);
            if place == "outside" {
                let node_ports = node.addresses.both().into_iter().map(|address| (address, node_port));
                node_ports.chain(balancer.into_iter().map(|address| (address, PORT))).collect()
            } else {
                cluster.into_iter().map(|address| (address, PORT)).collect()
            }
        };
        [of(10, WEB), of(11, WEB + 1)].concat()
    };
    let mut steady = Vec::new();
    for (place, name) in places {
        for destination in destinations(name) {
            for protocol in PROTOCOLS {
                let request = Request::new(protocol, destination).timeout_ms(LOST_MS);
                let probe = place.steady(&request, 20, &lab.logs().join(format!("steady-{name}.log")));
                steady.push(probe.with_context(|| format!("{name} → {destination:?} {protocol:?}"))?);
            }
        }
    }
    let before = counters(&agent)?;
    let (done, new) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let connections = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                for (place, name) in places {
                    for destination in destinations(name) {
                        for protocol in PROTOCOLS {
                            let request = Request::new(protocol, destination).count(2).timeout_ms(LOST_MS);
                            for answer in place.ask_all(&request)? {
                                answer.with_context(|| format!("{name} → {destination:?} {protocol:?}"))?;
                                new.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            }
            Ok(())
        });
        let mut last = before.clone();
        let mut kill = |nth: u32| -> Result<()> {
            agent.kill()?;
            let log = std::fs::read_to_string(agent.log())?;
            let count = |text: &str| log.matches(text).count();
            agent.start()?;
            // Its next end comes at once, when it has the maps, or when it has programmed everything.
            match nth % 3 {
                0 => {}
                1 => logged(&agent, "dataplane started", count("dataplane started"))?,
                _ => agent.wait_ready()?,
            }
            let now = counters(&agent)?;
            for (port, was) in &last {
                let is = now.get(port).with_context(|| format!("{port} is gone: {now:?}"))?;
                ensure!(was.iter().zip(is).all(|(was, is)| is >= was), "{port}: {was:?} became {is:?}");
            }
            last = now;
            steady.iter_mut().try_for_each(|probe| goes_on(probe, 2))
        };
        let killed = restarts().and_then(|times| (0..times).try_for_each(&mut kill));
        done.store(true, Ordering::Release);
        let connected = connections.join().expect("the thread of connections").context("a new connection");
        killed.and(connected)
    })?;
    agent.wait_ready()?;
    let probes = steady.len();
    for probe in steady {
        let first = probe.first.answer.server.clone();
        let report = probe.stop()?;
        ensure!(report.is_clean(), "{report:?}");
        ensure!(report.servers.keys().eq([&first]), "a flow changed its backend: {report:?}");
    }
    let after = counters(&agent)?;
    let grown = after.iter().filter(|(port, is)| before.get(*port).is_some_and(|was| is[0] > was[0])).count();
    ensure!(grown > 0, "{before:?} {after:?}");
    println!("{} restarts, {probes} flows, {} new connections", restarts()?, new.load(Ordering::Relaxed));
    Ok(())
}
