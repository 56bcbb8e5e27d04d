//! Ranges of the SLOTS array: best fit, merged when they become free, rested before they are given again.
//!
//! It never knows what a range holds. Offsets and lengths are counted in slots and kept at multiples of a whole line, so
//! that two ranges never share a cache line or an array element.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use svc_common::{SlotRange, hash::SLOTS_PER_LINE};

/// Time a range rests after its release, milliseconds: no program that read the old frontend entry still runs by then.
pub const SLOT_REST_MS: u64 = 5_000;

/// An allocator for ranges.
#[derive(Debug, Default)]
pub(super) struct Slots {
    capacity: u32,
    /// Free ranges, offset → length; no two of them touch.
    by_offset: BTreeMap<u32, u32>,
    /// The same by (length, offset).
    by_len: BTreeSet<(u32, u32)>,
    /// (time it becomes free, offset, length), soonest first.
    resting: VecDeque<(u64, u32, u32)>,
    free: u32,
    rest: u32,
}

/// Slots that a range of `len` occupies; `None` if there is no such number.
pub(super) fn occupied(len: u32) -> Option<u32> {
    len.checked_next_multiple_of(SLOTS_PER_LINE)
}

impl Slots {
    pub(super) fn new(capacity: u32) -> Self {
        let mut slots = Self { capacity: capacity - capacity % SLOTS_PER_LINE, ..Self::default() };
        slots.insert(0, slots.capacity);
        slots
    }

    fn add(&mut self, offset: u32, len: u32) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
        self.free += len;
    }

    fn take_out(&mut self, offset: u32, len: u32) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
        self.free -= len;
    }

    /// Makes a range free, merged with its neighbours.
    fn insert(&mut self, mut offset: u32, mut len: u32) {
        if len == 0 {
            return;
        }
        if let Some((&before, &before_len)) = self.by_offset.range(..offset).next_back()
            && before + before_len == offset
        {
            self.take_out(before, before_len);
            offset = before;
            len += before_len;
        }
        if let Some(&after_len) = self.by_offset.get(&(offset + len)) {
            self.take_out(offset + len, after_len);
            len += after_len;
        }
        self.add(offset, len);
    }

    /// The smallest free range that fits, or `None`. `len` 0 needs no range and gets the empty one.
    pub(super) fn allocate(&mut self, len: u32) -> Option<SlotRange> {
        if len == 0 {
            return Some(SlotRange::default());
        }
        let want = occupied(len)?;
        let &(found, offset) = self.by_len.range((want, 0)..).next()?;
        self.take_out(offset, found);
        if found > want {
            self.add(offset + want, found - want);
        }
        Some(SlotRange { offset, len })
    }

    /// Gives back a range that nobody has seen.
    pub(super) fn give_back(&mut self, range: SlotRange) {
        if let Some(len) = occupied(range.len) {
            self.insert(range.offset, len);
        }
    }

    /// Takes back a range that readers may have seen; it rests from `now_ms` on.
    pub(super) fn release(&mut self, range: SlotRange, now_ms: u64) {
        if let Some(len) = occupied(range.len).filter(|len| *len > 0) {
            self.rest += len;
            self.resting.push_back((now_ms + SLOT_REST_MS, range.offset, len));
        }
    }

    /// Has every resting range rest from `now_ms` on.
    pub(super) fn rest_anew(&mut self, now_ms: u64) {
        for (until, _, _) in &mut self.resting {
            *until = now_ms + SLOT_REST_MS;
        }
    }

    /// Frees the ranges whose rest is over.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some((_, offset, len)) = self.resting.pop_front_if(|(until, _, _)| *until <= now_ms) {
            self.rest -= len;
            self.insert(offset, len);
        }
    }

    /// Marks a range found in the maps as given; false if it is not a range this allocator could have given, or not all
    /// of it is free.
    pub(super) fn reserve(&mut self, range: SlotRange) -> bool {
        let Some(len) = occupied(range.len) else { return false };
        let Some((&offset, &found)) = self.by_offset.range(..=range.offset).next_back() else { return false };
        let fits = range.offset.checked_add(len).is_some_and(|end| end <= offset + found);
        if len == 0 || !range.offset.is_multiple_of(SLOTS_PER_LINE) || !fits {
            return false;
        }
        self.carve(offset, found, range.offset, range.offset + len);
        true
    }

    /// Marks whatever is still free of a range as given, and returns those parts.
    pub(super) fn reserve_rest(&mut self, range: SlotRange) -> Vec<SlotRange> {
        let start = range.offset - range.offset % SLOTS_PER_LINE;
        let end = range.offset.saturating_add(range.len).min(self.capacity);
        let end = occupied(end).unwrap_or(self.capacity);
        let touched: Vec<_> = self
            .by_offset
            .range(..end)
            .map(|(&offset, &len)| (offset, len))
            .filter(|(offset, len)| offset + len > start)
            .collect();
        let mut parts = Vec::with_capacity(touched.len());
        for (offset, len) in touched {
            let (from, to) = (offset.max(start), (offset + len).min(end));
            self.carve(offset, len, from, to);
            parts.push(SlotRange { offset: from, len: to - from });
        }
        parts
    }

    /// Takes `from..to` out of the free range at `offset`.
    fn carve(&mut self, offset: u32, len: u32, from: u32, to: u32) {
        self.take_out(offset, len);
        if from > offset {
            self.add(offset, from - offset);
        }
        if offset + len > to {
            self.add(to, offset + len - to);
        }
    }

    /// There are `capacity` slots now.
    pub(super) fn grow(&mut self, capacity: u32) {
        let (from, to) = (self.capacity, capacity - capacity % SLOTS_PER_LINE);
        if to > from {
            self.capacity = to;
            self.insert(from, to - from);
        }
    }

    /// Slots in given ranges.
    pub(super) fn used(&self) -> u32 {
        self.capacity - self.free - self.rest
    }

    /// Slots that are neither given nor free.
    pub(super) fn resting(&self) -> u32 {
        self.rest
    }

    /// Slots that can be given right now, though perhaps not in one piece.
    pub(super) fn free(&self) -> u32 {
        self.free
    }
}
