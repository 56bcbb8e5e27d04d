//! The maps, and the traits of the pure logic on top of them. Nothing is decided here.
//!
//! `statics` lists the maps whose layouts userspace shares; `scratch`, `clock`, `settings` and `count` are what is done with
//! single ones. `decisions`, `tables`, `cache` and `sockets` carry out a trait each, and `globals` and `held` have the global
//! functions these call.
//!
//! Values of hash maps are copied at once: a reference would not survive the next insertion or eviction.

mod announced;
mod cache;
mod clock;
mod count;
mod decisions;
mod globals;
mod held;
mod scratch;
mod settings;
mod sockets;
mod statics;
mod tables;

use aya_ebpf::bindings::__sk_buff;

#[cfg(feature = "array-flows")]
pub(super) use self::scratch::forgotten;
pub(super) use self::{
    announced::svc_announce,
    clock::coarse_now,
    scratch::{HasScratch, forget, with},
    settings::{config, has_flag},
};

type A4 = [u8; 4];
type A6 = [u8; 16];

/// The maps, for a packet that a hook of interface `interface` sees.
pub(super) struct Maps {
    pub(super) interface: u32,
    /// The packet, for functions that are called with it.
    pub(super) skb: *mut __sk_buff,
}

impl Maps {
    /// For what concerns no packet, or only what is in scratch memory.
    #[inline(always)]
    pub(super) fn without_packet() -> Self {
        Self { interface: 0, skb: core::ptr::null_mut() }
    }
}
