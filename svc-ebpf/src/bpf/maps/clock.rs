//! The coarse clock, and how often a CPU may refuse packets within a span of it. Nothing here is exact.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};

/// What the coarse clock said in one of the kernel's ticks.
#[repr(C)]
#[derive(Clone, Copy)]
struct Clock {
    /// The tick: `jiffies`.
    tick: u64,
    /// The coarse clock, which moves with the ticks.
    ns: u64,
}

#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// The coarse clock, asked once in a tick: the number of the tick is a read of memory (the verifier inlines the helper), the
/// clock is a call.
#[inline(always)]
fn coarse_ns() -> u64 {
    // SAFETY: helpers without arguments; a value of a per-CPU array belongs to this CPU while the program runs. (A program
    // of the other hook that interrupts this one writes the same.)
    unsafe {
        let tick = bpf_jiffies64();
        match CLOCK.get_ptr_mut(0) {
            Some(clock) if (*clock).tick == tick => (*clock).ns,
            Some(clock) => {
                let ns = bpf_ktime_get_coarse_ns();
                *clock = Clock { tick, ns };
                ns
            }
            None => bpf_ktime_get_coarse_ns(),
        }
    }
}

#[inline(always)]
pub(in crate::bpf) fn coarse_now() -> u32 {
    (coarse_ns() >> 30) as u32
}

/// How many packets a CPU has refused within a span of time.
#[repr(C)]
#[derive(Clone, Copy)]
struct Refusals {
    /// The span's number.
    span: u32,
    /// Packets refused in it.
    count: u32,
}

/// Length of a span, as a power of two of nanoseconds: 134 ms.
const SPAN_SHIFT: u32 = 27;
/// Refusals in a span: about 1,000 a second, what Linux allows itself (`net.ipv4.icmp_msgs_per_sec`).
const REFUSALS_A_SPAN: u32 = 128;

#[btf_map]
static REFUSALS: PerCpuArray<Refusals, 1> = PerCpuArray::new();

#[inline(always)]
pub(super) fn may_refuse() -> bool {
    let Some(refusals) = REFUSALS.get_ptr_mut(0) else { return false };
    // SAFETY: a helper without arguments; a value of a per-CPU array belongs to this CPU while the program runs.
    unsafe {
        let span = (coarse_ns() >> SPAN_SHIFT) as u32;
        if (*refusals).span != span {
            *refusals = Refusals { span, count: 0 };
        }
        (*refusals).count += 1;
        (*refusals).count <= REFUSALS_A_SPAN
    }
}
