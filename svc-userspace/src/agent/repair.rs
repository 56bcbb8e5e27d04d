//! Compares the kernel with what this agent made of it, every now and then, and puts right what somebody else changed.
//!
//! In slices of about two milliseconds with pauses between them: changes of Services never wait longer than that. What is found is
//! counted by what it is and logged by name; what cannot be put right is logged once, is a metric from then on, and is tried again
//! by the next pass.

use std::time::Duration;

use tokio::time::Instant;

use super::{Agent, options::Masquerade};
use crate::{
    kernel::{KernelError, MASQUERADE_MARK, Repaired},
    masquerade,
    metrics::Metrics,
};

/// Work between two pauses: a piece that was begun is finished.
const SLICE: Duration = Duration::from_millis(2);
/// The pauses.
const PAUSE: Duration = Duration::from_millis(50);

/// When what is compared.
#[derive(Debug)]
pub(super) struct Repair {
    /// From the start of one pass to the next; `None`: never.
    interval: Option<Duration>,
    /// When there is something to do.
    due: Instant,
    /// When this pass began.
    began: Instant,
    /// Work of this pass so far, and the most of it that was done at once.
    work: Duration,
    longest: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Pins,
    Settings,
    Hooks,
    Masquerade,
    /// From the interface after this one on.
    Interfaces(Option<u32>),
    Maps,
}

impl Repair {
    /// The first pass begins after `interval`.
    pub(super) fn new(interval: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            interval,
            due: now + interval.unwrap_or_default(),
            began: now,
            work: Duration::ZERO,
            longest: Duration::ZERO,
            stage: Stage::Pins,
        }
    }

    /// Returns when there is something to do.
    pub(super) async fn is_due(&self) {
        match self.interval {
            Some(_) => tokio::time::sleep_until(self.due).await,
            None => std::future::pending().await,
        }
    }
}

impl Agent {
    /// Goes on with the pass for a slice, or begins one.
    pub(super) fn repair(&mut self) {
        let start = Instant::now();
        if matches!(self.repair.stage, Stage::Pins) {
            self.repair.began = start;
            (self.repair.work, self.repair.longest) = (Duration::ZERO, Duration::ZERO);
        }
        let mut finished = false;
        while !finished && start.elapsed() < SLICE {
            finished = self.repair_piece();
        }
        let repair = &mut self.repair;
        repair.work += start.elapsed();
        repair.longest = repair.longest.max(start.elapsed());
        repair.due = Instant::now() + PAUSE;
        if finished {
            self.metrics.repair_passed(repair.work, repair.longest);
            repair.stage = Stage::Pins;
            repair.due = repair.due.max(repair.began + repair.interval.unwrap_or_default());
        }
    }

    /// Compares the next piece; true if that was the last one.
    fn repair_piece(&mut self) -> bool {
        let Self { engine, links, metrics, .. } = self;
        self.repair.stage = match self.repair.stage {
            Stage::Pins => {
                report("pins", engine.maps().repair_pins(), metrics);
                Stage::Settings
            }
            Stage::Settings => {
                report("settings", engine.maps().repair_settings(), metrics);
                Stage::Hooks
            }
            Stage::Hooks => {
                report("cgroup", engine.maps().repair_cgroup(), metrics);
                Stage::Masquerade
            }
            Stage::Masquerade => {
                self.repair_masquerade();
                Stage::Interfaces(None)
            }
            Stage::Interfaces(after) => match links.repair(after, engine.maps(), metrics) {
                Some(index) => Stage::Interfaces(Some(index)),
                None => Stage::Maps,
            },
            Stage::Maps => return engine.repair(),
        };
        false
    }

    /// The rules or the ports, whichever are ours, and the addresses that the programs masquerade with.
    fn repair_masquerade(&mut self) {
        if self.options.masquerade == Masquerade::Programs {
            self.reserve_ports();
        } else {
            let checked = match masquerade::is_installed() {
                Ok(true) => Ok(Vec::new()),
                Ok(false) => masquerade::install(MASQUERADE_MARK).map(|()| {
                    let message = "the table inet svc of nftables was not as it should be".to_owned();
                    vec![Repaired { what: "nftables", message }]
                }),
                Err(error) => Err(error),
            };
            report("nftables", checked.map_err(KernelError::from), &self.metrics);
        }
        self.set_masquerade_sources(true);
    }

    /// Keeps the ports that the programs masquerade with from this host's sockets.
    pub(super) fn reserve_ports(&mut self) {
        let reserved = self.engine.maps().reserve_ports().map(|changed| {
            let message = "net.ipv4.ip_local_reserved_ports did not have the ports for masquerading".to_owned();
            if changed { vec![Repaired { what: "reserved_ports", message }] } else { Vec::new() }
        });
        report("reserved_ports", reserved, &self.metrics);
    }
}

/// Counts and tells what was repaired, or that it could not be.
pub(super) fn report(kind: &'static str, result: Result<Vec<Repaired>, KernelError>, metrics: &Metrics) {
    match result {
        Ok(repaired) => {
            for Repaired { what, message } in repaired {
                metrics.repaired(what, 1);
                tracing::warn!("repaired: {message}");
            }
            if metrics.set_repair_problem(kind, false) {
                tracing::info!(kind, "no longer a problem");
            }
        }
        Err(error) => {
            if metrics.set_repair_problem(kind, true) {
                let error = anyhow::Error::from(error);
                tracing::error!(kind, "cannot repair what was changed, will try again: {error:#}");
            }
        }
    }
}
