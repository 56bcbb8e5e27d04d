//! The tc programs, for devices with an Ethernet header and (`_l3`) without.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::bpf_redirect, macros::classifier, programs::TcContext};
use svc_common::Hook;
#[cfg(feature = "log")]
use svc_common::Reason;
use svc_ebpf::{
    Verdict,
    announce::{ARP, solicits},
    egress::egress,
    frame::Frame,
    ingress::ingress,
    ip::Ip,
    link::{self, Network},
    tables::{Drops, Tables},
};

use super::{
    frames::SkbFrame,
    maps::{HasScratch, Maps, svc_announce},
};

/// Next program of the hook (`TCX_NEXT`, include/uapi/linux/bpf.h; for clsact it is `TC_ACT_UNSPEC`): other tools' filters
/// still run.
const NEXT: i32 = -1;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const DROP: i32 = 2;

// Inlined into the function that the macro puts around it: that frame of nothing counts as 32 bytes on Linux 6.1, and the
// deepest chain of calls has 512 ("combined stack size of 5 calls is 544. Too large").
#[classifier]
#[inline(always)]
fn svc_ingress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    match link::ethernet(&mut frame) {
        Some(network) if network.version == 6 && solicits(&mut frame) => asked(&frame),
        Some(network) => incoming(frame, network),
        None if frame.ethertype() == ARP => asked(&frame),
        None => NEXT,
    }
}

#[classifier]
#[inline(always)]
fn svc_egress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    match link::ethernet(&mut frame) {
        Some(network) => outgoing(frame, network),
        None => NEXT,
    }
}

#[classifier]
#[inline(always)]
fn svc_ingress_l3(context: TcContext) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    match link::bare(frame.ethertype()) {
        Some(network) => incoming(frame, network),
        None => NEXT,
    }
}

#[classifier]
#[inline(always)]
fn svc_egress_l3(context: TcContext) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    match link::bare(frame.ethertype()) {
        Some(network) => outgoing(frame, network),
        None => NEXT,
    }
}

/// Answers whoever asks where an address is, if it is announced here.
#[inline(always)]
fn asked(frame: &SkbFrame) -> i32 {
    if svc_announce(frame.skb()) == 0 {
        return NEXT;
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(frame.interface(), 0) as i32 }
}

#[inline(always)]
fn incoming(mut frame: SkbFrame, network: Network) -> i32 {
    let mut maps = Maps { interface: frame.interface(), skb: frame.skb() };
    let verdict = if network.version == 4 {
        run::<[u8; 4]>(&mut frame, &mut maps, Hook::Ingress, network.offset)
    } else {
        run::<[u8; 16]>(&mut frame, &mut maps, Hook::Ingress, network.offset)
    };
    finish(&frame, maps, verdict, 0)
}

#[inline(always)]
fn outgoing(mut frame: SkbFrame, network: Network) -> i32 {
    let mut maps = Maps { interface: frame.interface(), skb: frame.skb() };
    let verdict = if network.version == 4 {
        run::<[u8; 4]>(&mut frame, &mut maps, Hook::Egress, network.offset)
    } else {
        run::<[u8; 16]>(&mut frame, &mut maps, Hook::Egress, network.offset)
    };
    finish(&frame, maps, verdict, u64::from(BPF_F_INGRESS))
}

#[inline(always)]
fn run<A: Ip + HasScratch>(frame: &mut SkbFrame, maps: &mut Maps, hook: Hook, offset: usize) -> Verdict
where
    Maps: Tables<A>,
{
    // The entries of an array map are always there; the verifier asks all the same.
    let Some(scratch) = A::scratch(hook) else { return Verdict::Pass };
    match hook {
        Hook::Ingress => ingress(frame, maps, scratch, offset),
        Hook::Egress => egress(frame, maps, scratch, offset),
    }
}

/// `back` is where a packet goes that returns the way it came, as flags of `bpf_redirect`: out of the interface it came in
/// by, or in by the one it was to leave by.
#[inline(always)]
fn finish(frame: &SkbFrame, mut maps: Maps, verdict: Verdict, back: u64) -> i32 {
    match verdict {
        Verdict::Pass => return NEXT,
        Verdict::Drop(reason) => {
            maps.count_drop(reason, frame.size());
            #[cfg(feature = "log")]
            report(frame, &maps, reason);
            return DROP;
        }
        // Nothing is lost: a copy waits, or is on its way.
        Verdict::Held | Verdict::Again => return DROP,
        Verdict::Refuse(reason) => maps.count_drop(reason, frame.size()),
        Verdict::Answer => {}
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(maps.interface, back) as i32 }
}

/// Says which packet was dropped although none should be, in objects that were built to (`cargo xtask ebpf --log`).
#[cfg(feature = "log")]
#[inline(always)]
fn report(frame: &SkbFrame, maps: &Maps, reason: Reason) {
    use aya_log_ebpf::warn;
    let (interface, bytes) = (maps.interface, frame.size());
    match reason {
        Reason::Inconsistent => warn!(frame, "interface {}: dropped {} bytes: inconsistent maps", interface, bytes),
        Reason::NotWritable => warn!(frame, "interface {}: dropped {} bytes: not writable", interface, bytes),
        _ => {}
    }
}
