//! The maps, and the traits of the pure logic on top of them. Sizes here are defaults; the agent sets them at load.
//!
//! Values of hash maps are copied at once: a reference would not survive the next insertion or eviction.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
};
use svc_common::{
    Address as _, Affinity, AffinityKey, Backend, Cidr, Config, Counters, Flow, FlowKey, FragmentKey, Frontend,
    FrontendKey, Held, Hook, Interface, Ports, Reason, ServiceName, SlotLine, SocketBackend, SocketKey, SocketPeer,
    SourcePrefix,
    config::{CONFIG_BRIDGES, CONFIG_FILTER, CONFIG_MASQUERADE, CONFIG_SERVICE_CIDRS},
    filter::{FILTER_WORDS, KNOWN_ENDPOINT, KNOWN_FRONTEND, UNUSUAL as UNUSUAL_LEN, filter_place, unusual_place},
    fragment::{HELD_BYTES, HELD_PLACES, held_places},
    hash::SLOTS_PER_LINE,
    masquerade::PORTS,
    source_range::SERVICE_BITS,
    vip::SERVICE_CIDRS,
};
use svc_ebpf::{
    Verdict,
    decide::{Decision, decide},
    frame::Frame,
    held::{hold, lead},
    masquerade::{Outcome, Task, masquerade, try_port},
    open::{Attempt, attempt},
    scratch::Scratch,
    tables::{Decisions, Drops, Insert, Sockets, Tables},
};

#[cfg(feature = "array-flows")]
use super::flows_array::FlowTable as _;
#[cfg(not(feature = "array-flows"))]
use super::flows_lru::FlowTable as _;
use super::frames::SkbFrame;

const EEXIST: i32 = 17;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

type A4 = [u8; 4];
type A6 = [u8; 16];

#[btf_map]
static FRONTENDS_V4: HashMap<FrontendKey<A4>, Frontend, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FRONTENDS_V6: HashMap<FrontendKey<A6>, Frontend, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
static SLOTS: Array<SlotLine, 262144, MMAPABLE> = Array::new();
#[btf_map]
static BACKENDS_V4: Array<Backend<A4>, 131072, MMAPABLE> = Array::new();
#[btf_map]
static BACKENDS_V6: Array<Backend<A6>, 131072, MMAPABLE> = Array::new();
#[btf_map]
static AFFINITY_V4: LruHashMap<AffinityKey<A4>, Affinity, 65536> = LruHashMap::new();
#[btf_map]
static AFFINITY_V6: LruHashMap<AffinityKey<A6>, Affinity, 65536> = LruHashMap::new();
#[btf_map]
static VIPS_V4: HashMap<A4, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
static VIPS_V6: HashMap<A6, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
static SERVICE_CIDRS_V4: Array<Cidr<A4>, { SERVICE_CIDRS as usize }> = Array::new();
#[btf_map]
static SERVICE_CIDRS_V6: Array<Cidr<A6>, { SERVICE_CIDRS as usize }> = Array::new();
#[btf_map]
static SOURCE_RANGES_V4: LpmTrie<SourcePrefix<A4>, u32, 65536> = LpmTrie::new();
#[btf_map]
static SOURCE_RANGES_V6: LpmTrie<SourcePrefix<A6>, u32, 65536> = LpmTrie::new();
#[btf_map]
static MASQUERADE_V4: HashMap<u32, A4, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
static MASQUERADE_V6: HashMap<u32, A6, 4096, NO_PREALLOC> = HashMap::new();
/// Of the ports of `svc_common::masquerade`, those that were reserved before: a bit each. The agent's alone.
#[btf_map]
static RESERVED: Array<u64, { (PORTS / 64) as usize }> = Array::new();
#[btf_map]
static FILTER: Array<u64, { FILTER_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map]
static UNUSUAL: Array<u64, { UNUSUAL_LEN as usize }> = Array::new();
#[btf_map]
static REFUSALS: PerCpuArray<Refusals, 1> = PerCpuArray::new();
#[btf_map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<A4>, Ports, 8192> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<A6>, Ports, 8192> = LruHashMap::new();
#[btf_map]
static HELD_V4: Array<Held, { HELD_PLACES as usize }> = Array::new();
#[btf_map]
static HELD_V6: Array<Held, { HELD_PLACES as usize }> = Array::new();
#[btf_map]
static SOCKETS_V4: LruHashMap<SocketKey<A4>, SocketBackend, 16384> = LruHashMap::new();
#[btf_map]
static SOCKETS_V6: LruHashMap<SocketKey<A6>, SocketBackend, 16384> = LruHashMap::new();
#[btf_map]
static PEERS_V4: LruHashMap<SocketKey<A4>, SocketPeer<A4>, 65536> = LruHashMap::new();
#[btf_map]
static PEERS_V6: LruHashMap<SocketKey<A6>, SocketPeer<A6>, 65536> = LruHashMap::new();
#[btf_map]
static STATS_SERVICE: PerCpuArray<Counters, 32768> = PerCpuArray::new();
#[btf_map]
static STATS_BACKEND: PerCpuArray<Counters, 131072> = PerCpuArray::new();
#[btf_map]
static DROPS: PerCpuArray<Counters, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static INTERFACES: HashMap<u32, Interface, 16384, NO_PREALLOC> = HashMap::new();
/// Written and read by userspace only; it is here so that its layout stands in the object's BTF like all others.
#[btf_map]
static SERVICES: HashMap<u32, ServiceName, 32768, NO_PREALLOC> = HashMap::new();

