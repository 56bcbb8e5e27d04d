//! Takes over the maps of an earlier agent: what makes sense becomes state, the rest is remembered and repaired.
//!
//! Nothing found is trusted: an entry that names what does not exist, a range that overlaps another or does not hold the
//! table it should, a name that is there twice: each is set aside. What a Service then claims is written anew by `update`;
//! what nobody claims is removed by `finish_adoption`. No operation comes of adopting itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use svc_common::{BackendState, SlotRange};

use super::{
    BackendValue, Capacity, Flat, FrontendAddress, Observed, Op, Place, Placed, Port, Range, Sets, Tables,
    ids::Ids,
    maglev,
    program::{Phase, Phases, family_index},
    shared::{Shared, Touched},
    slot_sum, to_port_key,
};
use crate::{
    compile::PortKey,
    model::{Family, ObjectName},
};

/// What was found and has no place, until adoption is finished.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Services found that no update has mentioned yet.
    pub(super) unclaimed: BTreeSet<ObjectName>,
    /// Frontend entries that belong to no known port.
    pub(super) frontends: HashSet<FrontendAddress>,
    /// Service ids that are named somewhere but stand for no port.
    services: BTreeSet<u32>,
    /// Backends that belong to no known port; true: the id is not used otherwise and rests when they are removed.
    backends: Vec<(u32, BackendValue, bool)>,
    /// Source ranges that belong to no known port.
    sources: Vec<(u32, IpNet)>,
    /// Parts of SLOTS that some entry names without being right about them.
    slots: Vec<SlotRange>,
}

/// What has been found for each service id.
struct Found {
    key: PortKey,
    port: Port,
}

impl Tables {
    /// State as found in the maps. Every Service must be updated once after this, and `finish_adoption` be called then.
    pub fn adopt(capacity: Capacity, observed: &Observed) -> Self {
        let mut tables = Self::new(capacity);
        let mut adopted = Adopted::default();
        let mut found = names(capacity, observed, &mut adopted);
        let used: BTreeSet<u32> = place_backends(capacity, observed, &mut found, &mut adopted);
        let (mut resting, mut generations) = (BTreeSet::new(), BTreeMap::<u32, u32>::new());
        for (id, value) in &observed.backends {
            let generation = generations.entry(*id).or_default();
            *generation = value.generation.max(*generation);
            if value.state == BackendState::Gone {
                resting.insert(*id);
            }
        }
        tables.place_frontends(observed, &mut found, &mut adopted);
        tables.place_sources(observed, &mut found, &mut adopted);
        tables.shared = Shared::adopt(&observed.vips, &observed.filter);
        // What they differ in from what the ports use is written when adoption is finished.
        let mut later = Touched::default();
        for Found { key, port } in found.values() {
            tables.shared.count(key, port, true, &mut later);
        }

        adopted.services.retain(|id| !found.contains_key(id));
        let services: BTreeSet<u32> = found.keys().chain(&adopted.services).copied().collect();
        // A service id that is missing may have been released a moment ago: all that may ever have been given rest.
        let named = observed.backends.iter().map(|(_, value)| value.service).chain(services.iter().copied());
        let last = named.filter(|id| *id < capacity.services).max().unwrap_or(0);
        tables.service_ids = Ids::adopt(capacity.services, &services, &(1..=last).collect(), &BTreeMap::new());
        tables.backend_ids = Ids::adopt(capacity.backends, &used, &resting, &generations);
        for (id, Found { key, port }) in found {
            adopted.unclaimed.insert(key.service.clone());
            tables.keys.insert(id, key.clone());
            tables.services.entry(key.service.clone()).or_default().insert(key, port);
        }
        tables.adopted = adopted;
        tables
    }

