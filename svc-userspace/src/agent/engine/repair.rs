//! Compares the maps with what was written to them, a piece at a time, and writes what differs.
//!
//! First what is in the maps and was never written, which may take the room of what was; then the words of FILTER; then every
//! Service port: its name, backends, source ranges, slots, frontends and addresses. A pass that meets nothing writes nothing. Operations that wait are no difference: their Services are passed
//! over, and while any wait nothing is removed.

use std::collections::BTreeMap;

use super::{Engine, Maps, shared};
use crate::{
    model::ObjectName,
    tables::{Difference, Observed, Op, Walked, slot_sum},
};

/// Words of FILTER compared at a time.
const WORDS: usize = 512;
/// Ids that are looked at for one that somebody has, at a time.
const IDS: u32 = 1024;
/// Entries of a map that are named in the log in one pass; the others are counted.
const NAMED: u64 = 10;

/// A comparison of everything.
#[derive(Debug)]
pub(super) struct Pass {
    /// What comes next; `None`: nothing.
    stage: Option<Stage>,
    /// Entries repaired so far, by map.
    repaired: BTreeMap<&'static str, u64>,
    failed: bool,
}

impl Default for Pass {
    fn default() -> Self {
        Self { stage: Some(Stage::Entries(0, true)), repaired: BTreeMap::new(), failed: false }
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Entries of this map, of [`Walked::ALL`]; true: from the first one on.
    Entries(usize, bool),
    /// The words from this one on.
    Filter(u32),
    /// The ports from this id on.
    Ports(u32),
}

impl<M: Maps> Engine<M> {
    /// Compares the next piece and repairs it; true if that was the last one. What fails is said, and tried again by the next
    /// pass.
    pub fn repair(&mut self) -> bool {
        if !self.synced {
            return true;
        }
        let Some(stage) = self.pass.stage.take() else {
            self.end_pass();
            return true;
        };
        if let Err(error) = self.repair_piece(stage) {
            self.metrics.apply_failed();
            self.pass.failed = true;
            if self.metrics.set_repair_problem("maps", true) {
                tracing::error!(%error, "cannot compare or repair the maps, will try again");
            }
        }
        false
    }

    fn end_pass(&mut self) {
        let pass = std::mem::take(&mut self.pass);
        for (map, entries) in pass.repaired.into_iter().filter(|(_, entries)| *entries > NAMED) {
            tracing::warn!(map, entries, "repaired entries that had been changed from outside");
        }
        if !pass.failed && self.metrics.set_repair_problem("maps", false) {
            tracing::info!("the maps can be compared and repaired again");
        }
    }

    fn repair_piece(&mut self, stage: Stage) -> Result<(), M::Error> {
        match stage {
            Stage::Entries(at, first) => {
                self.pass.stage = Some(Stage::Filter(0));
                let Some(&map) = Walked::ALL.get(at).filter(|_| self.waiting.is_empty()) else { return Ok(()) };
                self.pass.stage = Some(Stage::Entries(at + 1, true));
                let mut found = Observed::default();
                if !self.maps.next_entries(map, first, &mut found)? {
                    self.pass.stage = Some(Stage::Entries(at, false));
                }
                let foreign = self.tables.foreign(&found).into_iter().map(|op| (op, Difference::Added));
                self.write(None, foreign.collect())
            }
            Stage::Filter(from) => {
                let (ops, next) = self.tables.expected_filter(from, WORDS);
                self.pass.stage = Some(next.map_or(Stage::Ports(1), Stage::Filter));
                // Of a filter that is not trusted every word is written by the next sweep.
                if self.filter_trusted { self.repair_ops(None, &ops) } else { Ok(()) }
            }
            Stage::Ports(from) => {
                let to = from.saturating_add(IDS).min(self.tables.service_limit());
                let id = (from..to).find(|id| self.tables.has_id(*id));
                let next = id.map_or(to, |id| id + 1);
                self.pass.stage = Some(Stage::Ports(next)).filter(|_| next < self.tables.service_limit());
                id.map_or(Ok(()), |id| self.repair_port(id))
            }
        }
    }

    fn repair_port(&mut self, id: u32) -> Result<(), M::Error> {
        let Some(expected) = self.tables.expected(id) else { return Ok(()) };
        if self.waiting.contains_key(&expected.service) {
            return Ok(());
        }
        let service = Some(&expected.service);
        self.repair_ops(service, &expected.before_slots)?;
        for (range, sum) in expected.slots {
            if slot_sum(&self.maps.slots(range)?) != sum
                && let Some(op) = self.tables.expected_slots(id, range)
            {
                self.write(service, vec![(op, Difference::Changed)])?;
            }
        }
        let mut ops = expected.after_slots;
        if self.waiting.contains_key(&shared()) {
            ops.retain(|op| !matches!(op, Op::SetVip(..)));
        }
        self.repair_ops(service, &ops)
    }

    /// Writes those of these operations that the maps do not show.
    fn repair_ops(&mut self, service: Option<&ObjectName>, ops: &[Op]) -> Result<(), M::Error> {
        let differing = self.maps.differing(ops)?;
        if differing.is_empty() {
            return Ok(());
        }
        let of = |(index, difference): (usize, Difference)| Some((ops.get(index)?.clone(), difference));
        self.write(service, differing.into_iter().filter_map(of).collect())
    }

    fn write(&mut self, service: Option<&ObjectName>, differing: Vec<(Op, Difference)>) -> Result<(), M::Error> {
        let service = service.map_or_else(|| "(nobody)".to_owned(), ToString::to_string);
        for (op, difference) in differing {
            self.maps.apply(std::slice::from_ref(&op)).map_err(|(_, error)| error)?;
            self.metrics.repaired(op.map(), 1);
            let so_far = self.pass.repaired.entry(op.map()).or_default();
            *so_far += 1;
            if *so_far <= NAMED {
                tracing::warn!(map = op.map(), %service, "repaired {op}: {}", difference.text());
            }
        }
        Ok(())
    }
}
