//! Consistent-hash tables, after "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016, section 3.4).
//!
//! A table depends on the addresses and ports of its backends only, so all nodes and all restarts build the same one.
//! The kernel finds a slot by multiply-and-shift (`svc_common::slot_in_range`), for which any length will do; the length
//! is a prime so that a backend's walk reaches every slot.
//!
//! Two things differ from the paper. A backend whose next slot is taken has lost its turn, so a slot belongs to the one
//! that has it earliest in its walk (a stable matching): when a backend leaves, half as many other slots move. And a walk is cubic, not linear: two linear walks with nearly the same step shadow each other, and in small sets, which are
//! most, a quarter of the slots could move.
//!
//! The length follows a ladder: one slot for one backend, then the smallest fit prime ≥ 100 × 2^k for up to 2^k backends,
//! beginning with 2^2. So each backend has at least 100 slots, no two differ by more than one (1%), and while a Service
//! stays on its rung a backend that leaves moves its own slots and few others. A length that followed every change of the
//! number would reshuffle all slots each time. Crossing a rung does reshuffle; there are log2 of them, and flows that
//! exist are not affected by it.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use foldhash::fast::RandomState;
use svc_common::{flow_hash, slot_in_range};

use crate::hash::HashMap;

const SLOTS_PER_BACKEND: u32 = 100;
const LOWEST_RUNG: u32 = 2;
const RUNGS: usize = 15;

/// Most backends of one table that keep the balance of 1% (2^16); beyond, the table stays at its greatest length.
pub const MOST_BALANCED: usize = 1 << (LOWEST_RUNG as usize + RUNGS - 1);

const LENGTHS: [u32; RUNGS] = {
    let mut lengths = [0; RUNGS];
    let mut rung = 0;
    while rung < RUNGS {
        lengths[rung] = next_prime(SLOTS_PER_BACKEND << (LOWEST_RUNG + rung as u32));
        rung += 1;
    }
    lengths
};

/// The smallest prime ≥ `from` that is 2 modulo 3: modulo such a prime, cubing is a permutation.
const fn next_prime(from: u32) -> u32 {
    let mut candidate = from | 1;
    loop {
        while candidate % 3 != 2 {
            candidate += 2;
        }
        let mut divisor = 3;
        while divisor * divisor <= candidate && !candidate.is_multiple_of(divisor) {
            divisor += 2;
        }
        if divisor * divisor > candidate {
            return candidate;
        }
        candidate += 2;
    }
}

/// Slots of a table for `backends` backends.
pub fn table_len(backends: usize) -> u32 {
    match backends {
        0 | 1 => backends as u32,
        _ => {
            let rung = backends.next_power_of_two().trailing_zeros().saturating_sub(LOWEST_RUNG) as usize;
            LENGTHS[rung.min(RUNGS - 1)]
        }
    }
}

/// Builds tables; keeps its working memory from one to the next.
#[derive(Debug, Default)]
pub struct Builder {
    walks: Vec<Walk>,
    prepared: Prepared,
}

/// Tables that were built before anybody asked. All are in few large blocks, which leave no holes in the heap when they go.
#[derive(Debug, Default)]
struct Prepared {
    /// By a hash of the backends in their order: where these begin, and the slots.
    tables: HashMap<u64, (usize, usize)>,
    backends: Vec<SocketAddr>,
    /// Each is a backend's place in that order.
    slots: Vec<u8>,
    hasher: RandomState,
}

/// Most slots that are kept prepared, a byte each.
const MOST_PREPARED: usize = 64 << 20;

/// A backend's walk over the slots: step j is at `scale × (start + j)³ + shift` modulo the length, every slot once.
/// It advances by finite differences: three additions a step.
#[derive(Debug)]
struct Walk {
    address: SocketAddr,
    id: u32,
    at: u32,
    first: u32,
    second: u32,
    third: u32,
    /// Slots still wanted.
    wants: u32,
}

impl Walk {
    fn new(address: SocketAddr, id: u32) -> Self {
        Self { address, id, at: 0, first: 0, second: 0, third: 0, wants: 0 }
    }

    fn begin(&mut self, len: u32, wants: u32) {
        let address = self.address;
        let hash = |salt| match address.ip() {
            IpAddr::V4(ip) => flow_hash(&ip.octets(), address.port(), &ip.octets(), salt, 0),
            IpAddr::V6(ip) => flow_hash(&ip.octets(), address.port(), &ip.octets(), salt, 0),
        };
        let modulus = u64::from(len);
        let start = u64::from(slot_in_range(hash(1), len));
        let scale = u64::from(1 + slot_in_range(hash(2), len - 1));
        let scaled = |value: u64| (scale * (value % modulus) % modulus) as u32;
        let cube = u64::from(scaled(start * start % modulus * start));
        self.at = ((cube + u64::from(slot_in_range(hash(3), len))) % modulus) as u32;
        self.first = scaled(3 * start * start + 3 * start + 1);
        self.second = scaled(6 * start + 6);
        self.third = scaled(6);
        self.wants = wants;
    }

