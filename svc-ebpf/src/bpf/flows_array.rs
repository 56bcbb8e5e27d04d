//! FLOWS: the set-associative table of `svc_ebpf::table` in array maps (feature `array-flows`; docs/flow-table.md says why
//! it is not the default).
//!
//! Its operations are global functions: the verifier walks each of them once, by its signature, and not at each call.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use svc_common::{
    Flow, FlowBucket, FlowKey, FlowSlotV4, FlowSlotV6, FlowWords,
    flow_table::{
        FLOW_HASH_NUMBERS, FLOW_WAYS, FlowPlace, control_of_key, control_of_value, flow_hash_numbers, place_of,
    },
};
use svc_ebpf::{
    table::{self, Item, Memory, Pass, Wanted, repeat, write_at_bound},
    tables::Insert,
};

use super::maps::{coarse_now, forgotten};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// Buckets of a table of the default size.
const BUCKETS: usize = 65536;

#[btf_map]
static FLOWS_V4: Array<FlowBucket<FlowSlotV4>, BUCKETS, MMAPABLE> = Array::new();
#[btf_map]
static FLOWS_V6: Array<FlowBucket<FlowSlotV6>, BUCKETS, MMAPABLE> = Array::new();

#[btf_map]
static FLOW_WORK_V4: PerCpuArray<Work<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map]
static FLOW_WORK_V6: PerCpuArray<Work<[u8; 16]>, 1> = PerCpuArray::new();

/// What whoever loads the programs may set before: the numbers of the hash, which are secret, and the buckets of each
/// table less one. They are read volatile, or the compiler would take them for constants; to the verifier they are.
#[unsafe(no_mangle)]
static FLOW_NUMBERS: [u64; FLOW_HASH_NUMBERS] = flow_hash_numbers(0);
#[unsafe(no_mangle)]
static FLOW_MASK_V4: u32 = BUCKETS as u32 - 1;
#[unsafe(no_mangle)]
static FLOW_MASK_V6: u32 = BUCKETS as u32 - 1;

/// A plain load is an acquire on this CPU.
#[expect(unexpected_cfgs, reason = "`cargo xtask ebpf` sets it")]
const ORDERED_READS: bool = cfg!(bpf_target_arch = "x86_64");

/// A table: its slots in memory.
struct Slots<A> {
    /// Where values are forgotten.
    forgotten: *mut u64,
    family: core::marker::PhantomData<A>,
}

/// The tables of the families.
pub(super) trait FlowTable: FlowWords {
    /// The bucket of a number.
    fn bucket(number: u32) -> Option<*mut u64>;
    /// Where a writer works.
    fn work() -> Option<*mut Work<Self>>;
    /// Buckets less one.
    fn mask() -> u32;
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

impl<A: FlowTable> Slots<A> {
    /// `None` never happens: an array's entries are always there.
    #[inline(always)]
    fn new() -> Option<Self> {
        forgotten().map(|forgotten| Self { forgotten, family: core::marker::PhantomData })
    }

    #[inline(always)]
    fn slot(bucket: *mut u64, way: usize) -> *mut u64 {
        // SAFETY: a bucket has that many slots, and a slot so many words.
        unsafe { bucket.add((way & (FLOW_WAYS - 1)) * (core::mem::size_of::<A::Slot>() / 8)) }
    }
}

impl<A: FlowTable> Memory for Slots<A> {
    type Bucket = *mut u64;
    const WAYS: usize = FLOW_WAYS;

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<*mut u64> {
        A::bucket(number)
    }

    #[inline(always)]
    fn control(&self, bucket: *mut u64, way: usize) -> u64 {
        let slot = Self::slot(bucket, way);
        if ORDERED_READS {
            // SAFETY: the slot is aligned memory of a map.
            unsafe { slot.read_volatile() }
        } else {
            // SAFETY: as above; other CPUs need an instruction that orders, and this is the one all kernels have.
            unsafe { atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(slot, 0, 0).0 }
        }
    }

    #[inline(always)]
    fn word(&self, bucket: *mut u64, way: usize, index: usize) -> u64 {
        // SAFETY: an index of the words behind the control word.
        unsafe { Self::slot(bucket, way).add(1 + index).read_volatile() }
    }

