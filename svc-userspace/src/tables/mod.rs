//! Ids and slots, and the difference between what is programmed and what should be, as ordered operations.
//!
//! Pure: it computes [`Op`]s and never touches BPF. A reader in the kernel that sees the maps between any two operations
//! finds only complete Services: backends first, slots next, frontend last; removal the other way round.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use svc_common::{Frontend, ServiceName, SlotRange};

use crate::{
    compile::PortKey,
    model::{Family, ObjectName, Protocol},
};

mod adopt;
mod expected;
mod flat;
mod ids;
pub mod maglev;
mod names;
mod plan;
mod program;
mod refused;
mod shared;
mod slots;
#[cfg(test)]
mod tests;

pub use expected::{Difference, Expected, Walked, slot_sum};
use flat::Flat;
pub use ids::REST_MS;
pub use names::{to_port_key, to_service_name};
pub use refused::{Reason, Refused, Resource};
pub use slots::SLOT_REST_MS;

/// A backend's entry in BACKENDS_V4/V6, the family being that of the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendValue {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// State.
    pub state: svc_common::BackendState,
    /// Runs on this node.
    pub local: bool,
    /// Sets of its port that it is in.
    pub sets: Sets,
    /// Generation of the id.
    pub generation: u32,
    /// Service id.
    pub service: u32,
}

/// The sets of a Service port that a backend is in: those of [`crate::compile::Set`], whether or not a frontend uses them. A
/// client that is bound to the backend stays with it where its frontend uses one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// The set of policy Cluster.
    pub cluster: bool,
    /// The set of policy Local.
    pub local: bool,
}

impl Sets {
    fn and(self, other: Self) -> Self {
        Self { cluster: self.cluster || other.cluster, local: self.local || other.local }
    }
}

/// A key of FRONTENDS_V4/V6, the family being that of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// One write to a map. Applying an operation twice is the same as applying it once.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// SERVICES: the name of a service id.
    SetService(u32, Box<ServiceName>),
    /// SERVICES: forget the name; the counters of the id are zeroed.
    RemoveService(u32),
    /// BACKENDS: write the entry.
    SetBackend(u32, BackendValue),
    /// SLOTS: backend ids from this slot on.
    WriteSlots(u32, Vec<u32>),
    /// FRONTENDS: write the entry.
    SetFrontend(FrontendAddress, Frontend),
    /// FRONTENDS: remove the entry.
    RemoveFrontend(FrontendAddress),
    /// SOURCE_RANGES: clients of this prefix may use the service's load balancer addresses.
    SetSource(u32, IpNet),
    /// SOURCE_RANGES: remove the prefix of a service.
    RemoveSource(u32, IpNet),
    /// VIPS: write the entry, `VIP_*` of `svc_common::vip`.
    SetVip(IpAddr, u32),
    /// VIPS: remove the entry.
    RemoveVip(IpAddr),
    /// FILTER: set these bits of a word, besides those that are set.
    SetFilter(u32, u64),
}

/// Words of FILTER that are not zero, by number.
pub type FilterWords = BTreeMap<u32, u64>;

/// Everything found in the maps, by an agent that adopts them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// SERVICES.
    pub services: Vec<(u32, Box<ServiceName>)>,
    /// Non-zero entries of BACKENDS_V4 and BACKENDS_V6 (gone ones with a generation included). One id space serves both
    /// families: an id that is used in one array is zero in the other.
    pub backends: Vec<(u32, BackendValue)>,
    /// FRONTENDS_V4 and V6.
    pub frontends: Vec<(FrontendAddress, Frontend)>,
    /// SLOTS: contents of each distinct range that a frontend names, `(offset, backend ids)`.
    pub slots: Vec<(u32, Vec<u32>)>,
    /// SOURCE_RANGES_V4 and V6, by service id.
    pub sources: Vec<(u32, IpNet)>,
    /// VIPS_V4 and V6.
    pub vips: Vec<(IpAddr, u32)>,
    /// Words of FILTER that are not zero.
    pub filter: Vec<(u32, u64)>,
}