/// One element for each hook.
#[btf_map]
static SCRATCH_V4: PerCpuArray<Scratch<A4>, 2> = PerCpuArray::new();
#[btf_map]
static SCRATCH_V6: PerCpuArray<Scratch<A6>, 2> = PerCpuArray::new();

#[btf_map]
static FORGOTTEN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where [`forget`] forgets: a word of this CPU's.
#[inline(always)]
pub(super) fn forgotten() -> Option<*mut u64> {
    FORGOTTEN.get_ptr_mut(0)
}

/// Takes a value through a map, on whose contents the verifier has no opinion; what is larger becomes [`FURTHEST`].
#[inline(always)]
pub(super) fn forget(value: usize) -> usize {
    match forgotten() {
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs.
        Some(place) => unsafe {
            place.write_volatile(value.min(FURTHEST) as u64);
            // The mask, which changes nothing, gives it bounds. Before Linux 6.8 the verifier forgets of a number without
            // bounds that LLVM moves to the stack that it was compared ("math between pkt pointer and register with
            // unbounded min value is not allowed").
            place.read_volatile() as usize & FURTHEST
        },
        None => FURTHEST, // never taken: an array's entries are always there
    }
}

/// Beyond every offset that is read (`svc_ebpf::ip::MAX_OFFSET`); all ones, so that it is a mask as well.
const FURTHEST: usize = 0x7ff;

/// Working memory of the packet programs: one for each CPU and hook.
///
/// SAFETY of the reference: both hooks run with bottom halves disabled, and a program of one hook is never interrupted by
/// another one of the same hook on its CPU, so until the program ends nobody else uses the value.
pub(super) trait HasScratch: Sized + 'static {
    /// The scratch memory of this CPU for a hook.
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>>;
}

impl HasScratch for A4 {
    #[inline(always)]
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>> {
        // SAFETY: as the trait says.
        SCRATCH_V4.get_ptr_mut(hook as u32).map(|scratch| unsafe { &mut *scratch })
    }
}

impl HasScratch for A6 {
    #[inline(always)]
    fn scratch(hook: Hook) -> Option<&'static mut Scratch<Self>> {
        // SAFETY: as the trait says.
        SCRATCH_V6.get_ptr_mut(hook as u32).map(|scratch| unsafe { &mut *scratch })
    }
}

/// How many packets a CPU has refused within a span of time.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Refusals {
    /// The span's number.
    span: u32,
    /// Packets refused in it.
    count: u32,
}

/// Length of a span, as a power of two of nanoseconds: 134 ms.
const SPAN_SHIFT: u32 = 27;
/// Refusals in a span: about 1,000 a second, what Linux allows itself (`net.ipv4.icmp_msgs_per_sec`).
const REFUSALS_A_SPAN: u32 = 128;

/// Calls a function that works on the same scratch memory, which the compiler does not see.
#[inline(always)]
fn with<A, R>(scratch: &mut Scratch<A>, call: impl FnOnce() -> R) -> R {
    core::hint::black_box(&mut *scratch);
    let result = call();
    core::hint::black_box(scratch);
    result
}

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

