//! What the maps hold while programs are measured, and the packets that meet it. 10,000 Services with 100 backends.

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap},
};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use svc_common::{
    Backend, BackendState, CacheState, Cidr, Config, Frontend, FrontendKey, Interface, Scope, SlotLine, SlotRange,
    backend::BACKEND_LOCAL,
    config::{CONFIG_FILTER, CONFIG_MASQUERADE, CONFIG_PORTS_RESERVED, CONFIG_SERVICE_CIDRS, INTERFACE_XDP},
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
    flow_hash,
    frontend::FLAG_CLUSTER_IP,
    hash::SLOTS_PER_LINE,
    protocol, slot_in_range,
    vip::VIP_INSIDE,
};
use svc_ebpf::{
    bench::{PACKET_LEN, Plan},
    ip::Ip,
};

use super::bed::{Bed, CACHE};

/// The Service that rows ask; its number is also its index in the statistics.
pub(super) const BALANCED: u32 = 1;
/// The Service with one backend.
pub(super) const SINGLE: u32 = 2;
/// The Service without any.
const EMPTY: u32 = 3;
const BACKENDS: u32 = 100;
/// Slots of a Service, as the agent would size them.
const SLOTS: u32 = 100 * BACKENDS;
const SERVICES: u32 = 10_000;
const TARGET: u16 = 8080;
/// The interface that BPF_PROG_TEST_RUN's packets arrive on: lo.
const INTERFACE: u32 = 1;

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Pods; endpoints are on this node.
    Inside,
    /// Beyond this node, where endpoints are as well: the index of the uplink.
    Outside(u32),
}
const ETHERNET: usize = 14;

/// An address family, with the addresses of the world.
pub(super) trait Family: Ip + Pod + std::fmt::Debug {
    /// As map names end.
    const SUFFIX: &'static str;
    /// The address that ends in these four bytes.
    fn ending(number: u32) -> Self;
    /// Headers up to the transport's.
    fn headers(self, destination: Self) -> PacketBuilderStep<IpHeaders>;
    /// The last four bytes.
    fn end(self) -> u32;
    /// As people write it.
    fn text(self) -> String;
    /// An echo request.
    fn echo(step: PacketBuilderStep<IpHeaders>, payload: &[u8]) -> Result<Vec<u8>>;
}

macro_rules! family {
    ($address:ty, $suffix:literal, $ip:ident, $echo:ident) => {
        impl Family for $address {
            const SUFFIX: &'static str = $suffix;

            fn ending(number: u32) -> Self {
                let mut address: Self = bytemuck::Zeroable::zeroed();
                address[0] = 0xfd;
                if let Some(end) = address.last_chunk_mut::<4>() {
                    *end = number.to_be_bytes();
                }
                address
            }

            fn headers(self, destination: Self) -> PacketBuilderStep<IpHeaders> {
                PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).$ip(self, destination, 64)
            }

            fn end(self) -> u32 {
                self.last_chunk().map_or(0, |end| u32::from_be_bytes(*end))
            }

            fn text(self) -> String {
                std::net::IpAddr::from(self).to_string()
            }

            fn echo(step: PacketBuilderStep<IpHeaders>, payload: &[u8]) -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                step.$echo(1, 1).write(&mut bytes, payload)?;
                Ok(bytes)
            }
        }
    };
}

family!([u8; 4], "V4", ipv4, icmpv4_echo_request);
family!([u8; 16], "V6", ipv6, icmpv6_echo_request);

/// Addresses by their last four bytes.
pub(super) mod end {
    pub(in super::super) const VIPS: u32 = 0x0a60_0000;
    pub(super) const OTHERS: u32 = 0x0a61_0000;
    pub(in super::super) const BACKENDS: u32 = 0x0af4_0100;
    /// This node's own address on the uplink, and the gateway behind that.
    pub(in super::super) const NODE: u32 = 0x0a63_0001;
    pub(in super::super) const GATEWAY: u32 = 0x0a63_0002;
    /// Of nobody's. The one before it shares its bit of FILTER with a VIP, as one address in seventy does with so many.
    pub(in super::super) const STRANGER: u32 = 0x0afa_0002;
    /// Clients of flows that are established, and of those that are new.
    pub(super) const CLIENTS: u32 = 0x0a40_0000;
    pub(super) const NEW_CLIENTS: u32 = 0x0a80_0000;
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Udp,
    Syn,
    Ack,
    Echo,
}

/// Where a client's packet goes, or where one to a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Balanced,
    Single,
    Empty,
    /// The backend of the Service with one.
    Backend,
    /// An endpoint that no row's Service leads to.
    Endpoint,
    Stranger,
}

