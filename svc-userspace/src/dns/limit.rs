//! How many bytes over UDP a client may get beyond twice what it sent, so that a forged source address gains little: pure.
//!
//! Clients share a bucket when their hashes meet; then both come by TCP a little earlier. It never refuses an answer
//! altogether: TCP is always open.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use super::client::key;

/// Bytes that a bucket gains in a second.
const RATE: u64 = 1 << 20;
/// Bytes that it holds at most.
const BURST: u64 = 2 << 20;
/// Number of buckets.
const BUCKETS: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    bytes: u64,
    at_ms: u64,
}

/// The buckets of all clients.
#[derive(Debug)]
pub struct Limit {
    buckets: Box<[Bucket]>,
    state: RandomState,
}

impl Default for Limit {
    fn default() -> Self {
        Self { buckets: vec![Bucket { bytes: BURST, at_ms: 0 }; BUCKETS].into(), state: RandomState::new() }
    }
}

impl Limit {
    /// Whether a client may get this many bytes more.
    pub fn allows(&mut self, client: IpAddr, bytes: usize, now_ms: u64) -> bool {
        let hash = self.state.hash_one(key(client));
        let length = self.buckets.len() as u64;
        let Some(bucket) = usize::try_from(hash % length).ok().and_then(|index| self.buckets.get_mut(index)) else {
            return true;
        };
        let gained = now_ms.saturating_sub(bucket.at_ms).saturating_mul(RATE) / 1000;
        if gained > 0 {
            bucket.bytes = bucket.bytes.saturating_add(gained).min(BURST);
            bucket.at_ms = now_ms;
        }
        match bucket.bytes.checked_sub(bytes as u64) {
            Some(rest) => {
                bucket.bytes = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_burst_and_then_its_rate() {
        let mut limit = Limit::default();
        let client = "10.0.0.1".parse().expect("an address");
        let mut at = |now_ms| (0..10_000).take_while(|_| limit.allows(client, 1024, now_ms)).count();
        assert_eq!((at(0), at(0), at(1000), at(1500), at(100_000)), (2048, 0, 1024, 512, 2048));
    }

    #[test]
    fn addresses_of_one_subnet_are_one_client() {
        let mut limit = Limit::default();
        let address = |host: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, host]);
        assert!(limit.allows(address(1), 2 << 20, 0));
        assert!(!limit.allows(address(2), 1, 0));
    }
}
