//! Frames and tables in plain memory: the packet path without a kernel, for tests, and for comparison with the kernel.

use std::collections::{HashMap, HashSet};

use bytemuck::{Pod, Zeroable};
use network_types::eth::EthHdr;
use svc_common::{
    Affinity, AffinityKey, Backend, Cidr, Flow, FlowKey, FlowState, FragmentKey, Frontend, FrontendKey, Held, Hook,
    Interface, Ports, Reason, SourcePrefix,
    config::INTERFACE_BRIDGE_PORT,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place, unusual_place},
    fragment::{HELD_BYTES, held_places},
};

use crate::{
    Verdict,
    announce::Whole,
    cache::{Cache, Cached, Moment, remember},
    checksum::Change,
    decide::{Decision, decide},
    egress::egress,
    flow::Entry,
    frame::{Covered, Frame},
    held::{hold, lead},
    ingress::ingress,
    ip::{Fragment, Header, Ip},
    link::{self, Network},
    masquerade::{Outcome, Task, masquerade, try_port},
    open::{Attempt, attempt, claim_entry},
    packet::Packet,
    recover::{recover, recover_one},
    scratch::Scratch,
    shortcut::{Road, Way, shortcut},
    tables::{Decisions, Insert, Tables},
};

/// A packet in a vector, of which only the first `readable` bytes can be read directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFrame {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The packet's mark.
    pub mark: u32,
    /// Packets that were sent in again.
    pub again: Vec<Vec<u8>>,
    readable: usize,
}

impl HostFrame {
    /// A packet whose headers are not readable yet.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), mark: 0, again: Vec::new(), readable: 0 }
    }
}

impl Whole for HostFrame {
    fn load<T: Pod>(&self, offset: usize, into: &mut T) -> Option<()> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        bytemuck::bytes_of_mut(into).copy_from_slice(bytes);
        Some(())
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        self.bytes.resize(len, 0);
        self.readable = len;
        Some(())
    }
}

impl Frame for HostFrame {
    fn size(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn require(&mut self, len: usize) -> bool {
        let is_there = len <= self.bytes.len();
        if is_there {
            self.readable = self.readable.max(len);
        }
        is_there
    }

    fn get<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes[..self.readable].get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn put<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        let place = self.bytes.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        place.copy_from_slice(bytemuck::bytes_of(value));
        Some(())
    }

    fn fix_checksum(&mut self, offset: usize, change: Change, _covered: Covered, zero_is_none: bool) -> Option<()> {
        let place = self.bytes.get_mut(offset..offset.checked_add(2)?)?;
        let old = [place[0], place[1]];
        if zero_is_none && old == [0, 0] {
            return Some(());
        }
        let new = change.apply(old);
        place.copy_from_slice(if zero_is_none && new == [0, 0] { &[0xff, 0xff] } else { &new });
        Some(())
    }

    fn reshape(&mut self, end: usize, at: usize, room: usize) -> Option<()> {
        // As the kernel's frames: not behind VLAN tags.
        if end > self.bytes.len() || at > end || (at != 0 && at != EthHdr::LEN) {
            return None;
        }
        self.bytes.truncate(end);
        self.bytes.splice(at..at, std::iter::repeat_n(0, room));
        self.readable = at + room;
        Some(())
    }

    fn copy_to(&mut self, into: &mut [u8; HELD_BYTES]) -> Option<u32> {
        into.get_mut(..self.bytes.len())?.copy_from_slice(&self.bytes);
        Some(self.size())
    }

    fn send_again(&mut self) -> bool {
        self.again.push(self.bytes.clone());
        true
    }

    fn send_other(&mut self, bytes: &[u8; HELD_BYTES], len: u32, _interface: u32) -> bool {
        self.again.push(bytes[..len as usize].to_vec());
        true
    }

    fn mark(&mut self, bits: u32) {
        self.mark |= bits;
    }

    fn take_mark(&mut self, bits: u32) -> bool {
        let was_set = self.mark & bits != 0;
        self.mark &= !bits;
        was_set
    }
}

/// Index of the interface that all packets arrive on.
const INTERFACE: u32 = 1;