    fn advance(&mut self, len: u32) {
        let add = |a: u32, b: u32| if a + b >= len { a + b - len } else { a + b };
        self.at = add(self.at, self.first);
        self.first = add(self.first, self.second);
        self.second = add(self.second, self.third);
    }
}

impl Prepared {
    fn hash(&self, walks: &[Walk]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for walk in walks {
            walk.address.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Notes that the slots of a set come next; false if they are there, or another set has the same hash.
    fn claim(&mut self, walks: &[Walk]) -> bool {
        let (hash, at) = (self.hash(walks), (self.backends.len(), self.slots.len()));
        let std::collections::hash_map::Entry::Vacant(entry) = self.tables.entry(hash) else { return false };
        entry.insert(at);
        self.backends.extend(walks.iter().map(|walk| walk.address));
        true
    }

    fn get(&self, walks: &[Walk]) -> Option<&[u8]> {
        if self.tables.is_empty() {
            return None;
        }
        let &(backends, slots) = self.tables.get(&self.hash(walks))?;
        let found = self.backends.get(backends..backends + walks.len())?;
        let same = found.iter().eq(walks.iter().map(|walk| &walk.address));
        self.slots.get(slots..slots + table_len(walks.len()) as usize).filter(|_| same)
    }
}

impl Builder {
    /// The table of a set of backends: each slot holds the id of one of them. Addresses are distinct, ids are not 0; the order of
    /// `backends` plays no part, and ids only name the result.
    pub fn build(&mut self, backends: impl IntoIterator<Item = (SocketAddr, u32)>) -> Vec<u32> {
        self.begin(backends);
        match self.prepared.get(&self.walks) {
            Some(slots) => slots.iter().map(|place| self.walks[usize::from(*place)].id).collect(),
            None => self.fill(),
        }
    }

    /// Builds the table of a set of at least two backends ahead of time, for the next [`Builder::build`] of it. Large sets, and
    /// more tables than there is room for, are left for later.
    pub fn prepare(&mut self, backends: impl IntoIterator<Item = SocketAddr>) {
        self.begin(backends.into_iter().map(|address| (address, 0)));
        let len = table_len(self.walks.len()) as usize;
        let most = usize::from(u8::MAX) + 1;
        if len < 2 || self.walks.len() > most || self.prepared.slots.len() + len > MOST_PREPARED {
            return;
        }
        if self.prepared.claim(&self.walks) {
            for (place, walk) in (1..).zip(&mut self.walks) {
                walk.id = place;
            }
            let slots = self.fill();
            self.prepared.slots.extend(slots.into_iter().map(|place| (place - 1) as u8));
        }
    }

    /// Gives up what was prepared and not asked for.
    pub fn forget_prepared(&mut self) {
        self.prepared = Prepared::default();
    }

    fn begin(&mut self, backends: impl IntoIterator<Item = (SocketAddr, u32)>) {
        self.walks.clear();
        self.walks.extend(backends.into_iter().map(|(address, id)| Walk::new(address, id)));
        self.walks.sort_unstable_by_key(|walk| walk.address);
    }

    /// The table of the walks, which are used up.
    fn fill(&mut self) -> Vec<u32> {
        let walks = &mut self.walks;
        let count = walks.len() as u32;
        let len = table_len(walks.len());
        if len <= 1 {
            return walks.iter().map(|walk| walk.id).collect();
        }
        for (index, walk) in (0..).zip(walks.iter_mut()) {
            walk.begin(len, len / count + u32::from(index < len % count));
        }
        let mut slots = vec![0; len as usize];
        // Shares add up to the length and a walk reaches every slot, so this ends before any walk comes round.
        while !walks.is_empty() {
            walks.retain_mut(|walk| {
                let slot = &mut slots[walk.at as usize];
                if *slot == 0 {
                    *slot = walk.id;
                    walk.wants -= 1;
                }
                walk.advance(len);
                walk.wants > 0
            });
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::btree_set, prelude::*, sample::Index};

    use super::*;

    fn backends(count: u32) -> Vec<(SocketAddr, u32)> {
        (1..=count).map(|id| (SocketAddr::from(((0x0a00_0000 + id).to_be_bytes(), 8080)), id)).collect()
    }

    fn shares(slots: &[u32]) -> HashMap<u32, u32> {
        let mut shares = HashMap::new();
        for id in slots {
            *shares.entry(*id).or_default() += 1;
        }
        shares
    }

    /// Slots that name another backend than before, of those that did not name the one that left.
    fn disrupted(before: &[u32], after: &[u32], gone: u32) -> usize {
        assert_eq!(before.len(), after.len());
        before.iter().zip(after).filter(|(old, new)| **old != gone && old != new).count()
    }

    fn assert_balanced(slots: &[u32], backends: usize) {
        let shares = shares(slots);
        assert_eq!(shares.len(), backends, "every backend has slots");
        let (least, most) = (shares.values().min().unwrap_or(&0), shares.values().max().unwrap_or(&0));
        assert!(most - least <= 1 && (backends < 2 || *least >= 100), "{least}..{most} for {backends} backends");
    }

    #[test]
    fn lengths_are_primes_with_room_for_every_rung() {
        assert_eq!([0, 1, 2, 4, 5, 8, 9].map(table_len), [0, 1, 401, 401, 809, 809, 1601]);
        for rung in 0..RUNGS {
            let most = 1usize << (rung + LOWEST_RUNG as usize);
            let len = table_len(most);
            assert!(u64::from(len) >= 100 * most as u64);
            assert!((2..=len.isqrt()).all(|d| !len.is_multiple_of(d)), "{len} is prime");
        }
        assert_eq!(table_len(usize::MAX >> 1), table_len(MOST_BALANCED), "the ladder ends");
    }

    #[test]
    fn five_thousand_endpoints_are_balanced() {
        assert_balanced(&Builder::default().build(backends(5_000)), 5_000);
    }

    #[test]
    fn one_backend_needs_one_slot_and_none_needs_none() {
        assert_eq!(Builder::default().build(backends(1)), [1]);
        assert_eq!(Builder::default().build(backends(0)), [0; 0]);
    }

    #[test]
    fn a_table_is_the_same_for_ever() {
        // Other nodes may run another version: a change here moves every flow that changes nodes.
        let slots = Builder::default().build(backends(3));
        assert_eq!(slots[..16], [3, 3, 1, 3, 1, 2, 3, 2, 2, 2, 2, 2, 3, 3, 2, 2]);
    }

    #[test]
    fn few_slots_move_but_those_of_the_backend_that_left() {
        for count in [3, 4, 6, 8, 10, 16, 30, 64, 100, 500] {
            let mut builder = Builder::default();
            let all = backends(count);
            let before = builder.build(all.clone());
            let mut moved = 0;
            let sample = count.min(20);
            for gone in 1..=sample {
                if table_len(count as usize - 1) == table_len(count as usize) {
                    moved += disrupted(&before, &builder.build(all.iter().copied().filter(|b| b.1 != gone)), gone);
                }
            }
            // The mean over those that leave stays below 2%: 1.5% at 8 and 16 backends, 0.5% at 500.
            let all = sample as usize * before.len();
            assert!(moved * 50 < all, "{count} backends: {moved} of {all} slots move needlessly");
        }
    }

    proptest! {
        #[test]
        fn balance_holds_for_any_set_in_any_order(
            hosts in btree_set(any::<(u32, u16)>(), 1..60),
            swaps in proptest::collection::vec(any::<(Index, Index)>(), 0..60),
        ) {
            let mut set: Vec<(SocketAddr, u32)> = hosts
                .iter()
                .zip(1..)
                .map(|((host, port), id)| (SocketAddr::from((host.to_be_bytes(), *port)), id))
                .collect();
            let mut builder = Builder::default();
            let slots = builder.build(set.clone());
            assert_balanced(&slots, set.len());
            for (a, b) in swaps {
                let count = set.len();
                set.swap(a.index(count), b.index(count));
            }
            prop_assert_eq!(&slots, &builder.build(set.clone()), "order plays no part");
            builder.prepare(set.iter().map(|(address, _)| *address));
            builder.prepare(set.iter().skip(1).map(|(address, _)| *address));
            prop_assert!(set.len() < 2 || builder.prepared.slots.len() >= slots.len());
            prop_assert_eq!(&slots, &builder.build(set.clone()), "nor does it that it was prepared");
            let renamed = builder.build(set.iter().map(|(address, id)| (*address, id + 1000)));
            prop_assert!(slots.iter().zip(&renamed).all(|(id, other)| id + 1000 == *other), "ids play no part");
        }
    }
}
