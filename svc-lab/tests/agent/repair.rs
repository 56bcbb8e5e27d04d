//! Somebody else changes maps, programs, rules and pins under a running agent: it is put right, counted, and named.

use std::fs;

use anyhow::{Result, ensure};
use svc_lab::{Agent, Request, Service, Source};

use crate::shop::{SMALL, Shop, eventually, logged, progress, service, vips, works};

/// Waits until something of this kind has been repaired.
fn repaired(agent: &Agent, what: &str) -> Result<()> {
    let start = format!("svc_repairs_total{{what=\"{what}\"}} ");
    eventually(&format!("the repair of {what}"), || {
        let metrics = agent.metrics()?;
        ensure!(metrics.lines().any(|line| line.starts_with(&start)), "{metrics}");
        Ok(())
    })
}

#[test]
fn what_is_changed_from_outside_is_put_right_counted_and_named_while_the_rest_goes_on() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    manifests.write("other", &service(2).with(&[&shop.b]))?;
    let options = [&SMALL[..], &["--repair-interval", "1"]].concat();
    let agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    let mut other = shop.steady(&Request::tcp((vips(2)[0], 80)))?;
    let root = shop.node().bpffs.join("layout-2");
    let pin = |path: &str| root.join(path).display().to_string();
    let bpftool = |words: &[&str]| shop.node().exec("bpftool", words);

    // The frontend 10.96.0.1:80/TCP: address, port, protocol.
    let key = ["10", "96", "0", "1", "80", "0", "6", "0"];
    let map = pin("maps/FRONTENDS_V4");
    bpftool(&[&["map", "delete", "pinned", &map, "key"][..], &key].concat())?;
    repaired(&agent, "FRONTENDS_V4")?;
    logged(agent.log(), &["WARN", "frontend 10.96.0.1:80/TCP", "it was missing", "shop/web-1"])?;
    works(&shop.client, 1, &["a"])?;
    let vip = pin("maps/VIPS_V4");
    bpftool(&["map", "update", "pinned", &vip, "key", "10", "96", "0", "77", "value", "3", "0", "0", "0"])?;
    repaired(&agent, "VIPS_V4")?;
    logged(agent.log(), &["WARN", "address 10.96.0.77", "it had been added"])?;

    let first = fs::read_dir(root.join("links"))?.flatten().map(|entry| entry.path());
    for link in first.filter(|link| link.to_string_lossy().ends_with("-ingress")) {
        fs::remove_file(link)?;
    }
    repaired(&agent, "tcx")?;
    eventually("UDP of the pod, which the programs carry", || works(&shop.client, 1, &["a"]))?;
    bpftool(&["link", "detach", "pinned", &pin("links/svc_connect4")])?;
    repaired(&agent, "cgroup")?;
    eventually("processes of the node", || works(shop.node(), 1, &["a"]))?;
    shop.node().exec("nft", &["flush", "ruleset"])?;
    repaired(&agent, "nftables")?;
    ensure!(shop.node().exec("nft", &["list", "ruleset"])?.contains("masquerade"), "the rules are not back");
    fs::remove_file(root.join("maps/FLOWS_V4"))?;
    repaired(&agent, "pin")?;
    ensure!(root.join("maps/FLOWS_V4").exists(), "the pin is not back");

    progress(&mut other, Some("b"), 20)?;
    let report = other.stop()?;
    assert!(report.is_clean(), "a Service that nobody touched: {report:?}");
    let metrics = agent.metrics()?;
    assert!(!metrics.contains("svc_repair_problem{"), "{metrics}");
    Ok(())
}

#[test]
fn an_agent_that_is_left_alone_repairs_nothing() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let web = service(1);
    manifests.write("web", &web.with(&[&shop.a]))?;
    let options = [&SMALL[..], &["--repair-interval", "1"]].concat();
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    let passes = |agent: &Agent| -> Result<u64> {
        let metrics = agent.metrics()?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("svc_repair_passes_total "));
        Ok(line.unwrap_or("0").parse()?)
    };
    for round in 0..3 {
        manifests.write("web", &web.with(&[shop.pod(if round % 2 == 0 { "b" } else { "a" })]))?;
        let before = passes(&agent)?;
        eventually("two more passes", || {
            let now = passes(&agent)?;
            ensure!(now >= before + 2, "{now} of {before}");
            Ok(())
        })?;
    }
    agent.kill()?;
    agent.start()?;
    agent.wait_ready()?;
    eventually("passes of the successor", || {
        ensure!(passes(&agent)? >= 2);
        Ok(())
    })?;
    let metrics = agent.metrics()?;
    assert!(!metrics.contains("svc_repairs_total{") && !metrics.contains("svc_repair_problem{"), "{metrics}");
    Ok(())
}

#[test]
fn a_map_that_takes_no_writes_any_more_keeps_only_its_own_services_waiting() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let options = [&SMALL[..], &["--repair-interval", "1"]].concat();
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    let map = shop.node().bpffs.join("layout-2/maps/FRONTENDS_V6").display().to_string();
    shop.node().exec("bpftool", &["map", "freeze", "pinned", &map])?;
    manifests.write("two", &service(2).with(&[&shop.a]))?;
    logged(agent.log(), &["ERROR", "shop/web-2", "FRONTENDS_V6", "frontend [fd00:10:96::2]:80", "will try again"])?;
    let old = Service::new("shop", "web-3", &vips(3)[..1]).port(80, 8080);
    manifests.write("three", &old.with(&[&shop.b]))?;
    eventually("a Service of the other family", || {
        let answer = shop.client.tcp((vips(3)[0], 80))?;
        ensure!(answer.answer.server == "b", "{answer:?}");
        Ok(())
    })?;
    works(&shop.client, 1, &["a"])?;
    let metrics = agent.metrics()?;
    let failures = metrics.lines().find_map(|line| line.strip_prefix("svc_apply_failures_total "));
    ensure!(failures.is_some_and(|count| count != "0"), "{metrics}");
    assert!(agent.has_ended()?.is_none());
    Ok(())
}
