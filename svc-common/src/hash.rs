//! Flow hashing and slot arithmetic, the same on every node so that a flow which moves to another node keeps its backend.

use bytemuck::{Pod, Zeroable};

use crate::Address;

/// Slots in one element of the SLOTS array. An array element takes a multiple of 8 bytes in the kernel
/// (`array_map_alloc`, kernel/bpf/arraymap.c), so single 4-byte slots would waste half of the memory.
pub const SLOTS_PER_LINE: u32 = 16;

/// Element of SLOTS: one cache line of backend ids. Slot `i` is `lines[i / 16].backends[i % 16]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SlotLine {
    /// Backend ids.
    pub backends: [u32; SLOTS_PER_LINE as usize],
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd

#[inline(always)]
fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

/// Hash of a flow for choosing a slot. Ports in *host order*. Deterministic and without a seed: all nodes and all
/// restarts agree. Not for hash tables that an attacker may fill.
#[inline(always)]
pub fn flow_hash<A: Address>(
    source: &A,
    source_port: u16,
    destination: &A,
    destination_port: u16,
    protocol: u8,
) -> u32 {
    let ports = u64::from(source_port) << 32 | u64::from(destination_port) << 8 | u64::from(protocol);
    let mut state = mix(MULTIPLIER, ports);
    state = mix_address(state, source);
    state = mix_address(state, destination);
    finish(state)
}

/// Hash of a client for choosing a slot under `sessionAffinity: ClientIP`: ports play no part, nor do ids, which every node
/// gives its own way.
#[inline(always)]
pub fn client_hash<A: Address>(source: &A) -> u32 {
    finish(mix_address(MULTIPLIER, source))
}

/// Hash of an address and port for [`crate::filter`]. Port in *host order*. One multiplication less than a chain of all
/// parts would take: every packet pays for it.
#[inline(always)]
pub(crate) fn filter_hash<A: Address>(address: &A, port: u16, protocol: u8) -> u32 {
    let end = u64::from(port) << 16 | u64::from(protocol);
    let [a, b, c, d] = address.words();
    if A::VERSION == 4 {
        finish(mix(MULTIPLIER, u64::from(a) << 32 | end))
    } else {
        finish(mix(mix(mix(MULTIPLIER, end), u64::from(a) << 32 | u64::from(b)), u64::from(c) << 32 | u64::from(d)))
    }
}

/// Hash of a packet's addresses for [`crate::filter`].
#[inline(always)]
pub(crate) fn pair_hash<A: Address>(source: &A, destination: &A) -> u32 {
    let (source, destination) = (source.words(), destination.words());
    if A::VERSION == 4 {
        return finish(mix(MULTIPLIER, u64::from(source[0]) << 32 | u64::from(destination[0])));
    }
    // One address's upper half with the other's lower one: the addresses of a node agree in their upper halves.
    let half = |words: [u32; 4], at: usize| u64::from(words[at]) << 32 | u64::from(words[at + 1]);
    let state = mix(MULTIPLIER, half(source, 2) ^ half(destination, 0));
    finish(mix(state, half(destination, 2) ^ half(source, 0)))
}

#[inline(always)]
fn mix_address<A: Address>(state: u64, address: &A) -> u64 {
    let [a, b, c, d] = address.words();
    if A::VERSION == 4 {
        mix(state, u64::from(a))
    } else {
        mix(mix(state, u64::from(a) << 32 | u64::from(b)), u64::from(c) << 32 | u64::from(d))
    }
}

#[inline(always)]
fn finish(state: u64) -> u32 {
    (mix(state, state >> 29) >> 32) as u32
}

/// Maps a hash to a slot of a range of `len` slots, without a division: the high word of `hash × len`.
/// The result is below `len`; for `len` 0 it is 0.
#[inline(always)]
pub fn slot_in_range(hash: u32, len: u32) -> u32 {
    ((u64::from(hash) * u64::from(len)) >> 32) as u32
}

const _: () = assert!(size_of::<SlotLine>() == 64);
