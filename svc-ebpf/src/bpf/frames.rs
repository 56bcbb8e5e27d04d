//! An sk_buff as a [`Frame`]: reads go straight to the packet, writes through helpers.
//!
//! Direct writes would be faster for packets that are rewritten, but their mere presence makes the verifier insert a
//! prologue that un-clones *every* cloned packet (`bpf_unclone_prologue`, net/core/filter.c), Service traffic or not.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_clone_redirect, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use bytemuck::Pod;
use network_types::{eth::EthHdr, ip::Ipv4Hdr};
use svc_common::fragment::HELD_BYTES;
use svc_ebpf::{
    announce::Whole,
    checksum::Change,
    crc32c,
    frame::{Covered, Frame},
};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16): the pseudo header is IPv6's. Without it the kernel spoils
/// `skb->csum` of packets whose checksum hardware computed (CHECKSUM_COMPLETE), as there is no IP header checksum that
/// cancels the address change out.
const BPF_F_IPV6: u64 = 1 << 7;
const EINVAL: i64 = 22;
/// Keeps `skb->csum` right where hardware has summed the packet.
const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// Readable end of any frame: bounds offsets for the verifier.
const MAX_READ: usize = 0x7ff;

/// A packet of a tc hook.
pub(super) struct SkbFrame {
    skb: *mut __sk_buff,
}

impl SkbFrame {
    pub(super) fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// The context.
    pub(super) fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Ethertype the kernel keeps beside the packet, *host order*.
    #[inline(always)]
    pub(super) fn ethertype(&self) -> u16 {
        // SAFETY: the kernel passes a valid context, and the verifier checks the access.
        u16::from_be(unsafe { (*self.skb).protocol } as u16)
    }

    /// Whether the kernel keeps a VLAN tag beside the packet.
    #[inline(always)]
    pub(super) fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// Index of the interface the hook sits on.
    #[inline(always)]
    pub(super) fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as above. The two fields are packet pointers to the verifier, whatever their declared type. Volatile, so
        // that they are loaded where they are used: kept across branches, LLVM moves them as the 32-bit integers they
        // are declared to be, and the verifier forgets that they are pointers ("invalid mem access 'scalar'").
        unsafe {
            let (start, end) = (&raw const (*self.skb).data, &raw const (*self.skb).data_end);
            (start.read_volatile() as usize, end.read_volatile() as usize)
        }
    }
}

/// `offset`, if it is within [`MAX_READ`], with bounds that the verifier cannot lose.
///
/// Before Linux 6.8 it forgets of a number without bounds that LLVM moves to the stack that it is compared afterwards ("math
/// between pkt pointer and register with unbounded min value is not allowed"). The mask changes nothing and gives it bounds; in
/// Rust, LLVM would see that it changes nothing and leave it out.
#[inline(always)]
pub(super) fn bounded(mut offset: usize) -> Option<usize> {
    if offset > MAX_READ {
        return None;
    }
    // SAFETY: one instruction on a register.
    unsafe {
        core::arch::asm!("{0} &= {mask}", inout(reg) offset, mask = const MAX_READ, options(pure, nomem, nostack));
    }
    Some(offset)
}

/// `len`, if it is a length of what can be held.
#[inline(always)]
fn held_len(len: usize) -> Option<usize> {
    let len = bounded(len)?;
    if len > HELD_BYTES {
        return None;
    }
    // Bounded twice, so that LLVM does not make one comparison of both, of a difference, from which a verifier before Linux
    // 6.12 learns nothing of the length ("R3 min value is outside of the allowed memory range"). Nor does one before 6.8 from
    // "not 0".
    bounded(len).filter(|len| *len >= Ipv4Hdr::LEN)
}

/// A global function: the verifier walks it once, by its signature, and not at each of its calls.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(unreachable_pub, reason = "it is public to the linker, which would make it a static function otherwise")]
pub extern "C" fn svc_crc32c(difference: u32, len: u32) -> u32 {
    u32::from_ne_bytes(crc32c::change(difference.to_ne_bytes(), len))
}

impl Whole for SkbFrame {
    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize, into: &mut T) -> Option<()> {
        let to = core::ptr::from_mut(into).cast();
        // SAFETY: `to` is valid for the size of T, which is Pod; the helper checks the offset against the packet.
        let result = unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, to, size_of::<T>() as u32) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        // SAFETY: a helper call with a valid context; pointers into the packet are never kept.
        let result = unsafe { bpf_skb_change_tail(self.skb, len as u32, 0) };
        (result == 0).then_some(())
    }
}

