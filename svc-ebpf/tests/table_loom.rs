//! The flow table under loom: every order in which two or three writers and readers can meet, as far as the memory model
//! allows. The table is two buckets of one slot each, so that keys meet in both.
//!
//! At most three preemptions are tried, one with three threads, which takes seconds; `LOOM_MAX_PREEMPTIONS=4` takes minutes.

use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU64, Ordering, fence},
    thread,
};
use svc_common::flow_table::{FlowPlace, SLOT_LIVE};
use svc_ebpf::{
    table::{Item, Memory, read_once, remove_once, repeat, touch, write_at_bound, write_once},
    tables::Insert,
};

type V4 = [u8; 4];
const WORDS: usize = 5;

/// Buckets of one slot.
struct Model {
    controls: Vec<AtomicU64>,
    words: Vec<[AtomicU64; WORDS]>,
}

impl Model {
    fn new(buckets: usize) -> Self {
        Self {
            controls: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            words: (0..buckets).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        }
    }

    /// Live entries by key.
    fn live(&self, key: u64) -> usize {
        let is_live = |slot: &usize| {
            self.controls[*slot].load(Ordering::SeqCst) as u8 == SLOT_LIVE
                && self.words[*slot][0].load(Ordering::SeqCst) == key
        };
        (0..self.controls.len()).filter(is_live).count()
    }
}

impl Memory for Model {
    type Bucket = usize;
    const WAYS: usize = 1;

    fn bucket(&self, number: u32) -> Option<usize> {
        Some(number as usize)
    }

    fn control(&self, bucket: usize, _way: usize) -> u64 {
        self.controls[bucket].load(Ordering::Acquire)
    }

    fn word(&self, bucket: usize, _way: usize, index: usize) -> u64 {
        self.words[bucket][index].load(Ordering::Relaxed)
    }

    fn set_word(&self, bucket: usize, _way: usize, index: usize, value: u64) {
        self.words[bucket][index].store(value, Ordering::Relaxed);
    }

