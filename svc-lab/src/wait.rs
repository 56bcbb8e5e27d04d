//! Waiting for a condition, within bounds. Never for a length of time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::LabError;

/// How long to pause between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until `look` gives a value, for at most `limit`. The error carries what the last look said.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, LabError> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                let detail = if last.is_empty() { last } else { format!(": {last}") };
                return Err(LabError::Timeout { what: what.into(), seconds: limit.as_secs(), detail });
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
