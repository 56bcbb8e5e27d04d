//! Programs that do one thing each: what the kernel itself costs on the machine that is measured.
//!
//! Keys and values are as large as those of the flow tables, in whole words: LLVM merges stores of halves into some that the
//! verifier calls misaligned. Which key a packet has, the wrapper says in `cb[0]`.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_adjust_room, bpf_skb_change_tail,
    },
    macros::{btf_map, classifier},
    programs::TcContext,
};
use svc_ebpf::bench::PACKET_LEN;

const ENTRIES: usize = 1 << 18;
const ARRAY: usize = 1 << 16;

#[btf_map]
static FLOOR_ARRAY: Array<u64, ARRAY> = Array::new();
#[btf_map]
static FLOOR_HASH_V4: HashMap<[u64; 2], [u64; 4], ENTRIES> = HashMap::new();
#[btf_map]
static FLOOR_HASH_V6: HashMap<[u64; 5], [u64; 5], ENTRIES> = HashMap::new();
#[btf_map]
static FLOOR_LRU_V4: LruHashMap<[u64; 2], [u64; 4], ENTRIES> = LruHashMap::new();
#[btf_map]
static FLOOR_LRU_V6: LruHashMap<[u64; 5], [u64; 5], ENTRIES> = LruHashMap::new();

/// Next program of the hook: the verdict of packets that are none of ours.
const NEXT: i32 = -1;

#[inline(always)]
fn flow(context: &TcContext) -> u32 {
    // SAFETY: a context of the kernel.
    unsafe { (*context.skb.skb).cb[0] }
}

#[classifier]
fn floor_empty(_context: TcContext) -> i32 {
    NEXT
}

#[classifier]
fn floor_array(context: TcContext) -> i32 {
    match FLOOR_ARRAY.get(flow(&context) % ARRAY as u32) {
        // A value that is used has to be read.
        Some(value) if *value != 0 => 0,
        _ => NEXT,
    }
}

#[classifier]
fn floor_ktime(_context: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_ns() } == 0 { 0 } else { NEXT }
}

#[classifier]
fn floor_coarse(_context: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_coarse_ns() } == 0 { 0 } else { NEXT }
}

#[classifier]
fn floor_prandom(_context: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    if unsafe { bpf_get_prandom_u32() } == 0 { 0 } else { NEXT }
}

/// Makes the packet as long as a refusal of IPv4, which the wrapper takes back: what lengths alone cost in those rows.
#[classifier]
fn floor_reshape(context: TcContext) -> i32 {
    /// An IPv4 header and an ICMP header.
    const ROOM: i32 = 28;
    let skb = context.skb.skb;
    // SAFETY: helper calls with a valid context.
    unsafe {
        bpf_skb_change_tail(skb, PACKET_LEN as u32, 0);
        bpf_skb_adjust_room(skb, ROOM, BPF_ADJ_ROOM_MAC, 0);
    }
    NEXT
}

macro_rules! maps {
    ($words:literal, $value:literal, $hash:ident, $lru:ident, $hash_get:ident, $hash_set:ident, $lru_get:ident, $lru_set:ident) => {
        #[classifier]
        fn $hash_get(context: TcContext) -> i32 {
            // SAFETY: nothing else touches the map.
            verdict(unsafe { $hash.get(&key::<$words>(flow(&context))) })
        }

        #[classifier]
        fn $hash_set(context: TcContext) -> i32 {
            let flow = flow(&context);
            let _ = $hash.insert(&key::<$words>(flow), &[u64::from(flow); $value], u64::from(BPF_ANY));
            NEXT
        }

        #[classifier]
        fn $lru_get(context: TcContext) -> i32 {
            // SAFETY: nothing else touches the map.
            verdict(unsafe { $lru.get(&key::<$words>(flow(&context))) })
        }

        #[classifier]
        fn $lru_set(context: TcContext) -> i32 {
            let flow = flow(&context);
            let _ = $lru.insert(&key::<$words>(flow), &[u64::from(flow); $value], u64::from(BPF_ANY));
            NEXT
        }
    };
}

/// The key of a flow; the first word, which differs, is spread over all of its bits.
#[inline(always)]
fn key<const WORDS: usize>(flow: u32) -> [u64; WORDS] {
    let mut key = [0x0a00_0001_0a00_0002; WORDS];
    key[0] = u64::from(flow).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key
}

/// `OK` for a key that is not there, which userspace takes for a failure.
#[inline(always)]
fn verdict<const WORDS: usize>(value: Option<&[u64; WORDS]>) -> i32 {
    match value {
        Some(value) if value[0] != u64::MAX => NEXT,
        _ => 0,
    }
}

maps!(2, 4, FLOOR_HASH_V4, FLOOR_LRU_V4, floor_hash_v4, floor_hash_set4, floor_lru_v4, floor_lru_set4);
maps!(5, 5, FLOOR_HASH_V6, FLOOR_LRU_V6, floor_hash_v6, floor_hash_set6, floor_lru_v6, floor_lru_set6);
