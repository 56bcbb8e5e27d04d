//! The flow table in plain memory, shared by threads: for tests, and for what can be measured without a kernel.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use svc_common::{
    Flow, FlowKey,
    flow_table::{
        FLOW_HASH_NUMBERS, FLOW_WAYS, FlowWords, SLOT_LIVE, control_of_key, control_of_value, flow_hash_numbers,
        place_of,
    },
};

use crate::{
    table::{Item, Memory, read_once, remove_once, repeat, touch, write_at_bound, write_once},
    tables::Insert,
};

/// A table of one family.
#[derive(Debug)]
pub struct HostTable<A> {
    memory: HostMemory,
    numbers: [u64; FLOW_HASH_NUMBERS],
    mask: u32,
    family: std::marker::PhantomData<A>,
}

#[derive(Debug)]
struct HostMemory {
    words: Vec<AtomicU64>,
    /// Words of a slot, the control word included.
    stride: usize,
}

impl Memory for HostMemory {
    type Bucket = usize;
    const WAYS: usize = FLOW_WAYS;

    fn bucket(&self, number: u32) -> Option<usize> {
        Some(number as usize * FLOW_WAYS * self.stride)
    }

    fn control(&self, bucket: usize, way: usize) -> u64 {
        self.words[bucket + way * self.stride].load(Ordering::Acquire)
    }

    fn word(&self, bucket: usize, way: usize, index: usize) -> u64 {
        self.words[bucket + way * self.stride + 1 + index].load(Ordering::Relaxed)
    }

    fn set_word(&self, bucket: usize, way: usize, index: usize, value: u64) {
        self.words[bucket + way * self.stride + 1 + index].store(value, Ordering::Relaxed);
    }

    fn swap_if(&self, bucket: usize, way: usize, expected: u64, new: u64) -> u64 {
        fence(Ordering::SeqCst);
        let control = &self.words[bucket + way * self.stride];
        let (Ok(found) | Err(found)) = control.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        found
    }

    fn put_control(&self, bucket: usize, way: usize, new: u64) {
        fence(Ordering::SeqCst);
        self.words[bucket + way * self.stride].store(new, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn fence(&self) {
        fence(Ordering::Acquire);
    }

    fn opaque(&self, value: usize) -> usize {
        value
    }
}

impl<A: FlowWords> HostTable<A> {
    /// An empty table with room for `buckets` (a power of two, at least 2) times [`FLOW_WAYS`] entries.
    pub fn new(buckets: u32, seed: u64) -> Self {
        assert!(buckets.is_power_of_two() && buckets >= 2);
        let stride = size_of::<A::Slot>() / 8;
        let words = (0..buckets as usize * FLOW_WAYS * stride).map(|_| AtomicU64::new(0)).collect();
        Self {
            memory: HostMemory { words, stride },
            numbers: flow_hash_numbers(seed),
            mask: buckets - 1,
            family: std::marker::PhantomData,
        }
    }

    fn item(&self, key: &FlowKey<A>, flow: Option<&Flow<A>>) -> Item<A> {
        let mut words = A::EMPTY;
        A::key(key, &mut words);
        let mut control = control_of_key(key);
        let place = place_of::<A>(|index| self.numbers[index], &words, control, self.mask);
        if let Some(flow) = flow {
            A::value(flow, &mut words);
            control |= control_of_value(flow);
        }
        Item { words, control, place, notes: [0; 2] }
    }

    /// Finds an entry without touching it.
    pub fn peek(&self, key: &FlowKey<A>) -> Option<Flow<A>> {
        let mut item = self.item(key, None);
        let (_, _, control) = repeat(None, || read_once(&self.memory, &mut item))?;
        let mut flow = Flow::empty();
        A::to_flow(&item.words, control, &mut flow);
        Some(flow)
    }

    /// Finds an entry and touches it at time `now`; also says whether it is the first time in this unit of the clock.
    pub fn flow(&self, key: &FlowKey<A>, now: u32, closes: bool) -> Option<(Flow<A>, bool)> {
        let mut item = self.item(key, None);
        let found = repeat(None, || read_once(&self.memory, &mut item))?;
        let first_in_tick = touch(&self.memory, &mut item, found, now, closes);
        let mut flow = Flow::empty();
        A::to_flow(&item.words, found.2, &mut flow);
        Some((flow, first_in_tick))
    }

    /// Makes an entry if there is none.
    pub fn insert(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Insert {
        self.write(key, flow, true)
    }

    /// Makes or replaces an entry; false if the table did not take it.
    pub fn replace(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.write(key, flow, false) == Insert::Done
    }

    fn write(&self, key: &FlowKey<A>, flow: &Flow<A>, only_if_absent: bool) -> Insert {
        let mut item = self.item(key, Some(flow));
        repeat(write_at_bound(only_if_absent), || write_once(&self.memory, &mut item, only_if_absent))
    }

    /// Removes an entry.
    pub fn remove(&self, key: &FlowKey<A>) {
        let item = self.item(key, None);
        repeat((), || remove_once(&self.memory, &item));
    }

    /// All live entries, while nobody writes.
    pub fn entries(&self) -> Vec<(FlowKey<A>, Flow<A>)> {
        let live = self.memory.words.chunks_exact(self.memory.stride).filter_map(|slot| {
            let control = slot[0].load(Ordering::Relaxed);
            let mut words = A::EMPTY;
            for (word, atomic) in words.as_mut().iter_mut().zip(&slot[1..]) {
                *word = atomic.load(Ordering::Relaxed);
            }
            let mut flow = Flow::empty();
            A::to_flow(&words, control, &mut flow);
            (control as u8 == SLOT_LIVE).then(|| (A::to_key(&words, control), flow))
        });
        live.collect()
    }
}
