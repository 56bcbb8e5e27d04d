//! CPU time of other processes, from the scheduler's own counters, in ns.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// Whose time counts besides this process's own.
pub(super) struct Meter {
    processes: Vec<u32>,
}

impl Meter {
    /// That of a server, and of the kernel's threads that take over long bursts of packets.
    pub(super) fn new(server: u32) -> Result<Self> {
        let mut processes = vec![server];
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while one looks at it.
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/")) {
                processes.push(id);
            }
        }
        Ok(Self { processes })
    }

    /// The time spent up to now.
    pub(super) fn read(&self) -> Result<Duration> {
        let mut total = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
        for process in &self.processes {
            let tasks = Path::new("/proc").join(process.to_string()).join("task");
            for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {}", tasks.display()))? {
                let path = task?.path().join("schedstat");
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let ns = text.split(' ').next().and_then(|word| word.parse().ok());
                total += Duration::from_nanos(ns.with_context(|| format!("{} is empty", path.display()))?);
            }
        }
        Ok(total)
    }
}
