//! What the maps should hold, piece by piece, for whoever compares it with what they do hold.
//!
//! It only says; nothing here changes what is programmed, and no operation comes of asking.

use std::{collections::HashMap, net::IpAddr};

use svc_common::{BackendState, SlotRange};

use super::{BackendValue, FrontendAddress, Observed, Op, Place, Tables, to_service_name};
use crate::model::{Family, ObjectName};

/// What a Service port should have in the maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Whose it is.
    pub service: ObjectName,
    /// Writes that leave it there, those of slots apart: name, backends, source ranges.
    pub before_slots: Vec<Op>,
    /// Its ranges in SLOTS, and [`slot_sum`] of what is in each.
    pub slots: Vec<(SlotRange, u64)>,
    /// Writes that leave it there, those of slots apart: frontends, then VIPs.
    pub after_slots: Vec<Op>,
}

/// A sum over slots that differs when one of them does, but for one case in 2^64: not one that an adversary could not make up,
/// who would need no such pains.
pub fn slot_sum(ids: &[u32]) -> u64 {
    ids.iter().fold(0, |sum, id| (sum.rotate_left(5) ^ u64::from(*id)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Op {
    /// The map that is written, of those that [`Observed`] knows.
    pub fn map(&self) -> &'static str {
        let of = |address: &IpAddr, v4, v6| if address.is_ipv4() { v4 } else { v6 };
        match self {
            Self::SetService(..) | Self::RemoveService(_) => "SERVICES",
            Self::SetBackend(_, value) => of(&value.address.ip(), "BACKENDS_V4", "BACKENDS_V6"),
            Self::WriteSlots(..) => "SLOTS",
            Self::SetFrontend(address, _) | Self::RemoveFrontend(address) => {
                of(&address.address.ip(), "FRONTENDS_V4", "FRONTENDS_V6")
            }
            Self::SetSource(_, range) | Self::RemoveSource(_, range) => {
                of(&range.addr(), "SOURCE_RANGES_V4", "SOURCE_RANGES_V6")
            }
            Self::SetVip(address, _) | Self::RemoveVip(address) => of(address, "VIPS_V4", "VIPS_V6"),
            Self::SetFilter(..) => "FILTER",
        }
    }
}

/// The entry that is written, for people.
impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SetService(id, _) | Self::RemoveService(id) => write!(f, "service {id}"),
            Self::SetBackend(id, value) => write!(f, "backend {id} ({})", value.address),
            Self::WriteSlots(offset, ids) => write!(f, "{} slots from {offset}", ids.len()),
            Self::SetFrontend(FrontendAddress { address, protocol }, _)
            | Self::RemoveFrontend(FrontendAddress { address, protocol }) => write!(f, "frontend {address}/{protocol}"),
            Self::SetSource(id, range) | Self::RemoveSource(id, range) => {
                write!(f, "source range {range} of service {id}")
            }
            Self::SetVip(address, _) | Self::RemoveVip(address) => write!(f, "address {address}"),
            Self::SetFilter(word, _) => write!(f, "word {word}"),
        }
    }
}

impl Tables {
    /// Service ids are below this.
    pub fn service_limit(&self) -> u32 {
        self.capacity.services
    }

    /// True if a Service port has this id.
    pub fn has_id(&self, id: u32) -> bool {
        self.keys.contains_key(&id)
    }

    /// What the port with this id should have; `None` if nobody has the id.
    pub fn expected(&self, id: u32) -> Option<Expected> {
        let key = self.keys.get(&id)?;
        let port = self.services.get(&key.service)?.get(key)?;
        let mut before_slots = Vec::with_capacity(1 + port.backends.len() + port.sources.len());
        before_slots.extend(to_service_name(key).map(|name| Op::SetService(id, name)));
        before_slots
            .extend(port.backends.iter().map(|(place, placed)| Op::SetBackend(placed.id, placed.value(*place, id))));
        before_slots.extend(port.sources.iter().map(|range| Op::SetSource(id, *range)));
        let mut after_slots = Vec::with_capacity(port.frontends.len() + 2);
        after_slots.extend(port.frontends.iter().map(|(address, value)| Op::SetFrontend(*address, *value)));
        let mut last = None;
        for address in port.frontends.keys().map(|frontend| frontend.address.ip()) {
            // Sorted by address.
            if last.replace(address) != Some(address) {
                after_slots.extend(self.shared.vip(address).map(|flags| Op::SetVip(address, flags)));
            }
        }
        let slots = port.ranges.iter().map(|range| (range.slots, range.sum)).collect();
        Some(Expected { service: key.service.clone(), before_slots, slots, after_slots })
    }

    /// The write of a range of the port with this id.
    pub fn expected_slots(&mut self, id: u32, slots: SlotRange) -> Option<Op> {
        let key = self.keys.get(&id)?;
        let port = self.services.get(&key.service)?.get(key)?;
        let range = port.ranges.iter().find(|range| range.slots == slots)?;
        let members = port.backends.iter().filter(|(_, placed)| range.set.binary_search(&placed.id).is_ok());
        let members: Vec<_> =
            members.map(|(Place(ip, port), placed)| (std::net::SocketAddr::new(*ip, *port), placed.id)).collect();
        Some(Op::WriteSlots(slots.offset, self.maglev.build(members)))
    }

