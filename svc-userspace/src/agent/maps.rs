//! The dataplane as the engine sees it.

use super::engine::Maps;
use crate::{
    kernel::Dataplane,
    tables::{FilterWords, Op},
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
}
