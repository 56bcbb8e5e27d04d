//! The model of the maps: what operations do to it, and what must hold after each. It makes none.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use svc_common::{
    BackendState, Frontend, SlotRange,
    backend::BACKEND_IN_LOCAL,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
    frontend,
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};

use super::*;
use crate::model::Protocol;

/// The maps, and when what was last released.
#[derive(Clone, Default)]
pub(super) struct Maps {
    pub(super) services: BTreeMap<u32, Box<ServiceName>>,
    pub(super) backends: BTreeMap<u32, BackendValue>,
    pub(super) frontends: BTreeMap<FrontendAddress, Frontend>,
    pub(super) slots: BTreeMap<u32, u32>,
    pub(super) sources: BTreeSet<(u32, IpNet)>,
    pub(super) vips: BTreeMap<IpAddr, u32>,
    pub(super) filter: FilterWords,
    pub(super) ids_until: BTreeMap<u32, u64>,
    pub(super) services_until: BTreeMap<u32, u64>,
    pub(super) slots_until: BTreeMap<u32, u64>,
}

pub(super) type View = BTreeMap<FrontendAddress, (PortKey, u32, u32, Vec<SocketAddr>, Vec<SocketAddr>, Vec<IpNet>)>;

impl Maps {
    pub(super) fn ranges(&self) -> BTreeSet<(u32, u32)> {
        self.frontends
            .values()
            .flat_map(|f| [f.inside, f.outside])
            .map(|r| (r.offset, r.len))
            .filter(|r| r.1 > 0)
            .collect()
    }

    pub(super) fn apply(&mut self, op: &Op, now: u64) {
        let before = self.ranges();
        match op {
            Op::SetService(id, _) => {
                assert!(self.services_until.get(id).is_none_or(|until| *until <= now), "service id {id} still rests");
            }
            Op::RemoveService(id) => drop(self.services_until.insert(*id, now + REST_MS)),
            Op::SetBackend(id, value) => {
                if let Some(old) = self.backends.get(id)
                    && old.generation != value.generation
                {
                    assert!(value.generation > old.generation, "generations grow");
                    assert_eq!(old.state, BackendState::Gone, "a live backend keeps its id");
                    assert!(self.ids_until.get(id).is_none_or(|until| *until <= now), "backend id {id} still rests");
                }
                if value.state == BackendState::Gone {
                    self.ids_until.insert(*id, now + REST_MS);
                }
            }
            Op::WriteSlots(offset, ids) => {
                for slot in (*offset..).take(ids.len()) {
                    assert!(self.slots_until.get(&slot).is_none_or(|until| *until <= now), "slot {slot} still rests");
                    assert!(!before.iter().any(|r| (r.0..r.0 + r.1).contains(&slot)), "slot {slot} is in use");
                }
            }
            Op::SetVip(address, _) => {
                assert!(self.frontends.keys().any(|it| it.address.ip() == *address), "a VIP before its frontends");
                assert!(self.is_known(SocketAddr::new(*address, 0), 0, KNOWN_FRONTEND), "VIP {address} before its bit");
            }
            _ => {}
        }
        self.write(op.clone());
        let after = self.ranges();
        for (offset, len) in before.difference(&after) {
            self.slots_until.extend((*offset..offset + len).map(|slot| (slot, now + SLOT_REST_MS)));
        }
    }

    /// What the operation does, whatever it does it to.
    pub(super) fn write(&mut self, op: Op) {
        match op {
            Op::SetService(id, name) => drop(self.services.insert(id, name)),
            Op::RemoveService(id) => drop(self.services.remove(&id)),
            Op::SetBackend(id, value) => drop(self.backends.insert(id, value)),
            Op::WriteSlots(offset, ids) => self.slots.extend((offset..).zip(ids)),
            Op::SetFrontend(address, value) => drop(self.frontends.insert(address, value)),
            Op::RemoveFrontend(address) => drop(self.frontends.remove(&address)),
            Op::SetSource(service, range) => drop(self.sources.insert((service, range))),
            Op::RemoveSource(service, range) => drop(self.sources.remove(&(service, range))),
            Op::SetVip(address, flags) => drop(self.vips.insert(address, flags)),
            Op::RemoveVip(address) => drop(self.vips.remove(&address)),
            Op::SetFilter(word, bits) => *self.filter.entry(word).or_default() |= bits,
        }
    }

    pub(super) fn is_known(&self, address: SocketAddr, protocol: u8, bit: u32) -> bool {
        let place = match address.ip() {
            IpAddr::V4(ip) => filter_place(&ip.octets(), address.port(), protocol),
            IpAddr::V6(ip) => filter_place(&ip.octets(), address.port(), protocol),
        };
        self.filter.get(&(place / 64)).is_some_and(|word| word >> (place % 64) & u64::from(bit) != 0)
    }

