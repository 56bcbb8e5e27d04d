//! What somebody else does to the maps, and what must be there again once the agent has compared them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use svc_common::{BackendState, Frontend, ServiceName, SlotRange};
use svc_userspace::{
    model::Protocol,
    tables::{BackendValue, FrontendAddress, Op, Sets},
};

use super::Maps;

/// What readers in the kernel find.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Contents {
    services: BTreeMap<u32, Box<ServiceName>>,
    backends: BTreeMap<u32, BackendValue>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    sources: BTreeSet<(u32, IpNet)>,
    vips: BTreeMap<IpAddr, u32>,
    slots: BTreeMap<(u32, u32), Vec<Option<u32>>>,
}

impl Maps {
    /// Somebody else writes to the maps: entries are removed, changed and added. Returns what was there.
    pub(in super::super) fn tamper(&mut self, seed: u32) -> Contents {
        let before = self.contents();
        let picks = |n: u32| (seed >> (2 * n)) & 3;
        let first = self.frontends.keys().next().copied();
        match (picks(0), first.and_then(|address| self.frontends.get_mut(&address)), first) {
            (1, _, Some(address)) => drop(self.frontends.remove(&address)),
            (2.., Some(frontend), _) => frontend.flags ^= 1,
            _ => {}
        }
        let foreign = FrontendAddress { address: ([198, 51, 100, 7], 7).into(), protocol: Protocol::Udp };
        if picks(1) == 1 {
            self.frontends.insert(foreign, Frontend::default());
        }
        let live = self.live_ids().next();
        if let (1.., Some(id)) = (picks(2), live)
            && let Some(value) = self.backends.get_mut(&id)
        {
            match picks(2) {
                1 => value.address.set_port(value.address.port() ^ 1),
                2 => value.state = BackendState::Gone,
                _ => value.service ^= 1,
            }
        }
        if picks(3) > 0 {
            let id = self.capacity.backends + 1;
            let address = SocketAddr::from(([198, 51, 100, 8], 8));
            self.backends.insert(
                id,
                BackendValue {
                    address,
                    state: BackendState::Active,
                    local: false,
                    generation: 1,
                    service: picks(3),
                    sets: Sets::default(),
                },
            );
        }
        if picks(4) > 0
            && let Some(slot) = self.frontends.values().map(|f| f.inside).find(|range| range.len > 0)
            && let Some(slot) = self.slots.get_mut(slot.offset as usize)
        {
            *slot = slot.map(|id| id ^ 1);
        }
        match (picks(5), self.sources.first().copied(), self.vips.keys().next().copied()) {
            (1, Some(source), _) => drop(self.sources.remove(&source)),
            (2, _, Some(address)) => drop(self.vips.remove(&address)),
            (3, _, _) => drop(self.vips.insert([198, 51, 100, 9].into(), 1)),
            _ => {}
        }
        if picks(6) > 0 {
            self.filter.clear();
        }
        if let (1, Some(id)) = (picks(7), self.services.keys().next().copied()) {
            self.services.remove(&id);
        }
        self.is_tampered = true;
        before
    }

    fn live_ids(&self) -> impl Iterator<Item = u32> {
        self.backends.iter().filter(|(_, value)| value.state != BackendState::Gone).map(|(id, _)| *id)
    }

    /// What readers in the kernel find: backends that are gone, and bits and slots that nobody names, are nothing.
    fn contents(&self) -> Contents {
        let live = self.live_ids().map(|id| (id, self.backends[&id].clone()));
        let ranges = self.ranges().into_iter();
        let slots = ranges.map(|(offset, len, _)| ((offset, len), self.slots(SlotRange { offset, len }).to_vec()));
        Contents {
            services: self.services.clone(),
            backends: live.collect(),
            frontends: self.frontends.clone(),
            sources: self.sources.clone(),
            vips: self.vips.clone(),
            slots: slots.collect(),
        }
    }

    /// Panics unless everything was put right.
    pub(in super::super) fn assert_put_right(&mut self, before: &Contents) {
        self.is_tampered = false;
        self.check();
        let Contents { services, backends, frontends, sources, vips, slots } = self.contents();
        // One by one: a whole world that differs in an entry says little.
        assert_eq!(services, before.services, "left: after the repair, right: before the tampering");
        assert_eq!(backends, before.backends, "left: after the repair, right: before the tampering");
        assert_eq!(frontends, before.frontends, "left: after the repair, right: before the tampering");
        assert_eq!(sources, before.sources, "left: after the repair, right: before the tampering");
        assert_eq!(vips, before.vips, "left: after the repair, right: before the tampering");
        assert_eq!(slots, before.slots, "left: after the repair, right: before the tampering");
    }

    /// What the agent writes to maps in which nothing need be right.
    pub(super) fn overwrite(&mut self, op: &Op) {
        match op.clone() {
            Op::SetService(id, name) => drop(self.services.insert(id, name)),
            Op::RemoveService(id) => drop(self.services.remove(&id)),
            Op::SetBackend(id, value) => drop(self.backends.insert(id, value)),
            Op::WriteSlots(offset, ids) => {
                for (slot, id) in self.slots.iter_mut().skip(offset as usize).zip(ids) {
                    *slot = Some(id);
                }
            }
            Op::SetFrontend(address, value) => drop(self.frontends.insert(address, value)),
            Op::RemoveFrontend(address) => drop(self.frontends.remove(&address)),
            Op::SetSource(service, range) => drop(self.sources.insert((service, range))),
            Op::RemoveSource(service, range) => drop(self.sources.remove(&(service, range))),
            Op::SetVip(address, flags) => drop(self.vips.insert(address, flags)),
            Op::RemoveVip(address) => drop(self.vips.remove(&address)),
            Op::SetFilter(word, bits) => *self.filter.entry(word).or_default() |= bits,
        }
    }
}
