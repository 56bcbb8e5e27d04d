//! What of an update can be done: conflicts over addresses and room in the maps, decided for each port as a whole.
//!
//! It reserves slot ranges for what is accepted and nothing else; a port that is refused leaves no trace.

use std::collections::{BTreeMap, HashMap};

use svc_common::SlotRange;

use super::{Fill, FrontendAddress, Port, Reason, Tables, Usage, maglev, program::family_index, to_service_name};
use crate::{
    compile::{PortKey, PortTable, Set},
    model::{Family, ObjectName},
};

/// An accepted port.
pub(super) struct Plan {
    pub(super) table: PortTable,
    /// The distinct non-empty sets that frontends use.
    pub(super) ranges: Vec<PlannedRange>,
}

/// A range of an accepted port.
pub(super) struct PlannedRange {
    /// Indices into the table's backends, ascending.
    pub(super) members: Vec<usize>,
    pub(super) slots: SlotRange,
    /// Reserved just now, not yet written.
    pub(super) fresh: bool,
}

/// Ports of the Service as they shall be.
pub(super) type Desired = BTreeMap<PortKey, PortTable>;
/// Ports of them that cannot be.
pub(super) type Refusals = BTreeMap<PortKey, Reason>;

pub(super) fn addresses(table: &PortTable) -> impl Iterator<Item = FrontendAddress> {
    table.frontends.iter().map(|f| FrontendAddress { address: f.address, protocol: table.key.protocol })
}

fn per_family(family: Family, count: usize) -> [u64; 2] {
    match family {
        Family::V4 => [count as u64, 0],
        Family::V6 => [0, count as u64],
    }
}

impl Tables {
    /// Sorts out the ports that can be programmed. One refusal can cause another (the refused port keeps an address that
    /// was to move), so everything is judged again after each, which ends because refusals only grow.
    pub(super) fn admit(&mut self, service: &ObjectName, mut desired: Desired) -> (Vec<Plan>, Refusals) {
        let mut refusals = Refusals::new();
        loop {
            let old = self.services.get(service);
            let is_old = |key: &PortKey| old.is_some_and(|ports| ports.contains_key(key));
            // What is already there comes first: a newcomer never takes its room.
            let mut order: Vec<PortKey> = desired.keys().filter(|key| !refusals.contains_key(key)).cloned().collect();
            order.sort_by_key(|key| !is_old(key));
            let verdict = self
                .conflicts(service, &desired, &order, &refusals)
                .and_then(|()| self.frontends_fit(service, &desired, &order, &refusals))
                .and_then(|()| self.sources_fit(service, &desired, &order, &refusals))
                .and_then(|()| self.ids_fit(service, &desired, &order))
                .and_then(|()| self.reserve_ranges(service, &desired, &order));
            match verdict {
                Ok(mut ranges) => {
                    let plans = order.iter().filter_map(|key| {
                        Some(Plan { table: desired.remove(key)?, ranges: ranges.remove(key).unwrap_or_default() })
                    });
                    return (plans.collect(), refusals);
                }
                Err((key, reason)) => {
                    refusals.insert(key, reason);
                }
            }
        }
    }

    fn conflicts(
        &self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
        refusals: &Refusals,
    ) -> Result<(), (PortKey, Reason)> {
        let mut claimed: HashMap<FrontendAddress, &PortKey> = HashMap::new();
        for key in order {
            for address in addresses(&desired[key]) {
                if let Some(owner) = self.held.as_ref().and_then(|held| held.get(&address))
                    && owner != service
                {
                    return Err((key.clone(), Reason::Held { address, owner: Box::new(owner.clone()) }));
                }
                let owner = self.owner(&address).filter(|owner| {
                    // Another port of the same Service gives it up in this very update, unless it stays as it is.
                    let stays = refusals.contains_key(owner)
                        || desired.get(owner).is_some_and(|table| addresses(table).any(|other| other == address));
                    *owner != key && (owner.service != *service || stays)
                });
                if let Some(owner) = owner.or(claimed.get(&address).copied()) {
                    return Err((key.clone(), Reason::Conflict { address, owner: Box::new(owner.clone()) }));
                }
                claimed.insert(address, key);
            }
        }
        Ok(())
    }

    fn frontends_fit(
        &self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
        refusals: &Refusals,
    ) -> Result<(), (PortKey, Reason)> {
        let mut count = [u64::from(self.frontends_v4), u64::from(self.frontends_v6)];
        for (key, port) in self.services.get(service).into_iter().flatten() {
            if !refusals.contains_key(key) {
                let own = per_family(key.family, port.frontends.len());
                count = [count[0] - own[0], count[1] - own[1]];
            }
        }
        for key in order {
            let added = addresses(&desired[key]).filter(|address| !self.adopted.frontends.contains(address)).count();
            let added = per_family(key.family, added);
            let limits = [
                ("entries of FRONTENDS_V4", self.capacity.frontends_v4),
                ("entries of FRONTENDS_V6", self.capacity.frontends_v6),
            ];
            for (index, (what, capacity)) in limits.into_iter().enumerate() {
                let capacity = u64::from(capacity);
                if added[index] > 0 && count[index] + added[index] > capacity {
                    let available = capacity.saturating_sub(count[index]);
                    let reason = Reason::Full { what, needed: added[index], available, resting: 0, capacity };
                    return Err((key.clone(), reason));
                }
                count[index] += added[index];
            }
        }
        Ok(())
    }

