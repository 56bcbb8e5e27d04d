//! TARGETS: which addresses and ports may be endpoints, as a filter of bits: no for most traffic at the price of one array
//! lookup, and sometimes yes for what is none, which costs time and nothing else.

use crate::{Address, hash::target_hash};

/// Bits of the filter. At 100,000 endpoints one in ten is set.
pub const TARGET_BITS: u32 = 1 << 20;
/// Elements of TARGETS, 64 bits each.
pub const TARGET_WORDS: u32 = TARGET_BITS / 64;

/// The bit of an endpoint, below [`TARGET_BITS`]; `port` in *host order*.
#[inline(always)]
pub fn target_bit<A: Address>(address: &A, port: u16, protocol: u8) -> u32 {
    target_hash(address, port, protocol) & (TARGET_BITS - 1)
}
