//! FLOWS_V4/V6 as they lie in memory: an array of buckets, each a few slots; a slot is a control word, the key and the
//! value of one flow, and the time of its last packet.
//!
//! How slots are claimed, read and given up is `svc_ebpf::table`; docs/flow-table.md argues for it. Here is what userspace
//! must know to read them, and the hash that leads to a bucket.

use bytemuck::{Pod, Zeroable};

use crate::{Address, Flow, FlowKey, FlowState};

/// Slots of a bucket.
pub const FLOW_WAYS: usize = 4;

/// First word of a slot. It is read and written as one 64-bit word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowControl {
    /// `SLOT_*`.
    pub state: u8,
    /// `MARK_*`.
    pub marks: u8,
    /// IP protocol number; part of the key.
    pub protocol: u8,
    /// `FLOW_*`.
    pub flags: u8,
    /// Counts the claims of this slot and the changes of its value.
    pub version: u32,
}

/// Nothing is here.
pub const SLOT_FREE: u8 = 0;
/// Somebody writes key and value: there is no telling which.
pub const SLOT_BUSY: u8 = 1;
/// Another writer of the same key was first; the slot's own writer will free it.
pub const SLOT_LOST: u8 = 2;
/// Set in the states in which the key stands.
pub const SLOT_HAS_KEY: u8 = 4;
/// The key stands; its writer makes sure that nobody else has it.
pub const SLOT_PENDING: u8 = SLOT_HAS_KEY;
/// Key and value are valid.
pub const SLOT_LIVE: u8 = SLOT_HAS_KEY | 1;
/// The key stands; its value is being replaced.
pub const SLOT_CHANGING: u8 = SLOT_HAS_KEY | 2;

/// The entry is of the egress hook; part of the key.
pub const MARK_EGRESS: u8 = 1 << 0;
/// A FIN or RST was seen ([`FlowState::Closing`]).
pub const MARK_CLOSING: u8 = 1 << 1;
/// A packet has used the entry since it was made.
pub const MARK_USED: u8 = 1 << 2;
/// The slot was claimed once; never cleared.
pub const MARK_CLAIMED: u8 = 1 << 7;

impl FlowControl {
    /// As the word.
    #[inline(always)]
    pub fn to_word(self) -> u64 {
        u64::from_le_bytes([self.state, self.marks, self.protocol, self.flags, 0, 0, 0, 0])
            | u64::from(self.version) << 32
    }

    /// Of the word.
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        let [state, marks, protocol, flags, ..] = word.to_le_bytes();
        Self { state, marks, protocol, flags, version: (word >> 32) as u32 }
    }
}

/// The part of a control word that belongs to the key.
pub const CONTROL_KEY: u64 = (MARK_EGRESS as u64) << 8 | 0xff << 16;

/// The part of the last word of a key that is the key's; the other half is of the value.
pub const PORTS: u64 = 0xffff_ffff;

