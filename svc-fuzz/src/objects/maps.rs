//! A model of the maps that holds after every single operation what a reader in the kernel relies on.
//!
//! Panics where an operation leaves something dangling, takes an id or a slot that still rests, or changes what is in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use svc_common::{
    BackendState, Frontend, ServiceName, SlotRange,
    backend::BACKEND_IN_LOCAL,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
};
use svc_userspace::{
    agent::engine,
    tables::{
        BackendValue, Capacity, Difference, FilterWords, FrontendAddress, Observed, Op, REST_MS, SLOT_REST_MS, Sets,
        Walked,
    },
};

mod tamper;

/// The maps, when what was released, and how many more writes are to fail.
#[derive(Debug)]
pub(super) struct Maps {
    capacity: Capacity,
    services: BTreeMap<u32, Box<ServiceName>>,
    backends: BTreeMap<u32, BackendValue>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    sources: BTreeSet<(u32, IpNet)>,
    vips: BTreeMap<IpAddr, u32>,
    filter: FilterWords,
    /// The agent has said that bits are missing, and not taken it back.
    distrusted: bool,
    /// `None`: never written.
    slots: Vec<Option<u32>>,
    services_until: BTreeMap<u32, u64>,
    backends_until: BTreeMap<u32, u64>,
    ranges_until: Vec<(SlotRange, u64)>,
    /// The clock, milliseconds.
    pub(super) now: u64,
    /// So many operations succeed, then one fails; `None`: all succeed.
    pub(super) fail_after: Option<u32>,
    /// A write has failed: what comes after it may find no room, because what makes room waits.
    has_failed: bool,
    /// Somebody else has written to them: what holds for the agent's own writes need not hold.
    is_tampered: bool,
    /// Operations carried out so far.
    pub(super) written: u32,
    /// Those among them that were frontends with endpoints.
    pub(super) served: u32,
    /// After so many operations the agent ends, and writes nothing any more.
    pub(super) crash_at: Option<u32>,
}

/// What clients notice of a frontend, without ids and offsets: whose it is, flags, affinity, and the backends of both
/// ranges in the order of their slots.
pub(super) type View = BTreeMap<FrontendAddress, (String, u32, u32, [Vec<SocketAddr>; 2])>;