    pub(super) fn range(&self, range: SlotRange) -> Vec<u32> {
        (range.offset..range.offset + range.len).filter_map(|slot| self.slots.get(&slot).copied()).collect()
    }

    pub(super) fn check(&self, capacity: Capacity) {
        for (address, entry) in &self.frontends {
            let name = self.services.get(&entry.service).expect("a frontend's service has a name");
            assert_eq!(name.protocol, address.protocol.number());
            assert!(self.is_known(address.address, name.protocol, KNOWN_FRONTEND), "{address:?} before its bit");
            for (inside, range) in [(true, entry.inside), (false, entry.outside)] {
                let ids = self.range(range);
                assert_eq!(ids.len(), range.len as usize, "{address:?} names slots that were never written");
                assert!(range.offset + range.len <= capacity.slots);
                for id in ids.into_iter().collect::<BTreeSet<_>>() {
                    let backend = self.backends.get(&id).expect("a slot names a backend");
                    assert_ne!(backend.state, BackendState::Gone, "{address:?} leads to a backend that is gone");
                    assert_eq!(backend.service, entry.service, "{address:?} leads to a backend of another Service");
                    let Sets { cluster, local } = backend.sets;
                    let is_member = if entry.membership(inside) == BACKEND_IN_LOCAL { local } else { cluster };
                    assert!(is_member, "{address:?} leads to {backend:?}, to which nobody stays bound");
                    assert!(
                        self.is_known(backend.address, name.protocol, KNOWN_ENDPOINT),
                        "{backend:?} before its bit"
                    );
                }
            }
        }
        assert!(self.frontends.len() <= (capacity.frontends_v4 + capacity.frontends_v6) as usize);
        assert!(self.services.keys().all(|id| (1..capacity.services).contains(id)));
        assert!(self.backends.keys().all(|id| (1..capacity.backends).contains(id)));
    }

    pub(super) fn run(&mut self, ops: &[Op], now: u64, capacity: Capacity) {
        for op in ops {
            self.apply(op, now);
            self.check(capacity);
        }
    }

    /// What Services share is what all of them together use.
    pub(super) fn check_shared(&self) {
        let mut vips: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (address, entry) in &self.frontends {
            let flags = match entry.flags {
                flags if flags & frontend::FLAG_CLUSTER_IP != 0 => VIP_INSIDE | VIP_OUTSIDE,
                _ => VIP_OUTSIDE,
            };
            *vips.entry(address.address.ip()).or_default() |= flags;
        }
        assert_eq!(self.vips, vips);
        for backend in self.backends.values().filter(|backend| backend.state != BackendState::Gone) {
            assert!(self.is_known(backend.address, Protocol::Tcp.number(), KNOWN_ENDPOINT), "{backend:?}");
        }
        assert!(self.sources.iter().all(|(service, _)| self.services.contains_key(service)), "a range of no Service");
    }

    pub(super) fn sources(&self, service: u32) -> Vec<IpNet> {
        self.sources.iter().filter(|(id, _)| *id == service).map(|(_, range)| *range).collect()
    }

    pub(super) fn key(&self, id: u32) -> PortKey {
        to_port_key(&self.services[&id]).expect("a name")
    }

    /// What clients notice: no ids, no offsets.
    pub(super) fn view(&self) -> View {
        let addresses = |range| self.range(range).iter().map(|id| self.backends[id].address).collect();
        let entry = |f: &Frontend| {
            let sources = self.sources(f.service);
            (self.key(f.service), f.flags, f.affinity_seconds, addresses(f.inside), addresses(f.outside), sources)
        };
        self.frontends.iter().map(|(address, f)| (*address, entry(f))).collect()
    }

    pub(super) fn live(&self) -> BTreeSet<(PortKey, SocketAddr, u8, bool, bool, bool)> {
        let live = self.backends.values().filter(|b| b.state != BackendState::Gone);
        live.map(|b| (self.key(b.service), b.address, b.state as u8, b.local, b.sets.cluster, b.sets.local)).collect()
    }

    pub(super) fn observed(&self) -> Observed {
        Observed {
            services: self.services.iter().map(|(id, name)| (*id, name.clone())).collect(),
            backends: self.backends.iter().map(|(id, value)| (*id, value.clone())).collect(),
            frontends: self.frontends.iter().map(|(address, value)| (*address, *value)).collect(),
            slots: self
                .ranges()
                .into_iter()
                .map(|(offset, len)| (offset, self.range(SlotRange { offset, len })))
                .collect(),
            sources: self.sources.iter().copied().collect(),
            vips: self.vips.iter().map(|(address, flags)| (*address, *flags)).collect(),
            filter: self.filter.iter().map(|(word, bits)| (*word, *bits)).collect(),
        }
    }
}
