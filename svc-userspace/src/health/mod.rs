//! Whether this node should get traffic, and whether the agent works: the state behind /healthz, /livez and the servers of
//! `healthCheckNodePort`. It is told, it never looks for itself.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

pub mod endpoints;
pub mod node_ports;
pub(crate) mod server;

/// Longest time a change may wait for being programmed: twice the longest sync period of kube-proxy, as there.
pub const LONGEST_WAIT: Duration = Duration::from_mins(2);

/// The state. Every method takes a short lock and none waits.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    synced: bool,
    waiting_since: Option<Instant>,
    leaving: bool,
    caught_up: Option<SystemTime>,
}

/// Why an answer is 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwell {
    /// Services have not been programmed once yet.
    NotSynced,
    /// Changes wait too long, this many seconds by now.
    Behind(u64),
    /// The node is about to be removed.
    Leaving,
}

impl std::fmt::Display for Unwell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSynced => f.write_str("Services have not been listed and programmed yet"),
            Self::Behind(seconds) => write!(f, "changes have been waiting for {seconds} s without being programmed"),
            Self::Leaving => f.write_str("the node is being removed"),
        }
    }
}

/// One look at the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is wrong with the agent, for /livez and `serviceProxyHealthy`.
    pub alive: Result<(), Unwell>,
    /// What is wrong with agent or node, for /healthz.
    pub healthy: Result<(), Unwell>,
    /// The node is not about to be removed.
    pub node_eligible: bool,
    /// When everything was programmed last; `None`: never.
    pub caught_up: Option<SystemTime>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Not synced, nothing waiting.
    pub fn new() -> Self {
        let inner = Inner { synced: false, waiting_since: None, leaving: false, caught_up: None };
        Self { inner: Mutex::new(inner) }
    }

    /// A change came that is not programmed yet.
    pub fn changed(&self, now: Instant) {
        self.lock().waiting_since.get_or_insert(now);
    }

    /// Everything that came is programmed.
    pub fn caught_up(&self) {
        let mut inner = self.lock();
        inner.waiting_since = None;
        inner.caught_up = Some(SystemTime::now());
    }

    /// Every Service has been programmed once.
    pub fn set_synced(&self) {
        self.lock().synced = true;
    }

    /// Whether the node is about to be removed.
    pub fn set_leaving(&self, leaving: bool) {
        self.lock().leaving = leaving;
    }

    /// How things stand at `now`.
    pub fn report(&self, now: Instant) -> Report {
        let inner = self.lock();
        let waited = inner.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let alive = if !inner.synced {
            Err(Unwell::NotSynced)
        } else if waited > LONGEST_WAIT {
            Err(Unwell::Behind(waited.as_secs()))
        } else {
            Ok(())
        };
        let healthy = alive.and(if inner.leaving { Err(Unwell::Leaving) } else { Ok(()) });
        Report { alive, healthy, node_eligible: !inner.leaving, caught_up: inner.caught_up }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section is a plain assignment: a poisoned lock still guards a whole state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