impl Maps {
    /// Empty maps.
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            frontends: BTreeMap::new(),
            sources: BTreeSet::new(),
            vips: BTreeMap::new(),
            filter: FilterWords::new(),
            distrusted: false,
            slots: vec![None; capacity.slots as usize],
            services_until: BTreeMap::new(),
            backends_until: BTreeMap::new(),
            ranges_until: Vec::new(),
            now: 0,
            fail_after: None,
            has_failed: false,
            is_tampered: false,
            written: 0,
            served: 0,
            crash_at: None,
        }
    }

    /// Distinct non-empty ranges, with the service that uses each.
    fn ranges(&self) -> BTreeSet<(u32, u32, u32)> {
        let both = self.frontends.values().flat_map(|f| [f.inside, f.outside].map(|r| (r.offset, r.len, f.service)));
        both.filter(|range| range.1 > 0).collect()
    }

    fn slots(&self, range: SlotRange) -> &[Option<u32>] {
        let (from, to) = (range.offset as usize, range.offset as usize + range.len as usize);
        self.slots.get(from..to).unwrap_or_else(|| panic!("{range:?} is beyond the end of SLOTS"))
    }

    fn carry_out(&mut self, op: &Op) {
        let now = self.now;
        match op.clone() {
            Op::SetService(id, name) => {
                assert!((1..self.capacity.services).contains(&id), "service id {id}");
                let is_same = self.services.get(&id) == Some(&name);
                let rests = self.services_until.get(&id).is_some_and(|until| now < *until);
                assert!(is_same || !rests, "service id {id} still rests");
                assert!(is_same || !self.frontends.values().any(|f| f.service == id), "service id {id} is in use");
                self.services.insert(id, name);
            }
            Op::RemoveService(id) => {
                assert!(!self.frontends.values().any(|f| f.service == id), "a frontend names service {id}");
                if self.services.remove(&id).is_some() {
                    self.services_until.insert(id, now + REST_MS);
                }
            }
            Op::SetBackend(id, value) => self.set_backend(id, value),
            Op::WriteSlots(offset, ids) => self.write_slots(offset, &ids),
            Op::SetFrontend(address, value) => {
                self.check_frontend(&address, &value);
                let before = self.ranges();
                self.frontends.insert(address, value);
                self.rest(&before);
            }
            Op::RemoveFrontend(address) => {
                let before = self.ranges();
                self.frontends.remove(&address);
                self.rest(&before);
            }
            Op::SetSource(service, range) => {
                assert!(self.services.contains_key(&service), "a range of service {service}, which has no name");
                self.sources.insert((service, range));
            }
            Op::RemoveSource(service, range) => drop(self.sources.remove(&(service, range))),
            Op::SetVip(address, flags) => {
                let is_served = self.frontends.keys().any(|frontend| frontend.address.ip() == address);
                assert!(is_served || self.has_failed, "{address} is a VIP and no frontend");
                let is_known = self.is_known(SocketAddr::new(address, 0), 0, KNOWN_FRONTEND);
                assert!(is_known || self.has_failed, "{address} is a VIP and not in the filter");
                self.vips.insert(address, flags);
            }
            Op::RemoveVip(address) => drop(self.vips.remove(&address)),
            Op::SetFilter(word, bits) => *self.filter.entry(word).or_default() |= bits,
        }
    }

    /// What is wrong with the entry that an operation writes.
    fn difference(&self, op: &Op) -> Option<Difference> {
        match op {
            Op::SetService(id, name) => compared(self.services.get(id), name),
            Op::SetBackend(id, value) => compared(self.backends.get(id), value),
            Op::SetFrontend(address, value) => compared(self.frontends.get(address), value),
            Op::SetSource(service, range) => {
                (!self.sources.contains(&(*service, *range))).then_some(Difference::Missing)
            }
            Op::SetVip(address, flags) => compared(self.vips.get(address), flags),
            Op::SetFilter(word, bits) => {
                let found = self.filter.get(word).copied().unwrap_or_default();
                (found & bits != *bits).then_some(Difference::Changed)
            }
            Op::WriteSlots(..) => panic!("slots are compared by their sum"),
            Op::RemoveService(_) | Op::RemoveFrontend(_) | Op::RemoveSource(..) | Op::RemoveVip(_) => {
                Some(Difference::Added)
            }
        }
    }

    /// Whether the kernel would refuse the operation for want of room.
    fn is_full_for(&self, op: &Op) -> bool {
        let Op::SetFrontend(address, _) = op else { return false };
        let is_v4 = address.address.is_ipv4();
        let capacity = if is_v4 { self.capacity.frontends_v4 } else { self.capacity.frontends_v6 };
        let used = self.frontends.keys().filter(|other| other.address.is_ipv4() == is_v4).count();
        used >= capacity as usize && !self.frontends.contains_key(address)
    }

    /// Ranges that nobody names any more rest from now on.
    fn rest(&mut self, before: &BTreeSet<(u32, u32, u32)>) {
        let after = self.ranges();
        let gone = before.difference(&after).map(|(offset, len, _)| SlotRange { offset: *offset, len: *len });
        let until = self.now + SLOT_REST_MS;
        self.ranges_until.extend(gone.map(|range| (range, until)));
    }

    fn set_backend(&mut self, id: u32, value: BackendValue) {
        assert!((1..self.capacity.backends).contains(&id), "backend id {id}");
        let named = |service: Option<u32>| {
            let ranges = self.ranges();
            ranges.into_iter().any(|(offset, len, owner)| {
                service.is_none_or(|service| owner != service)
                    && self.slots(SlotRange { offset, len }).contains(&Some(id))
            })
        };
        match self.backends.get(&id) {
            Some(old) if old.generation != value.generation => {
                assert!(value.generation > old.generation, "the generation of backend {id} went back");
                assert_eq!(old.state, BackendState::Gone, "live backend {id} was given again");
                let rests = self.backends_until.get(&id).is_some_and(|until| self.now < *until);
                assert!(!rests, "backend id {id} still rests");
            }
            Some(old) if old.state != BackendState::Gone => {
                assert_eq!(old.address, value.address, "backend {id} moved within its generation");
            }
            _ => {}
        }
        if value.state == BackendState::Gone {
            assert!(!named(None), "backend {id} is gone, and slots name it");
            if self.backends.get(&id).is_none_or(|old| old.state != BackendState::Gone) {
                self.backends_until.insert(id, self.now + REST_MS);
            }
        } else {
            assert!(!named(Some(value.service)), "slots of another Service name backend {id}");
        }
        self.backends.insert(id, value);
    }

    fn write_slots(&mut self, offset: u32, ids: &[u32]) {
        let written = offset..offset + ids.len() as u32;
        let overlaps = |offset: u32, len: u32| offset < written.end && written.start < offset + len;
        let used = self.ranges().into_iter().find(|(offset, len, _)| overlaps(*offset, *len));
        // What is written again, as after a failure, is no change.
        let is_same =
            self.slots(SlotRange { offset, len: ids.len() as u32 }).iter().copied().eq(ids.iter().map(|id| Some(*id)));
        assert!(is_same || used.is_none(), "slots {written:?} are in use as {used:?}");
        let now = self.now;
        self.ranges_until.retain(|(_, until)| now < *until);
        let rests = self.ranges_until.iter().find(|(range, _)| overlaps(range.offset, range.len));
        assert!(is_same || rests.is_none(), "slots {written:?} still rest: {rests:?}");
        for (slot, id) in (offset as usize..).zip(ids) {
            self.slots[slot] = Some(*id);
        }
    }

    /// Whether the programs would look a packet up.
    fn is_known(&self, address: SocketAddr, protocol: u8, bit: u32) -> bool {
        if self.distrusted {
            return true;
        }
        let place = match address.ip() {
            IpAddr::V4(ip) => filter_place(&ip.octets(), address.port(), protocol),
            IpAddr::V6(ip) => filter_place(&ip.octets(), address.port(), protocol),
        };
        self.filter.get(&(place / 64)).is_some_and(|word| word >> (place % 64) & u64::from(bit) != 0)
    }

    fn check_frontend(&self, address: &FrontendAddress, value: &Frontend) {
        let name = self.services.get(&value.service);
        let name = name.unwrap_or_else(|| panic!("{address:?} names service {}, which is none", value.service));
        assert_eq!(name.protocol, address.protocol.number(), "{address:?} is of another protocol than its service");
        assert_eq!(name.version == 4, address.address.is_ipv4(), "{address:?} is of another family than its service");
        let protocol = address.protocol.number();
        assert!(self.is_known(address.address, protocol, KNOWN_FRONTEND), "{address:?} is not in the filter");
        for (inside, range) in [(true, value.inside), (false, value.outside)] {
            for id in self.slots(range).iter().collect::<BTreeSet<_>>() {
                let id = id.unwrap_or_else(|| panic!("{address:?} names slots that were never written: {range:?}"));
                let backend = self.backends.get(&id).unwrap_or_else(|| panic!("{address:?} leads to no backend {id}"));
                assert_ne!(backend.state, BackendState::Gone, "{address:?} leads to backend {id}, which is gone");
                let Sets { cluster, local } = backend.sets;
                let is_member = if value.membership(inside) == BACKEND_IN_LOCAL { local } else { cluster };
                assert!(is_member, "{address:?} leads to backend {id}, to which nobody stays bound");
                assert_eq!(backend.service, value.service, "{address:?} leads to backend {id} of another service");
                assert_eq!(backend.address.is_ipv4(), address.address.is_ipv4(), "{address:?} changes the family");
                let is_known = self.is_known(backend.address, protocol, KNOWN_ENDPOINT);
                assert!(is_known, "backend {id} of {address:?} is not in the filter");
            }
        }
    }

    /// The agent has ended in the middle of its writes.
    pub(super) fn has_crashed(&self) -> bool {
        self.crash_at.is_some_and(|at| self.written >= at)
    }

    /// Checks everything, as [`engine::Maps::apply`] checks what each operation concerns.
    pub(super) fn check(&self) {
        for (address, value) in &self.frontends {
            self.check_frontend(address, value);
        }
    }

    /// What clients notice.
    pub(super) fn view(&self) -> View {
        let addresses = |range| {
            let ids = self.slots(range).iter().flatten();
            ids.map(|id| self.backends[id].address).collect()
        };
        let entry = |f: &Frontend| {
            (
                title(&self.services[&f.service]),
                f.flags,
                f.affinity_seconds,
                [addresses(f.inside), addresses(f.outside)],
            )
        };
        self.frontends.iter().map(|(address, frontend)| (*address, entry(frontend))).collect()
    }

    /// Backends that are not gone: of which service, address, state, local, in the sets of policies Cluster and Local.
    pub(super) fn live(&self) -> BTreeSet<(String, SocketAddr, u8, [bool; 3])> {
        let live = self.backends.values().filter(|backend| backend.state != BackendState::Gone);
        live.map(|b| {
            (title(&self.services[&b.service]), b.address, b.state as u8, [b.local, b.sets.cluster, b.sets.local])
        })
        .collect()
    }

    /// True if nothing is in them but backends that are gone.
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.frontends.is_empty()
            && self.sources.is_empty()
            && self.vips.is_empty()
            && self.live().is_empty()
    }

    /// What another agent finds, which knows of no rest but that of backends it sees.
    pub(super) fn observed(&mut self) -> Observed {
        self.services_until.clear();
        self.ranges_until.clear();
        let distinct: BTreeSet<(u32, u32)> = self.ranges().into_iter().map(|(offset, len, _)| (offset, len)).collect();
        Observed {
            services: self.services.iter().map(|(id, name)| (*id, name.clone())).collect(),
            backends: self.backends.iter().map(|(id, value)| (*id, value.clone())).collect(),
            frontends: self.frontends.iter().map(|(address, value)| (*address, *value)).collect(),
            slots: distinct
                .into_iter()
                .map(|(offset, len)| {
                    (offset, self.slots(SlotRange { offset, len }).iter().flatten().copied().collect())
                })
                .collect(),
            sources: self.sources.iter().copied().collect(),
            vips: self.vips.iter().map(|(address, flags)| (*address, *flags)).collect(),
            filter: self.filter.iter().map(|(word, bits)| (*word, *bits)).collect(),
        }
    }
}

