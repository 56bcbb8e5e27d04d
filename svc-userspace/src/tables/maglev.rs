//! Consistent-hash tables ("Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! A table depends on the addresses and ports of its backends only, so all nodes and all restarts build the same one.
//! The kernel finds a slot by multiply-and-shift (`svc_common::slot_in_range`), for which any length will do; the length
//! is prime so that every step of a backend's walk reaches every slot.
//!
//! The length follows a ladder: one slot for one backend, then the smallest prime ≥ 100 × 2^k for up to 2^k backends,
//! beginning with 2^2. So each backend has at least 100 slots, no two differ by more than one (1%), and while a Service
//! stays on its rung a backend that leaves moves its own slots and few others. A length that followed every change of the
//! number would reshuffle all slots each time. Crossing a rung does reshuffle; there are log2 of them, and flows that
//! exist are not affected by it.

use std::net::{IpAddr, SocketAddr};

use svc_common::{flow_hash, slot_in_range};

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

const fn next_prime(from: u32) -> u32 {
    let mut candidate = from | 1;
    loop {
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
}

/// A backend's walk over the slots: every slot once, in an order of its own.
#[derive(Debug)]
struct Walk {
    address: SocketAddr,
    id: u32,
    at: u32,
    step: u32,
}

impl Walk {
    fn new(address: SocketAddr, id: u32, len: u32) -> Self {
        let hash = |salt| match address.ip() {
            IpAddr::V4(ip) => flow_hash(&ip.octets(), address.port(), &ip.octets(), salt, 0),
            IpAddr::V6(ip) => flow_hash(&ip.octets(), address.port(), &ip.octets(), salt, 0),
        };
        Self { address, id, at: slot_in_range(hash(1), len), step: 1 + slot_in_range(hash(2), len - 1) }
    }

    fn advance(&mut self, len: u32) {
        self.at += self.step;
        if self.at >= len {
            self.at -= len;
        }
    }
}

impl Builder {
    /// The table of a set of backends: each slot holds the id of one of them. Addresses are distinct, ids are not 0; the
    /// order of `backends` plays no part, and ids only name the result.
    pub fn build(&mut self, backends: impl IntoIterator<Item = (SocketAddr, u32)>) -> Vec<u32> {
        self.walks.clear();
        self.walks.extend(backends.into_iter().map(|(address, id)| Walk { address, id, at: 0, step: 1 }));
        let len = table_len(self.walks.len());
        if let [only] = self.walks.as_slice() {
            return vec![only.id];
        }
        for walk in &mut self.walks {
            *walk = Walk::new(walk.address, walk.id, len);
        }
        self.walks.sort_unstable_by_key(|walk| walk.address);
        let mut slots = vec![0; len as usize];
        let mut left = slots.len();
        while left > 0 {
            // Turn by turn, so that nobody gets two slots more than another.
            for walk in self.walks.iter_mut().take(left) {
                while slots[walk.at as usize] != 0 {
                    walk.advance(len);
                }
                slots[walk.at as usize] = walk.id;
                left -= 1;
            }
        }
        slots
    }
}
