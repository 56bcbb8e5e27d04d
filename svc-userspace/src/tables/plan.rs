//! What of an update can be done: conflicts over addresses and room in the maps, decided for each port as a whole.
//!
//! It reserves slot ranges for what is accepted and nothing else; a port that is refused leaves no trace.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use svc_common::SlotRange;

use super::{
    Fill, Flat, FrontendAddress, Place, Port, Reason, Resource, Tables, Usage, grow::Needs, maglev,
    program::family_index, to_service_name,
};
use crate::{
    compile::{PortKey, PortTable, Set},
    hash::{HashMap, HashSet},
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
pub(super) type Desired = Flat<PortKey, PortTable>;
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

/// Ports for which what they need is not there, one after another; `used`: by others.
fn entries_fit(
    mut used: [u64; 2],
    order: &[PortKey],
    needed: impl Fn(&PortKey) -> [u64; 2],
    resource: fn(Family) -> Resource,
    capacity: [u32; 2],
) -> Verdict {
    let mut refused = Vec::new();
    for key in order {
        let needed = needed(key);
        for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let capacity = u64::from(capacity[index]);
            if needed[index] > 0 && used[index] + needed[index] > capacity {
                let available = capacity.saturating_sub(used[index]);
                let what = resource(family);
                let reason = Reason::Full { what, needed: needed[index], available, resting: 0, capacity };
                refused.push((key.clone(), reason));
                break;
            }
            used[index] += needed[index];
        }
    }
    verdict(refused)
}

/// What cannot be of the ports of a Service, as seen from one side.
type Verdict = Result<(), Vec<(PortKey, Reason)>>;

