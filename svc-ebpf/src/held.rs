//! Fragments that come before the first one of their datagram.
//!
//! A later fragment carries no ports; the first one leaves them in FRAGMENTS. One that comes before it is copied into HELD
//! and taken, and FRAGMENTS says that fragments are [awaited](Ports::AWAITED). When the first one comes, whoever it is for,
//! all of them come in again: first the first one, then those that were held, now with ports. So nothing else on the
//! packet's walk knows of any order but the usual one.
//!
//! HELD is a fixed number of places. A fragment has two, by its datagram's mark and by its offset; it takes one that is
//! free or whose fragment has waited for too long. It never decides where a packet goes.

use svc_common::{
    Hook, Ports, Reason,
    fragment::{HELD_LINE, held_tag},
};

use crate::{
    Verdict,
    frame::Frame,
    ip::Ip,
    scratch::Scratch,
    tables::{Insert, Tables},
};

/// Holds `scratch.packet`, a later fragment whose datagram `scratch.fragment` has left no ports.
#[inline(always)]
pub fn hold<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> Verdict {
    let Some(position) = A::fragment_position(frame, &scratch.packet.header) else { return Verdict::Pass };
    let key = &scratch.fragment;
    let tag = held_tag(key);
    if !tables.hold(frame, tag, position) {
        tables.count_loss(Reason::FragmentNotHeld, frame.size());
        return Verdict::Pass;
    }
    // The first one may have come meanwhile, on another CPU: it has seen this one in HELD, or else its ports are here.
    if tables.insert_fragment(key, Ports::AWAITED) == Insert::Taken
        && tables.fragment(key).is_some_and(|ports| ports != Ports::AWAITED)
    {
        tables.release(frame, tag, position);
    }
    Verdict::Held
}

/// Leaves the ports of `scratch.packet`, a first fragment, for the later ones. True if some of these were held: then all
/// have been sent in again, this one included, and the packet is to be dropped.
#[inline(always)]
pub fn lead<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, scratch: &mut Scratch<A>) -> bool {
    scratch.packet.write_fragment_key(Hook::Ingress, &mut scratch.fragment);
    let (key, ports) = (&scratch.fragment, scratch.packet.ports);
    if ports == Ports::AWAITED || tables.insert_fragment(key, ports) != Insert::Taken {
        return false;
    }
    let found = tables.fragment(key);
    if found == Some(ports) {
        return false;
    }
    tables.remember_fragment(key, ports);
    // Where this one cannot be sent in again it goes on as ever, and those that are held are lost.
    if found != Some(Ports::AWAITED) || !frame.send_again() {
        return false;
    }
    let tag = held_tag(key);
    for position in 0..HELD_LINE {
        tables.release(frame, tag, position);
    }
    true
}