    #[inline(always)]
    fn set_word(&self, bucket: *mut u64, way: usize, index: usize, value: u64) {
        // SAFETY: as above.
        unsafe { Self::slot(bucket, way).add(1 + index).write_volatile(value) };
    }

    #[inline(always)]
    fn swap_if(&self, bucket: *mut u64, way: usize, expected: u64, new: u64) -> u64 {
        let slot = Self::slot(bucket, way);
        // SAFETY: as above. The kernel's BPF_CMPXCHG is fully ordered.
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(slot, expected, new).0 }
    }

    #[inline(always)]
    fn put_control(&self, bucket: *mut u64, way: usize, new: u64) {
        let slot = Self::slot(bucket, way);
        // SAFETY: as above. BPF_XCHG likewise.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(slot, new) };
    }

    #[inline(always)]
    fn fence(&self) {
        // Reads are volatile, so the compiler keeps their order; x86 does as well, and elsewhere `control` orders.
    }

    #[inline(always)]
    fn opaque(&self, value: usize) -> usize {
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs.
        unsafe {
            self.forgotten.write_volatile(value as u64);
            self.forgotten.read_volatile() as usize
        }
    }
}

#[inline(always)]
fn number(index: usize) -> u64 {
    // SAFETY: indexes are below FLOW_HASH_NUMBERS.
    unsafe { FLOW_NUMBERS.as_ptr().add(index).read_volatile() }
}

#[inline(always)]
fn item<A: FlowTable>(key: &FlowKey<A>) -> Item<A> {
    let mut words = A::EMPTY;
    A::key(key, &mut words);
    let control = control_of_key(key);
    let place = place_of::<A>(number, &words, control, A::mask());
    Item { words, control, place, notes: [0; 2] }
}

const NONE: u32 = 0;
const FOUND: u32 = 1;
const FOUND_FIRST: u32 = 2;
const DONE: u32 = 0;
const TAKEN: u32 = 1;
const FULL: u32 = 2;
const AGAIN: u32 = 3;

/// A pass of a reader, as a number.
#[inline(always)]
fn find<A: FlowTable>(key: &FlowKey<A>, touch: bool, closes: bool, into: &mut Flow<A>) -> u32 {
    let Some(memory) = Slots::<A>::new() else { return NONE };
    let mut item = item(key);
    match table::read_once(&memory, &mut item) {
        Pass::Done(Some(found)) => {
            let first_in_tick = touch && table::touch(&memory, &mut item, found, coarse_now(), closes);
            A::to_flow(&item.words, found.2, into);
            if first_in_tick { FOUND_FIRST } else { FOUND }
        }
        Pass::Done(None) => NONE,
        Pass::Again => AGAIN,
    }
}

/// The entry that a writer works on, outside of the stack: it is at the end of the longest chain of calls.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Work<A: FlowWords> {
    item: Item<A>,
}

/// The same for a compiler that shall read it each time anew instead of keeping it on the stack after all.
struct WorkRef<A: FlowWords>(*mut Work<A>);

impl<A: FlowWords> Wanted<A> for WorkRef<A> {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: the work is this CPU's while the program runs; an index of its words.
        unsafe { (&raw const (*self.0).item.words).cast::<u64>().add(index).read_volatile() }
    }

    #[inline(always)]
    fn control(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).item.control).read_volatile() }
    }

    #[inline(always)]
    fn place(&self) -> FlowPlace {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).item.place).read_volatile() }
    }

    #[inline(always)]
    fn note(&mut self, index: usize, value: u64) {
        // SAFETY: as above; there are two notes.
        unsafe { (&raw mut (*self.0).item.notes).cast::<u64>().add(index & 1).write_volatile(value) };
    }

    #[inline(always)]
    fn noted(&self, index: usize) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).item.notes).cast::<u64>().add(index & 1).read_volatile() }
    }
}

/// A pass of a writer, as a number.
#[inline(always)]
fn make<A: FlowTable>(key: &FlowKey<A>, flow: &Flow<A>, only_if_absent: bool) -> u32 {
    let (Some(memory), Some(work)) = (Slots::<A>::new(), A::work()) else { return FULL };
    // SAFETY: both hooks run with bottom halves disabled, so until the program ends nobody else uses this CPU's value.
    let item = unsafe { &mut (*work).item };
    A::key(key, &mut item.words);
    item.control = control_of_key(key);
    item.place = place_of::<A>(number, &item.words, item.control, A::mask());
    A::value(flow, &mut item.words);
    item.control |= control_of_value(flow);
    match table::write_once(&memory, &mut WorkRef(work), only_if_absent) {
        Pass::Done(Insert::Done) => DONE,
        Pass::Done(Insert::Taken) => TAKEN,
        Pass::Done(Insert::Full) => FULL,
        Pass::Again => AGAIN,
    }
}

