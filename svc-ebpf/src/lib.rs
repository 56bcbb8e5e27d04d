//! The packet path of `svc`, as pure logic: it runs in the kernel, under proptest on the host, and is compared with itself.
//!
//! # The packet's walk
//!
//! **Ingress rewrites destinations.** A packet that comes in is *parsed* ([`packet`]: link, IP and transport header, or
//! the tuple of the first fragment for a later one; a later one that comes before it is *held*, [`held`]). If a *filter* of bits knows neither of its ends ([`filter`]), it is none of
//! ours and passes: that is most traffic. If its tuple is a known flow ([`flow`]), the flow says where it goes.
//! Otherwise its destination is *looked up* among the frontends ([`decide`]). Without a frontend it is none of ours and
//! passes, unless its address belongs to Services all the same ([`nowhere`]: *refused* by [`reject`], or dropped), or it
//! goes directly to an endpoint ([`direct`]). A new flow *selects* a backend by consistent hashing ([`select`]), *opens* entries for both directions ([`open`]), one that lost an entry is *found again* ([`recover`]), and the
//! frame is *rewritten* ([`rewrite`]), checksums by difference ([`checksum`]).
//!
//! **Egress rewrites sources.** A packet that goes out is parsed the same way; if the reply entry of a flow matches, its
//! source becomes the address the client had asked for ([`egress`]). Where nftables does not do it, what goes from outside to
//! another node gets an address of this one as its source ([`masquerade`]).
//!
//! ICMP errors carry the head of the packet they complain about; [`icmp`] translates that head, and the outer addresses,
//! with the same entries, so that path-MTU discovery reaches the real sender.
//!
//! **The shortcut** runs both halves at once, with a route between them, on frames of an uplink that leave again ([`shortcut`]);
//! what it found out of a flow serves the next packets as well ([`cache`]).
//!
//! An echo request to a VIP is answered where it comes in ([`echo`]).
//!
//! On a port of a bridge, replies would go from port to port and netfilter would see half of each connection; there
//! [`ingress`] gives them the bridge's own hardware address, which takes them up the stack.
//!
//! # Shape
//!
//! Everything is generic over the address family ([`svc_common::Address`] through [`ip::Ip`]), over [`frame::Frame`] (bytes
//! with checked access) and over [`tables::Tables`] (the maps). Nothing here keeps state, allocates, panics, or knows
//! whether it runs in a kernel.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![forbid(unsafe_code)]

pub mod announce;
#[cfg(feature = "bench")]
#[path = "bench/plan.rs"]
pub mod bench;
pub mod cache;
pub mod checksum;
pub mod crc32c;
pub mod decide;
pub mod direct;
pub mod echo;
pub mod egress;
pub mod filter;
pub mod flow;
pub mod frame;
pub mod held;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub mod host_table;
pub mod icmp;
pub mod ingress;
pub mod ip;
pub mod link;
pub mod masquerade;
pub mod nowhere;
pub mod open;
pub mod packet;
pub mod recover;
pub mod reject;
pub mod rewrite;
pub mod scratch;
pub mod select;
pub mod shortcut;
pub mod socket;
pub mod table;
pub mod tables;
pub mod verdict;

pub use verdict::Verdict;