/// The maps of one family.
#[derive(Clone, Debug)]
pub struct HostTables<A> {
    /// FRONTENDS.
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// SLOTS.
    pub slots: Vec<u32>,
    /// BACKENDS.
    pub backends: HashMap<u32, Backend<A>>,
    /// FLOWS.
    pub flows: HashMap<FlowKey<A>, Flow<A>>,
    /// AFFINITY.
    pub affinity: HashMap<AffinityKey<A>, Affinity>,
    /// VIPS.
    pub vips: HashMap<A, u32>,
    /// SERVICE_CIDRS.
    pub service_cidrs: Vec<Cidr<A>>,
    /// SOURCE_RANGES, as the ranges' clients one by one.
    pub sources: HashSet<SourcePrefix<A>>,
    /// FILTER: the bits that are set.
    pub filter: HashSet<u32>,
    /// CONFIG: FILTER and UNUSUAL know everything.
    pub is_filtered: bool,
    /// UNUSUAL: the elements that are not 0.
    pub unusual: HashSet<u32>,
    /// How many packets may still be refused.
    pub refusals: u32,
    /// FRAGMENTS.
    pub fragments: HashMap<FragmentKey<A>, Ports>,
    /// HELD: the places that are not free.
    pub held: HashMap<u32, Held>,
    /// DROPS, of packets that were not the one at hand or that passed all the same.
    pub losses: HashMap<Reason, u64>,
    /// INTERFACES, for the interface all packets arrive on.
    pub interface: Interface,
    /// CONFIG's mark.
    pub masquerade_mark: u32,
    /// CONFIG: the programs masquerade new flows.
    pub programs_masquerade: bool,
    /// MASQUERADE, for the interface all packets leave by.
    pub masquerade_source: Option<A>,
    /// The clock, in units of 2^30 ns.
    pub now: u32,
    /// CONFIG: when a frontend was removed last, by the clock.
    pub removal: Option<u32>,
    /// Packets counted by service id.
    pub counted: HashMap<u32, u64>,
    /// CACHE.
    pub cache: HashMap<u32, Cached<A>>,
    /// The moment that CACHE goes by.
    pub moment: Moment,
}

impl<A: Ip> Default for HostTables<A> {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            slots: Vec::new(),
            backends: HashMap::new(),
            flows: HashMap::new(),
            affinity: HashMap::new(),
            vips: HashMap::new(),
            service_cidrs: Vec::new(),
            sources: HashSet::new(),
            filter: HashSet::new(),
            is_filtered: false,
            unusual: HashSet::new(),
            refusals: u32::MAX,
            fragments: HashMap::new(),
            held: HashMap::new(),
            losses: HashMap::new(),
            interface: Interface::default(),
            masquerade_mark: 0,
            programs_masquerade: false,
            masquerade_source: None,
            now: 1,
            removal: None,
            counted: HashMap::new(),
            cache: HashMap::new(),
            moment: Moment { now: 0, generation: 0, mask: 0 },
        }
    }
}

impl<A: Ip + std::hash::Hash> HostTables<A> {
    /// Sets a bit of FILTER, `KNOWN_*`.
    pub fn know(&mut self, address: &A, port: u16, protocol: u8, bit: u32) {
        self.filter.insert(filter_place(address, port, protocol) + bit.trailing_zeros());
    }

    /// `KNOWN_*` as they are in FILTER.
    fn bits(&self, address: &A, port: u16, protocol: u8) -> u32 {
        let place = filter_place(address, port, protocol);
        u32::from(self.filter.contains(&place)) | u32::from(self.filter.contains(&(place + 1))) << 1
    }

    /// Runs a hook's program on an Ethernet frame, if it is of this family.
    pub fn run(&mut self, hook: Hook, frame: &mut HostFrame) -> Verdict {
        match link::ethernet(frame) {
            Some(Network { version, offset }) if version == A::VERSION => self.run_at(hook, frame, offset),
            _ => Verdict::Pass,
        }
    }

    /// Runs the shortcut on an Ethernet frame, if it is of this family.
    pub fn run_shortcut<F: Road<A>>(&mut self, frame: &mut F) -> Way {
        match link::ethernet(frame) {
            Some(Network { version, offset }) if version == A::VERSION => {
                shortcut(frame, self, &mut empty_scratch(), &mut empty_scratch(), offset)
            }
            _ => Way::Stack,
        }
    }

    /// Runs a hook's program on a frame whose IP header is at `offset`.
    pub fn run_at(&mut self, hook: Hook, frame: &mut HostFrame, offset: usize) -> Verdict {
        match hook {
            Hook::Ingress => ingress(frame, self, &mut empty_scratch(), offset),
            Hook::Egress => egress(frame, self, &mut empty_scratch(), offset),
        }
    }
}

