//! The maps that packets meet: small pools of addresses, ports and backends, so that flows meet each other, in both
//! families at once, and the changes that an agent, the clock or an eviction makes to them.
//!
//! It decides nothing about packets: that is the packet path, run on these tables here and on the same ones in the kernel.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::{bytes_of, bytes_of_mut};
use svc_common::{
    Backend, Cidr, Flow, FlowKey, Frontend, FrontendKey, Hook, Interface, Ports, SlotRange, SourcePrefix,
    backend::{BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_LOCAL},
    config::INTERFACE_BRIDGE_PORT,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
    flow::FLOW_MASQUERADED,
    frontend,
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
    ip::Ip,
    link,
};

use crate::wire::{SCTP, TCP, UDP, word};

/// The mark of packets to be masqueraded.
pub const MARK: u32 = 0x1000;
/// Hardware address of the bridge.
pub const BRIDGE: [u8; 6] = [2, 9, 9, 9, 9, 9];
/// Backends; their ids count from 1.
pub const BACKENDS: u32 = 6;
/// Slots.
pub const SLOTS: usize = 16;
/// Port of every backend but the last two, whose ports are [`OTHER_PORT`].
pub const BACKEND_PORT: u16 = 8080;
/// Port of the last two backends.
pub const OTHER_PORT: u16 = 9090;

/// What leads to backends: last byte of the address, port, protocol, service. Backends 1 to 4 are of service 3, 5 and 6 of 4.
pub const FRONTENDS: [(u8, u16, u8, u32); 9] = [
    (16, 80, TCP, 3),
    (16, 80, UDP, 3),
    (17, 80, TCP, 3),
    (17, 80, UDP, 3),
    (18, 30080, TCP, 3),
    (18, 30080, UDP, 3),
    (19, 443, TCP, 4),
    (19, 443, UDP, 4),
    (16, 80, SCTP, 3),
];

/// Last bytes of the addresses that are VIPs as a whole.
pub const VIPS: [u8; 3] = [16, 17, 19];
/// Last byte of the only address in the Service CIDR.
pub const UNOWNED: u8 = 20;
/// Last byte of the address that packets are masqueraded with; a client has it as well.
pub const NODE: u8 = 11;
/// Last bytes of the clients within the source ranges of services that have some.
const ADMITTED: [u8; 4] = [2, 4, 10, 12];
/// Last bytes of the addresses of endpoints.
const HOSTS: std::ops::RangeInclusive<u8> = 1..=5;

/// An address family with a pool of addresses.
///
/// At offset 12 of an IPv4 header, and of an IPv6 header, lie bytes of the source address. BPF_PROG_TEST_RUN takes what is
/// there for an ethertype even if the program is one for devices without a link header; in these pools it is the right one.
pub trait Plan: Ip + Hash {
    /// The n-th address.
    fn nth(n: u8) -> Self;
    /// Ethertype.
    const ETHERTYPE: u16;
}

impl Plan for [u8; 4] {
    const ETHERTYPE: u16 = 0x0800;

    fn nth(n: u8) -> Self {
        [8, 0, 0, n]
    }
}

impl Plan for [u8; 16] {
    const ETHERTYPE: u16 = 0x86dd;

    fn nth(n: u8) -> Self {
        [0xfd, 0, 0, 0, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
    }
}

/// The n-th address of a family.
pub fn address(is_v4: bool, n: u8) -> IpAddr {
    if is_v4 { Ipv4Addr::from(<[u8; 4]>::nth(n)).into() } else { Ipv6Addr::from(<[u8; 16]>::nth(n)).into() }
}

/// A backend's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendPlan {
    /// Last byte of its address.
    pub host: u8,
    /// [`svc_common::BackendState`] as a number.
    pub state: u8,
    /// It runs on this node.
    pub local: bool,
    /// Generation.
    pub generation: u32,
}