/// What the maps can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of SERVICES and STATS_SERVICE; one less can be used, since id 0 is never given.
    pub services: u32,
    /// Elements of BACKENDS_V4, BACKENDS_V6 and STATS_BACKEND; one less can be used, by both families together.
    pub backends: u32,
    /// Entries of FRONTENDS_V4.
    pub frontends_v4: u32,
    /// Entries of FRONTENDS_V6.
    pub frontends_v6: u32,
    /// Slots (not lines) of SLOTS.
    pub slots: u32,
    /// Entries of SOURCE_RANGES_V4 and of SOURCE_RANGES_V6.
    pub source_ranges: u32,
}

/// How much of a resource is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// In use now.
    pub used: u32,
    /// Released, but not to be given again yet.
    pub resting: u32,
    /// Most that can be in use.
    pub capacity: u32,
}

/// How full everything is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Fill {
    /// Service ids.
    pub services: Usage,
    /// Backend ids.
    pub backends: Usage,
    /// Entries of FRONTENDS_V4.
    pub frontends_v4: Usage,
    /// Entries of FRONTENDS_V6.
    pub frontends_v6: Usage,
    /// Slots.
    pub slots: Usage,
    /// Entries of SOURCE_RANGES_V4.
    pub source_ranges_v4: Usage,
    /// Entries of SOURCE_RANGES_V6.
    pub source_ranges_v6: Usage,
}

/// What is programmed, and who owns which id, range and address.
#[derive(Debug)]
pub struct Tables {
    capacity: Capacity,
    service_ids: ids::Ids,
    backend_ids: ids::Ids,
    slots: slots::Slots,
    services: HashMap<ObjectName, Flat<PortKey, Port>>,
    keys: HashMap<u32, PortKey>,
    owners: HashMap<FrontendAddress, u32>,
    frontends_v4: u32,
    frontends_v6: u32,
    /// Entries of SOURCE_RANGES_V4 and V6 in use.
    sources: [u64; 2],
    shared: shared::Shared,
    refused: BTreeSet<ObjectName>,
    adopted: adopt::Adopted,
    /// Addresses that operations which are not carried out yet take away, and from whom; `None`: no operation waits.
    held: Option<HashMap<FrontendAddress, ObjectName>>,
    maglev: maglev::Builder,
}

/// A Service port of one family as it is programmed.
#[derive(Debug, Default)]
struct Port {
    id: u32,
    backends: Flat<Place, Placed>,
    ranges: Vec<Range>,
    sources: BTreeSet<IpNet>,
    frontends: Flat<FrontendAddress, Frontend>,
}

/// Address and port of a backend, *host order*: half as large as a `SocketAddr`, and in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(IpAddr, u16);

impl Place {
    fn of(address: SocketAddr) -> Self {
        Self(address.ip(), address.port())
    }
}

/// A backend of a port as it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    id: u32,
    generation: u32,
    state: svc_common::BackendState,
    local: bool,
    sets: Sets,
}

impl Placed {
    fn value(self, Place(address, port): Place, service: u32) -> BackendValue {
        let Self { id: _, generation, state, local, sets } = self;
        BackendValue { address: SocketAddr::new(address, port), state, local, sets, generation, service }
    }
}

/// A consistent-hash table in SLOTS, shared by all frontends of the port that use the same set.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    /// Ids of the backends, ascending.
    set: Box<[u32]>,
    slots: SlotRange,
    /// [`slot_sum`] of what is in the slots.
    sum: u64,
}