/// CONFIG.
#[inline(always)]
pub(super) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// True if an interface has a flag in INTERFACES.
#[inline(always)]
pub(super) fn has_flag(interface: u32, flag: u8) -> bool {
    // SAFETY: copied at once.
    unsafe { INTERFACES.get(&interface) }.is_some_and(|interface| interface.flags & flag != 0)
}

/// True if a flag of CONFIG is set.
#[inline(always)]
fn has(flag: u32) -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & flag != 0)
}

/// The two bits at a place of FILTER.
#[inline(always)]
fn bits(place: u32) -> u32 {
    match FILTER.get(place / 64) {
        Some(word) => (*word >> (place % 64)) as u32 & (KNOWN_FRONTEND | KNOWN_ENDPOINT),
        None => KNOWN_FRONTEND | KNOWN_ENDPOINT, // never taken: an array's entries are always there
    }
}

/// Copies a value of whole 32-bit words, word by word: see `Address::copy`.
///
/// # Safety
///
/// Both are valid, and aligned to 4 bytes.
#[inline(always)]
#[cfg(not(feature = "array-flows"))]
pub(super) unsafe fn copy<T>(from: *const T, to: *mut T) {
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    for word in 0..core::mem::size_of::<T>() / 4 {
        // SAFETY: within the value. Volatile, or LLVM would see through it.
        unsafe { to.add(word).write(from.add(word).read_volatile()) };
    }
}

/// What the coarse clock said in one of the kernel's ticks.
#[repr(C)]
#[derive(Clone, Copy)]
struct Clock {
    /// The tick: `jiffies`.
    tick: u64,
    /// The coarse clock, which moves with the ticks.
    ns: u64,
}

#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// The coarse clock, asked once in a tick: the number of the tick is a read of memory (the verifier inlines the helper), the
/// clock is a call.
#[inline(always)]
fn coarse_ns() -> u64 {
    // SAFETY: helpers without arguments; a value of a per-CPU array belongs to this CPU while the program runs. (A program
    // of the other hook that interrupts this one writes the same.)
    unsafe {
        let tick = bpf_jiffies64();
        match CLOCK.get_ptr_mut(0) {
            Some(clock) if (*clock).tick == tick => (*clock).ns,
            Some(clock) => {
                let ns = bpf_ktime_get_coarse_ns();
                *clock = Clock { tick, ns };
                ns
            }
            None => bpf_ktime_get_coarse_ns(),
        }
    }
}

#[inline(always)]
pub(super) fn coarse_now() -> u32 {
    (coarse_ns() >> 30) as u32
}

#[inline(always)]
fn may_refuse() -> bool {
    let Some(refusals) = REFUSALS.get_ptr_mut(0) else { return false };
    // SAFETY: a helper without arguments; a value of a per-CPU array belongs to this CPU while the program runs.
    unsafe {
        let span = (coarse_ns() >> SPAN_SHIFT) as u32;
        if (*refusals).span != span {
            *refusals = Refusals { span, count: 0 };
        }
        (*refusals).count += 1;
        (*refusals).count <= REFUSALS_A_SPAN
    }
}

#[inline(always)]
fn add(map_value: Option<*mut Counters>, packets: u64, bytes: u64, connections: u64) {
    if let Some(counters) = map_value {
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs; the pointer stays valid.
        unsafe {
            (*counters).packets += packets;
            (*counters).bytes += bytes;
            (*counters).connections += connections;
        }
    }
}

