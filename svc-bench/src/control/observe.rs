//! What can be seen of an agent from outside: its log, its memory, its CPU time, and when a frontend changes.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use svc_common::{Frontend, FrontendKey, protocol};
use svc_lab::until;

use super::objects::{PORT, address};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_mins(3);

/// The log of one run of an agent.
pub(super) struct Log {
    path: PathBuf,
    /// Where the run's lines begin.
    start: u64,
}

impl Log {
    /// From where it ends now.
    pub(super) fn from_now(path: &Path) -> Self {
        let start = fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self { path: path.to_owned(), start }
    }

    /// Waits for a line with this text; when it was written, as a time of the day.
    pub(super) fn wait(&self, text: &str) -> Result<Duration> {
        let found = until(&format!("{text:?} in the agent's log"), PATIENCE, || {
            let line = self.line(text).map_err(|error| format!("{error:#}"))?;
            line.ok_or_else(|| "not yet".to_owned())
        })?;
        time_of_day(&found).with_context(|| format!("no time in {found:?}"))
    }

    fn line(&self, text: &str) -> Result<Option<String>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.start))?;
        let mut log = Vec::new();
        file.read_to_end(&mut log)?;
        let log = String::from_utf8_lossy(&log);
        Ok(log.lines().find(|line| line.contains(text)).map(str::to_owned))
    }
}

/// The time that a line begins with: `2026-01-02T03:04:05.678901Z`.
fn time_of_day(line: &str) -> Option<Duration> {
    let time = line.get(11..26)?;
    let number = |from: usize, to: usize| time.get(from..to)?.parse::<f64>().ok();
    Some(Duration::from_secs_f64(number(0, 2)? * 3600.0 + number(3, 5)? * 60.0 + number(6, 15)?))
}

/// Now, as a time of the day.
pub(super) fn now() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Duration::from_nanos((since.as_nanos() % DAY.as_nanos()) as u64)
}

const DAY: Duration = Duration::from_hours(24);

/// From one time of the day to a later one, midnight or not.
pub(super) fn between(from: Duration, to: Duration) -> Duration {
    (to + DAY).checked_sub(from).map_or(Duration::ZERO, |time| time.checked_sub(DAY).unwrap_or(time))
}

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// All that is resident.
    pub(super) resident: f64,
    /// What of it is its own.
    pub(super) anonymous: f64,
}

/// Memory of a process.
pub(super) fn memory(process: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("no {name} in the process's status"))? * 1024.0)
    };
    Ok(Memory { resident: field("VmRSS")?, anonymous: field("RssAnon")? })
}

/// CPU time that a process has used, seconds.
pub(super) fn cpu(process: u32) -> Result<f64> {
    let mut total = 0_u64;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).context("an empty schedstat")?;
    }
    Ok(Duration::from_nanos(total).as_secs_f64())
}

/// FRONTENDS_V4 of an agent.
pub(super) struct Frontends(HashMap<MapData, FrontendKey<[u8; 4]>, Frontend>);

impl Frontends {
    pub(super) fn open(maps: &Path) -> Result<Self> {
        let data = MapData::from_pin(maps.join("FRONTENDS_V4")).context("cannot open FRONTENDS_V4")?;
        Ok(Self(HashMap::try_from(Map::from_map_data(data)?)?))
    }

    /// Where a Service's slots are.
    pub(super) fn slots(&self, service: u32) -> Result<u32> {
        let key = FrontendKey::new(address(service).octets(), PORT, protocol::TCP);
        Ok(self.0.get(&key, 0).with_context(|| format!("service {service} has no frontend"))?.inside.offset)
    }

    /// Waits until they are somewhere else. Looks every few microseconds, and leaves the CPU to others in between.
    pub(super) fn moved(&self, service: u32, from: u32) -> Result<Instant> {
        let begin = Instant::now();
        loop {
            if self.slots(service)? != from {
                return Ok(Instant::now());
            }
            ensure!(begin.elapsed() < PATIENCE, "the change of service {service} never came");
            thread::sleep(Duration::from_micros(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_read_and_midnight_is_passed() {
        let time = |text: &str| time_of_day(text).expect("a time");
        let (late, early) = (time("2026-11-25T23:59:59.500000Z  INFO x"), time("2026-11-26T00:00:00.250000Z  INFO y"));
        assert_eq!(between(late, early), Duration::from_millis(750));
        assert_eq!(between(early, early + Duration::from_secs(3)), Duration::from_secs(3));
        assert!(time_of_day("error: something").is_none());
    }
}