    /// Writes that leave in FILTER what should be in up to `most` of its words from `word` on, and the word to go on with.
    pub fn expected_filter(&self, word: u32, most: usize) -> (Vec<Op>, Option<u32>) {
        let ops: Vec<Op> = self.shared.words(word).take(most).map(|(word, bits)| Op::SetFilter(word, bits)).collect();
        let last = match ops.last() {
            Some(Op::SetFilter(word, _)) if ops.len() == most => word.checked_add(1),
            _ => None,
        };
        (ops, last)
    }

    /// Writes that remove what nobody has of what was found. An entry that somebody has, and that says something else than it
    /// should, is left alone: [`Tables::expected`] is for that.
    pub fn foreign(&self, found: &Observed) -> Vec<Op> {
        let port = |id: &u32| self.keys.get(id).and_then(|key| self.services.get(&key.service)?.get(key));
        let Observed { services, backends, frontends, slots: _, sources, vips, filter: _ } = found;
        let mut ops = Vec::new();
        let vips = vips.iter().filter(|(address, _)| self.shared.vip(*address).is_none());
        ops.extend(vips.map(|(address, _)| Op::RemoveVip(*address)));
        let frontends = frontends.iter().filter(|(address, _)| !self.owners.contains_key(address));
        ops.extend(frontends.map(|(address, _)| Op::RemoveFrontend(*address)));
        let has = |id: &u32, range: &ipnet::IpNet| port(id).is_some_and(|port| port.sources.contains(&range.trunc()));
        let sources = sources.iter().filter(|(id, range)| !has(id, range));
        ops.extend(sources.map(|(id, range)| Op::RemoveSource(*id, *range)));
        ops.extend(self.foreign_backends(backends));
        let services = services.iter().filter(|(id, _)| !self.keys.contains_key(id));
        ops.extend(services.map(|(id, _)| Op::RemoveService(*id)));
        ops
    }

    fn foreign_backends(&self, found: &[(u32, BackendValue)]) -> Vec<Op> {
        let is_known = |(id, value): &&(u32, BackendValue)| {
            let key = self.keys.get(&value.service);
            let port = key.and_then(|key| self.services.get(&key.service)?.get(key));
            let placed = port.and_then(|port| port.backends.get(&Place::of(value.address)));
            placed.is_some_and(|placed| placed.id == *id)
        };
        let live = found.iter().filter(|(_, value)| value.state != BackendState::Gone);
        let unknown: Vec<_> = live.filter(|entry| !is_known(entry)).collect();
        if unknown.is_empty() {
            return Vec::new();
        }
        // It may be somebody's whose service or address was overwritten. To look at every backend is for this rare case.
        let mut used: HashMap<u32, Family> = HashMap::new();
        for (key, port) in self.services.values().flat_map(super::Flat::iter) {
            used.extend(port.backends.values().map(|placed| (placed.id, key.family)));
        }
        let is_foreign = |id: &u32, value: &BackendValue| used.get(id) != Some(&Family::of(value.address.ip()));
        let foreign = unknown.into_iter().filter(|(id, value)| is_foreign(id, value));
        foreign
            .map(|(id, value)| Op::SetBackend(*id, BackendValue { state: BackendState::Gone, ..value.clone() }))
            .collect()
    }
}

/// What is wrong with an entry of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Missing,
    /// It says something else.
    Changed,
    /// It is there, and nobody wrote it.
    Added,
}

impl Difference {
    /// In a sentence about the entry.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "it was missing",
            Self::Changed => "it had been changed",
            Self::Added => "it had been added",
        }
    }
}

/// Maps that are walked through for entries which nobody wrote, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// VIPS_V4.
    VipsV4,
    /// VIPS_V6.
    VipsV6,
    /// FRONTENDS_V4.
    FrontendsV4,
    /// FRONTENDS_V6.
    FrontendsV6,
    /// SOURCE_RANGES_V4.
    SourcesV4,
    /// SOURCE_RANGES_V6.
    SourcesV6,
    /// BACKENDS_V4 and V6.
    Backends,
    /// SERVICES.
    Services,
}

impl Walked {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::VipsV4,
        Self::VipsV6,
        Self::FrontendsV4,
        Self::FrontendsV6,
        Self::SourcesV4,
        Self::SourcesV6,
        Self::Backends,
        Self::Services,
    ];

    /// Name of the map, of the first one if there are two.
    pub fn name(self) -> &'static str {
        match self {
            Self::VipsV4 => "VIPS_V4",
            Self::VipsV6 => "VIPS_V6",
            Self::FrontendsV4 => "FRONTENDS_V4",
            Self::FrontendsV6 => "FRONTENDS_V6",
            Self::SourcesV4 => "SOURCE_RANGES_V4",
            Self::SourcesV6 => "SOURCE_RANGES_V6",
            Self::Backends => "BACKENDS_V4",
            Self::Services => "SERVICES",
        }
    }
}
