//! Bytes of a packet with checked access: the one abstraction over sk_buffs and test buffers.

use bytemuck::Pod;
use svc_common::fragment::HELD_BYTES;

use crate::{checksum::Change, crc32c};

/// What a transport checksum has to make up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// An address of the pseudo header changed (RFC 9293 section 3.1, RFC 8200 section 8.1). `ipv6` tells which one.
    PseudoHeader {
        /// The pseudo header is that of IPv6, whose IP header has no checksum that cancels the change out.
        ipv6: bool,
    },
    /// Bytes of the transport header or its payload changed.
    Payload,
}

/// A packet. Offsets count from the first byte the hook sees: the Ethernet header, or the IP header where there is none.
///
/// Every method that can fail returns `None` and leaves the frame as it was.
pub trait Frame {
    /// Bytes of the whole packet, those not directly readable included.
    fn size(&self) -> u32;

    /// Makes the first `len` bytes readable by [`Frame::get`]; false if the packet is shorter.
    fn require(&mut self, len: usize) -> bool;

    /// Reads a value of at least two bytes, if it lies within the readable ones. (LLVM turns the bounds check of a single
    /// byte, `at + 1 > end`, into `at >= end`, from which the verifier learns nothing: "invalid access to packet".)
    fn get<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Writes a value within the readable bytes.
    fn put<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()>;

    /// Adjusts the transport checksum at `offset`. With `zero_is_none` (UDP, RFC 768) a checksum of zero means "not
    /// computed" and stays zero, and a result of zero is written as 0xffff.
    fn fix_checksum(&mut self, offset: usize, change: Change, covered: Covered, zero_is_none: bool) -> Option<()>;

    /// Returns `offset`, having made the verifier forget what it knows of it. An offset that differs from path to path
    /// (VLAN tags, extension headers) would otherwise make it walk all that follows once for each.
    fn forget(&self, offset: usize) -> usize {
        offset
    }

    /// [`crc32c::change`]; the kernel makes it a function that the verifier walks once by itself.
    fn crc32c_change(&self, difference: [u8; 4], len: u32) -> [u8; 4] {
        crc32c::change(difference, len)
    }

    /// Makes the frame the beginning of an answer: cuts what is behind `end`, then opens `room` bytes at `at`, behind the
    /// link header. `None` where the frame cannot be changed so; it may be cut then and must be dropped.
    fn reshape(&mut self, end: usize, at: usize, room: usize) -> Option<()>;

    /// Copies the whole packet, if it fits; returns its length.
    fn copy_to(&mut self, into: &mut [u8; HELD_BYTES]) -> Option<u32>;

    /// Sends a copy of the packet in again, by the interface it came in by; false if that failed.
    fn send_again(&mut self) -> bool;

    /// Sends another packet in, by this interface, and leaves the frame to be dropped; false if that failed.
    fn send_other(&mut self, bytes: &[u8; HELD_BYTES], len: u32, interface: u32) -> bool;

    /// Sets bits of the packet's mark.
    fn mark(&mut self, bits: u32);

    /// Clears bits of the packet's mark; true if any of them was set.
    fn take_mark(&mut self, bits: u32) -> bool;
}
