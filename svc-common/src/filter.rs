//! FILTER and UNUSUAL: which packets Services can have to do with, as filters of bits: no for most traffic at the price of
//! one array lookup, and sometimes yes for what is nobody's, which costs time and nothing else.
//!
//! A bit that is missing would be an outage, so bits are set before what they stand for is written, and stay when it is
//! removed: flows outlive their Service. The agent clears those that nothing needs when it is complete, and when many have
//! gathered. Until it has done so once ([`crate::config::CONFIG_FILTER`] is not set) the programs look everything up.

use crate::{
    Address,
    hash::{filter_hash, pair_hash},
};

/// Bits of FILTER: 512 KiB. At 10,000 Services of ten endpoints one in thirty is set.
pub const FILTER_BITS: u32 = 1 << 22;
/// Elements of FILTER, 64 bits each.
pub const FILTER_WORDS: u32 = FILTER_BITS / 64;
/// Elements of UNUSUAL: not 0 for pairs of addresses whose flows have other entries at ingress than client → frontend.
pub const UNUSUAL: u32 = 1 << 14;

/// The address and port are a frontend's, or the address is a VIP as a whole (with port and protocol 0).
pub const KNOWN_FRONTEND: u32 = 1 << 0;
/// The address and port are an endpoint's.
pub const KNOWN_ENDPOINT: u32 = 1 << 1;

/// Where the two `KNOWN_*` bits of an address and port (*host order*) are: the number of the lower one in FILTER. They are
/// in one word.
#[inline(always)]
pub fn filter_place<A: Address>(address: &A, port: u16, protocol: u8) -> u32 {
    filter_hash(address, port, protocol) & (FILTER_BITS - 2)
}

/// The element of UNUSUAL of a packet's addresses.
#[inline(always)]
pub fn unusual_place<A: Address>(source: &A, destination: &A) -> u32 {
    pair_hash(source, destination) & (UNUSUAL - 1)
}
