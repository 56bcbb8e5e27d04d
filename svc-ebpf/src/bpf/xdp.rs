//! The XDP program of uplinks: the shortcut, and nothing else. What does not take it goes up the stack as it came.
//!
//! Frames in several buffers (`xdp.frags`) are taken if their headers lie in the first one, as they do.

use core::mem::{offset_of, size_of};

use aya_ebpf::{
    bindings::{bpf_fib_lookup, xdp_action, xdp_md},
    btf_maps::PerCpuArray,
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use bytemuck::Pod;
use svc_common::{Hook, Reason, config::INTERFACE_XDP, fragment::HELD_BYTES};
use svc_ebpf::{
    cache::{Cached, known, macs},
    checksum::Change,
    frame::{Covered, Frame},
    link,
    packet::Packet,
    scratch::Scratch,
    shortcut::{Road, Way, shortcut},
    tables::{Drops, Tables},
};

use super::{
    frames::{bounded, svc_crc32c},
    maps::{self, HasScratch, Maps},
    words,
};

/// `AF_INET`, `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// What the routes are asked and say, aligned for whole words; outside of the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Fib {
    lookup: bpf_fib_lookup,
}

#[btf_map]
static ROUTE: PerCpuArray<Fib, 1> = PerCpuArray::new();

/// For native XDP, frames in several buffers included (Linux 5.18).
#[xdp(frags)]
#[inline(always)]
fn svc_xdp(context: XdpContext) -> u32 {
    received(XdpFrame::<true>::new(context.ctx))
}

/// For generic XDP. Of a program for several buffers, Linux 6.18 leaves the classifiers behind it a packet that has lost the
/// length of its link header (`skb_pp_cow_data`, net/core/skbuff.c, does not copy `mac_len`).
#[xdp]
#[inline(always)]
fn svc_xdp_skb(context: XdpContext) -> u32 {
    received(XdpFrame::<false>::new(context.ctx))
}