impl Peer {
    fn end(self) -> (u32, u16) {
        match self {
            Self::Balanced => (end::VIPS + BALANCED, 80),
            Self::Single => (end::VIPS + SINGLE, 80),
            Self::Empty => (end::VIPS + EMPTY, 80),
            Self::Backend => (end::BACKENDS + BACKENDS + 1, TARGET),
            Self::Endpoint => (end::BACKENDS + BACKENDS + 2, TARGET),
            Self::Stranger => (end::STRANGER, 443),
        }
    }
}

/// Packets between clients and a peer: how many flows, and which way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    pub(super) kind: Kind,
    pub(super) peer: Peer,
    /// Flows, a power of two; `None`: each packet is a new one.
    pub(super) flows: Option<u32>,
    /// From the peer to the clients.
    pub(super) reply: bool,
    /// Every refusal is made, however many there were.
    pub(super) unlimited: bool,
}

impl Traffic {
    pub(super) fn plan<A: Family>(&self) -> Result<Plan> {
        let address = if self.flows.is_some() { end::CLIENTS } else { end::NEW_CLIENTS };
        let (client, (peer, port)) = (A::ending(address), self.peer.end());
        let (mut from, mut to) = ((client, 1024), (A::ending(peer), port));
        if self.reply {
            (from, to) = (to, from);
        }
        let step = from.0.headers(to.0);
        let bytes = match self.kind {
            Kind::Echo => A::echo(step, &vec![0; PACKET_LEN - ETHERNET - A::HEADER_LEN - 8])?,
            Kind::Udp => {
                let mut bytes = Vec::new();
                step.udp(from.1, to.1).write(&mut bytes, &vec![0; PACKET_LEN - ETHERNET - A::HEADER_LEN - 8])?;
                bytes
            }
            Kind::Syn | Kind::Ack => {
                let mut bytes = Vec::new();
                let tcp = step.tcp(from.1, to.1, 1, 1000);
                let tcp = if self.kind == Kind::Syn { tcp.syn() } else { tcp.ack(1) };
                tcp.write(&mut bytes, &vec![0; PACKET_LEN - ETHERNET - A::HEADER_LEN - 20])?;
                bytes
            }
        };
        let addresses = if A::VERSION == 4 { 12 } else { 8 };
        let len = size_of::<A>();
        let client_at = ETHERNET + addresses + if self.reply { len } else { 0 };
        let port_at = match self.kind {
            // An identifier, which no program looks at.
            Kind::Echo => ETHERNET + A::HEADER_LEN + 4,
            _ => ETHERNET + A::HEADER_LEN + if self.reply { 2 } else { 0 },
        };
        Ok(Plan {
            packet: bytemuck::try_pod_read_unaligned(&bytes).map_err(|error| anyhow::anyhow!("{error}"))?,
            next: 0,
            flows: self.flows.map_or(u32::MAX, |flows| flows - 1),
            address_at: u32::try_from(client_at + len - 4)?,
            port_at: u32::try_from(port_at)?,
            address,
            program: 0,
            unlimited: u32::from(self.unlimited),
            pad: 0,
        })
    }
}

/// The answers of the endpoint that a frame, as it left, went to: to the frame's source, whatever that became.
pub(super) fn answers<A: Family>(traffic: Traffic, left: &[u8]) -> Result<Plan> {
    let (node, _) = ends::<A>(left).context("a packet became too short")?;
    let ports = left.get(ETHERNET + A::HEADER_LEN..).and_then(<[u8]>::first_chunk::<2>);
    let mut plan = Traffic { reply: true, ..traffic }.plan::<A>()?;
    let packet: &mut [u8] = bytemuck::bytes_of_mut(&mut plan.packet);
    let at = usize::try_from(plan.port_at)?;
    let place = packet.get_mut(at..at + 2).context("a packet without ports")?;
    place.copy_from_slice(ports.context("a packet without ports")?);
    plan.address = node;
    plan.port_at = 0;
    Ok(plan)
}

/// The last four bytes of a frame's source and destination address.
pub(super) fn ends<A: Family>(frame: &[u8]) -> Option<(u32, u32)> {
    let (addresses, len) = (if A::VERSION == 4 { 12 } else { 8 }, size_of::<A>());
    let at = |offset: usize| {
        let bytes = frame.get(offset..offset + len)?;
        bytemuck::try_pod_read_unaligned::<A>(bytes).ok().map(A::end)
    };
    Some((at(ETHERNET + addresses)?, at(ETHERNET + addresses + len)?))
}