fn empty_scratch<A: Ip>() -> Scratch<A> {
    let key = FlowKey {
        source: A::zeroed(),
        destination: A::zeroed(),
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        hook: 0,
        pad: [0; 2],
    };
    let header = Header {
        source: A::zeroed(),
        destination: A::zeroed(),
        protocol: 0,
        fragment: Fragment::Whole,
        id: 0,
        offset: 0,
        payload: 0,
        len: 0,
    };
    Scratch {
        packet: Packet { header, ports: Ports::default(), flags: 0 },
        head: header,
        fragment: FragmentKey {
            source: A::zeroed(),
            destination: A::zeroed(),
            id: 0,
            protocol: 0,
            hook: 0,
            pad: [0; 2],
        },
        key,
        flow: Flow::empty(),
        entry: Entry { key, flow: Flow::empty() },
        found: Flow::empty(),
        cached: Cached {
            key,
            source: A::zeroed(),
            destination: A::zeroed(),
            ports: [0; 4],
            interface: 0,
            leaves_by: 0,
            made: 0,
            generation: 0,
            service: 0,
            backend: 0,
            macs: [0; 3],
            addresses: [0; 2],
            port_change: [0; 2],
            pseudo_header: [0; 2],
            mtu: 0,
            is_request: 0,
            pad: 0,
        },
        other: Entry { key, flow: Flow::empty() },
        frontend: Frontend::default(),
        range: svc_common::SlotRange::default(),
        interface: Interface::default(),
        inside: false,
        shortcut: false,
    }
}

impl<A: Ip + std::hash::Hash> Decisions<A> for HostTables<A> {
    fn frontend(&mut self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&mut self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&mut self, id: u32) -> Option<Backend<A>> {
        self.backends.get(&id).copied()
    }

    fn affinity(&mut self, key: &AffinityKey<A>) -> Option<Affinity> {
        self.affinity.get(key).copied()
    }

    fn set_affinity(&mut self, key: &AffinityKey<A>, affinity: Affinity) {
        self.affinity.insert(*key, affinity);
    }

    fn vip(&mut self, address: &A) -> u32 {
        self.vips.get(address).copied().unwrap_or(0)
    }

    fn in_service_cidr(&mut self, address: &A) -> bool {
        self.service_cidrs.iter().any(|cidr| cidr.contains(address))
    }

    fn known(&mut self, address: &A, port: u16, protocol: u8) -> u32 {
        if self.is_filtered { self.bits(address, port, protocol) } else { KNOWN_FRONTEND | KNOWN_ENDPOINT }
    }

    fn now(&mut self) -> u32 {
        self.now
    }
}

impl<A: Ip + std::hash::Hash> Cache<A> for HostTables<A> {
    fn moment(&mut self) -> Moment {
        self.moment
    }

    fn read(&mut self, place: u32, key: &FlowKey<A>, into: &mut Cached<A>) -> bool {
        let found = self.cache.get(&place).filter(|entry| entry.key == *key);
        found.inspect(|entry| *into = **entry).is_some()
    }

    fn write(&mut self, place: u32, entry: &Cached<A>) {
        self.cache.insert(place, *entry);
    }

    fn clear(&mut self, place: u32, key: &FlowKey<A>) {
        if self.cache.get(&place).is_some_and(|entry| entry.key == *key) {
            self.cache.remove(&place);
        }
    }

    fn gives_way(&mut self, place: u32, key: &FlowKey<A>, moment: Moment) -> bool {
        let holds = |entry: &Cached<A>| entry.made == moment.now && entry.generation == moment.generation;
        self.cache.get(&place).is_none_or(|entry| entry.key == *key || !holds(entry))
    }
}

impl<A: Ip + std::hash::Hash> Tables<A> for HostTables<A> {
    fn flow(&mut self, key: &FlowKey<A>, closes: bool, into: &mut Flow<A>) -> Option<bool> {
        let flow = self.flows.get_mut(key)?;
        let first_in_tick = flow.last_seen != self.now;
        flow.last_seen = self.now;
        if closes {
            flow.state = FlowState::Closing as u8;
        }
        *into = *flow;
        Some(first_in_tick)
    }

    fn peek_flow(&mut self, key: &FlowKey<A>, into: &mut Flow<A>) -> bool {
        let found = self.flows.get(key);
        found.inspect(|flow| *into = **flow).is_some()
    }

    fn insert_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Insert {
        if self.flows.contains_key(key) {
            return Insert::Taken;
        }
        self.flows.insert(*key, *flow);
        Insert::Done
    }