/// Everything a name in SERVICES says.
fn title(name: &ServiceName) -> String {
    let ServiceName { namespace, name, port_name, port, protocol, version } = name;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    format!("{}/{} {} {port}/{protocol} IPv{version}", text(namespace), text(name), text(port_name))
}

impl engine::Maps for Maps {
    type Error = &'static str;

    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, Self::Error)> {
        for (index, op) in ops.iter().enumerate() {
            if self.has_crashed() {
                return Err((index, "the agent has ended"));
            }
            match &mut self.fail_after {
                Some(0) => {
                    self.fail_after = None;
                    self.has_failed = true;
                    return Err((index, "asked to fail"));
                }
                Some(left) => *left -= 1,
                None => {}
            }
            if self.is_full_for(op) {
                assert!(self.has_failed, "{op:?} does not fit");
                return Err((index, "the map is full"));
            }
            if self.is_tampered {
                self.overwrite(op);
            } else {
                self.carry_out(op);
            }
            self.written += 1;
            self.served += u32::from(matches!(op, Op::SetFrontend(_, frontend) if frontend.inside.len > 0));
        }
        Ok(())
    }

    fn sweep_filter(&mut self, used: FilterWords) -> Result<FilterWords, Self::Error> {
        self.filter.clone_from(&used);
        self.check();
        Ok(used)
    }

    fn trust_filter(&mut self, trusted: bool) -> Result<(), Self::Error> {
        self.distrusted = !trusted;
        self.check();
        Ok(())
    }

    fn set_synced(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn differing(&mut self, ops: &[Op]) -> Result<Vec<(usize, Difference)>, Self::Error> {
        let found = ops.iter().enumerate().map(|(index, op)| (index, self.difference(op)));
        Ok(found.filter_map(|(index, difference)| Some((index, difference?))).collect())
    }

    fn slots(&mut self, range: SlotRange) -> Result<Vec<u32>, Self::Error> {
        Ok(Self::slots(self, range).iter().map(|slot| slot.unwrap_or_default()).collect())
    }

    fn next_entries(&mut self, map: Walked, _: bool, found: &mut Observed) -> Result<bool, Self::Error> {
        match map {
            Walked::VipsV4 => found.vips.extend(self.vips.iter().map(|(address, flags)| (*address, *flags))),
            Walked::FrontendsV4 => {
                found.frontends.extend(self.frontends.iter().map(|(address, value)| (*address, *value)));
            }
            Walked::SourcesV4 => found.sources.extend(&self.sources),
            Walked::Backends => found.backends.extend(self.backends.iter().map(|(id, value)| (*id, value.clone()))),
            Walked::Services => found.services.extend(self.services.iter().map(|(id, name)| (*id, name.clone()))),
            Walked::VipsV6 | Walked::FrontendsV6 | Walked::SourcesV6 => {}
        }
        Ok(true)
    }
}

fn compared<V: PartialEq>(found: Option<&V>, wanted: &V) -> Option<Difference> {
    match found {
        Some(found) => (found != wanted).then_some(Difference::Changed),
        None => Some(Difference::Missing),
    }
}
