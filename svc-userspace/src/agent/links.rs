//! Programs on interfaces: those that cannot be attached are tried again, until they can or the interface is gone.

use std::collections::BTreeMap;

use svc_common::Scope;

use crate::{
    kernel::{Dataplane, InterfaceSpec, Repaired},
    metrics::Metrics,
};

/// Interfaces that carry Service traffic, and those among them that have no programs yet.
#[derive(Debug, Default)]
pub(super) struct Links {
    wanted: BTreeMap<u32, InterfaceSpec>,
    /// All interfaces have been reported: others are none of ours.
    complete: bool,
    missing: BTreeMap<u32, Missing>,
    /// The pass that goes on could not repair one.
    failed: bool,
}

#[derive(Debug)]
struct Missing {
    spec: InterfaceSpec,
    attempts: u32,
    retry_at_ms: u64,
}

impl Links {
    /// Attaches the programs, or remembers to.
    pub(super) fn set(&mut self, spec: InterfaceSpec, dataplane: &mut Dataplane, metrics: &Metrics, now_ms: u64) {
        self.missing.remove(&spec.index);
        self.wanted.insert(spec.index, spec.clone());
        self.attempt(spec, 0, dataplane, metrics, now_ms);
        metrics.set_interfaces_missing(self.missing.len());
        metrics.set_xdp_missing(dataplane.xdp_missing());
    }

    /// Forgets an interface.
    pub(super) fn gone(&mut self, index: u32, dataplane: &mut Dataplane) {
        self.missing.remove(&index);
        self.wanted.remove(&index);
        if let Err(error) = dataplane.remove_interface(index) {
            tracing::warn!(index, "cannot forget an interface that is gone: {:#}", anyhow::Error::from(error));
        }
    }

    /// Removes the programs of interfaces that an earlier agent attached to and that are no longer wanted.
    pub(super) fn retain(&mut self, dataplane: &mut Dataplane) {
        self.complete = true;
        match dataplane.interfaces() {
            Ok(mut found) => {
                found.retain(|index| !self.wanted.contains_key(index));
                for index in found {
                    tracing::info!(index, "detaching from an interface that carries no Service traffic any more");
                    self.gone(index, dataplane);
                }
            }
            Err(error) => tracing::warn!("cannot list attachments: {:#}", anyhow::Error::from(error)),
        }
    }

    /// Compares the next interface after this one and repairs it; `None` if there are no more. What is attached to others is
    /// removed then.
    pub(super) fn repair(&mut self, after: Option<u32>, dataplane: &mut Dataplane, metrics: &Metrics) -> Option<u32> {
        let from = after.map_or(0, |index| index.saturating_add(1));
        let next = self.wanted.range(from..).find(|(index, _)| !self.missing.contains_key(index));
        let Some((&index, spec)) = next else {
            if self.complete {
                self.retain(dataplane);
            }
            if !self.failed {
                metrics.set_repair_problem("interfaces", false);
            }
            self.failed = false;
            metrics.set_xdp_missing(dataplane.xdp_missing());
            return None;
        };
        match dataplane.repair_interface(spec) {
            Ok(repaired) => {
                for Repaired { what, message } in repaired {
                    metrics.repaired(what, 1);
                    tracing::warn!("repaired: {message}");
                }
            }
            Err(error) => {
                metrics.attach_failed();
                self.failed = true;
                if metrics.set_repair_problem("interfaces", true) {
                    let error = anyhow::Error::from(error);
                    tracing::error!(interface = %spec.name, "cannot repair what is attached, will try again: {error:#}");
                }
            }
        }
        Some(index)
    }

    /// Tries those whose time has come.
    pub(super) fn retry(&mut self, dataplane: &mut Dataplane, metrics: &Metrics, now_ms: u64) {
        let due: Vec<u32> =
            self.missing.iter().filter(|(_, m)| m.retry_at_ms <= now_ms).map(|(&index, _)| index).collect();
        for index in due {
            if let Some(Missing { spec, attempts, .. }) = self.missing.remove(&index) {
                self.attempt(spec, attempts, dataplane, metrics, now_ms);
            }
        }
        metrics.set_interfaces_missing(self.missing.len());
    }

    fn attempt(&mut self, spec: InterfaceSpec, before: u32, dataplane: &mut Dataplane, metrics: &Metrics, now_ms: u64) {
        match dataplane.set_interface(&spec) {
            Ok(()) => {
                let scope = Scope::from_u8(spec.entry.scope).label();
                tracing::info!(interface = %spec.name, index = spec.index, scope, "attached");
            }
            Err(error) => {
                let attempts = before + 1;
                metrics.attach_failed();
                let backoff = (500_u64 << attempts.min(16)).min(30_000);
                // The reason is said once; that it persists is in the metric.
                if before == 0 {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(interface = %spec.name, "cannot attach, will try again: {error:#}");
                }
                self.missing.insert(spec.index, Missing { spec, attempts, retry_at_ms: now_ms + backoff });
            }
        }
    }
}