    /// Sorts frontends to their ports, and claims the slot ranges they name if these hold what they should.
    fn place_frontends(&mut self, observed: &Observed, found: &mut HashMap<u32, Found>, adopted: &mut Adopted) {
        let contents: HashMap<(u32, usize), &Vec<u32>> =
            observed.slots.iter().map(|(offset, ids)| ((*offset, ids.len()), ids)).collect();
        let mut named: HashMap<SlotRange, u32> = HashMap::new();
        let mut seen = HashSet::new();
        for (address, frontend) in observed.frontends.iter().filter(|(address, _)| seen.insert(*address)) {
            *self.frontend_count(address) += 1;
            let family = Family::of(address.address.ip());
            let owner = found
                .get_mut(&frontend.service)
                .filter(|found| found.key.family == family && found.key.protocol == address.protocol);
            if let Some(owner) = owner {
                owner.port.frontends.insert(*address, *frontend);
                self.owners.insert(*address, frontend.service);
            } else {
                adopted.frontends.insert(*address);
                adopted.services.insert(frontend.service);
            }
            for range in [frontend.inside, frontend.outside].into_iter().filter(|range| range.len > 0) {
                named.entry(range).or_insert(frontend.service);
            }
        }
        // In order of offset, so that which of two overlapping ranges wins depends on nothing else.
        let mut named: Vec<(SlotRange, u32)> = named.into_iter().collect();
        named.sort_by_key(|(range, service)| (range.offset, range.len, *service));
        let mut wrong = Vec::new();
        for (range, service) in named {
            let content = contents.get(&(range.offset, range.len as usize));
            let verified = found.get(&service).zip(content).and_then(|(found, ids)| {
                let set = self.verified(&found.port, ids)?;
                Some((set, slot_sum(ids)))
            });
            match (verified, found.get_mut(&service)) {
                (Some((set, sum)), Some(found)) if found.port.ranges.iter().all(|range| *range.set != *set) => {
                    if self.slots.reserve(range) {
                        found.port.ranges.push(Range { set: set.into(), slots: range, sum });
                    } else {
                        wrong.push(range);
                    }
                }
                _ => wrong.push(range),
            }
        }
        for range in wrong {
            adopted.slots.extend(self.slots.reserve_rest(range));
        }
    }

    /// Sorts source ranges to their ports.
    fn place_sources(&mut self, observed: &Observed, found: &mut HashMap<u32, Found>, adopted: &mut Adopted) {
        for (id, range) in &observed.sources {
            let family = if range.addr().is_ipv4() { Family::V4 } else { Family::V6 };
            match found.get_mut(id).filter(|found| found.key.family == family) {
                Some(owner) => {
                    if owner.port.sources.insert(*range) {
                        self.sources[family_index(range)] += 1;
                    }
                }
                None => adopted.sources.push((*id, *range)),
            }
        }
    }

    /// The set of backends of which `ids` is the table; `None` if it is the table of no set of the port's backends.
    fn verified(&mut self, port: &Port, ids: &[u32]) -> Option<Vec<u32>> {
        let addresses: HashMap<u32, _> =
            port.backends.iter().map(|(place, placed)| (placed.id, SocketAddr::new(place.0, place.1))).collect();
        let set: BTreeSet<u32> = ids.iter().copied().collect();
        let members: Vec<_> =
            set.iter().map(|id| addresses.get(id).map(|address| (*address, *id))).collect::<Option<_>>()?;
        let right = ids.len() == maglev::table_len(members.len()) as usize && self.maglev.build(members) == ids;
        right.then(|| set.into_iter().collect())
    }

