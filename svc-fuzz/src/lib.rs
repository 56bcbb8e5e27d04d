//! What the fuzz targets do, as plain functions of bytes: [`frames`], [`sequences`] and [`objects`]. Each panics where the
//! code under test does what it must not.
//!
//! `fuzz/` calls them under libFuzzer, `tests/replay.rs` with the seeds and with everything that was ever found, and the
//! comparison of the packet path with the kernel (`svc-userspace/tests/kernel_packets.rs`) runs the same cases.
//! What is right is never asked of the code under test: packets are judged by [`judge`], maps by a model of them.
#![forbid(unsafe_code)]

pub mod case;
pub mod craft;
pub mod generate;
pub mod judge;
pub mod packets;
pub mod random;
pub mod trace;
pub mod wire;
pub mod world;

pub mod objects;

/// Real packets, mutated: the parser and the rewriter.
pub fn frames(bytes: &[u8]) {
    packets::run(&trace::read(bytes));
}

/// Sequences of packets and changes of the tables: the life of flows.
pub fn sequences(bytes: &[u8]) {
    packets::run(&generate::case(bytes));
}

/// Objects, through conversion, compilation and tables, to operations on a model of the maps.
pub fn objects(bytes: &[u8]) {
    objects::run(bytes);
}
