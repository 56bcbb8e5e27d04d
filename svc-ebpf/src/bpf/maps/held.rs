//! HELD: packets that wait for the first fragment of their datagram, their locks, and the global functions around them.
//! Which packet waits, and for how long, is the pure logic's.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use svc_common::{
    Held, Hook, Reason,
    fragment::{HELD_BYTES, held_places},
};
use svc_ebpf::{
    Verdict,
    frame::Frame as _,
    held::{hold, lead},
    tables::Drops as _,
};

use super::{
    A4, A6, Maps,
    clock::coarse_now,
    scratch::HasScratch as _,
    statics::{HELD_V4, HELD_V6},
};
use crate::bpf::frames::SkbFrame;

/// Copies the packet to a place of HELD; false if another one is there, or if it does not fit.
#[inline(always)]
fn hold_at(held: *mut Held, frame: &mut SkbFrame, tag: u32) -> bool {
    if frame.size() as usize > HELD_BYTES {
        return false;
    }
    let now = coarse_now();
    let mut lost = 0;
    // SAFETY: an element of an array stays where it is; its lock guards who has it in hand, and only that one touches the
    // rest.
    unsafe {
        bpf_spin_lock((&raw mut (*held).lock).cast());
        let is_free = (*held).is_free(now);
        if is_free {
            if (*held).tag != 0 {
                lost = (*held).len;
            }
            (*held).tag = 0;
            (*held).busy = 1;
        }
        bpf_spin_unlock((&raw mut (*held).lock).cast());
        if !is_free {
            return false;
        }
        let len = frame.copy_to(&mut (*held).bytes);
        (*held).len = len.unwrap_or(0);
        (*held).since = now;
        (*held).interface = frame.interface();
        give_back(held, if len.is_some() { tag } else { 0 });
        if lost != 0 {
            Maps::without_packet().count_drop(Reason::FragmentLost, lost);
        }
        len.is_some()
    }
}

/// Sends in again what waits at a place of HELD for the datagram `tag`, and frees the place.
#[inline(always)]
fn release(held: *mut Held, frame: &mut SkbFrame, tag: u32) {
    // SAFETY: as above.
    unsafe {
        if (&raw const (*held).tag).read_volatile() != tag {
            return;
        }
        bpf_spin_lock((&raw mut (*held).lock).cast());
        let is_there = (*held).tag == tag && (*held).busy == 0;
        if is_there {
            (*held).busy = 1;
        }
        bpf_spin_unlock((&raw mut (*held).lock).cast());
        if !is_there {
            return;
        }
        let len = (*held).len;
        if (*held).is_over(coarse_now()) || !frame.send_other(&(*held).bytes, len, (*held).interface) {
            Maps::without_packet().count_drop(Reason::FragmentLost, len);
        }
        give_back(held, 0);
    }
}

/// Ends what `busy` began.
///
/// # Safety
///
/// The caller has set `busy`.
#[inline(always)]
unsafe fn give_back(held: *mut Held, tag: u32) {
    // SAFETY: as the callers say.
    unsafe {
        bpf_spin_lock((&raw mut (*held).lock).cast());
        (*held).tag = tag;
        (*held).busy = 0;
        bpf_spin_unlock((&raw mut (*held).lock).cast());
    }
}

macro_rules! family {
    ($address:ty, $held:ident, $hold:ident, $lead:ident, $hold_at:ident, $release:ident) => {
        /// A global function, as those of [`super::globals`]; returns 1 if the packet is held.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as in `globals.rs`")]
        pub extern "C" fn $hold(skb: *mut __sk_buff) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return 0 };
            let maps = &mut Maps { interface: 0, skb };
            u32::from(hold(&mut SkbFrame::new(skb), maps, scratch) == Verdict::Held)
        }

        /// As above; returns 1 if the packet has been sent in again.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $lead(skb: *mut __sk_buff) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return 0 };
            u32::from(lead(&mut SkbFrame::new(skb), &mut Maps { interface: 0, skb }, scratch))
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $hold_at(skb: *mut __sk_buff, tag: u32, position: u32) -> u32 {
            for place in held_places(tag, position) {
                let held = $held.get_ptr_mut(place);
                if held.is_some_and(|held| hold_at(held, &mut SkbFrame::new(skb), tag)) {
                    return 1;
                }
            }
            0
        }

        /// As above; returns nothing of interest.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $release(skb: *mut __sk_buff, tag: u32, position: u32) -> u32 {
            for place in held_places(tag, position) {
                if let Some(held) = $held.get_ptr_mut(place) {
                    release(held, &mut SkbFrame::new(skb), tag);
                }
            }
            0
        }
    };
}

family!(A4, HELD_V4, svc_hold_v4, svc_lead_v4, svc_hold_at_v4, svc_release_v4);
family!(A6, HELD_V6, svc_hold_v6, svc_lead_v6, svc_hold_at_v6, svc_release_v6);
