//! The tc programs, for devices with an Ethernet header and (`_l3`) without.

use aya_ebpf::{macros::classifier, programs::TcContext};
use svc_ebpf::{
    Verdict,
    egress::egress,
    frame::Frame,
    ingress::ingress,
    ip::Ip,
    link::{self, Network},
    tables::{Drops, Tables},
};

use super::{
    frames::SkbFrame,
    maps::{HasScratch, Maps},
};

/// Next program of the hook (`TCX_NEXT`, include/uapi/linux/bpf.h; for clsact it is `TC_ACT_UNSPEC`): other tools' filters
/// still run.
const NEXT: i32 = -1;
/// `TCX_DROP`, `TC_ACT_SHOT`.
const DROP: i32 = 2;

#[classifier]
fn svc_ingress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    match link::ethernet(&mut frame) {
        Some(network) => incoming(frame, network),
        None => NEXT,
    }
}

#[classifier]
fn svc_egress(context: TcContext) -> i32 {
    let mut frame = SkbFrame::new(context.skb.skb);
    match link::ethernet(&mut frame) {
        Some(network) => outgoing(frame, network),
        None => NEXT,
    }
}

#[classifier]
fn svc_ingress_l3(context: TcContext) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    match link::bare(frame.ethertype()) {
        Some(network) => incoming(frame, network),
        None => NEXT,
    }
}

#[classifier]
fn svc_egress_l3(context: TcContext) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    match link::bare(frame.ethertype()) {
        Some(network) => outgoing(frame, network),
        None => NEXT,
    }
}

#[inline(always)]
fn incoming(mut frame: SkbFrame, network: Network) -> i32 {
    let mut maps = Maps { interface: frame.interface() };
    let verdict = if network.version == 4 {
        ingress_with_scratch::<[u8; 4]>(&mut frame, &mut maps, network.offset)
    } else {
        ingress_with_scratch::<[u8; 16]>(&mut frame, &mut maps, network.offset)
    };
    finish(&frame, maps, verdict)
}

#[inline(always)]
fn ingress_with_scratch<A: Ip + HasScratch>(frame: &mut SkbFrame, maps: &mut Maps, offset: usize) -> Verdict
where
    Maps: Tables<A>,
{
    match A::scratch() {
        Some(scratch) => ingress(frame, maps, scratch, offset),
        // The only entry of an array map is always there; the verifier asks all the same.
        None => Verdict::Pass,
    }
}

#[inline(always)]
fn outgoing(mut frame: SkbFrame, network: Network) -> i32 {
    let mut maps = Maps { interface: frame.interface() };
    let verdict = if network.version == 4 {
        egress::<[u8; 4], _, _>(&mut frame, &mut maps, network.offset)
    } else {
        egress::<[u8; 16], _, _>(&mut frame, &mut maps, network.offset)
    };
    finish(&frame, maps, verdict)
}

#[inline(always)]
fn finish(frame: &SkbFrame, mut maps: Maps, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => NEXT,
        Verdict::Drop(reason) => {
            maps.count_drop(reason, frame.size());
            DROP
        }
    }
}