/// Fills the maps of a family.
pub(super) fn program<A: Family>(bed: &mut Bed, place: Place) -> Result<()>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
    Cidr<A>: Pod,
{
    let suffix = A::SUFFIX;
    let balanced = SlotRange { offset: 0, len: SLOTS };
    let single = SlotRange { offset: SLOTS, len: 1 };
    let services = [(BALANCED, balanced), (SINGLE, single), (EMPTY, SlotRange::default())];
    let services = services.map(|(service, range)| (end::VIPS + service, service, range));
    let others = (0..SERVICES).map(|number| (end::OTHERS + number, EMPTY + 1 + number, balanced));
    let all: Vec<_> = services.into_iter().chain(others).collect();

    let mut frontends = HashMap::<_, FrontendKey<A>, Frontend>::try_from(bed.map(&format!("FRONTENDS_{suffix}"))?)?;
    for &(address, service, range) in &all {
        let frontend = Frontend { service, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
        for protocol in [protocol::UDP, protocol::TCP] {
            frontends.insert(FrontendKey::new(A::ending(address), 80, protocol), frontend, 0)?;
        }
    }
    let mut vips = HashMap::<_, A, u32>::try_from(bed.map(&format!("VIPS_{suffix}"))?)?;
    for &(address, ..) in &all {
        vips.insert(A::ending(address), VIP_INSIDE, 0)?;
    }
    // Everything of the addresses of Services, and nothing of those of clients and backends.
    let cidr = Cidr { network: A::ending(end::VIPS), mask: mask::<A>() };
    Array::<_, Cidr<A>>::try_from(bed.map(&format!("SERVICE_CIDRS_{suffix}"))?)?.set(0, cidr, 0)?;

    let mut backends = Array::<_, Backend<A>>::try_from(bed.map(&format!("BACKENDS_{suffix}"))?)?;
    for id in 1..=BACKENDS + 1 {
        let service = if id > BACKENDS { SINGLE } else { BALANCED };
        let flags = if place == Place::Inside { BACKEND_LOCAL } else { 0 };
        let state = BackendState::Active as u8;
        let address = A::ending(end::BACKENDS + id);
        backends.set(id, Backend { address, port: TARGET, state, flags, generation: 1, service }, 0)?;
    }
    let mut filter = Array::<_, u64>::try_from(bed.map("FILTER")?)?;
    let mut know = |end, port, protocol, bit: u32| -> Result<()> {
        let place = filter_place(&A::ending(end), port, protocol);
        let word = filter.get(&(place / 64), 0)?;
        Ok(filter.set(place / 64, word | u64::from(bit) << (place % 64), 0)?)
    };
    for protocol in [protocol::UDP, protocol::TCP] {
        for id in 1..=BACKENDS + 2 {
            know(end::BACKENDS + id, TARGET, protocol, KNOWN_ENDPOINT)?;
        }
        for &(address, ..) in &all {
            know(address, 80, protocol, KNOWN_FRONTEND)?;
        }
    }
    for &(address, ..) in &all {
        know(address, 0, 0, KNOWN_FRONTEND)?;
    }
    let mut lines = Array::<_, SlotLine>::try_from(bed.map("SLOTS")?)?;
    for line in 0..=SLOTS / SLOTS_PER_LINE {
        let mut slots = SlotLine::default();
        for (at, slot) in (0..).zip(&mut slots.backends) {
            let number = line * SLOTS_PER_LINE + at;
            let hash = flow_hash(&number.to_be_bytes(), 0, &[0; 4], 0, 0);
            *slot = if number < SLOTS { 1 + slot_in_range(hash, BACKENDS) } else { BACKENDS + 1 };
        }
        lines.set(line, slots, 0)?;
    }
    let mut flags = CONFIG_FILTER | CONFIG_SERVICE_CIDRS;
    let mut interface = Interface { scope: Scope::Inside as u8, ..Interface::default() };
    if let Place::Outside(uplink) = place {
        flags |= CONFIG_MASQUERADE | CONFIG_PORTS_RESERVED;
        interface = Interface { scope: Scope::Outside as u8, flags: INTERFACE_XDP, ..interface };
        HashMap::<_, u32, Interface>::try_from(bed.map("INTERFACES")?)?.insert(uplink, interface, 0)?;
        let [mask_v4, mask_v6] = CACHE.map(|(_, places)| places - 1);
        let cache = CacheState { generation: 1, mask_v4, mask_v6, pad: 0 };
        Array::<_, CacheState>::try_from(bed.map("CACHE_STATE")?)?.set(0, cache, 0)?;
        let source = A::ending(end::NODE);
        HashMap::<_, u32, A>::try_from(bed.map(&format!("MASQUERADE_{suffix}"))?)?.insert(uplink, source, 0)?;
    }
    HashMap::<_, u32, Interface>::try_from(bed.map("INTERFACES")?)?.insert(INTERFACE, interface, 0)?;
    let config = Config { masquerade_mark: 0x1000, flags, ..Config::default() };
    Array::<_, Config>::try_from(bed.map("CONFIG")?)?.set(0, config, 0)?;
    Ok(())
}

/// All ones but for the last 20 bits.
fn mask<A: Family>() -> A {
    let mut mask = A::ending(!0xf_ffff);
    for byte in bytemuck::bytes_of_mut(&mut mask).iter_mut().rev().skip(4) {
        *byte = 0xff;
    }
    mask
}
