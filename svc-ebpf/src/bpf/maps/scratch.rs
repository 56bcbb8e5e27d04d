//! Working memory of the programs: what this CPU has to itself while one of them runs. Nothing in it outlives a packet.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use svc_common::Hook;
use svc_ebpf::scratch::Scratch;

use super::{A4, A6};

/// One element for each hook.
#[btf_map]
static SCRATCH_V4: PerCpuArray<Scratch<A4>, 2> = PerCpuArray::new();
#[btf_map]
static SCRATCH_V6: PerCpuArray<Scratch<A6>, 2> = PerCpuArray::new();

#[btf_map]
static FORGOTTEN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where [`forget`] forgets: a word of this CPU's.
#[inline(always)]
pub(in crate::bpf) fn forgotten() -> Option<*mut u64> {
    FORGOTTEN.get_ptr_mut(0)
}

/// Takes a value through a map, on whose contents the verifier has no opinion; what is larger becomes [`FURTHEST`].
#[inline(always)]
pub(in crate::bpf) fn forget(value: usize) -> usize {
    match forgotten() {
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs.
        Some(place) => unsafe {
            place.write_volatile(value.min(FURTHEST) as u64);
            // The mask, which changes nothing, gives it bounds. Before Linux 6.8 the verifier forgets of a number without
            // bounds that LLVM moves to the stack that it was compared ("math between pkt pointer and register with
            // unbounded min value is not allowed").
            place.read_volatile() as usize & FURTHEST
        },
        None => FURTHEST, // never taken: an array's entries are always there
    }
}

/// Beyond every offset that is read (`svc_ebpf::ip::MAX_OFFSET`); all ones, so that it is a mask as well.
const FURTHEST: usize = 0x7ff;

/// Working memory of the packet programs: one for each CPU and hook.
///
/// SAFETY of the reference: both hooks run with bottom halves disabled, and a program of one hook is never interrupted by
/// another one of the same hook on its CPU, so until the program ends nobody else uses the value.
pub(in crate::bpf) trait HasScratch: Sized + 'static {
    /// The scratch memory of this CPU for a hook.
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>>;
}

impl HasScratch for A4 {
    #[inline(always)]
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>> {
        // SAFETY: as the trait says.
        SCRATCH_V4.get_ptr_mut(hook as u32).map(|scratch| unsafe { &mut *scratch })
    }
}

impl HasScratch for A6 {
    #[inline(always)]
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>> {
        // SAFETY: as the trait says.
        SCRATCH_V6.get_ptr_mut(hook as u32).map(|scratch| unsafe { &mut *scratch })
    }
}

/// Calls a function that works on the same scratch memory, which the compiler does not see.
#[inline(always)]
pub(in crate::bpf) fn with<A, R>(scratch: &mut Scratch<A>, call: impl FnOnce() -> R) -> R {
    core::hint::black_box(&mut *scratch);
    let result = call();
    core::hint::black_box(scratch);
    result
}