macro_rules! slot {
    ($name:ident, $address:ty, $size:literal, $spare:literal $(, $pad:ident)?) => {
        /// One slot of the flow table of a family. Addresses in *network order*, ports in *host order*.
        #[repr(C, align(64))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name {
            /// Control word.
            pub control: FlowControl,
            /// Source of the key.
            pub source: $address,
            /// Destination of the key.
            pub destination: $address,
            /// Source port of the key.
            pub source_port: u16,
            /// Destination port of the key.
            pub destination_port: u16,
            /// New port.
            pub port: u16,
            /// New port of the other side; 0: unchanged.
            pub peer_port: u16,
            /// New address.
            pub address: $address,
            /// Backend id.
            pub backend: u32,
            /// Generation of the backend.
            pub generation: u32,
            /// Service port.
            pub service: u32,
            $(
                /// Zero.
                pub $pad: u32,
            )?
            /// Time of the last packet, in units of 2^30 ns.
            pub last_seen: u64,
            /// Not used: a slot begins where a cache line does.
            pub spare: [u64; $spare],
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

slot!(FlowSlotV4, [u8; 4], 64, 2);
slot!(FlowSlotV6, [u8; 16], 128, 5, pad);

/// Element of FLOWS_V4/V6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowBucket<S> {
    /// Slots.
    pub slots: [S; FLOW_WAYS],
}

/// An address family's slots, as 64-bit words: the key first, then the value, the time last. The control word is not among
/// them.
pub trait FlowWords: Address {
    /// Words of the key; of the last one only [`PORTS`].
    const KEY: usize;
    /// Words of an entry.
    const COUNT: usize;
    /// An entry's words.
    type Words: Copy + AsRef<[u64]> + AsMut<[u64]>;
    /// The slot as a type.
    type Slot: Pod + Send + Sync;
    /// No words.
    const EMPTY: Self::Words;
    /// Writes the words of a key; those of the value are 0.
    fn key(key: &FlowKey<Self>, into: &mut Self::Words);
    /// Writes the words of a value beside the key.
    fn value(flow: &Flow<Self>, into: &mut Self::Words);
    /// The key of words, and of a control word.
    fn to_key(words: &Self::Words, control: u64) -> FlowKey<Self>;
    /// Reads the value of words and of a control word.
    fn to_flow(words: &Self::Words, control: u64, into: &mut Flow<Self>);
}

/// What a control word says of a key.
#[inline(always)]
pub fn control_of_key<A: Address>(key: &FlowKey<A>) -> u64 {
    u64::from(key.protocol) << 16 | u64::from(key.hook & MARK_EGRESS) << 8
}

/// What a control word says of a value.
#[inline(always)]
pub fn control_of_value<A: Address>(flow: &Flow<A>) -> u64 {
    u64::from(flow.flags) << 24 | if flow.state == FlowState::Closing as u8 { u64::from(MARK_CLOSING) << 8 } else { 0 }
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline(always)]
fn ports(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

#[inline(always)]
fn v6(address: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*address);
    [both as u64, (both >> 64) as u64]
}

#[inline(always)]
fn to_v6(low: u64, high: u64) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

#[inline(always)]
fn key_of<A>(source: A, destination: A, ports: u64, control: u64) -> FlowKey<A> {
    FlowKey {
        source,
        destination,
        source_port: ports as u16,
        destination_port: (ports >> 16) as u16,
        protocol: (control >> 16) as u8,
        hook: (control >> 8) as u8 & MARK_EGRESS,
        pad: [0; 2],
    }
}

/// What both families read alike.
#[inline(always)]
fn common<A>(ports: u64, control: u64, last_seen: u64, into: &mut Flow<A>) {
    into.port = (ports >> 32) as u16;
    into.peer_port = (ports >> 48) as u16;
    into.last_seen = last_seen as u32;
    into.state = if control >> 8 & u64::from(MARK_CLOSING) != 0 { FlowState::Closing } else { FlowState::Open } as u8;
    into.flags = (control >> 24) as u8;
    into.pad = [0; 2];
}

impl FlowWords for [u8; 4] {
    const KEY: usize = 2;
    const COUNT: usize = 5;
    type Words = [u64; 5];
    type Slot = FlowSlotV4;
    const EMPTY: Self::Words = [0; 5];

    #[inline(always)]
    fn key(key: &FlowKey<Self>, into: &mut Self::Words) {
        into[0] = pair(u32::from_le_bytes(key.source), u32::from_le_bytes(key.destination));
        into[1] = u64::from(ports(key.source_port, key.destination_port));
    }

    #[inline(always)]
    fn value(flow: &Flow<Self>, into: &mut Self::Words) {
        into[1] = into[1] & PORTS | u64::from(ports(flow.port, flow.peer_port)) << 32;
        into[2] = pair(u32::from_le_bytes(flow.address), flow.backend);
        into[3] = pair(flow.generation, flow.service);
        into[4] = u64::from(flow.last_seen);
    }

    #[inline(always)]
    fn to_key(words: &Self::Words, control: u64) -> FlowKey<Self> {
        let [addresses, ports, ..] = *words;
        key_of((addresses as u32).to_le_bytes(), ((addresses >> 32) as u32).to_le_bytes(), ports, control)
    }

    #[inline(always)]
    fn to_flow(words: &Self::Words, control: u64, into: &mut Flow<Self>) {
        into.address = (words[2] as u32).to_le_bytes();
        into.backend = (words[2] >> 32) as u32;
        into.generation = words[3] as u32;
        into.service = (words[3] >> 32) as u32;
        common(words[1], control, words[4], into);
    }
}

impl FlowWords for [u8; 16] {
    const KEY: usize = 5;
    const COUNT: usize = 10;
    type Words = [u64; 10];
    type Slot = FlowSlotV6;
    const EMPTY: Self::Words = [0; 10];

    #[inline(always)]
    fn key(key: &FlowKey<Self>, into: &mut Self::Words) {
        [into[0], into[1]] = v6(&key.source);
        [into[2], into[3]] = v6(&key.destination);
        into[4] = u64::from(ports(key.source_port, key.destination_port));
    }

    #[inline(always)]
    fn value(flow: &Flow<Self>, into: &mut Self::Words) {
        into[4] = into[4] & PORTS | u64::from(ports(flow.port, flow.peer_port)) << 32;
        [into[5], into[6]] = v6(&flow.address);
        into[7] = pair(flow.backend, flow.generation);
        into[8] = u64::from(flow.service);
        into[9] = u64::from(flow.last_seen);
    }

    #[inline(always)]
    fn to_key(words: &Self::Words, control: u64) -> FlowKey<Self> {
        key_of(to_v6(words[0], words[1]), to_v6(words[2], words[3]), words[4], control)
    }

    #[inline(always)]
    fn to_flow(words: &Self::Words, control: u64, into: &mut Flow<Self>) {
        into.address = to_v6(words[5], words[6]);
        into.backend = words[7] as u32;
        into.generation = (words[7] >> 32) as u32;
        into.service = words[8] as u32;
        common(words[4], control, words[9], into);
    }
}

/// Numbers of the hash: one to add, and one for each 32-bit word of a key of either family.
pub const FLOW_HASH_NUMBERS: usize = 11;

/// The numbers that stand for a seed. They are secret: who knows them can fill a bucket.
pub const fn flow_hash_numbers(seed: u64) -> [u64; FLOW_HASH_NUMBERS] {
    let mut numbers = [0; FLOW_HASH_NUMBERS];
    let mut state = seed;
    let mut index = 0;
    while index < FLOW_HASH_NUMBERS {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        numbers[index] = word ^ word >> 31;
        index += 1;
    }
    numbers
}

/// Where a key may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPlace {
    /// The bucket where it is looked for first.
    pub first: u32,
    /// Another one.
    pub second: u32,
    /// The slot in either where it is looked for first; any number.
    pub way: u32,
}

