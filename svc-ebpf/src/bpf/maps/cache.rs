//! [`Cache`] on arrays that all CPUs share. A place is a version, odd while somebody writes there, and an entry; who read the same
//! even version before and after has read one entry, whole.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use svc_common::{CacheState, FlowKey};
use svc_ebpf::cache::{Cache, Cached, Moment};

use super::{A4, A6, Maps, clock::coarse_now};
use crate::bpf::neighbours::updates;

/// Words of an entry.
const fn words<A>() -> usize {
    size_of::<Cached<A>>() / 8
}

// Whoever loads programs that use them gives them their size, and says it in CACHE_STATE.
#[btf_map]
static CACHE_V4: Array<[u64; 1 + words::<A4>()], 1> = Array::new();
#[btf_map]
static CACHE_V6: Array<[u64; 1 + words::<A6>()], 1> = Array::new();
#[btf_map]
static CACHE_STATE: Array<CacheState, 1> = Array::new();

/// A plain load is an acquire on this CPU.
#[expect(unexpected_cfgs, reason = "`cargo xtask ebpf` sets it")]
const ORDERED_READS: bool = cfg!(bpf_target_arch = "x86_64");

/// Reads a version: nothing that is read afterwards is read before it, nor the other way round.
///
/// # Safety
///
/// `place` is aligned memory of a map.
#[inline(always)]
unsafe fn version(place: *mut u64) -> u64 {
    // SAFETY: as the caller says. Other CPUs need an instruction that orders, and this is the one all kernels have.
    unsafe {
        if ORDERED_READS {
            place.read_volatile()
        } else {
            atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(place, 0, 0).0
        }
    }
}

/// Takes a place to write there; the version it gets then. `None`: somebody else has it.
///
/// # Safety
///
/// As for [`version`].
#[inline(always)]
unsafe fn take(place: *mut u64) -> Option<u64> {
    // SAFETY: as the caller says.
    unsafe {
        let old = version(place);
        if old & 1 != 0 {
            return None;
        }
        let (_, taken) =
            atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(place, old, old + 1);
        taken.then_some(old + 2)
    }
}

/// Gives a place free. BPF_XCHG is fully ordered.
///
/// # Safety
///
/// As for [`version`].
#[inline(always)]
unsafe fn give(place: *mut u64, version: u64) {
    // SAFETY: as the caller says.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(place, version) };
}

macro_rules! family {
    ($address:ty, $map:ident, $mask:ident) => {
        impl Cache<$address> for Maps {
            #[inline(always)]
            fn moment(&mut self) -> Moment {
                let state = CACHE_STATE.get(0).copied().unwrap_or_default();
                // Both only grow, so that their sum says whether one of them has.
                let generation = match state.generation {
                    0 => 0,
                    generation => generation.wrapping_add(updates()),
                };
                Moment { now: coarse_now(), generation, mask: state.$mask }
            }

            #[inline(always)]
            fn read(&mut self, place: u32, key: &FlowKey<$address>, into: &mut Cached<$address>) -> bool {
                let Some(place) = $map.get_ptr_mut(place) else { return false };
                let place = place.cast::<u64>();
                // SAFETY: memory of the map, and an entry of as many words; what is read is judged by the version.
                unsafe {
                    let before = version(place);
                    let first = place.add(1);
                    if before & 1 != 0
                        || first.read_volatile() != core::ptr::from_ref(key).cast::<u64>().read_unaligned()
                    {
                        return false;
                    }
                    let into = core::ptr::from_mut(into).cast::<u64>();
                    for word in 0..words::<$address>() {
                        into.add(word).write(first.add(word).read_volatile());
                    }
                    if version(place) != before {
                        return false;
                    }
                }
                into.key == *key
            }

            #[inline(always)]
            fn write(&mut self, place: u32, entry: &Cached<$address>) {
                let Some(place) = $map.get_ptr_mut(place) else { return };
                let place = place.cast::<u64>();
                // SAFETY: as above.
                unsafe {
                    let Some(version) = take(place) else { return };
                    let entry = core::ptr::from_ref(entry).cast::<u64>();
                    for word in 0..words::<$address>() {
                        place.add(1 + word).write_volatile(entry.add(word).read());
                    }
                    give(place, version);
                }
            }

            #[inline(always)]
            fn clear(&mut self, place: u32, key: &FlowKey<$address>) {
                let Some(place) = $map.get_ptr_mut(place) else { return };
                let place = place.cast::<u64>();
                // SAFETY: as above. Whoever writes at the moment looks afterwards whether its flow is still the same.
                unsafe {
                    let first = core::ptr::from_ref(key).cast::<u64>().read_unaligned();
                    if place.add(1).read_volatile() != first {
                        return;
                    }
                    let Some(version) = take(place) else { return };
                    place.add(1).write_volatile(0);
                    give(place, version);
                }
            }

            #[inline(always)]
            fn gives_way(&mut self, place: u32, key: &FlowKey<$address>, moment: Moment) -> bool {
                let Some(place) = $map.get_ptr_mut(place) else { return false };
                // SAFETY: memory of the map. Half an entry misleads nobody: any place may be written to.
                unsafe {
                    let first = core::ptr::from_ref(key).cast::<u64>().read_unaligned();
                    let place = place.cast::<u64>().add(1);
                    let entry = place.cast::<Cached<$address>>();
                    place.read_volatile() == first
                        || (&raw const (*entry).made).read_volatile() != moment.now
                        || (&raw const (*entry).generation).read_volatile() != moment.generation
                }
            }
        }
    };
}

family!(A4, CACHE_V4, mask_v4);
family!(A6, CACHE_V6, mask_v6);
