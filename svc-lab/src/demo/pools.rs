//! Addresses for the load balancer: a file of pools for the agents, and what they gave out of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::Shop;
use crate::{Agent, Lab, until};

/// The pools; the router sends both to node 1.
const POOLS: &str = "\
pools:
- name: public
  addresses: [203.0.113.0/28, '2001:db8:f::10-2001:db8:f::1f']
";
/// Longest wait for the addresses.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes the file.
pub(super) fn write(lab: &Lab) -> Result<PathBuf> {
    let path = lab.directory().join("pools.yaml");
    std::fs::write(&path, POOLS).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The addresses that the load balancer got, the same of every agent.
pub(super) fn given(agents: &[Agent], shop: &Shop) -> Result<Vec<IpAddr>> {
    let name = shop.services.load_balancer.name();
    let given = until("addresses of the load balancer", PATIENCE, || {
        let of_each: Result<BTreeSet<Vec<IpAddr>>> = agents.iter().map(|agent| of(agent, name)).collect();
        let of_each = of_each.map_err(|error| format!("{error:#}"))?;
        match of_each.first() {
            Some(addresses) if of_each.len() == 1 && addresses.len() == 2 => Ok(addresses.clone()),
            _ => Err(format!("{of_each:?}")),
        }
    })?;
    Ok(given)
}

fn of(agent: &Agent, name: &str) -> Result<Vec<IpAddr>> {
    let said = agent.svc(&["services", name, "-o", "json"])?;
    let rows: Vec<Value> = serde_json::from_str(&said)?;
    let mut addresses = BTreeSet::new();
    for frontend in rows.iter().filter_map(|row| row["frontends"].as_array()).flatten() {
        if frontend["kinds"].as_array().is_some_and(|kinds| kinds.contains(&json!("load-balancer"))) {
            let address: SocketAddr = frontend["address"].as_str().context("an address")?.parse()?;
            addresses.insert(address.ip());
        }
    }
    ensure!(addresses.len() <= 2, "more than one address of a family: {addresses:?}");
    Ok(addresses.into_iter().collect())
}
