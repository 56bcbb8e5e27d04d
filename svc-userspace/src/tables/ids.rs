//! Ids of services and backends: given, released, rested, and given again with a higher generation.
//!
//! It never knows what an id stands for. Id 0 is never given.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Time an id rests after its release before it is given again, milliseconds: flows and packets that still name it are
/// gone by then, or find a newer generation.
pub const REST_MS: u64 = 60_000;

/// An allocator for ids from 1 to `capacity` − 1 (the index of an array element).
#[derive(Debug, Default)]
pub(super) struct Ids {
    capacity: u32,
    /// Lowest id that was never given.
    next: u32,
    free: VecDeque<u32>,
    /// Released ids and the time they become free, soonest first.
    resting: VecDeque<(u64, u32)>,
    /// Ids found released at adoption: they rest from the first time the clock is read.
    undated: Vec<u32>,
    /// Last generation of each id that was ever given.
    generations: Vec<u32>,
    used: u32,
}

impl Ids {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, next: 1, ..Self::default() }
    }

    /// An allocator in which `live` ids are given and `resting` ones are not free yet; ids outside of 1..`capacity` are
    /// ignored. `generations` are the last known ones.
    pub(super) fn adopt(
        capacity: u32,
        live: &BTreeSet<u32>,
        resting: &BTreeSet<u32>,
        generations: &BTreeMap<u32, u32>,
    ) -> Self {
        let mut ids = Self::new(capacity);
        let valid = |id: &&u32| (1..capacity).contains(*id);
        let last = live.iter().chain(resting).filter(valid).max().copied().unwrap_or(0);
        ids.next = last + 1;
        for id in 1..=last {
            if live.contains(&id) {
                ids.used += 1;
            } else if resting.contains(&id) {
                ids.undated.push(id);
            } else {
                ids.free.push_back(id);
            }
        }
        for (&id, &generation) in generations.iter().filter(|(id, _)| valid(id)) {
            *ids.generation(id) = generation;
        }
        ids
    }

    fn generation(&mut self, id: u32) -> &mut u32 {
        let index = id as usize;
        if self.generations.len() <= index {
            self.generations.resize(index + 1, 0);
        }
        &mut self.generations[index]
    }

    /// Gives an id with its new generation, which is never 0. Ids that were never given go first, then those that have
    /// rested longest.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        let id = if self.next < self.capacity {
            self.next += 1;
            self.next - 1
        } else {
            self.free.pop_front()?
        };
        self.used += 1;
        let generation = self.generation(id);
        *generation = generation.wrapping_add(1).max(1);
        Some((id, *generation))
    }

    /// Takes an id back; it rests from `now_ms` on.
    pub(super) fn release(&mut self, id: u32, now_ms: u64) {
        self.used -= 1;
        self.resting.push_back((now_ms + REST_MS, id));
    }

    /// Has every resting id rest from `now_ms` on.
    pub(super) fn rest_anew(&mut self, now_ms: u64) {
        for (until, _) in &mut self.resting {
            *until = now_ms + REST_MS;
        }
    }

    /// Frees the ids whose rest is over.
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.resting.extend(self.undated.drain(..).map(|id| (now_ms + REST_MS, id)));
        while let Some((_, id)) = self.resting.pop_front_if(|(until, _)| *until <= now_ms) {
            self.free.push_back(id);
        }
    }

    /// There is room for ids up to `capacity` − 1 now.
    pub(super) fn grow(&mut self, capacity: u32) {
        self.capacity = self.capacity.max(capacity);
    }

    /// Ids that can be given right now.
    pub(super) fn available(&self) -> usize {
        self.capacity.saturating_sub(self.next) as usize + self.free.len()
    }

    /// Ids that are given.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Ids that are neither given nor free.
    pub(super) fn resting(&self) -> u32 {
        (self.resting.len() + self.undated.len()) as u32
    }
}
