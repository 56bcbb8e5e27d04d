//! The flow table, one thread at a time: it is a map that may forget, and never anything else.

use std::collections::HashMap;

use proptest::prelude::*;
use svc_common::{Flow, FlowKey, FlowState};
use svc_ebpf::{host_table::HostTable, tables::Insert};

type V4 = [u8; 4];
type V6 = [u8; 16];

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u32),
    Replace(u8, u32),
    Remove(u8),
    Flow(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..24;
    prop_oneof![
        3 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Replace(key, value)),
        1 => key().prop_map(Step::Remove),
        3 => (key(), any::<bool>()).prop_map(|(key, closes)| Step::Flow(key, closes)),
    ]
}

/// Keys that differ in one field each, the hook and the protocol among them.
fn key<A: svc_common::Address>(n: u8) -> FlowKey<A> {
    let mut source = A::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut source);
    bytes[0] = n / 12;
    FlowKey {
        source,
        destination: A::zeroed(),
        source_port: u16::from(n / 6 % 2),
        destination_port: u16::from(n / 4 % 3),
        protocol: if n & 1 == 0 { 6 } else { 17 },
        hook: n / 2 % 2,
        pad: [0; 2],
    }
}

fn flow<A: svc_common::Address>(value: u32, now: u32) -> Flow<A> {
    Flow { backend: value, generation: !value, service: value ^ 7, port: value as u16, last_seen: now, ..Flow::empty() }
}

fn compare<A: svc_common::FlowWords>(steps: &[Step], buckets: u32, seed: u64) -> Result<(), TestCaseError> {
    let table = HostTable::<A>::new(buckets, seed);
    // What was written last, whether or not the table still has it.
    let mut model = HashMap::new();
    let has_room = buckets >= 64;
    for (now, step) in (1..).zip(steps) {
        match *step {
            Step::Insert(n, value) => {
                let there = table.peek(&key::<A>(n));
                let result = table.insert(&key(n), &flow(value, now));
                prop_assert_eq!(result, if there.is_some() { Insert::Taken } else { Insert::Done });
                if result == Insert::Done {
                    prop_assert!(!has_room || !model.contains_key(&n), "an entry was lost");
                    model.insert(n, flow(value, now));
                }
            }
            Step::Replace(n, value) => {
                prop_assert!(table.replace(&key::<A>(n), &flow(value, now)));
                model.insert(n, flow(value, now));
            }
            Step::Remove(n) => {
                table.remove(&key(n));
                model.remove(&n);
                prop_assert_eq!(table.peek(&key::<A>(n)), None);
            }
            Step::Flow(n, closes) => {
                let found = table.flow(&key(n), now, closes);
                prop_assert!(!has_room || found.is_some() == model.contains_key(&n), "an entry was lost");
                if let Some((found, first)) = found {
                    let expected = model.get_mut(&n).expect("it was written once");
                    prop_assert_eq!(first, expected.last_seen != now);
                    expected.last_seen = now;
                    prop_assert_eq!(&found, &*expected);
                    if closes {
                        expected.state = FlowState::Closing as u8;
                    }
                }
            }
        }
    }
    let mut entries = table.entries();
    let count = entries.len();
    entries.sort_by_key(|(key, _)| (key.source_port, key.destination_port, key.protocol, key.hook, bytes(key)));
    entries.dedup_by_key(|(key, _)| *key);
    prop_assert_eq!(entries.len(), count, "a key is there twice");
    for (found, value) in entries {
        let n = (0..24).find(|n| key::<A>(*n) == found).expect("a key that was written");
        prop_assert_eq!(Some(&value), model.get(&n));
    }
    Ok(())
}

fn bytes<A: svc_common::Address>(key: &FlowKey<A>) -> Vec<u8> {
    bytemuck::bytes_of(&key.source).to_vec()
}

proptest! {
    #[test]
    fn a_table_with_room_is_a_map(steps in proptest::collection::vec(step(), 0..80), seed in any::<u64>()) {
        compare::<V4>(&steps, 64, seed)?;
        compare::<V6>(&steps, 64, seed)?;
    }

    #[test]
    fn a_full_table_forgets_and_never_confuses(steps in proptest::collection::vec(step(), 0..200), seed in any::<u64>()) {
        compare::<V4>(&steps, 2, seed)?;
        compare::<V6>(&steps, 2, seed)?;
    }
}

/// What gives way: the closing before the unused before the oldest.
#[test]
fn flows_in_use_stay_while_others_come_and_go() {
    let table = HostTable::<V4>::new(2, 1);
    let nth = |n: u16| FlowKey { source_port: n, ..key::<V4>(0) };
    for n in 0..4 {
        assert_eq!(table.insert(&nth(n), &flow(u32::from(n), 1)), Insert::Done);
        table.flow(&nth(n), 1, n == 3);
    }
    for n in 100..200 {
        assert_eq!(table.insert(&nth(n), &flow(0, 2)), Insert::Done);
    }
    for n in 0..3 {
        assert!(table.peek(&nth(n)).is_some(), "{n} is in use");
    }
    assert!(table.peek(&nth(3)).is_none(), "it was closing");
}