/// A frontend's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendPlan {
    /// `FLAG_*`.
    pub flags: u32,
    /// Its clients stay with their backend.
    pub affinity: bool,
    /// Slots for clients inside: offset and length.
    pub inside: (u32, u32),
    /// Slots for clients outside.
    pub outside: (u32, u32),
}

/// Where packets arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfacePlan {
    /// [`svc_common::Scope`] as a number.
    pub scope: u8,
    /// It is a port of a bridge.
    pub bridge_port: bool,
}

/// What the tables hold at the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where packets arrive.
    pub interface: InterfacePlan,
    /// [`BACKENDS`] of them.
    pub backends: Vec<BackendPlan>,
    /// [`SLOTS`] of them, of which some may name no backend.
    pub slots: Vec<u32>,
    /// One for each of [`FRONTENDS`].
    pub frontends: Vec<FrontendPlan>,
    /// `VIP_*` of all of [`VIPS`].
    pub vips: u32,
    /// The filter knows everything and is in use: direct connections to endpoints are kept apart.
    pub targets: bool,
    /// The programs masquerade.
    pub programs: bool,
}

impl Default for Setting {
    /// A node with an uplink and a Service of four local backends.
    fn default() -> Self {
        let backend = |id: u32| BackendPlan { host: id as u8, state: 1, local: true, generation: 1 };
        let frontend = |n: usize| {
            let range = if FRONTENDS[n].3 == 3 { (0, 12) } else { (12, 4) };
            let is_node_port = FRONTENDS[n].0 == 18;
            let flags = if is_node_port { frontend::FLAG_NODE_PORT } else { frontend::FLAG_CLUSTER_IP };
            FrontendPlan { flags, affinity: false, inside: range, outside: range }
        };
        Self {
            interface: InterfacePlan::default(),
            backends: (1..=BACKENDS).map(backend).collect(),
            slots: (0..12).map(|n| 1 + n % 4).chain((0..4).map(|n| 5 + n % 2)).collect(),
            frontends: (0..FRONTENDS.len()).map(frontend).collect(),
            vips: VIP_INSIDE | VIP_OUTSIDE,
            targets: true,
            programs: false,
        }
    }
}

/// What happens to the tables between packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A frontend is removed.
    RemoveFrontend(usize),
    /// A frontend is written.
    SetFrontend(usize, FrontendPlan),
    /// A backend is written.
    SetBackend(usize, BackendPlan),
    /// The slots change places.
    RotateSlots(usize),
    /// Packets arrive elsewhere.
    Interface(InterfacePlan),
    /// Whom the VIPs as a whole answer.
    Vips(u32),
    /// Whether the filter knows everything and is in use, and so direct connections are kept apart.
    Targets(bool),
    /// This many units of 2^30 ns pass.
    Age(u32),
    /// The n-th flow entry, by its bytes, is evicted.
    Evict(usize),
}

/// A packet that meets a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// It goes out.
    pub egress: bool,
    /// The device has no link header. The ethertype is then what stands at offset 12 (see [`Plan`]).
    pub bare: bool,
    /// The frame.
    pub bytes: Vec<u8>,
    /// Its mark.
    pub mark: u32,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Verdict.
    pub verdict: Verdict,
    /// The frame.
    pub bytes: Vec<u8>,
    /// Its mark.
    pub mark: u32,
    /// The packets that were sent in again.
    pub again: Vec<Packet>,
}

/// The tables of both families.
#[derive(Clone, Debug)]
pub struct World {
    /// IPv4.
    pub v4: HostTables<[u8; 4]>,
    /// IPv6.
    pub v6: HostTables<[u8; 16]>,
}

impl World {
    /// Tables as the setting has them.
    pub fn new(setting: &Setting) -> Self {
        let mut world = Self { v4: tables(), v6: tables() };
        world.set_slots(&setting.slots);
        world.apply(Change::Interface(setting.interface));
        world.apply(Change::Vips(setting.vips));
        world.apply(Change::Targets(setting.targets));
        world.v4.programs_masquerade = setting.programs;
        world.v6.programs_masquerade = setting.programs;
        for (n, backend) in setting.backends.iter().enumerate() {
            world.apply(Change::SetBackend(n, *backend));
        }
        for (n, frontend) in setting.frontends.iter().enumerate() {
            world.apply(Change::SetFrontend(n, *frontend));
        }
        world
    }