    /// Removes what was adopted and is claimed by nobody. To be called once every Service has been updated.
    pub fn finish_adoption(&mut self, now_ms: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        for service in std::mem::take(&mut self.adopted.unclaimed) {
            ops.extend(self.update(&service, Vec::new(), now_ms).0);
        }
        let Adopted { unclaimed: _, frontends, services, backends, sources, slots } = std::mem::take(&mut self.adopted);
        let mut phases = Phases::default();
        for address in frontends.into_iter().chain(self.take_broken()) {
            *self.frontend_count(&address) -= 1;
            phases.push(Phase::RemoveFrontends, Op::RemoveFrontend(address));
        }
        for (id, value, rests) in backends {
            if rests {
                self.backend_ids.release(id, now_ms);
            }
            phases.push(
                Phase::LowerBackends,
                Op::SetBackend(id, BackendValue { state: BackendState::Gone, sets: Sets::default(), ..value }),
            );
        }
        for id in services {
            if (1..self.capacity.services).contains(&id) {
                self.service_ids.release(id, now_ms);
            }
            phases.push(Phase::RemoveNames, Op::RemoveService(id));
        }
        for range in slots {
            self.slots.release(range, now_ms);
        }
        for (id, range) in sources {
            phases.push(Phase::RemoveSources, Op::RemoveSource(id, range));
        }
        let everything = self.shared.everything();
        phases.share(self.shared.settle(everything));
        ops.extend(phases.into_ops());
        ops
    }

    /// Takes frontends whose slots are not what they should be from their ports. Updates have rewritten all but those of
    /// refused ports, which keep what they had, and what these had is of no use.
    fn take_broken(&mut self) -> Vec<FrontendAddress> {
        let mut broken = Vec::new();
        for port in self.services.values_mut().flat_map(Flat::values_mut) {
            let Port { ranges, frontends, .. } = port;
            let right = |range: SlotRange| range.len == 0 || ranges.iter().any(|other| other.slots == range);
            broken.extend(frontends.extract(|_, entry| !right(entry.inside) || !right(entry.outside)));
        }
        let mut touched = Touched::default();
        for (address, frontend) in &broken {
            self.owners.remove(address);
            self.shared.count_frontend(address, frontend.flags, false, &mut touched);
        }
        broken.into_iter().map(|(address, _)| address).collect()
    }
}

/// One port for each key: of two ids with one name, the one that frontends use, else the lower one.
fn names(capacity: Capacity, observed: &Observed, adopted: &mut Adopted) -> HashMap<u32, Found> {
    let in_use: HashSet<u32> = observed.frontends.iter().map(|(_, frontend)| frontend.service).collect();
    let mut entries: Vec<_> = observed.services.iter().collect();
    entries.sort_by_key(|(id, _)| (!in_use.contains(id), *id));
    let mut keys = HashSet::new();
    let mut found = HashMap::new();
    for (id, name) in entries {
        match to_port_key(name) {
            Some(key) if (1..capacity.services).contains(id) && !found.contains_key(id) && keys.insert(key.clone()) => {
                found.insert(*id, Found { key, port: Port { id: *id, ..Port::default() } });
            }
            _ => {
                adopted.services.insert(*id);
            }
        }
    }
    found
}

/// Sorts live backends to their ports; returns the ids in use, those of backends without a place included.
fn place_backends(
    capacity: Capacity,
    observed: &Observed,
    found: &mut HashMap<u32, Found>,
    adopted: &mut Adopted,
) -> BTreeSet<u32> {
    // Of two backends with one address, the one that frontends' slots name is the better guess.
    let named: HashSet<u32> = observed.slots.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
    let mut live: Vec<_> = observed
        .backends
        .iter()
        .filter(|(id, value)| (1..capacity.backends).contains(id) && value.state != BackendState::Gone)
        .collect();
    live.sort_by_key(|(id, value)| (!named.contains(id), *id, value.address));
    let mut used = BTreeSet::new();
    for (id, value) in live {
        let first = used.insert(*id);
        let place = found.get_mut(&value.service).filter(|found| {
            first
                && found.key.family == Family::of(value.address.ip())
                && !found.port.backends.contains_key(&Place::of(value.address))
        });
        if let Some(found) = place {
            let BackendValue { address, state, local, sets, generation, service: _ } = *value;
            found.port.backends.insert(Place::of(address), Placed { id: *id, generation, state, local, sets });
        } else {
            adopted.services.insert(value.service);
            adopted.backends.push((*id, value.clone(), first));
        }
    }
    used
}