impl Frame for SkbFrame {
    #[inline(always)]
    fn size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn require(&mut self, len: usize) -> bool {
        let (start, end) = self.bounds();
        if bounded(len).is_some_and(|len| start + len <= end) {
            return true;
        }
        // SAFETY: a helper call with a valid context; it may move the packet, and pointers into it are never kept.
        len <= self.size() as usize && unsafe { bpf_skb_pull_data(self.skb, len as u32) } == 0
    }

    #[inline(always)]
    fn get<T: Pod>(&self, offset: usize) -> Option<T> {
        let offset = bounded(offset)?;
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the bytes lie within the packet, as just checked (and checked again by the verifier); T is Pod.
        Some(unsafe { (at as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn put<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: `from` is valid for the size of T; the helper checks the offset against the packet.
        let result = unsafe { bpf_skb_store_bytes(self.skb, offset as u32, from, size_of::<T>() as u32, 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn fix_checksum(&mut self, offset: usize, change: Change, covered: Covered, zero_is_none: bool) -> Option<()> {
        let mut flags = if zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let is_ipv6 = covered == Covered::PseudoHeader { ipv6: true };
        if covered != Covered::Payload {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        let sum = u64::from(change.sum());
        let replace = |flags: u64| {
            // SAFETY: a helper call with a valid context; it checks the offset against the packet.
            unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, sum, flags) }
        };
        let mut result = replace(if is_ipv6 { flags | BPF_F_IPV6 } else { flags });
        if is_ipv6 && i64::from(result) == -EINVAL {
            result = replace(flags); // older kernels know no such flag
        }
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        super::maps::forget(offset)
    }

    #[inline(always)]
    fn crc32c_change(&self, difference: [u8; 4], len: u32) -> [u8; 4] {
        svc_crc32c(u32::from_ne_bytes(difference), len).to_ne_bytes()
    }

    #[inline(always)]
    fn reshape(&mut self, end: usize, at: usize, room: usize) -> Option<()> {
        // The helper opens room behind the link header the kernel knows of: not behind VLAN tags within the frame.
        if end > self.size() as usize || (at != 0 && at != EthHdr::LEN) {
            return None;
        }
        // SAFETY: helper calls with a valid context; pointers into the packet are never kept. Cutting comes first: it also
        // makes a packet that stands for many (GSO) one.
        let done = unsafe {
            bpf_skb_change_tail(self.skb, end as u32, 0) == 0
                && bpf_skb_adjust_room(self.skb, room as i32, BPF_ADJ_ROOM_MAC, 0) == 0
        };
        done.then_some(())
    }

    #[inline(always)]
    fn copy_to(&mut self, into: &mut [u8; HELD_BYTES]) -> Option<u32> {
        let len = held_len(self.size() as usize)?;
        // SAFETY: `into` has room for that many bytes; the helper checks them against the packet.
        let result = unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, into.as_mut_ptr().cast(), len as u32) };
        (result == 0).then_some(len as u32)
    }

    #[inline(always)]
    fn send_again(&mut self) -> bool {
        let interface = self.interface();
        // SAFETY: a helper call with a valid context; pointers into the packet are never kept.
        unsafe { bpf_clone_redirect(self.skb, interface, u64::from(BPF_F_INGRESS)) == 0 }
    }

    #[inline(always)]
    fn send_other(&mut self, bytes: &[u8; HELD_BYTES], len: u32, interface: u32) -> bool {
        let Some(len) = held_len(len as usize) else { return false };
        // SAFETY: as above; `bytes` has that many bytes. The clones that were sent before keep theirs: the helper unshares.
        unsafe {
            bpf_skb_change_tail(self.skb, len as u32, 0) == 0
                && bpf_skb_store_bytes(self.skb, 0, bytes.as_ptr().cast(), len as u32, RECOMPUTE) == 0
                && bpf_clone_redirect(self.skb, interface, u64::from(BPF_F_INGRESS)) == 0
        }
    }

    #[inline(always)]
    fn mark(&mut self, bits: u32) {
        // SAFETY: `mark` is a writable field of the context.
        unsafe { (*self.skb).mark |= bits };
    }

    #[inline(always)]
    fn take_mark(&mut self, bits: u32) -> bool {
        // SAFETY: as above.
        unsafe {
            let mark = (*self.skb).mark;
            let was_set = mark & bits != 0;
            if was_set {
                (*self.skb).mark = mark & !bits;
            }
            was_set
        }
    }
}
