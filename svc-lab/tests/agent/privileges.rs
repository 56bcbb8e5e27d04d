//! What an agent may do once it runs. (Every other test runs with no more than that.)

use std::fs;

use anyhow::{Context, Result, ensure};
use svc_lab::{Agent, Source};

use crate::shop::{SMALL, Shop, service, works};

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Looks at every thread of an agent: capabilities that it has, and that a program it started could have.
fn assert_limited(agent: &Agent, has: u64, could_have: u64) -> Result<()> {
    let tasks = format!("/proc/{}/task", agent.id().context("the agent runs")?);
    let mut threads = 0;
    for task in fs::read_dir(&tasks)? {
        // A thread may end while we look.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
        };
        ensure!(field("CapPrm")? == has && field("CapEff")? == has, "{status}");
        ensure!(field("CapInh")? == 0 && field("CapAmb")? == 0, "{status}");
        ensure!(field("CapBnd")? & !could_have == 0, "{status}");
        ensure!(field("NoNewPrivs")? == 1, "{status}");
        threads += 1;
    }
    ensure!(threads >= 4, "{threads} threads in {tasks}");
    Ok(())
}

#[test]
fn every_thread_has_the_capabilities_it_needs_and_no_other_one() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    works(&shop.client, 1, &["a"])?;
    // The threads for scrapes exist as well then.
    agent.metrics()?;
    assert_limited(&agent, NET_ADMIN | BPF, NET_ADMIN | BPF | PERFMON)?;
    agent.terminate()?;

    let dns = format!("{}:53", shop.node().addresses.v4);
    let options = [&SMALL[..], &["--dns", &dns, "--masquerade", "programs"]].concat();
    let agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    let port = NET_BIND_SERVICE;
    assert_limited(&agent, NET_ADMIN | BPF | port, NET_ADMIN | BPF | PERFMON | port)?;
    let reserved = shop.node().exec("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"])?;
    ensure!(reserved.contains("49152-65535"), "{reserved}");
    works(&shop.client, 1, &["a"])
}