    fn set_slots(&mut self, slots: &[u32]) {
        self.v4.slots = slots.to_vec();
        self.v6.slots = slots.to_vec();
    }

    /// Changes the tables of both families.
    pub fn apply(&mut self, change: Change) {
        apply(&mut self.v4, change);
        apply(&mut self.v6, change);
    }

    /// Sets the clock.
    pub fn set_now(&mut self, now: u32) {
        self.v4.now = now;
        self.v6.now = now;
    }

    /// Whether the interface can carry such a packet: ports of bridges have a link header.
    pub fn can_carry(&self, packet: &Packet) -> bool {
        !(packet.bare && self.v4.interface.flags & INTERFACE_BRIDGE_PORT != 0)
    }

    /// Runs the packet path. Panics if the filter lets a packet pass that is not nobody's.
    pub fn run(&mut self, packet: &Packet) -> Outcome {
        if !self.v4.is_filtered {
            return self.run_once(packet);
        }
        let mut unfiltered = self.clone();
        (unfiltered.v4.is_filtered, unfiltered.v6.is_filtered) = (false, false);
        let expected = unfiltered.run_once(packet);
        let outcome = self.run_once(packet);
        assert_eq!(outcome, expected, "the filter changes what becomes of {packet:?}");
        assert_eq!(lasting(&self.v4), lasting(&unfiltered.v4), "the filter changes the flows of {packet:?}");
        assert_eq!(lasting(&self.v6), lasting(&unfiltered.v6), "the filter changes the flows of {packet:?}");
        outcome
    }

    fn run_once(&mut self, packet: &Packet) -> Outcome {
        let hook = if packet.egress { Hook::Egress } else { Hook::Ingress };
        let mut frame = HostFrame::new(packet.bytes.clone());
        frame.mark = packet.mark;
        let network =
            if packet.bare { word(&packet.bytes, 12).and_then(link::bare) } else { link::ethernet(&mut frame) };
        let verdict = match network {
            None => Verdict::Pass,
            Some(network) if network.version == 4 => self.v4.run_at(hook, &mut frame, network.offset),
            Some(network) => self.v6.run_at(hook, &mut frame, network.offset),
        };
        let again = frame.again.into_iter().map(|bytes| Packet { bytes, ..*packet }).collect();
        Outcome { verdict, mark: frame.mark, bytes: frame.bytes, again }
    }
}

fn tables<A: Plan>() -> HostTables<A> {
    let mut tables = HostTables { masquerade_mark: MARK, ..HostTables::default() };
    tables.masquerade_source = Some(A::nth(NODE));
    tables.service_cidrs = vec![Cidr { network: A::nth(UNOWNED), mask: all_ones() }];
    for service in [3, 4] {
        tables.sources.extend(ADMITTED.map(|client| SourcePrefix { service, address: A::nth(client) }));
    }
    tables
}

fn all_ones<A: Plan>() -> A {
    let mut mask = A::zeroed();
    bytes_of_mut(&mut mask).fill(0xff);
    mask
}

fn frontend_key<A: Plan>(n: usize) -> FrontendKey<A> {
    let (host, port, protocol, _) = FRONTENDS[n % FRONTENDS.len()];
    FrontendKey::new(A::nth(host), port, protocol)
}

/// The flows of tables, but for what touches leave on the outbound entries of masqueraded ones: without the filter, a packet
/// that has the tuple of one and not its mark is looked up, and passes.
fn lasting<A: Plan>(tables: &HostTables<A>) -> HashMap<FlowKey<A>, Flow<A>> {
    let untouched = |(key, flow): (&FlowKey<A>, &Flow<A>)| {
        let is_outbound = key.hook == Hook::Egress as u8 && flow.flags & FLOW_MASQUERADED != 0;
        (*key, if is_outbound { Flow { last_seen: 0, state: 0, ..*flow } } else { *flow })
    };
    tables.flows.iter().map(untouched).collect()
}

