//! FLOWS as LRU hash maps.
//!
//! The kernel gives an element of an LRU map to another key while programs still read it; a copy may then hold another flow's
//! rewrite, or half of it. It takes the element out of its key's list before it writes to it (`bpf_lru_list_pop_free`,
//! kernel/bpf/bpf_lru_list.c). So a copy counts only if the key still leads to the same element afterwards.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::LruHashMap,
    macros::btf_map,
};
use svc_common::{Address, Flow, FlowKey, FlowState};
use svc_ebpf::tables::Insert;

use super::maps::coarse_now;

const EEXIST: i32 = 17;

#[btf_map]
static FLOWS_V4: LruHashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>, 262144> = LruHashMap::new();
#[btf_map]
static FLOWS_V6: LruHashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>, 262144> = LruHashMap::new();

/// Copies a value of whole 32-bit words, word by word: see `Address::copy`.
///
/// # Safety
///
/// Both are valid, and aligned to 4 bytes.
#[inline(always)]
unsafe fn copy<T>(from: *const T, to: *mut T) {
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    for word in 0..core::mem::size_of::<T>() / 4 {
        // SAFETY: within the value. Volatile, or LLVM would see through it.
        unsafe { to.add(word).write(from.add(word).read_volatile()) };
    }
}

trait Find: Address {
    /// Copies the value of a key, and returns where it stands; `None` if the key has none, or its element was given away
    /// meanwhile.
    fn find(key: &FlowKey<Self>, into: &mut Flow<Self>) -> Option<*mut Flow<Self>>;
}

/// The tables of the families.
pub(super) trait FlowTable: Address {
    /// Finds, touches and copies an entry; true if it is the first time in this unit of the clock.
    fn flow(key: &FlowKey<Self>, closes: bool, into: &mut Flow<Self>) -> Option<bool>;
    /// Finds and copies an entry.
    fn peek(key: &FlowKey<Self>, into: &mut Flow<Self>) -> bool;
    /// Makes an entry.
    fn write(key: &FlowKey<Self>, flow: &Flow<Self>, only_if_absent: bool) -> Insert;
    /// Removes an entry.
    fn remove(key: &FlowKey<Self>);
    /// Removes an entry whose time is still `last_seen`; true for one alone of those who try.
    fn release(key: &FlowKey<Self>, last_seen: u32) -> bool;
}

macro_rules! family {
    ($address:ty, $map:ident) => {
        impl Find for $address {
            #[inline(always)]
            fn find(key: &FlowKey<Self>, into: &mut Flow<Self>) -> Option<*mut Flow<Self>> {
                let entry = $map.get_ptr_mut(key)?;
                // SAFETY: an element of an LRU map stays valid memory; what was copied is judged below.
                unsafe { copy(entry, into) };
                ($map.get_ptr_mut(key) == Some(entry)).then_some(entry)
            }
        }

        impl FlowTable for $address {
            #[inline(always)]
            fn flow(key: &FlowKey<Self>, closes: bool, into: &mut Flow<Self>) -> Option<bool> {
                // An entry that was replaced meanwhile, not evicted, is there the second time.
                let entry = Self::find(key, into).or_else(|| Self::find(key, into))?;
                let now = coarse_now();
                let first_in_tick = into.last_seen != now;
                into.last_seen = now;
                // SAFETY: LRU maps are never freed under a program. The element may still be given to another flow here: then
                // that one's time or state is touched, which costs it a second of age or a new choice at its next SYN.
                unsafe {
                    if first_in_tick {
                        (*entry).last_seen = now;
                    }
                    if closes {
                        into.state = FlowState::Closing as u8;
                        (*entry).state = FlowState::Closing as u8;
                    }
                }
                Some(first_in_tick)
            }

            #[inline(always)]
            fn peek(key: &FlowKey<Self>, into: &mut Flow<Self>) -> bool {
                Self::find(key, into).is_some()
            }

            #[inline(always)]
            fn write(key: &FlowKey<Self>, flow: &Flow<Self>, only_if_absent: bool) -> Insert {
                match $map.insert(key, flow, u64::from(if only_if_absent { BPF_NOEXIST } else { BPF_ANY })) {
                    Ok(()) => Insert::Done,
                    Err(error) if error == -EEXIST => Insert::Taken,
                    Err(_) => Insert::Full,
                }
            }

            #[inline(always)]
            fn remove(key: &FlowKey<Self>) {
                // Absent already is as good as removed.
                let _ = $map.remove(key);
            }

            #[inline(always)]
            fn release(key: &FlowKey<Self>, last_seen: u32) -> bool {
                let Some(entry) = $map.get_ptr_mut(key) else { return false };
                // SAFETY: the field is 4 aligned bytes of the map's memory. Whoever moves the time on has the entry; to the
                // others it is young.
                let (_, moved) = unsafe {
                    atomic_cxchg::<u32, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
                        &raw mut (*entry).last_seen,
                        last_seen,
                        coarse_now(),
                    )
                };
                moved && $map.remove(key).is_ok()
            }
        }
    };
}

family!([u8; 4], FLOWS_V4);
family!([u8; 16], FLOWS_V6);
