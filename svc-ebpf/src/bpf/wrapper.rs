//! A wrapper for measuring (feature `wrapper`): before each repeat of BPF_PROG_TEST_RUN it writes the packet anew, from the
//! next one of a number of sources, and goes on with the program in `BENCH_PROGRAM`.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, ProgramArray},
    helpers::bpf_skb_store_bytes,
    macros::{btf_map, classifier},
    programs::TcContext,
};

/// The packet, and where its source varies.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// Its headers.
    bytes: [u8; 64],
    /// How many of them count.
    len: u32,
    /// Offset of three bytes that are the number of the source.
    at: u32,
    /// Number of the next packet.
    next: u32,
    /// The sources are the numbers up to this one.
    mask: u32,
}

#[btf_map]
static BENCH_PLAN: Array<Plan, 1> = Array::new();
#[btf_map]
static BENCH_PROGRAM: ProgramArray<1> = ProgramArray::new();

#[classifier]
fn svc_bench(context: TcContext) -> i32 {
    let skb: *mut __sk_buff = context.skb.skb;
    let Some(plan) = BENCH_PLAN.get_ptr_mut(0) else { return 0 };
    // SAFETY: the plan is this run's alone, and offsets are bounded; the helper checks them against the packet.
    unsafe {
        let number = (*plan).next & (*plan).mask;
        (*plan).next += 1;
        let bytes = (&raw const (*plan).bytes).cast();
        if (*plan).len > 48 {
            bpf_skb_store_bytes(skb, 0, bytes, 62, 0);
        } else {
            bpf_skb_store_bytes(skb, 0, bytes, 42, 0);
        }
        let source = number.to_be_bytes();
        bpf_skb_store_bytes(skb, (*plan).at, source.as_ptr().add(1).cast(), 3, 0);
        BENCH_PROGRAM.tail_call(&context, 0);
    }
    0
}
