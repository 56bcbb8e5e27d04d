//! The dataplane as the engine sees it.

use svc_common::SlotRange;

use super::engine::Maps;
use crate::{
    kernel::Dataplane,
    tables::{Difference, FilterWords, Observed, Op, Walked},
};

impl Maps for Dataplane {
    type Error = anyhow::Error;

    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, anyhow::Error)> {
        Self::apply(self, ops).map_err(|error| (error.index, error.into()))
    }

    fn sweep_filter(&mut self, used: FilterWords) -> Result<FilterWords, anyhow::Error> {
        Ok(Self::sweep_filter(self, used)?)
    }

    fn trust_filter(&mut self, trusted: bool) -> Result<(), anyhow::Error> {
        Ok(Self::trust_filter(self, trusted)?)
    }

    fn set_synced(&mut self) -> Result<(), anyhow::Error> {
        Ok(Self::set_synced(self)?)
    }

    fn differing(&mut self, ops: &[Op]) -> Result<Vec<(usize, Difference)>, anyhow::Error> {
        Ok(Self::differing(self, ops)?)
    }

    fn slots(&mut self, range: SlotRange) -> Result<Vec<u32>, anyhow::Error> {
        Ok(Self::slots(self, range)?)
    }

    fn next_entries(&mut self, map: Walked, first: bool, found: &mut Observed) -> Result<bool, anyhow::Error> {
        Ok(Self::next_entries(self, map, first, found)?)
    }
}