fn apply<A: Plan>(tables: &mut HostTables<A>, change: Change) {
    match change {
        Change::RemoveFrontend(n) => {
            tables.frontends.remove(&frontend_key(n));
        }
        Change::SetFrontend(n, plan) => {
            let range = |(offset, len)| SlotRange { offset, len };
            let entry = Frontend {
                service: FRONTENDS[n % FRONTENDS.len()].3,
                flags: plan.flags,
                affinity_seconds: if plan.affinity { 100 } else { 0 },
                inside: range(plan.inside),
                outside: range(plan.outside),
            };
            tables.frontends.insert(frontend_key(n), entry);
        }
        Change::SetBackend(n, plan) => {
            let id = (n as u32) % BACKENDS + 1;
            let is_other = id > BACKENDS - 2;
            let entry = Backend {
                address: A::nth(plan.host),
                port: if is_other { OTHER_PORT } else { BACKEND_PORT },
                state: plan.state,
                flags: BACKEND_IN_CLUSTER | if plan.local { BACKEND_LOCAL | BACKEND_IN_LOCAL } else { 0 },
                generation: plan.generation,
                service: if is_other { 4 } else { 3 },
            };
            tables.backends.insert(id, entry);
        }
        Change::RotateSlots(by) => {
            let by = by % tables.slots.len().max(1);
            tables.slots.rotate_left(by);
        }
        Change::Interface(InterfacePlan { scope, bridge_port }) => {
            let flags = if bridge_port { INTERFACE_BRIDGE_PORT } else { 0 };
            tables.interface = Interface { scope, flags, bridge_mac: BRIDGE };
        }
        Change::Vips(flags) => {
            tables.vips = VIPS.iter().filter(|_| flags != 0).map(|host| (A::nth(*host), flags)).collect();
        }
        Change::Targets(known) => {
            tables.filter.clear();
            tables.is_filtered = known;
            if !known {
                return;
            }
            for (host, port) in HOSTS.flat_map(|host| [(host, BACKEND_PORT), (host, OTHER_PORT)]) {
                for protocol in [TCP, UDP, SCTP] {
                    tables.know(&A::nth(host), port, protocol, KNOWN_ENDPOINT);
                }
            }
            for (host, port, protocol, _) in FRONTENDS {
                tables.know(&A::nth(host), port, protocol, KNOWN_FRONTEND);
            }
            for host in VIPS {
                tables.know(&A::nth(host), 0, 0, KNOWN_FRONTEND);
            }
        }
        // What was last seen moves back, instead of the clock forwards: the kernel's cannot be set.
        Change::Age(ticks) => {
            for flow in tables.flows.values_mut() {
                flow.last_seen = flow.last_seen.wrapping_sub(ticks);
            }
            for bound in tables.affinity.values_mut() {
                bound.last_seen = bound.last_seen.wrapping_sub(ticks);
            }
            for held in tables.held.values_mut() {
                held.since = held.since.wrapping_sub(ticks);
            }
        }
        Change::Evict(n) => {
            let mut keys: Vec<FlowKey<A>> = tables.flows.keys().copied().collect();
            keys.sort_by_key(key_bytes);
            if let Some(key) = keys.get(n % keys.len().max(1)) {
                tables.flows.remove(key);
            }
        }
    }
}

/// The bytes of a key, which have an order that both sides of a comparison share.
fn key_bytes<A: Plan>(key: &FlowKey<A>) -> Vec<u8> {
    let FlowKey { source, destination, source_port, destination_port, protocol, hook, pad: _ } = key;
    let ports = bytes_of(&Ports { source: *source_port, destination: *destination_port }).to_vec();
    [bytes_of(source), bytes_of(destination), &ports, &[*protocol, *hook]].concat()
}
