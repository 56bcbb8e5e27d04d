//! The wrapper: restores the packet, gives it the source of its flow, and goes on to the program that is measured.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_action},
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::bpf_skb_adjust_room,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use svc_ebpf::bench::{FIRST_PORT, PACKET_LEN, PORTS, Plan};

/// What the wrapper returns when there is no program to go on to: no verdict of any program measured.
const NO_PROGRAM: i32 = 99;
/// Bound of the offsets in a plan, for the verifier.
const OFFSETS: usize = 0x7f;

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
#[btf_map]
static PROGRAMS: ProgramArray<32> = ProgramArray::new();
#[btf_map]
static XDP_PROGRAMS: ProgramArray<32> = ProgramArray::new();
/// The map of that name of the object that is measured, which userspace puts in its place.
#[btf_map]
static REFUSALS: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

#[classifier]
fn bench_tc(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let Some(plan) = PLAN.get_ptr_mut(0) else { return NO_PROGRAM };
    // SAFETY: one CPU at a time runs the benchmark; the context is the kernel's.
    let program = unsafe {
        if (*plan).unlimited != 0
            && let Some(refusals) = REFUSALS.get_ptr_mut(0)
        {
            *refusals = [0; 2];
        }
        restore_length(skb);
        let flow = (*plan).next & (*plan).flows;
        (*plan).next += 1;
        // For the floor programs, which have use for a number that changes with the flow.
        (*skb).cb[0] = flow;
        // Volatile: see `SkbFrame::bounds`.
        let start = (&raw const (*skb).data).read_volatile() as usize;
        let end = (&raw const (*skb).data_end).read_volatile() as usize;
        if write(start, end, plan, flow).is_none() {
            return NO_PROGRAM;
        }
        (*plan).program
    };
    // SAFETY: a tail call with the kernel's context; nothing here has a destructor.
    unsafe { PROGRAMS.tail_call(&context, program) };
    NO_PROGRAM
}

/// A refusal is longer than the packet it answers.
#[inline(always)]
unsafe fn restore_length(skb: *mut __sk_buff) {
    // SAFETY: a context of the kernel, and a helper that checks the rest.
    unsafe {
        let surplus = (*skb).len as i32 - PACKET_LEN as i32;
        if surplus > 0 {
            bpf_skb_adjust_room(skb, -surplus, BPF_ADJ_ROOM_MAC, 0);
        }
    }
}

/// Writes the packet of a flow from `start` on, if it ends before `end`.
#[inline(always)]
unsafe fn write(start: usize, end: usize, plan: *const Plan, flow: u32) -> Option<()> {
    if start + PACKET_LEN > end {
        return None;
    }
    // SAFETY: the verifier sees the bounds of each access.
    unsafe {
        let words = start as *mut u64;
        for (at, word) in (*plan).packet.iter().enumerate() {
            words.add(at).write_unaligned(*word);
        }
        let address_at = (*plan).address_at as usize & OFFSETS;
        let port_at = (*plan).port_at as usize & OFFSETS;
        if start + address_at + 4 > end || start + port_at + 2 > end {
            return None;
        }
        let address = (*plan).address + flow / PORTS;
        ((start + address_at) as *mut u32).write_unaligned(address.to_be());
        if (*plan).port_at != 0 {
            let port = FIRST_PORT + (flow % PORTS) as u16;
            ((start + port_at) as *mut u16).write_unaligned(port.to_be());
        }
    }
    Some(())
}

#[xdp(frags)]
#[inline(always)]
fn bench_xdp(context: XdpContext) -> u32 {
    let xdp = context.ctx;
    let Some(plan) = PLAN.get_ptr_mut(0) else { return NO_PROGRAM as u32 };
    // SAFETY: as above. Volatile: see `XdpFrame::bounds`.
    let program = unsafe {
        let start = (&raw const (*xdp).data).read_volatile() as usize;
        let end = (&raw const (*xdp).data_end).read_volatile() as usize;
        let flow = (*plan).next & (*plan).flows;
        (*plan).next += 1;
        if write(start, end, plan, flow).is_none() {
            return NO_PROGRAM as u32;
        }
        (*plan).program
    };
    // SAFETY: as above.
    unsafe { XDP_PROGRAMS.tail_call(&context, program) };
    NO_PROGRAM as u32
}

/// Does nothing, as `floor_empty`.
#[xdp(frags)]
#[inline(always)]
fn floor_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}
