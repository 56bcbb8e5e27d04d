//! Medians of batches, and when a batch is not to be trusted.

use anyhow::Result;
use serde::Serialize;

/// Batches of a measurement.
pub const BATCHES: usize = 7;
/// A set of batches whose median is so much above its best is disturbed, and repeated.
const DISTURBED: f64 = 1.08;
/// How often.
const SETS: usize = 4;

/// What batches came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Sample {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().wrapping_sub(1)) }
    }

    /// How far the median is from the farther end, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.max - self.median).max(self.median - self.min) / self.median
    }

    fn is_disturbed(&self) -> bool {
        self.median > self.min * DISTURBED
    }
}

/// Costs of two things that are measured in turn, so that what disturbs one disturbs the other: the thing itself, and what
/// is to be subtracted from it.
pub fn in_turn(
    mut thing: impl FnMut() -> Result<f64>,
    mut base: impl FnMut() -> Result<f64>,
) -> Result<(Sample, Sample)> {
    let mut best: Option<(Sample, Sample)> = None;
    for _ in 0..SETS {
        let (mut things, mut bases) = (Vec::new(), Vec::new());
        for _ in 0..BATCHES {
            bases.push(base()?);
            things.push(thing()?);
        }
        let set = (Sample::of(things), Sample::of(bases));
        let is_disturbed = set.0.is_disturbed();
        if best.is_none_or(|best| set.0.median < best.0.median) {
            best = Some(set);
        }
        if !is_disturbed {
            return Ok(set);
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("no batch was measured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_knows_its_middle_and_its_ends() {
        let sample = Sample::of(vec![3.0, 1.0, 2.0, 8.0, 4.0]);
        assert_eq!(sample, Sample { median: 3.0, min: 1.0, max: 8.0 });
        assert!((sample.spread() - 5.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_disturbed_set_is_measured_again_and_a_calm_one_is_not() {
        let mut calls = 0;
        let disturbed = || {
            calls += 1;
            // The first set has one good batch among bad ones, the second is calm.
            Ok(if calls == 1 || calls > BATCHES { 10.0 } else { 20.0 })
        };
        let (sample, base) = in_turn(disturbed, || Ok(1.0)).unwrap();
        assert_eq!((sample.median, sample.max, base.median), (10.0, 10.0, 1.0));
        assert_eq!(calls, 2 * BATCHES);
    }
}
