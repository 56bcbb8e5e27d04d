//! How large the maps should be for what does not fit into them.

use super::{
    Capacity, Tables, maglev,
    plan::{Desired, Refusals, sets},
    program::family_index,
    refused::{Reason, Resource},
    slots::occupied,
};
use crate::model::Family;

/// What refused ports need, all of it as if they had nothing yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    services: u64,
    backends: u64,
    frontends: [u64; 2],
    slots: u64,
    sources: [u64; 2],
    /// By number in [`Needs::all`]: there was not enough of it.
    short: [bool; 6],
}

impl Needs {
    pub(super) fn of(refusals: &Refusals, desired: &Desired) -> Self {
        let mut needs = Self::default();
        for (key, reason) in refusals {
            let (Reason::Full { what, .. }, Some(table)) = (reason, desired.get(key)) else { continue };
            let short = match what {
                Resource::Services => 0,
                Resource::Backends => 1,
                Resource::Frontends(Family::V4) => 2,
                Resource::Frontends(Family::V6) => 3,
                Resource::Slots => 4,
                Resource::SourceRanges(_) => 5,
            };
            needs.short[short] = true;
            needs.services += 1;
            needs.backends += table.backends.len() as u64;
            needs.frontends[usize::from(key.family == Family::V6)] += table.frontends.len() as u64;
            for set in sets(table) {
                needs.slots += u64::from(occupied(maglev::table_len(set.len())).unwrap_or(0));
            }
            for range in table.source_ranges.iter().flatten() {
                needs.sources[family_index(range)] += 1;
            }
        }
        needs
    }

    fn all(&self) -> [u64; 6] {
        let [v4, v6] = self.frontends;
        [self.services, self.backends, v4, v6, self.slots, self.sources[0].max(self.sources[1])]
    }

    fn add(&mut self, other: &Self) {
        let Self { services, backends, frontends, slots, sources, short } = other;
        self.services += services;
        self.backends += backends;
        self.slots += slots;
        for (sum, more) in self.frontends.iter_mut().chain(&mut self.sources).zip(frontends.iter().chain(sources)) {
            *sum += more;
        }
        for (sum, more) in self.short.iter_mut().zip(short) {
            *sum |= more;
        }
    }
}

/// Most entries that a map is given.
const MOST: u64 = u32::MAX as u64 / 2;

impl Tables {
    /// The sizes that would have room for what is refused; `None` if nothing is refused for lack of room. What is too small
    /// grows by half at least, so that maps grow a few times and not with each Service.
    pub fn wanted(&self) -> Option<Capacity> {
        let mut needs = Needs::default();
        self.refused.values().for_each(|more| needs.add(more));
        if !needs.short.contains(&true) {
            return None;
        }
        let fill = self.fill();
        let sources = [fill.source_ranges_v4, fill.source_ranges_v6];
        let used = [fill.services, fill.backends, fill.frontends_v4, fill.frontends_v6, fill.slots]
            .map(|usage| u64::from(usage.used) + u64::from(usage.resting));
        let used = used.into_iter().chain([u64::from(sources[0].used.max(sources[1].used))]);
        let Capacity { services, backends, frontends_v4, frontends_v6, slots, source_ranges } = self.capacity;
        let now = [services, backends, frontends_v4, frontends_v6, slots, source_ranges].map(u64::from);
        let mut sizes = now;
        for (index, (used, needed)) in used.zip(needs.all()).enumerate() {
            // Id 0 is never given, and slots have to be in one piece.
            let least = used + needed + needed / 4 + 1;
            if needs.short[index] || least > now[index] {
                sizes[index] = least.max(now[index] + now[index] / 2).next_multiple_of(64).min(MOST).max(now[index]);
            }
        }
        let [services, backends, frontends_v4, frontends_v6, slots, source_ranges] = sizes.map(|size| size as u32);
        Some(Capacity { services, backends, frontends_v4, frontends_v6, slots, source_ranges })
    }

    /// The maps have these sizes now; none is smaller than before.
    pub fn grown(&mut self, capacity: Capacity) {
        self.capacity = capacity;
        self.service_ids.grow(capacity.services);
        self.backend_ids.grow(capacity.backends);
        self.slots.grow(capacity.slots);
    }
}