    fn swap_if(&self, bucket: usize, _way: usize, expected: u64, new: u64) -> u64 {
        fence(Ordering::SeqCst);
        let (Ok(found) | Err(found)) =
            self.controls[bucket].compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire);
        fence(Ordering::SeqCst);
        found
    }

    fn put_control(&self, bucket: usize, _way: usize, new: u64) {
        fence(Ordering::SeqCst);
        self.controls[bucket].store(new, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    fn fence(&self) {
        fence(Ordering::Acquire);
    }

    fn opaque(&self, value: usize) -> usize {
        value
    }
}

const TCP: u64 = 6 << 16;

/// An entry whose every word tells its key and a value, so that a mixture shows.
fn entry(key: u64, value: u64, seen: u64) -> Item<V4> {
    let ports = key & 0xffff_ffff | value << 32;
    Item { words: [key, ports, key << 32 | value, value, seen], control: TCP, place: place(key), notes: [0; 2] }
}

/// Even keys look in bucket 0 first, odd ones in bucket 1.
fn place(key: u64) -> FlowPlace {
    FlowPlace { first: (key & 1) as u32, second: (key & 1 ^ 1) as u32, way: 0 }
}

type Found = (usize, usize, u64);

fn read(model: &Model, item: &mut Item<V4>) -> Option<Found> {
    repeat(None, || read_once(model, item))
}

fn write(model: &Model, item: &Item<V4>, only_if_absent: bool) -> Insert {
    let mut item = *item;
    repeat(write_at_bound(only_if_absent), || write_once(model, &mut item, only_if_absent))
}

fn remove(model: &Model, item: &Item<V4>) {
    repeat((), || remove_once(model, item));
}

fn get(model: &Model, key: u64) -> Option<u64> {
    let mut item = entry(key, 0, 0);
    read(model, &mut item)?;
    let value = item.words[3];
    assert_eq!(item.words[..4], entry(key, value, 0).words[..4], "an entry that nobody wrote");
    Some(value)
}

fn insert(model: &Model, key: u64, value: u64) -> Insert {
    write(model, &entry(key, value, 1), true)
}

fn replace(model: &Model, key: u64, value: u64) -> Insert {
    write(model, &entry(key, value, 1), false)
}

/// Runs the first part alone, then the others at once, then the last one alone.
fn check(
    threads: Vec<fn(&Model) -> Option<Insert>>,
    before: fn(&Model),
    after: impl Fn(&Model, &[Option<Insert>]) + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    let bound = if threads.len() > 2 { 1 } else { 3 };
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.max_branches = 10_000;
    builder.check(move || {
        let model = Arc::new(Model::new(2));
        before(&model);
        let running: Vec<_> = threads
            .iter()
            .map(|&run| {
                let model = Arc::clone(&model);
                thread::spawn(move || run(&model))
            })
            .collect();
        let results: Vec<_> = running.into_iter().map(|thread| thread.join().unwrap()).collect();
        after(&model, &results);
    });
}

fn wins(results: &[Option<Insert>]) -> usize {
    results.iter().filter(|result| **result == Some(Insert::Done)).count()
}

#[test]
fn of_two_that_insert_one_key_exactly_one_wins() {
    check(
        vec![|m| Some(insert(m, 2, 10)), |m| Some(insert(m, 2, 20))],
        |_| {},
        |m, results| {
            assert_eq!(wins(results), 1, "{results:?}");
            assert_eq!(m.live(2), 1);
            assert_eq!(get(m, 2), Some(if results[0] == Some(Insert::Done) { 10 } else { 20 }));
        },
    );
}

/// The first bucket is full and its entry is as old as any: one claims a slot in the first, another in the second bucket.
#[test]
fn of_two_that_insert_one_key_into_a_full_table_exactly_one_wins() {
    check(
        vec![|m| Some(insert(m, 2, 10)), |m| Some(insert(m, 2, 20))],
        |m| {
            assert_eq!(insert(m, 4, 1), Insert::Done);
            assert_eq!(insert(m, 6, 1), Insert::Done);
        },
        |m, results| {
            assert_eq!(wins(results), 1, "{results:?}");
            assert_eq!(m.live(2), 1);
        },
    );
}

#[test]
fn of_three_that_insert_one_key_exactly_one_wins() {
    check(
        vec![|m| Some(insert(m, 2, 10)), |m| Some(insert(m, 2, 20)), |m| Some(insert(m, 2, 30))],
        |m| assert_eq!(insert(m, 4, 1), Insert::Done),
        |m, results| {
            assert_eq!(wins(results), 1, "{results:?}");
            assert_eq!(m.live(2), 1);
        },
    );
}

#[test]
fn a_reader_beside_an_eviction_sees_whole_entries() {
    check(
        vec![|m| Some(insert(m, 4, 40)), |m| {
            assert!(matches!(get(m, 2), None | Some(10)));
            assert!(matches!(get(m, 4), None | Some(40)));
            None
        }],
        |m| {
            assert_eq!(insert(m, 2, 10), Insert::Done);
            assert_eq!(insert(m, 6, 60), Insert::Done);
        },
        |m, results| {
            assert_eq!(wins(results), 1);
            assert_eq!(get(m, 4), Some(40));
            assert_eq!(m.live(2) + m.live(6), 1, "one made room");
        },
    );
}

#[test]
fn a_reader_beside_two_evictions_sees_whole_entries() {
    check(
        vec![|m| Some(insert(m, 4, 40)), |m| Some(insert(m, 8, 80)), |m| {
            assert!(matches!(get(m, 2), None | Some(10)));
            None
        }],
        |m| assert_eq!(insert(m, 2, 10), Insert::Done),
        |m, _| assert!(m.live(2) + m.live(4) + m.live(8) <= 2),
    );
}

#[test]
fn a_reader_beside_a_replacement_sees_the_old_or_the_new_value() {
    check(
        vec![|m| Some(replace(m, 2, 20)), |m| {
            assert!(matches!(get(m, 2), None | Some(10 | 20)));
            None
        }],
        |m| assert_eq!(insert(m, 2, 10), Insert::Done),
        |m, results| {
            assert_eq!(wins(results), 1);
            assert_eq!((get(m, 2), m.live(2)), (Some(20), 1));
        },
    );
}

#[test]
fn two_replacements_of_an_absent_key_leave_one_entry() {
    check(
        vec![|m| Some(replace(m, 2, 10)), |m| Some(replace(m, 2, 20))],
        |_| {},
        |m, results| {
            assert!(wins(results) >= 1);
            assert_eq!(m.live(2), 1);
        },
    );
}

#[test]
fn an_insertion_beside_a_replacement_leaves_one_entry() {
    check(
        vec![|m| Some(insert(m, 2, 10)), |m| Some(replace(m, 2, 20))],
        |m| assert_eq!(insert(m, 4, 1), Insert::Done),
        |m, results| {
            assert!(wins(results) >= 1, "{results:?}");
            assert_eq!(m.live(2), 1);
            // Whoever overwrites is last, if it succeeded.
            if results[1] == Some(Insert::Done) {
                assert_eq!(get(m, 2), Some(20));
            }
        },
    );
}

#[test]
fn an_insertion_beside_a_removal_finds_the_entry_or_makes_its_own() {
    check(
        vec![|m| Some(insert(m, 2, 20)), |m| {
            remove(m, &entry(2, 0, 0));
            None
        }],
        |m| assert_eq!(insert(m, 2, 10), Insert::Done),
        |m, results| match results[0] {
            // Made after the removal.
            Some(Insert::Done) => assert_eq!(get(m, 2), Some(20)),
            Some(Insert::Taken) => assert_eq!(m.live(2), 0),
            other => panic!("{other:?}"),
        },
    );
}

#[test]
fn marks_of_a_packet_never_land_on_another_flow() {
    check(
        vec![|m| Some(insert(m, 4, 40)), |m| {
            let mut item = entry(2, 0, 0);
            if let Some(found) = read(m, &mut item) {
                touch(m, &mut item, found, 9, true);
            }
            None
        }],
        |m| {
            assert_eq!(insert(m, 2, 10), Insert::Done);
            assert_eq!(insert(m, 6, 60), Insert::Done);
        },
        |m, results| {
            assert_eq!(wins(results), 1);
            let (_, _, control) = read(m, &mut entry(4, 0, 0)).expect("it was inserted");
            assert_eq!(control >> 8 & 0x7f, 0, "no mark");
        },
    );
}

#[test]
fn marks_of_two_packets_add_up() {
    check(
        vec![
            |m| {
                let mut item = entry(2, 0, 0);
                let found = read(m, &mut item).expect("it is there");
                touch(m, &mut item, found, 9, true);
                None
            },
            |m| {
                let mut item = entry(2, 0, 0);
                let found = read(m, &mut item).expect("it is there");
                touch(m, &mut item, found, 9, false);
                None
            },
        ],
        |m| assert_eq!(insert(m, 2, 10), Insert::Done),
        |m, _| {
            let (_, _, control) = read(m, &mut entry(2, 0, 0)).expect("it is there");
            assert_eq!(control >> 8 & 0x7f, 0b110, "used and closing");
        },
    );
}
