//! Operations carried out on a model of the maps, with the invariants checked after every single one.

mod adoption;
mod maps;
mod ports;
mod random;
mod refusals;
pub(super) mod work;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::*;
use crate::{
    compile::{BackendEntry, FrontendEntry, FrontendKind, PortTable, Set},
    model::Protocol,
};

const ROOMY: Capacity = Capacity {
    services: 1000,
    backends: 10_000,
    frontends_v4: 1000,
    frontends_v6: 1000,
    slots: 1_000_000,
    source_ranges: 1000,
};

fn name(service: u8) -> ObjectName {
    ObjectName::new("default", format!("service-{service}"))
}

/// A port table: `hosts` says for each backend whether it is ready, and whether it is local.
fn table(service: u8, port: u8, hosts: &BTreeMap<u8, (bool, bool)>, vips: &BTreeSet<u8>, local: bool) -> PortTable {
    let number = 80 + u16::from(port);
    let backends: Vec<BackendEntry> = hosts
        .iter()
        .map(|(host, (ready, local))| BackendEntry {
            address: SocketAddr::from(([10, 0, 0, *host], 8080)),
            terminating: !ready,
            local: *local,
            unused: None,
        })
        .collect();
    let choose = |wanted: &dyn Fn(&BackendEntry) -> bool| -> Vec<usize> {
        let of = |ready: bool| -> Vec<usize> {
            let fits = |b: &BackendEntry| wanted(b) && b.terminating != ready;
            (0..backends.len()).filter(|index| fits(&backends[*index])).collect()
        };
        if of(true).is_empty() { of(false) } else { of(true) }
    };
    let (cluster, own) = (choose(&|_| true), choose(&|b| b.local));
    let entry = |address: [u8; 4], kind, outside| FrontendEntry {
        address: SocketAddr::from((address, number)),
        kind,
        inside: Set::Cluster,
        outside,
    };
    let outside = if local { Set::Local } else { Set::Cluster };
    let mut frontends = vec![entry([10, 96, 0, service], FrontendKind::ClusterIp, Set::Cluster)];
    frontends.extend(vips.iter().map(|vip| {
        // Without a port of their own, so that ports and Services can clash over them.
        let mut vip = entry([203, 0, 113, *vip], FrontendKind::LoadBalancer, outside);
        vip.address.set_port(80);
        vip
    }));
    PortTable {
        key: PortKey {
            service: name(service),
            name: format!("port-{port}").into(),
            protocol: Protocol::Tcp,
            port: number,
            family: Family::V4,
        },
        affinity_seconds: 0,
        source_ranges: None,
        backends,
        cluster,
        local: own,
        frontends,
        not_serving: vec![],
    }
}

fn prefix(n: u8) -> IpNet {
    format!("192.0.{n}.0/24").parse().expect("a prefix")
}

fn simple(service: u8, hosts: &[u8], vips: &[u8]) -> PortTable {
    table(service, 0, &hosts.iter().map(|h| (*h, (true, false))).collect(), &vips.iter().copied().collect(), false)
}