    fn sources_fit(
        &self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
        refusals: &Refusals,
    ) -> Result<(), (PortKey, Reason)> {
        let capacity = u64::from(self.capacity.source_ranges);
        let mut count = self.sources;
        let kept = |key: &PortKey| !refusals.contains_key(key);
        for (_, port) in self.services.get(service).into_iter().flatten().filter(|(key, _)| kept(key)) {
            port.sources.iter().for_each(|range| count[family_index(range)] -= 1);
        }
        for key in order {
            let mut needed = [0; 2];
            desired[key].source_ranges.iter().flatten().for_each(|range| needed[family_index(range)] += 1);
            for (index, what) in ["entries of SOURCE_RANGES_V4", "entries of SOURCE_RANGES_V6"].into_iter().enumerate()
            {
                if needed[index] > 0 && count[index] + needed[index] > capacity {
                    let available = capacity.saturating_sub(count[index]);
                    let reason = Reason::Full { what, needed: needed[index], available, resting: 0, capacity };
                    return Err((key.clone(), reason));
                }
                count[index] += needed[index];
            }
        }
        Ok(())
    }

    fn ids_fit(&self, service: &ObjectName, desired: &Desired, order: &[PortKey]) -> Result<(), (PortKey, Reason)> {
        let old = self.services.get(service);
        let Fill { services: all_services, backends: all_backends, .. } = self.fill();
        let mut services = self.service_ids.available();
        let mut backends = self.backend_ids.available();
        for key in order {
            let port = old.and_then(|ports| ports.get(key));
            if port.is_none() && to_service_name(key).is_none() {
                return Err((key.clone(), Reason::Name));
            }
            let is_new = |address| port.is_none_or(|port| !port.backends.contains_key(address));
            let new = desired[key].backends.iter().filter(|backend| is_new(&backend.address)).count();
            let full = |what, needed, available, usage: Usage| Reason::Full {
                what,
                needed: needed as u64,
                available: available as u64,
                resting: u64::from(usage.resting),
                capacity: u64::from(usage.capacity),
            };
            let own = usize::from(port.is_none());
            if own > services {
                return Err((key.clone(), full("ids of SERVICES", own, services, all_services)));
            }
            if new > backends {
                return Err((key.clone(), full("ids of BACKENDS", new, backends, all_backends)));
            }
            services -= own;
            backends -= new;
        }
        Ok(())
    }

    fn reserve_ranges(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
    ) -> Result<BTreeMap<PortKey, Vec<PlannedRange>>, (PortKey, Reason)> {
        let mut planned = BTreeMap::<PortKey, Vec<PlannedRange>>::new();
        for key in order {
            let table = &desired[key];
            let old = self.services.get(service).and_then(|ports| ports.get(key));
            let mut ranges: Vec<PlannedRange> = Vec::new();
            for members in sets(table) {
                let slots = if let Some(slots) = old.and_then(|port| port.range_of(table, &members)) {
                    Some((slots, false))
                } else {
                    self.slots.allocate(maglev::table_len(members.len())).map(|slots| (slots, true))
                };
                let Some((slots, fresh)) = slots else {
                    let reason = Reason::Full {
                        what: "slots of SLOTS in one piece",
                        needed: u64::from(maglev::table_len(members.len())),
                        available: u64::from(self.slots.free()),
                        resting: u64::from(self.slots.resting()),
                        capacity: u64::from(self.capacity.slots),
                    };
                    for range in planned.into_values().flatten().chain(ranges).filter(|range| range.fresh) {
                        self.slots.give_back(range.slots);
                    }
                    return Err((key.clone(), reason));
                };
                ranges.push(PlannedRange { members, slots, fresh });
            }
            planned.insert(key.clone(), ranges);
        }
        Ok(planned)
    }
}

impl Port {
    /// The range that already holds exactly these members.
    fn range_of(&self, table: &PortTable, members: &[usize]) -> Option<SlotRange> {
        let id = |index: &usize| self.backends.get(&table.backends[*index].address).map(|(id, _)| *id);
        let mut set: Vec<u32> = members.iter().map(id).collect::<Option<_>>()?;
        set.sort_unstable();
        self.ranges.iter().find(|range| range.set == set).map(|range| range.slots)
    }
}

/// The distinct non-empty sets that some frontend uses.
fn sets(table: &PortTable) -> Vec<Vec<usize>> {
    let uses = |set| table.frontends.iter().any(|frontend| frontend.inside == set || frontend.outside == set);
    let mut sets = Vec::with_capacity(2);
    for (set, members) in [(Set::Cluster, &table.cluster), (Set::Local, &table.local)] {
        if uses(set) && !members.is_empty() && !sets.contains(members) {
            sets.push(members.clone());
        }
    }
    sets
}