impl Tables {
    /// Tables for empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            service_ids: ids::Ids::new(capacity.services),
            backend_ids: ids::Ids::new(capacity.backends),
            slots: slots::Slots::new(capacity.slots),
            services: HashMap::new(),
            keys: HashMap::new(),
            owners: HashMap::new(),
            frontends_v4: 0,
            frontends_v6: 0,
            sources: [0; 2],
            shared: shared::Shared::default(),
            refused: BTreeSet::new(),
            adopted: adopt::Adopted::default(),
            held: None,
            maglev: maglev::Builder::default(),
        }
    }

    /// Takes note that operations wait to be carried out: until [`Tables::resume`], what they release is not given again,
    /// and no other Service gets an address that they take away (`addresses`, with the Service that had each). Their
    /// removal would hit the new owner.
    pub fn hold(&mut self, addresses: HashMap<FrontendAddress, ObjectName>) {
        self.held = Some(addresses);
    }

    /// Takes note that all operations have been carried out: whatever was released in the meantime rests from now on.
    pub fn resume(&mut self, now_ms: u64) {
        if self.held.take().is_some() {
            self.service_ids.rest_anew(now_ms);
            self.backend_ids.rest_anew(now_ms);
            self.slots.rest_anew(now_ms);
        }
    }

    /// Frees the ids and slot ranges whose rest is over. `now_ms` is any clock that never goes back.
    pub fn expire(&mut self, now_ms: u64) {
        if self.held.is_some() {
            return;
        }
        self.service_ids.expire(now_ms);
        self.backend_ids.expire(now_ms);
        self.slots.expire(now_ms);
    }

    /// Services of which a port is refused, sorted: what refused it may be gone after other updates, after
    /// `finish_adoption` or `expire`, so they are to be updated again then, until a round of it yields no operation.
    pub fn refused(&self) -> Vec<ObjectName> {
        self.refused.iter().cloned().collect()
    }

    /// Sets the node's own addresses: a load balancer's address that is among them is not a VIP as a whole, because its
    /// other ports are the node's. Returns what is to be written.
    pub fn set_own_addresses(&mut self, addresses: HashSet<IpAddr>) -> Vec<Op> {
        let touched = self.shared.set_own_addresses(addresses);
        let ops = self.shared.settle(touched);
        [ops.remove_vips, ops.set_vips].concat()
    }

    /// Bits of FILTER that the programmed Services need.
    pub fn filter(&self) -> FilterWords {
        self.shared.filter()
    }

    /// Takes note of what FILTER holds after it was swept.
    pub fn filter_swept(&mut self, words: FilterWords) {
        self.shared.swept(words);
    }

    /// Number of bits of FILTER that no Service needs any more; flows may.
    pub fn stale_bits(&self) -> u32 {
        self.shared.stale_bits()
    }

    /// Ids of the UDP ports of a Service as they are programmed.
    pub fn udp_ports(&self, service: &ObjectName) -> Vec<u32> {
        let ports = self.services.get(service).into_iter().flat_map(Flat::iter);
        ports.filter(|(key, _)| key.protocol == Protocol::Udp).map(|(_, port)| port.id).collect()
    }

    /// Who owns a frontend address, if anybody does.
    pub fn owner(&self, address: &FrontendAddress) -> Option<&PortKey> {
        self.owners.get(address).and_then(|id| self.keys.get(id))
    }

    /// Usage of every resource, for metrics.
    pub fn fill(&self) -> Fill {
        let ids = |ids: &ids::Ids, capacity: u32| Usage {
            used: ids.used(),
            resting: ids.resting(),
            capacity: capacity.saturating_sub(1),
        };
        let entries = |used, capacity| Usage { used, resting: 0, capacity };
        Fill {
            services: ids(&self.service_ids, self.capacity.services),
            backends: ids(&self.backend_ids, self.capacity.backends),
            frontends_v4: entries(self.frontends_v4, self.capacity.frontends_v4),
            frontends_v6: entries(self.frontends_v6, self.capacity.frontends_v6),
            slots: Usage { used: self.slots.used(), resting: self.slots.resting(), capacity: self.capacity.slots },
            source_ranges_v4: entries(self.sources[0] as u32, self.capacity.source_ranges),
            source_ranges_v6: entries(self.sources[1] as u32, self.capacity.source_ranges),
        }
    }

    fn frontend_count(&mut self, address: &FrontendAddress) -> &mut u32 {
        match Family::of(address.address.ip()) {
            Family::V4 => &mut self.frontends_v4,
            Family::V6 => &mut self.frontends_v6,
        }
    }
}