impl Drops for Maps {
    #[inline(always)]
    fn count_drop(&mut self, reason: Reason, bytes: u32) {
        add(DROPS.get_ptr_mut(reason as u32), 1, u64::from(bytes), 0);
    }
}

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
    (
        $address:ty, $frontends:ident, $backends:ident, $affinity:ident, $fragments:ident, $sockets:ident,
        $peers:ident, $vips:ident, $cidrs:ident, $sources:ident, $in_cidr:ident, $masquerades:ident, $attempt:ident, $decide:ident,
        $masquerade:ident, $try_port:ident, $held:ident, $hold:ident, $lead:ident, $hold_at:ident, $release:ident
    ) => {
        impl Decisions<$address> for Maps {
            #[inline(always)]
            fn frontend(&mut self, key: &FrontendKey<$address>) -> Option<Frontend> {
                // SAFETY: copied before anything else touches the map.
                unsafe { $frontends.get(key) }.copied()
            }

            #[inline(always)]
            fn slot(&mut self, index: u32) -> Option<u32> {
                let line = SLOTS.get(index / SLOTS_PER_LINE)?;
                line.backends.get((index % SLOTS_PER_LINE) as usize).copied()
            }

            #[inline(always)]
            fn backend(&mut self, id: u32) -> Option<Backend<$address>> {
                let backend = $backends.get(id)?;
                Some(Backend { address: backend.address.copy(), ..*backend })
            }

            #[inline(always)]
            fn affinity(&mut self, key: &AffinityKey<$address>) -> Option<Affinity> {
                // SAFETY: copied at once.
                unsafe { $affinity.get(key) }.copied()
            }

            #[inline(always)]
            fn set_affinity(&mut self, key: &AffinityKey<$address>, affinity: Affinity) {
                // An LRU map evicts rather than refuse; a lost binding costs the client its affinity, not its flow.
                let _ = $affinity.insert(key, &affinity, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn vip(&mut self, address: &$address) -> u32 {
                // SAFETY: copied at once.
                unsafe { $vips.get(address) }.copied().unwrap_or(0)
            }

            #[inline(always)]
            fn in_service_cidr(&mut self, address: &$address) -> bool {
                has(CONFIG_SERVICE_CIDRS) && $in_cidr(address) != 0
            }

            #[inline(always)]
            fn known(&mut self, address: &$address, port: u16, protocol: u8) -> u32 {
                if has(CONFIG_FILTER) {
                    bits(filter_place(address, port, protocol))
                } else {
                    KNOWN_FRONTEND | KNOWN_ENDPOINT
                }
            }

            #[inline(always)]
            fn now(&mut self) -> u32 {
                coarse_now()
            }
        }

        /// A global function, as below. 1 if the address is in SERVICE_CIDRS.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as below")]
        pub extern "C" fn $in_cidr(address: *const $address) -> u32 {
            // To the verifier a pointer that comes as an argument may be null.
            // SAFETY: the only caller passes a reference.
            let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
            let mut found = false;
            for index in 0..SERVICE_CIDRS {
                found |= $cidrs.get(index).is_some_and(|cidr| cidr.contains(address));
            }
            u32::from(found)
        }

        /// A global function: the verifier walks it once, by its signature (Linux 5.6; memory arguments 5.12). Returns an
        /// [`Attempt`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(
            unreachable_pub,
            reason = "it is public to the linker, which would make it a static function otherwise"
        )]
        pub extern "C" fn $attempt(number: u32) -> i32 {
            // Not an argument: before Linux 6.2 memory that came as one is no key and no value of a map ("R2 type=mem
            // expected=fp, pkt, pkt_meta, map_key, map_value", commit d1673304097c).
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return Attempt::NoBackend as i32 };
            attempt(&mut Maps::without_packet(), scratch, number) as i32
        }

        /// As above; returns a [`Decision`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $decide(interface: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return Decision::Pass.to_u32() };
            decide(&mut Maps { interface, ..Maps::without_packet() }, scratch).to_u32()
        }

        /// As above; returns 1 if the packet is held.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
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

        /// As above, with a [`Task`] as a number; returns an [`Outcome`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $masquerade(interface: u32, task: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Egress) else { return Outcome::Pass as u32 };
            masquerade(&mut Maps { interface, ..Maps::without_packet() }, scratch, Task::from_u32(task)) as u32
        }

        /// As above; returns an [`Outcome`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $try_port(number: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Egress) else { return Outcome::Taken as u32 };
            try_port(&mut Maps::without_packet(), scratch, number) as u32
        }

        impl Tables<$address> for Maps {
            #[inline(always)]
            fn release_flow(&mut self, key: &FlowKey<$address>, last_seen: u32) -> bool {
                <$address>::release(key, last_seen)
            }

            #[inline(always)]
            fn masquerade_source(&mut self) -> Option<$address> {
                // SAFETY: copied at once.
                unsafe { $masquerades.get(&self.interface) }.map(|address| address.copy())
            }

            #[inline(always)]
            fn programs_masquerade(&mut self) -> bool {
                config().flags & CONFIG_MASQUERADE != 0
            }

            #[inline(always)]
            fn masquerade(&mut self, scratch: &mut Scratch<$address>, task: Task) -> Outcome {
                Outcome::from_u32(with(scratch, || $masquerade(self.interface, task as u32)))
            }

            #[inline(always)]
            fn try_port(&mut self, scratch: &mut Scratch<$address>, number: u32) -> Outcome {
                Outcome::from_u32(with(scratch, || $try_port(number)))
            }

            #[inline(always)]
            fn hold_early<F: Frame>(&mut self, _frame: &mut F, scratch: &mut Scratch<$address>) -> Verdict {
                if with(scratch, || $hold(self.skb)) == 1 { Verdict::Held } else { Verdict::Pass }
            }

            #[inline(always)]
            fn lead<F: Frame>(&mut self, _frame: &mut F, scratch: &mut Scratch<$address>) -> bool {
                with(scratch, || $lead(self.skb)) == 1
            }

            #[inline(always)]
            fn hold<F: Frame>(&mut self, _frame: &mut F, tag: u32, position: u32) -> bool {
                $hold_at(self.skb, tag, position) == 1
            }

            #[inline(always)]
            fn release<F: Frame>(&mut self, _frame: &mut F, tag: u32, position: u32) {
                $release(self.skb, tag, position);
            }

            #[inline(always)]
            fn insert_fragment(&mut self, key: &FragmentKey<$address>, ports: Ports) -> Insert {
                match $fragments.insert(key, &ports, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Insert::Done,
                    Err(error) if error == -EEXIST => Insert::Taken,
                    Err(_) => Insert::Full,
                }
            }

            #[inline(always)]
            fn count_loss(&mut self, reason: Reason, bytes: u32) {
                self.count_drop(reason, bytes);
            }

            #[inline(always)]
            fn decide(&mut self, scratch: &mut Scratch<$address>) -> Decision {
                Decision::from_u32(with(scratch, || $decide(self.interface)))
            }

            #[inline(always)]
            fn source_allowed(&mut self, service: u32, client: &$address) -> bool {
                let prefix = SourcePrefix { service, address: *client };
                let bits = SERVICE_BITS + 8 * core::mem::size_of::<$address>() as u32;
                $sources.get(&Key::new(bits, prefix)).is_some()
            }

            #[inline(always)]
            fn is_target(&mut self, address: &$address, port: u16, protocol: u8) -> bool {
                bits(filter_place(address, port, protocol)) & KNOWN_ENDPOINT != 0
            }

            #[inline(always)]
            fn is_unusual(&mut self, source: &$address, destination: &$address) -> bool {
                !has(CONFIG_FILTER) || UNUSUAL.get(unusual_place(source, destination)).is_none_or(|seen| *seen != 0)
            }

            #[inline(always)]
            fn set_unusual(&mut self, source: &$address, destination: &$address) {
                if let Some(seen) = UNUSUAL.get_ptr_mut(unusual_place(source, destination)) {
                    // SAFETY: a value of an array; nobody ever writes anything else.
                    unsafe { seen.write_volatile(1) };
                }
            }

            #[inline(always)]
            fn has_bridges(&mut self) -> bool {
                has(CONFIG_BRIDGES)
            }

            #[inline(always)]
            fn may_refuse(&mut self) -> bool {
                may_refuse()
            }

            #[inline(always)]
            fn attempt(&mut self, scratch: &mut Scratch<$address>, number: u32) -> Attempt {
                match with(scratch, || $attempt(number)) {
                    0 => Attempt::Opened,
                    2 => Attempt::Taken,
                    3 => Attempt::Full,
                    _ => Attempt::NoBackend,
                }
            }

            #[inline(always)]
            fn flow(&mut self, key: &FlowKey<$address>, closes: bool, into: &mut Flow<$address>) -> Option<bool> {
                <$address>::flow(key, closes, into)
            }

            #[inline(always)]
            fn peek_flow(&mut self, key: &FlowKey<$address>, into: &mut Flow<$address>) -> bool {
                <$address>::peek(key, into)
            }

            #[inline(always)]
            fn insert_flow(&mut self, key: &FlowKey<$address>, flow: &Flow<$address>) -> Insert {
                <$address>::write(key, flow, true)
            }

            #[inline(always)]
            fn replace_flow(&mut self, key: &FlowKey<$address>, flow: &Flow<$address>) -> bool {
                <$address>::write(key, flow, false) == Insert::Done
            }

            #[inline(always)]
            fn remove_flow(&mut self, key: &FlowKey<$address>) {
                <$address>::remove(key);
            }

            #[inline(always)]
            fn fragment(&mut self, key: &FragmentKey<$address>) -> Option<Ports> {
                // SAFETY: copied at once.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn remember_fragment(&mut self, key: &FragmentKey<$address>, ports: Ports) {
                // Without the entry later fragments are held for a first one that has been here.
                let _ = $fragments.insert(key, &ports, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn interface(&mut self) -> Interface {
                // SAFETY: copied at once.
                unsafe { INTERFACES.get(&self.interface) }.copied().unwrap_or_default()
            }

            #[inline(always)]
            fn masquerade_mark(&mut self) -> u32 {
                config().masquerade_mark
            }

            #[inline(always)]
            fn leave_by(&mut self, interface: u32) {
                self.interface = interface;
            }

            #[inline(always)]
            fn count_new(&mut self, flow: &Flow<$address>) {
                add(STATS_SERVICE.get_ptr_mut(flow.service), 0, 0, 1);
                add(STATS_BACKEND.get_ptr_mut(flow.backend), 0, 0, 1);
            }

            #[inline(always)]
            fn count(&mut self, flow: &Flow<$address>, bytes: u32, is_new: bool) {
                let (bytes, new) = (u64::from(bytes), u64::from(is_new));
                add(STATS_SERVICE.get_ptr_mut(flow.service), 1, bytes, new);
                add(STATS_BACKEND.get_ptr_mut(flow.backend), 1, bytes, new);
            }
        }

        impl Sockets<$address> for Maps {
            #[inline(always)]
            fn socket(&mut self, key: &SocketKey<$address>) -> Option<SocketBackend> {
                // SAFETY: copied at once.
                unsafe { $sockets.get(key) }.copied()
            }

            #[inline(always)]
            fn set_socket(&mut self, key: &SocketKey<$address>, backend: SocketBackend) {
                // Without the entry the next datagram chooses again.
                let _ = $sockets.insert(key, &backend, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn peer(&mut self, key: &SocketKey<$address>) -> Option<SocketPeer<$address>> {
                // SAFETY: copied at once.
                unsafe { $peers.get(key) }.copied()
            }

            #[inline(always)]
            fn set_peer(&mut self, key: &SocketKey<$address>, peer: SocketPeer<$address>) -> bool {
                $peers.insert(key, &peer, u64::from(BPF_ANY)).is_ok()
            }

            #[inline(always)]
            fn random(&mut self) -> u32 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn count_connection(&mut self, service: u32, backend: u32) {
                add(STATS_SERVICE.get_ptr_mut(service), 0, 0, 1);
                add(STATS_BACKEND.get_ptr_mut(backend), 0, 0, 1);
            }
        }
    };
}

family!(
    A4,
    FRONTENDS_V4,
    BACKENDS_V4,
    AFFINITY_V4,
    FRAGMENTS_V4,
    SOCKETS_V4,
    PEERS_V4,
    VIPS_V4,
    SERVICE_CIDRS_V4,
    SOURCE_RANGES_V4,
    svc_in_cidr_v4,
    MASQUERADE_V4,
    svc_attempt_v4,
    svc_decide_v4,
    svc_masq_v4,
    svc_port_v4,
    HELD_V4,
    svc_hold_v4,
    svc_lead_v4,
    svc_hold_at_v4,
    svc_release_v4
);
family!(
    A6,
    FRONTENDS_V6,
    BACKENDS_V6,
    AFFINITY_V6,
    FRAGMENTS_V6,
    SOCKETS_V6,
    PEERS_V6,
    VIPS_V6,
    SERVICE_CIDRS_V6,
    SOURCE_RANGES_V6,
    svc_in_cidr_v6,
    MASQUERADE_V6,
    svc_attempt_v6,
    svc_decide_v6,
    svc_masq_v6,
    svc_port_v6,
    HELD_V6,
    svc_hold_v6,
    svc_lead_v6,
    svc_hold_at_v6,
    svc_release_v6
);
