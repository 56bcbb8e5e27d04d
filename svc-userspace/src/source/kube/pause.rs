//! How long to wait after a failed request: longer each time, never the same for two nodes.
//!
//! A list costs the API server much, so its pauses grow to half a minute. To open a watch again costs it little, and while it
//! is closed this node sees no change of any endpoint, so that one never waits long.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause before a list.
const LONGEST_LIST: Duration = Duration::from_secs(30);
/// Longest pause before a watch.
const LONGEST_WATCH: Duration = Duration::from_secs(2);

/// Pauses between attempts.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Lists, then watches, that have failed since something worked.
    failures: [u32; 2],
}

impl Pause {
    /// The pause after another failure; `listing`: of a list.
    pub(super) fn after_failure(&mut self, listing: bool) -> Duration {
        let random = RandomState::new().build_hasher().finish();
        self.next(listing, f64::from((random >> 32) as u32) / f64::from(u32::MAX))
    }

    /// `random` is from 0 to 1.
    fn next(&mut self, listing: bool, random: f64) -> Duration {
        // Each for itself: watches may fail now and then for days without an event in between.
        let (failures, longest) =
            if listing { (&mut self.failures[0], LONGEST_LIST) } else { (&mut self.failures[1], LONGEST_WATCH) };
        let pause = FIRST.saturating_mul(1 << (*failures).min(16)).min(longest);
        *failures = failures.saturating_add(1);
        pause.mul_f64(0.5 + random / 2.0)
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.failures = [0; 2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_those_before_a_watch_stay_short() {
        let pauses = |listing| {
            let mut pause = Pause::default();
            (0..40).map(|_| pause.next(listing, 1.0).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(false)[..6], [200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(pauses(true)[..9], [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]);
        assert_eq!(pauses(true)[39], 30_000);
        let mut pause = Pause::default();
        assert_eq!(pause.next(true, 0.0), Duration::from_millis(100), "never the same for two nodes");
        pause.reset();
        assert!((100..=200).contains(&pause.after_failure(true).as_millis()));
    }
}