fn verdict(refused: Vec<(PortKey, Reason)>) -> Verdict {
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// So many times, everything is judged anew after a single refusal, which may make room for others. Then a Service has so many
/// refusals that all which are found at once count.
const SINGLE_REFUSALS: usize = 16;

impl Tables {
    /// Sorts out the ports that can be programmed. One refusal can cause another (the refused port keeps an address that
    /// was to move), so everything is judged again after each, which ends because refusals only grow.
    ///
    /// The work is in proportion to the number of ports, whatever is refused.
    pub(super) fn admit(&mut self, service: &ObjectName, desired: Desired) -> (Vec<Plan>, Refusals, Needs) {
        let mut refusals = Refusals::new();
        loop {
            let old = self.services.get(service);
            let is_old = |key: &PortKey| old.is_some_and(|ports| ports.contains_key(key));
            // What is already there comes first: a newcomer never takes its room.
            let mut order: Vec<PortKey> = desired.keys().filter(|key| !refusals.contains_key(*key)).cloned().collect();
            order.sort_by_key(|key| !is_old(key));
            #[cfg(test)]
            super::tests::work::note(order.len());
            let verdict = self
                .conflicts(service, &desired, &order, &refusals)
                .and_then(|()| self.frontends_fit(service, &desired, &order, &refusals))
                .and_then(|()| self.sources_fit(service, &desired, &order, &refusals))
                .and_then(|()| self.ids_fit(service, &desired, &order))
                .and_then(|()| self.reserve_ranges(service, &desired, &order));
            match verdict {
                Ok(ranges) => {
                    let needs = Needs::of(&refusals, &desired);
                    let mut desired: HashMap<PortKey, PortTable> = desired.into_iter().collect();
                    let plans = order.iter().zip(ranges);
                    let plans = plans.filter_map(|(key, ranges)| Some(Plan { table: desired.remove(key)?, ranges }));
                    return (plans.collect(), refusals, needs);
                }
                Err(refused) => {
                    let most = if refusals.len() < SINGLE_REFUSALS { 1 } else { usize::MAX };
                    refusals.extend(refused.into_iter().take(most));
                }
            }
        }
    }

    fn conflicts(&self, service: &ObjectName, desired: &Desired, order: &[PortKey], refusals: &Refusals) -> Verdict {
        let mut claimed: HashMap<FrontendAddress, &PortKey> = HashMap::default();
        let mut refused: Vec<(PortKey, Reason)> = Vec::new();
        for key in order {
            let conflict = addresses(&desired[key]).find_map(|address| {
                if let Some(owner) = self.held.as_ref().and_then(|held| held.get(&address))
                    && owner != service
                {
                    return Some(Reason::Held { address, owner: Box::new(owner.clone()) });
                }
                let owner = self.owner(&address).filter(|owner| {
                    // Another port of the same Service gives it up in this very update, unless it stays as it is.
                    let stays = refusals.contains_key(owner)
                        || desired.get(owner).is_some_and(|table| addresses(table).any(|other| other == address));
                    *owner != key && (owner.service != *service || stays)
                });
                let owner = owner.or(claimed.get(&address).copied())?;
                Some(Reason::Conflict { address, owner: Box::new(owner.clone()) })
            });
            match conflict {
                Some(reason) => refused.push((key.clone(), reason)),
                None => claimed.extend(addresses(&desired[key]).map(|address| (address, key))),
            }
        }
        // A refused port keeps what it had, which another one may have claimed, and that one what it had.
        let mut judged: HashSet<PortKey> = refused.iter().map(|(key, _)| key.clone()).collect();
        let mut at = 0;
        while let Some((key, _)) = refused.get(at) {
            at += 1;
            let key = key.clone();
            let kept = self.services.get(service).and_then(|ports| ports.get(&key));
            for address in kept.into_iter().flat_map(|port| port.frontends.keys()) {
                let claimant = claimed.get(address).copied().filter(|claimant| **claimant != key);
                if let Some(claimant) = claimant
                    && judged.insert(claimant.clone())
                {
                    let reason = Reason::Conflict { address: *address, owner: Box::new(key.clone()) };
                    refused.push((claimant.clone(), reason));
                }
            }
        }
        verdict(refused)
    }

    fn frontends_fit(
        &self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
        refusals: &Refusals,
    ) -> Verdict {
        let used = [u64::from(self.frontends_v4), u64::from(self.frontends_v6)];
        let own = |key: &PortKey, port: &Port| per_family(key.family, port.frontends.len());
        let needed = |key: &PortKey| {
            let is_new = |address: &FrontendAddress| !self.adopted.frontends.contains(address);
            per_family(key.family, addresses(&desired[key]).filter(is_new).count())
        };
        let capacity = [self.capacity.frontends_v4, self.capacity.frontends_v6];
        let left = self.without(used, service, refusals, own);
        entries_fit(left, order, needed, Resource::Frontends, capacity)
    }

    fn sources_fit(&self, service: &ObjectName, desired: &Desired, order: &[PortKey], refusals: &Refusals) -> Verdict {
        let count = |ranges: &mut dyn Iterator<Item = &IpNet>| {
            let mut count = [0; 2];
            ranges.for_each(|range| count[family_index(range)] += 1);
            count
        };
        let own = |_: &PortKey, port: &Port| count(&mut port.sources.iter());
        // New ranges are written before old ones go, so that no client is turned away in between: for a moment both are there.
        let needed = |key: &PortKey| {
            let new = desired[key].source_ranges.iter().flatten();
            let old = self.services.get(service).and_then(|ports| ports.get(key)).map(|port| &port.sources);
            count(&mut new.chain(old.into_iter().flatten()).collect::<BTreeSet<_>>().into_iter())
        };
        let left = self.without(self.sources, service, refusals, own);
        entries_fit(left, order, needed, Resource::SourceRanges, [self.capacity.source_ranges; 2])
    }

    /// What is used by others than the ports of a Service that give up what they have.
    fn without(
        &self,
        mut used: [u64; 2],
        service: &ObjectName,
        refusals: &Refusals,
        own: impl Fn(&PortKey, &Port) -> [u64; 2],
    ) -> [u64; 2] {
        let ports = self.services.get(service).into_iter().flat_map(Flat::iter);
        for (key, port) in ports.filter(|(key, _)| !refusals.contains_key(*key)) {
            let own = own(key, port);
            used = [used[0] - own[0], used[1] - own[1]];
        }
        used
    }

    fn ids_fit(&self, service: &ObjectName, desired: &Desired, order: &[PortKey]) -> Verdict {
        let old = self.services.get(service);
        let Fill { services: all_services, backends: all_backends, .. } = self.fill();
        let mut services = self.service_ids.available();
        let mut backends = self.backend_ids.available();
        let full = |what: Resource, needed, available, usage: Usage| Reason::Full {
            what,
            needed: needed as u64,
            available: available as u64,
            resting: u64::from(usage.resting),
            capacity: u64::from(usage.capacity),
        };
        let mut refused = Vec::new();
        for key in order {
            let port = old.and_then(|ports| ports.get(key));
            let is_new = |address| port.is_none_or(|port| !port.backends.contains_key(&Place::of(address)));
            let new = desired[key].backends.iter().filter(|backend| is_new(backend.address)).count();
            let own = usize::from(port.is_none());
            let reason = if port.is_none() && to_service_name(key).is_none() {
                Reason::Name
            } else if own > services {
                full(Resource::Services, own, services, all_services)
            } else if new > backends {
                full(Resource::Backends, new, backends, all_backends)
            } else {
                services -= own;
                backends -= new;
                continue;
            };
            refused.push((key.clone(), reason));
        }
        verdict(refused)
    }

    /// The ranges of each port of `order`, in this order.
    fn reserve_ranges(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        order: &[PortKey],
    ) -> Result<Vec<Vec<PlannedRange>>, Vec<(PortKey, Reason)>> {
        let mut planned = Vec::with_capacity(order.len());
        let mut refused = Vec::new();
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
                        what: Resource::Slots,
                        needed: u64::from(maglev::table_len(members.len())),
                        available: u64::from(self.slots.free()),
                        resting: u64::from(self.slots.resting()),
                        capacity: u64::from(self.capacity.slots),
                    };
                    self.give_back(ranges.drain(..));
                    refused.push((key.clone(), reason));
                    break;
                };
                ranges.push(PlannedRange { members, slots, fresh });
            }
            planned.push(ranges);
        }
        if refused.is_empty() {
            return Ok(planned);
        }
        self.give_back(planned.into_iter().flatten());
        Err(refused)
    }

    fn give_back(&mut self, ranges: impl Iterator<Item = PlannedRange>) {
        for range in ranges.filter(|range| range.fresh) {
            self.slots.give_back(range.slots);
        }
    }
}

impl Port {
    /// The range that already holds exactly these members.
    fn range_of(&self, table: &PortTable, members: &[usize]) -> Option<SlotRange> {
        let id = |index: &usize| self.backends.get(&Place::of(table.backends[*index].address)).map(|placed| placed.id);
        let mut set: Vec<u32> = members.iter().map(id).collect::<Option<_>>()?;
        set.sort_unstable();
        self.ranges.iter().find(|range| *range.set == *set).map(|range| range.slots)
    }
}

/// The distinct non-empty sets that some frontend uses.
pub(super) fn sets(table: &PortTable) -> Vec<Vec<usize>> {
    let uses = |set| table.frontends.iter().any(|frontend| frontend.inside == set || frontend.outside == set);
    let mut sets = Vec::with_capacity(2);
    for (set, members) in [(Set::Cluster, &table.cluster), (Set::Local, &table.local)] {
        if uses(set) && !members.is_empty() && !sets.contains(members) {
            sets.push(members.clone());
        }
    }
    sets
}