#[inline(always)]
fn received<const FRAGS: bool>(mut frame: XdpFrame<FRAGS>) -> u32 {
    let interface = frame.interface;
    let Some(network) = link::ethernet(&mut frame) else { return xdp_action::XDP_PASS };
    let mut maps = Maps { interface, ..Maps::without_packet() };
    let way = if network.version == 4 {
        run::<[u8; 4], FRAGS>(&mut frame, &mut maps, network.offset)
    } else {
        run::<[u8; 16], FRAGS>(&mut frame, &mut maps, network.offset)
    };
    match way {
        Way::Stack => xdp_action::XDP_PASS,
        Way::Leave if frame.leaves_by == interface => xdp_action::XDP_TX,
        // SAFETY: a helper that takes numbers.
        Way::Leave => unsafe { bpf_redirect(frame.leaves_by, 0) as u32 },
        Way::Drop(reason) => {
            maps.count_drop(reason, frame.size());
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn run<A, const FRAGS: bool>(frame: &mut XdpFrame<FRAGS>, maps: &mut Maps, offset: usize) -> Way
where
    A: svc_ebpf::ip::Ip + HasScratch,
    Maps: svc_ebpf::tables::Tables<A>,
    XdpFrame<FRAGS>: Road<A>,
{
    // The entries of an array map are always there; the verifier asks all the same.
    let (Some(incoming), Some(outgoing)) = (A::scratch(Hook::Ingress), A::scratch(Hook::Egress)) else {
        return Way::Stack;
    };
    shortcut(frame, maps, incoming, outgoing, offset)
}

/// A frame that a driver has just received.
struct XdpFrame<const FRAGS: bool> {
    xdp: *mut xdp_md,
    interface: u32,
    /// There is no sk_buff that could have one.
    mark: u32,
    leaves_by: u32,
}

impl<const FRAGS: bool> XdpFrame<FRAGS> {
    #[inline(always)]
    fn new(xdp: *mut xdp_md) -> Self {
        // SAFETY: the kernel passes a valid context, and the verifier checks the access. Read once: the compiler would take the
        // field's address, and the verifier refuses it ("dereference of modified ctx ptr").
        let interface = unsafe { (&raw const (*xdp).ingress_ifindex).read_volatile() };
        Self { xdp, interface, mark: 0, leaves_by: 0 }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as above; volatile as in `SkbFrame`.
        unsafe {
            let (start, end) = (&raw const (*self.xdp).data, &raw const (*self.xdp).data_end);
            (start.read_volatile() as usize, end.read_volatile() as usize)
        }
    }

    /// Where `len` bytes at `offset` stand.
    #[inline(always)]
    fn place(&self, offset: usize, len: usize) -> Option<usize> {
        let offset = bounded(offset)?;
        let (start, end) = self.bounds();
        let at = start + offset;
        (at + len <= end).then_some(at)
    }
}

impl<const FRAGS: bool> Frame for XdpFrame<FRAGS> {
    #[inline(always)]
    fn size(&self) -> u32 {
        if FRAGS {
            // SAFETY: a helper call with a valid context.
            return unsafe { bpf_xdp_get_buff_len(self.xdp) as u32 };
        }
        let (start, end) = self.bounds();
        (end - start) as u32
    }

    #[inline(always)]
    fn require(&mut self, len: usize) -> bool {
        let (start, end) = self.bounds();
        bounded(len).is_some_and(|len| start + len <= end)
    }

    #[inline(always)]
    fn get<T: Pod>(&self, offset: usize) -> Option<T> {
        let at = self.place(offset, size_of::<T>())?;
        // SAFETY: the bytes lie within the packet, as just checked (and checked again by the verifier).
        Some(unsafe { words::read(at) })
    }

    #[inline(always)]
    fn put<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        let at = self.place(offset, size_of::<T>())?;
        // SAFETY: as above.
        unsafe { words::write(at, value) };
        Some(())
    }

    #[inline(always)]
    fn fix_checksum(&mut self, offset: usize, change: Change, _covered: Covered, zero_is_none: bool) -> Option<()> {
        let old: [u8; 2] = self.get(offset)?;
        if zero_is_none && old == [0, 0] {
            return Some(());
        }
        let new = change.apply(old);
        self.put(offset, &if zero_is_none && new == [0, 0] { [0xff, 0xff] } else { new })
    }

    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        maps::forget(offset)
    }

    #[inline(always)]
    fn crc32c_change(&self, difference: [u8; 4], len: u32) -> [u8; 4] {
        svc_crc32c(u32::from_ne_bytes(difference), len).to_ne_bytes()
    }

    #[inline(always)]
    fn reshape(&mut self, _end: usize, _at: usize, _room: usize) -> Option<()> {
        None
    }

    // Fragments go up the stack.
    #[inline(always)]
    fn copy_to(&mut self, _into: &mut [u8; HELD_BYTES]) -> Option<u32> {
        None
    }

    #[inline(always)]
    fn send_again(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn send_other(&mut self, _bytes: &[u8; HELD_BYTES], _len: u32, _interface: u32) -> bool {
        false
    }

    #[inline(always)]
    fn mark(&mut self, bits: u32) {
        self.mark |= bits;
    }

    #[inline(always)]
    fn take_mark(&mut self, bits: u32) -> bool {
        let was_set = self.mark & bits != 0;
        self.mark &= !bits;
        was_set
    }
}

impl<const FRAGS: bool> XdpFrame<FRAGS> {
    /// Asks the routes; `addresses` writes both into the question.
    #[inline(always)]
    fn ask(&mut self, family: u8, protocol: u8, len: usize, addresses: impl FnOnce(*mut u8)) -> Option<u32> {
        let question = ROUTE.get_ptr_mut(0)?;
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs. Written word by word: the compiler
        // would make a call of memset.
        let result = unsafe {
            let lookup = &raw mut (*question).lookup;
            for word in 0..size_of::<bpf_fib_lookup>() / 8 {
                lookup.cast::<u64>().add(word).write_volatile(0);
            }
            (*lookup).family = family;
            (*lookup).l4_protocol = protocol;
            (*lookup).__bindgen_anon_1.tot_len = len as u16;
            (*lookup).ifindex = self.interface;
            addresses(lookup.cast());
            fib_lookup(self.xdp.cast(), lookup, size_of::<bpf_fib_lookup>() as i32, 0)
        };
        if result != 0 {
            return None;
        }
        // SAFETY: as above.
        let interface = unsafe { (*question).lookup.ifindex };
        if interface != self.interface && !maps::has_flag(interface, INTERFACE_XDP) {
            return None;
        }
        self.leaves_by = interface;
        Some(interface)
    }
}

const SOURCE: usize = offset_of!(bpf_fib_lookup, __bindgen_anon_3);
const DESTINATION: usize = offset_of!(bpf_fib_lookup, __bindgen_anon_4);

macro_rules! family {
    ($address:ty, $family:expr, $known:ident) => {
        /// A global function, which the verifier walks once by itself: [`known`] for the packet in the scratch memory of ingress.
        /// Returns 0 if its flow is not known, 1 if it is lost, else 1 more than the index of the interface that it leaves by.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(
            unreachable_pub,
            reason = "it is public to the linker, which would make it a static function otherwise"
        )]
        pub extern "C" fn $known(xdp: *mut xdp_md, bytes: u32) -> u32 {
            let Some(incoming) = <$address>::scratch(Hook::Ingress) else { return 0 };
            let mut frame = XdpFrame::<false>::new(xdp);
            let mut maps = Maps { interface: frame.interface, ..Maps::without_packet() };
            match known(&mut frame, &mut maps, incoming, bytes) {
                None => 0,
                Some(Way::Leave) => frame.leaves_by + 1,
                Some(_) => 1,
            }
        }

        impl<const FRAGS: bool> Road<$address> for XdpFrame<FRAGS> {
            #[inline(always)]
            fn route(&mut self, packet: &Packet<$address>) -> Option<u32> {
                let header = &packet.header;
                self.ask($family, header.protocol, header.len, |question| {
                    // SAFETY: within the question, which is aligned; the addresses are of whole words.
                    unsafe {
                        question.add(SOURCE).cast::<$address>().write_unaligned(header.source);
                        question.add(DESTINATION).cast::<$address>().write_unaligned(header.destination);
                    }
                })
            }

            #[inline(always)]
            fn readdress(&mut self) -> Option<()> {
                let answer = ROUTE.get_ptr_mut(0)?;
                // SAFETY: as above.
                let (to, from) = unsafe { ((*answer).lookup.dmac, (*answer).lookup.smac) };
                self.put(0, &[to, from])
            }

            #[inline(always)]
            fn hop(&self, into: &mut Cached<$address>) -> Option<()> {
                let answer = ROUTE.get_ptr_mut(0)?;
                // SAFETY: as above. Where a kernel does not say the MTU (before Linux 5.12), the length it was asked for stays.
                unsafe {
                    into.macs = macs((*answer).lookup.dmac, (*answer).lookup.smac);
                    into.mtu = (*answer).lookup.__bindgen_anon_1.mtu_result;
                }
                into.leaves_by = self.leaves_by;
                Some(())
            }

            #[inline(always)]
            fn leave(&mut self, interface: u32, macs: &[u32; 3]) -> Option<()> {
                self.leaves_by = interface;
                self.put(0, macs)
            }

            #[inline(always)]
            fn came_by(&self) -> u32 {
                self.interface
            }

            #[inline(always)]
            fn known<T: Tables<$address>>(&mut self, _tables: &mut T, incoming: &mut Scratch<$address>) -> Option<Way> {
                let (xdp, bytes) = (self.xdp, self.size());
                match maps::with(incoming, || $known(xdp, bytes)) {
                    0 => None,
                    1 => Some(Way::Drop(Reason::NotWritable)),
                    interface => {
                        self.leaves_by = interface - 1;
                        Some(Way::Leave)
                    }
                }
            }
        }
    };
}

family!([u8; 4], FAMILIES[0], svc_known_v4);
family!([u8; 16], FAMILIES[1], svc_known_v6);
const _: () = assert!(size_of::<bpf_fib_lookup>() == 64);