/// The place of a key. `mask` is the number of buckets, a power of
/// two and at least 2, less 1; `number` gives the secret numbers, of [`flow_hash_numbers`].
///
/// The sum of the key's words, each times a secret number, is pairwise independent in its upper half (Dietzfelbinger:
/// Universal hashing and k-wise independent random variables via integer arithmetic without primes, 1996): whoever does
/// not know the numbers makes two keys meet as rarely as by chance. What follows only spreads that half over the bits of
/// both bucket numbers. It is another hash than [`crate::flow_hash`], which has no seed.
#[inline(always)]
pub fn place_of<A: FlowWords>(number: impl Fn(usize) -> u64, words: &A::Words, control: u64, mask: u32) -> FlowPlace {
    let words = words.as_ref();
    let mut sum = number(0).wrapping_add(number(1).wrapping_mul(control & CONTROL_KEY));
    sum = sum.wrapping_add(number(2).wrapping_mul(words[A::KEY - 1] & PORTS));
    for (at, word) in words.iter().enumerate().take(A::KEY - 1) {
        sum = sum.wrapping_add(number(3 + 2 * at).wrapping_mul(word & 0xffff_ffff));
        sum = sum.wrapping_add(number(4 + 2 * at).wrapping_mul(word >> 32));
    }
    let mut spread = (sum >> 32).wrapping_mul(0xff51_afd7_ed55_8ccd);
    spread ^= spread >> 32;
    spread = spread.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    spread ^= spread >> 29;
    let first = (spread >> 32) as u32 & mask;
    let second = spread as u32 & mask;
    let second = if second == first { first ^ 1 } else { second };
    FlowPlace { first, second, way: (sum >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn there_and_back<A: FlowWords>(key: FlowKey<A>, flow: Flow<A>) {
        let mut words = A::EMPTY;
        A::key(&key, &mut words);
        A::value(&flow, &mut words);
        let control = control_of_key(&key) | control_of_value(&flow);
        assert_eq!(A::to_key(&words, control), key);
        let mut back = Flow::empty();
        A::to_flow(&words, control, &mut back);
        assert_eq!(back, flow);
    }

    macro_rules! fields {
        ($address:ty, $source:ident, $destination:ident, $new:ident, $ports:ident, $numbers:ident, $bytes:ident) => {
            there_and_back::<$address>(
                FlowKey {
                    source: $source,
                    destination: $destination,
                    source_port: $ports.0,
                    destination_port: $ports.1,
                    protocol: $bytes.0,
                    hook: $bytes.1,
                    pad: [0; 2],
                },
                Flow {
                    address: $new,
                    port: $ports.2,
                    peer_port: $ports.3,
                    backend: $numbers.0,
                    generation: $numbers.1,
                    service: $numbers.2,
                    last_seen: $numbers.3,
                    state: $bytes.2,
                    flags: $bytes.3,
                    pad: [0; 2],
                },
            )
        };
    }

    proptest! {
        #[test]
        fn entries_survive_as_words(
            (a, b, c) in any::<([u8; 4], [u8; 4], [u8; 4])>(),
            (x, y, z) in any::<([u8; 16], [u8; 16], [u8; 16])>(),
            ports in any::<(u16, u16, u16, u16)>(),
            numbers in any::<(u32, u32, u32, u32)>(),
            bytes in (any::<u8>(), 0u8..2, 0u8..2, any::<u8>()),
        ) {
            fields!([u8; 4], a, b, c, ports, numbers, bytes);
            fields!([u8; 16], x, y, z, ports, numbers, bytes);
        }

        #[test]
        fn control_words_survive(word in any::<u64>()) {
            prop_assert_eq!(FlowControl::from_word(word).to_word(), word);
        }

        #[test]
        fn the_two_buckets_differ(words in any::<[u64; 5]>(), control in any::<u64>(), seed in any::<u64>(), bits in 1u32..20) {
            let mask = (1 << bits) - 1;
            let FlowPlace { first, second, .. } = place_of::<[u8; 4]>(|index| flow_hash_numbers(seed)[index], &words, control, mask);
            prop_assert!(first != second && first <= mask && second <= mask);
        }
    }

    /// Keys as they come: one client's ports, many clients, a walk through both.
    #[test]
    fn keys_that_follow_a_pattern_fill_buckets_evenly() {
        const BUCKETS: usize = 4096;
        type Pattern = fn(u32) -> ([u8; 4], [u8; 4], u16);
        let patterns: [Pattern; 3] = [
            |n| ([10, 0, 0, 1], [10, 96, 0, 1], n as u16),
            |n| ((0x0a00_0000 + n).to_be_bytes(), [10, 96, 0, 1], 40_000),
            |n| ([10, 0, (n >> 8) as u8, 1], [10, 96, 0, n as u8], (n * 7) as u16),
        ];
        for seed in 0..20 {
            let numbers = flow_hash_numbers(seed);
            for pattern in patterns {
                let mut counts = vec![[0u32; 2]; BUCKETS];
                for n in 0..4 * BUCKETS as u32 {
                    let (source, destination, source_port) = pattern(n);
                    let key = FlowKey {
                        source,
                        destination,
                        source_port,
                        destination_port: 80,
                        protocol: 6,
                        hook: 0,
                        pad: [0; 2],
                    };
                    let mut words = <[u8; 4]>::EMPTY;
                    <[u8; 4]>::key(&key, &mut words);
                    let control = control_of_key(&key);
                    let FlowPlace { first, second, .. } =
                        place_of::<[u8; 4]>(|index| numbers[index], &words, control, BUCKETS as u32 - 1);
                    counts[first as usize][0] += 1;
                    counts[second as usize][1] += 1;
                }
                // Poisson with mean 4: more than 20 in one of 4,096 buckets happens once in ten million tables.
                assert!(counts.iter().flatten().all(|count| *count <= 20), "seed {seed}");
            }
        }
    }
}