    fn replace_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.flows.insert(*key, *flow);
        true
    }

    fn remove_flow(&mut self, key: &FlowKey<A>) {
        self.flows.remove(key);
    }

    fn source_allowed(&mut self, service: u32, client: &A) -> bool {
        self.sources.contains(&SourcePrefix { service, address: *client })
    }

    fn is_target(&mut self, address: &A, port: u16, protocol: u8) -> bool {
        self.bits(address, port, protocol) & KNOWN_ENDPOINT != 0
    }

    fn is_unusual(&mut self, source: &A, destination: &A) -> bool {
        !self.is_filtered || self.unusual.contains(&unusual_place(source, destination))
    }

    fn set_unusual(&mut self, source: &A, destination: &A) {
        self.unusual.insert(unusual_place(source, destination));
    }

    fn has_removal(&mut self) -> bool {
        self.removal.is_some_and(|then| self.now.wrapping_sub(then) <= 1)
    }

    fn has_bridges(&mut self) -> bool {
        self.interface.flags & INTERFACE_BRIDGE_PORT != 0
    }

    fn may_refuse(&mut self) -> bool {
        let left = self.refusals.checked_sub(1);
        self.refusals = left.unwrap_or(0);
        left.is_some()
    }

    fn fragment(&mut self, key: &FragmentKey<A>) -> Option<Ports> {
        self.fragments.get(key).copied()
    }

    fn remember_fragment(&mut self, key: &FragmentKey<A>, ports: Ports) {
        self.fragments.insert(*key, ports);
    }

    fn insert_fragment(&mut self, key: &FragmentKey<A>, ports: Ports) -> Insert {
        if self.fragments.contains_key(key) {
            return Insert::Taken;
        }
        self.fragments.insert(*key, ports);
        Insert::Done
    }

    fn hold<F: Frame>(&mut self, frame: &mut F, tag: u32, position: u32) -> bool {
        let mut held = Held { tag, since: self.now, interface: INTERFACE, ..Held::zeroed() };
        let Some(len) = frame.copy_to(&mut held.bytes) else { return false };
        held.len = len;
        let places = held_places(tag, position);
        let is_free = |place: &u32| self.held.get(place).is_none_or(|held| held.is_free(self.now));
        let Some(place) = places.into_iter().find(is_free) else { return false };
        if self.held.insert(place, held).is_some() {
            self.count_loss(Reason::FragmentLost, 0);
        }
        true
    }

    fn release<F: Frame>(&mut self, frame: &mut F, tag: u32, position: u32) {
        for place in held_places(tag, position) {
            if self.held.get(&place).is_none_or(|held| held.tag != tag) {
                continue;
            }
            let Some(held) = self.held.remove(&place) else { continue };
            if held.is_over(self.now) || !frame.send_other(&held.bytes, held.len, held.interface) {
                self.count_loss(Reason::FragmentLost, held.len);
            }
        }
    }

    fn hold_early<F: Frame>(&mut self, frame: &mut F, scratch: &mut Scratch<A>) -> Verdict {
        hold(frame, self, scratch)
    }

    fn lead<F: Frame>(&mut self, frame: &mut F, scratch: &mut Scratch<A>) -> bool {
        lead(frame, self, scratch)
    }

    fn count_loss(&mut self, reason: Reason, _bytes: u32) {
        *self.losses.entry(reason).or_default() += 1;
    }

    fn interface(&mut self) -> Interface {
        self.interface
    }

    fn release_flow(&mut self, key: &FlowKey<A>, last_seen: u32) -> bool {
        let is_same = self.flows.get(key).is_some_and(|flow| flow.last_seen == last_seen);
        is_same && self.flows.remove(key).is_some()
    }

    fn masquerade_source(&mut self) -> Option<A> {
        self.masquerade_source
    }

    fn programs_masquerade(&mut self) -> bool {
        self.programs_masquerade
    }

    fn owns_ports(&mut self) -> bool {
        self.programs_masquerade
    }

    fn masquerade(&mut self, scratch: &mut Scratch<A>, task: Task) -> Outcome {
        masquerade(self, scratch, task)
    }

    fn try_port(&mut self, scratch: &mut Scratch<A>, number: u32) -> Outcome {
        try_port(self, scratch, number)
    }

    fn masquerade_mark(&mut self) -> u32 {
        self.masquerade_mark
    }

    fn leave_by(&mut self, _interface: u32) {}

    fn attempt(&mut self, scratch: &mut Scratch<A>, number: u32) -> Attempt {
        attempt(self, scratch, number)
    }

    fn claim_entry(&mut self, scratch: &mut Scratch<A>) -> Insert {
        claim_entry(self, scratch)
    }

    fn recover(&mut self, scratch: &mut Scratch<A>) -> bool {
        recover(self, scratch)
    }

    fn recover_one(&mut self, scratch: &mut Scratch<A>, number: u32) -> bool {
        recover_one(self, scratch, number)
    }

    fn decide(&mut self, scratch: &mut Scratch<A>) -> Decision {
        decide(self, scratch)
    }

    fn remember(&mut self, incoming: &mut Scratch<A>, outgoing: &mut Scratch<A>, came_by: u32, moment: Moment) {
        remember(self, incoming, outgoing, came_by, moment);
    }

    fn count_new(&mut self, _flow: &Flow<A>) {}

    fn count(&mut self, flow: &Flow<A>, _bytes: u32, _is_new: bool) {
        *self.counted.entry(flow.service).or_default() += 1;
    }
}
