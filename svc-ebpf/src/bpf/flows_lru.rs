//! FLOWS as LRU hash maps.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::LruHashMap,
    macros::btf_map,
};
use svc_common::{Address, Flow, FlowKey, FlowState};
use svc_ebpf::tables::Insert;

use super::maps::{coarse_now, copy};

const EEXIST: i32 = 17;

#[btf_map]
static FLOWS_V4: LruHashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>, 262144> = LruHashMap::new();
#[btf_map]
static FLOWS_V6: LruHashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>, 262144> = LruHashMap::new();

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
        impl FlowTable for $address {
            #[inline(always)]
            fn flow(key: &FlowKey<Self>, closes: bool, into: &mut Flow<Self>) -> Option<bool> {
                let entry = $map.get_ptr_mut(key)?;
                let now = coarse_now();
                // SAFETY: the element may be evicted and reused while it is used here (LRU maps are never freed under a
                // program): then another flow's time or state is touched.
                unsafe {
                    let first_in_tick = (*entry).last_seen != now;
                    if first_in_tick {
                        (*entry).last_seen = now;
                    }
                    if closes {
                        (*entry).state = FlowState::Closing as u8;
                    }
                    copy(entry, into);
                    Some(first_in_tick)
                }
            }

            #[inline(always)]
            fn peek(key: &FlowKey<Self>, into: &mut Flow<Self>) -> bool {
                let Some(entry) = $map.get_ptr_mut(key) else { return false };
                // SAFETY: copied at once.
                unsafe { copy(entry, into) };
                true
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