/// What a reader's pass says: `Some(true)` is [`FOUND_FIRST`].
#[inline(always)]
fn found(pass: u32) -> Pass<Option<bool>> {
    match pass {
        NONE => Pass::Done(None),
        FOUND => Pass::Done(Some(false)),
        FOUND_FIRST => Pass::Done(Some(true)),
        _ => Pass::Again,
    }
}

macro_rules! family {
    ($address:ty, $map:ident, $work:ident, $mask:ident, $flow:ident, $peek:ident, $write:ident, $remove:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(
            unreachable_pub,
            reason = "it is public to the linker, which would make it a static function otherwise"
        )]
        pub extern "C" fn $flow(key: *const FlowKey<$address>, into: *mut Flow<$address>, closes: u32) -> u32 {
            // SAFETY: callers pass valid references; the verifier wants to see the null checks, here and below.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else { return NONE };
            find(key, true, closes != 0, into)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $peek(key: *const FlowKey<$address>, into: *mut Flow<$address>) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else { return NONE };
            find(key, false, false, into)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $write(
            key: *const FlowKey<$address>,
            flow: *const Flow<$address>,
            only_if_absent: u32,
        ) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(flow)) = (unsafe { key.as_ref() }, unsafe { flow.as_ref() }) else { return FULL };
            make(key, flow, only_if_absent != 0)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $remove(key: *const FlowKey<$address>) -> u32 {
            // SAFETY: as above.
            let Some(key) = (unsafe { key.as_ref() }) else { return DONE };
            let Some(memory) = Slots::<$address>::new() else { return DONE };
            match table::remove_once(&memory, &item(key)) {
                Pass::Done(()) => DONE,
                Pass::Again => AGAIN,
            }
        }

        impl FlowTable for $address {
            #[inline(always)]
            fn bucket(number: u32) -> Option<*mut u64> {
                $map.get_ptr_mut(number).map(|bucket| bucket.cast())
            }

            #[inline(always)]
            fn work() -> Option<*mut Work<Self>> {
                $work.get_ptr_mut(0)
            }

            #[inline(always)]
            fn mask() -> u32 {
                // SAFETY: a static.
                unsafe { (&raw const $mask).read_volatile() }
            }

            #[inline(always)]
            fn flow(key: &FlowKey<Self>, closes: bool, into: &mut Flow<Self>) -> Option<bool> {
                repeat(None, || found($flow(key, into, u32::from(closes))))
            }

            #[inline(always)]
            fn peek(key: &FlowKey<Self>, into: &mut Flow<Self>) -> bool {
                repeat(None, || found($peek(key, into))).is_some()
            }

            #[inline(always)]
            fn write(key: &FlowKey<Self>, flow: &Flow<Self>, only_if_absent: bool) -> Insert {
                repeat(write_at_bound(only_if_absent), || match $write(key, flow, u32::from(only_if_absent)) {
                    DONE => Pass::Done(Insert::Done),
                    TAKEN => Pass::Done(Insert::Taken),
                    FULL => Pass::Done(Insert::Full),
                    _ => Pass::Again,
                })
            }

            #[inline(always)]
            fn remove(key: &FlowKey<Self>) {
                repeat((), || if $remove(key) == DONE { Pass::Done(()) } else { Pass::Again });
            }

            #[inline(always)]
            fn release(key: &FlowKey<Self>, last_seen: u32) -> bool {
                Slots::<$address>::new().is_some_and(|memory| table::release(&memory, &item(key), last_seen))
            }
        }
    };
}

family!([u8; 4], FLOWS_V4, FLOW_WORK_V4, FLOW_MASK_V4, svc_flow_v4, svc_peek_v4, svc_write_v4, svc_remove_v4);
family!([u8; 16], FLOWS_V6, FLOW_WORK_V6, FLOW_MASK_V6, svc_flow_v6, svc_peek_v6, svc_write_v6, svc_remove_v6);
