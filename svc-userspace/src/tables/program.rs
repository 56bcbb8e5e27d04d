//! From accepted ports to operations, in an order that is safe after each single one.
//!
//! Frontends that go away; names; backends that get better; slots and source ranges; frontends that are or become; source
//! ranges that go away; backends that get worse; names that go away. Bits of the filter come before
//! everything, and no operation takes one away. VIPs go before their frontends and come after them. An address that moves between two ports of a Service is one write, never a gap.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;
use svc_common::{BackendState, Frontend, SlotRange, frontend};

use super::{
    BackendValue, FrontendAddress, Op, Port, Range, Refused, Tables,
    plan::{Desired, Plan, PlannedRange, addresses},
    shared::{SharedOps, Touched},
    to_service_name,
};
use crate::{
    compile::{FrontendKind, PortKey, PortTable, Set},
    model::ObjectName,
};

/// Operations by phase; the fields are in the order in which they are carried out.
#[derive(Default)]
pub(super) struct Phases {
    pub(super) filter: Vec<Op>,
    pub(super) remove_vips: Vec<Op>,
    pub(super) remove_frontends: Vec<Op>,
    pub(super) names: Vec<Op>,
    pub(super) raise_backends: Vec<Op>,
    pub(super) slots: Vec<Op>,
    pub(super) set_sources: Vec<Op>,
    pub(super) set_frontends: Vec<Op>,
    pub(super) set_vips: Vec<Op>,
    pub(super) remove_sources: Vec<Op>,
    pub(super) lower_backends: Vec<Op>,
    pub(super) remove_names: Vec<Op>,
}

impl Phases {
    pub(super) fn into_ops(self) -> Vec<Op> {
        let Self {
            filter,
            remove_vips,
            remove_frontends,
            names,
            raise_backends,
            slots,
            set_sources,
            set_frontends,
            set_vips,
            remove_sources,
            lower_backends,
            remove_names,
        } = self;
        [
            filter,
            remove_vips,
            remove_frontends,
            names,
            raise_backends,
            slots,
            set_sources,
            set_frontends,
            set_vips,
            remove_sources,
            lower_backends,
            remove_names,
        ]
        .concat()
    }

    /// Takes over the writes to what Services share.
    pub(super) fn share(&mut self, ops: SharedOps) {
        let SharedOps { filter, remove_vips, set_vips } = ops;
        self.remove_vips.extend(remove_vips);
        self.filter.extend(filter);
        self.set_vips.extend(set_vips);
    }
}

impl Tables {
    /// Makes `ports` all that a Service has; none removes it. Returns what is to be written, in this order, and which
    /// ports are refused: these keep what they had. The work is in proportion to the Service.
    ///
    /// The result is what the maps will hold once every operation was applied; if one fails, the caller starts over with
    /// [`Tables::adopt`]. Tables of other Services in `ports` are ignored.
    pub fn update(&mut self, service: &ObjectName, ports: Vec<PortTable>, now_ms: u64) -> (Vec<Op>, Vec<Refused>) {
        self.expire(now_ms);
        self.adopted.unclaimed.remove(service);
        let desired: Desired = ports
            .into_iter()
            .filter(|table| table.key.service == *service)
            .map(|table| (table.key.clone(), table))
            .collect();
        let (plans, refusals) = self.admit(service, desired);

        let mut phases = Phases::default();
        let taken: HashSet<FrontendAddress> = plans.iter().flat_map(|plan| addresses(&plan.table)).collect();
        let mut old = self.services.remove(service).unwrap_or_default();
        let mut touched = Touched::default();
        for (key, port) in &old {
            self.shared.count(key, port, false, &mut touched);
        }
        let mut new: BTreeMap<PortKey, Port> = BTreeMap::new();
        for key in refusals.keys() {
            new.extend(old.remove_entry(key));
        }
        // First all that lose addresses, then all that gain them: ownership of one that moves must end with the gainer.
        let mut previous: BTreeMap<PortKey, Port> = BTreeMap::new();
        for plan in &plans {
            if let Some((key, port)) = old.remove_entry(&plan.table.key) {
                let keeps: HashSet<FrontendAddress> = addresses(&plan.table).collect();
                self.drop_frontends(&port, &keeps, &taken, &mut phases);
                previous.insert(key, port);
            }
        }
        for (_, port) in old {
            self.drop_frontends(&port, &HashSet::new(), &taken, &mut phases);
            self.drop_port(port, now_ms, &mut phases);
        }
        for plan in plans {
            let key = plan.table.key.clone();
            let port = previous.remove(&key);
            if let Some(port) = self.program_port(plan, port, now_ms, &mut phases) {
                new.insert(key, port);
            }
        }
        for (key, port) in &new {
            self.shared.count(key, port, true, &mut touched);
        }
        phases.share(self.shared.settle(touched));
        if !new.is_empty() {
            self.services.insert(service.clone(), new);
        }
        if refusals.is_empty() {
            self.refused.remove(service);
        } else {
            self.refused.insert(service.clone());
        }
        let refused = refusals.into_iter().map(|(key, reason)| Refused { key, reason }).collect();
        (phases.into_ops(), refused)
    }

    /// Gives up the frontends of `port` that it does not keep, without a removal for those that another port takes.
    fn drop_frontends(
        &mut self,
        port: &Port,
        keeps: &HashSet<FrontendAddress>,
        taken: &HashSet<FrontendAddress>,
        phases: &mut Phases,
    ) {
        for address in port.frontends.keys().filter(|address| !keeps.contains(address)) {
            self.owners.remove(address);
            *self.frontend_count(address) -= 1;
            if !taken.contains(address) {
                phases.remove_frontends.push(Op::RemoveFrontend(*address));
            }
        }
    }

    fn drop_port(&mut self, port: Port, now_ms: u64, phases: &mut Phases) {
        let Port { id, backends, ranges, sources, frontends: _ } = port;
        self.program_sources(id, sources, &BTreeSet::new(), phases);
        for (id, value) in backends.into_values() {
            self.drop_backend(id, &value, now_ms, phases);
        }
        for range in ranges {
            self.slots.release(range.slots, now_ms);
        }
        self.keys.remove(&id);
        self.service_ids.release(id, now_ms);
        phases.remove_names.push(Op::RemoveService(id));
    }

    fn drop_backend(&mut self, id: u32, value: &BackendValue, now_ms: u64, phases: &mut Phases) {
        phases.lower_backends.push(Op::SetBackend(id, BackendValue { state: BackendState::Gone, ..value.clone() }));
        self.backend_ids.release(id, now_ms);
    }

    /// Programs an accepted port over its previous state. `None` only if [`Tables::admit`] promised more than there is.
    fn program_port(&mut self, plan: Plan, old: Option<Port>, now_ms: u64, phases: &mut Phases) -> Option<Port> {
        let Plan { table, ranges } = plan;
        let mut old = match old {
            Some(old) => old,
            None => self.new_port(&table.key, phases)?,
        };
        let mut port = Port { id: old.id, ..Port::default() };
        for (address, value) in
            table.backends.iter().map(|entry| (entry.address, BackendValue::of(entry, old.id))).collect::<Vec<_>>()
        {
            let entry = self.program_backend(old.backends.remove(&address), value, phases)?;
            port.backends.insert(address, entry);
        }
        for (id, value) in old.backends.into_values() {
            self.drop_backend(id, &value, now_ms, phases);
        }
        port.ranges = ranges.iter().map(|range| self.program_range(range, &table, &port, phases)).collect();
        for range in old.ranges.into_iter().filter(|range| !port.ranges.contains(range)) {
            self.slots.release(range.slots, now_ms);
        }
        port.sources = table.source_ranges.iter().flatten().copied().collect();
        self.program_sources(port.id, old.sources, &port.sources, phases);
        for (address, frontend) in frontends(&table, port.id, &ranges) {
            if self.owners.insert(address, port.id).is_none() && !self.adopted.frontends.remove(&address) {
                *self.frontend_count(&address) += 1;
            }
            if old.frontends.get(&address) != Some(&frontend) {
                phases.set_frontends.push(Op::SetFrontend(address, frontend));
            }
            port.frontends.insert(address, frontend);
        }
        Some(port)
    }

    fn program_sources(&mut self, id: u32, old: BTreeSet<IpNet>, new: &BTreeSet<IpNet>, phases: &mut Phases) {
        for range in new.difference(&old) {
            self.sources[family_index(range)] += 1;
            phases.set_sources.push(Op::SetSource(id, *range));
        }
        for range in old.into_iter().filter(|range| !new.contains(range)) {
            self.sources[family_index(&range)] -= 1;
            phases.remove_sources.push(Op::RemoveSource(id, range));
        }
    }

    fn new_port(&mut self, key: &PortKey, phases: &mut Phases) -> Option<Port> {
        let name = to_service_name(key)?;
        let (id, _) = self.service_ids.take()?;
        self.keys.insert(id, key.clone());
        phases.names.push(Op::SetService(id, name));
        Some(Port { id, ..Port::default() })
    }

    fn program_backend(
        &mut self,
        old: Option<(u32, BackendValue)>,
        mut value: BackendValue,
        phases: &mut Phases,
    ) -> Option<(u32, BackendValue)> {
        let Some((id, previous)) = old else {
            let (id, generation) = self.backend_ids.take()?;
            value.generation = generation;
            phases.raise_backends.push(Op::SetBackend(id, value.clone()));
            return Some((id, value));
        };
        value.generation = previous.generation;
        if value != previous {
            let worse = value.state == BackendState::Terminating && previous.state == BackendState::Active;
            let phase = if worse { &mut phases.lower_backends } else { &mut phases.raise_backends };
            phase.push(Op::SetBackend(id, value.clone()));
        }
        Some((id, value))
    }

    fn program_range(&mut self, range: &PlannedRange, table: &PortTable, port: &Port, phases: &mut Phases) -> Range {
        let members = || {
            range.members.iter().filter_map(|index| {
                let address = table.backends[*index].address;
                Some((address, port.backends.get(&address)?.0))
            })
        };
        if range.fresh {
            phases.slots.push(Op::WriteSlots(range.slots.offset, self.maglev.build(members())));
        }
        let mut set: Vec<u32> = members().map(|(_, id)| id).collect();
        set.sort_unstable();
        Range { set, slots: range.slots }
    }
}

/// Which of two families a range is of.
pub(super) fn family_index(range: &IpNet) -> usize {
    usize::from(matches!(range, IpNet::V6(_)))
}

impl BackendValue {
    fn of(entry: &crate::compile::BackendEntry, service: u32) -> Self {
        let state = if entry.terminating { BackendState::Terminating } else { BackendState::Active };
        Self { address: entry.address, state, local: entry.local, generation: 0, service }
    }
}

/// The entries of FRONTENDS of a port.
fn frontends(table: &PortTable, id: u32, ranges: &[PlannedRange]) -> Vec<(FrontendAddress, Frontend)> {
    let side = |set: Set, drop: u32| -> (SlotRange, u32) {
        let members = match set {
            Set::Cluster => &table.cluster,
            Set::Local => &table.local,
        };
        let range = ranges.iter().find(|range| range.members == *members);
        // An empty Local set drops while the Service has endpoints elsewhere; without any it rejects, as Cluster does.
        let flag = if set == Set::Local && members.is_empty() && !table.cluster.is_empty() { drop } else { 0 };
        (range.map_or_else(SlotRange::default, |range| range.slots), flag)
    };
    let entry = |f: &crate::compile::FrontendEntry| {
        let (inside, inside_flag) = side(f.inside, frontend::FLAG_INSIDE_DROP);
        let (outside, outside_flag) = side(f.outside, frontend::FLAG_OUTSIDE_DROP);
        let kind = match f.kind {
            FrontendKind::ClusterIp => frontend::FLAG_CLUSTER_IP,
            FrontendKind::NodePort => frontend::FLAG_NODE_PORT,
            FrontendKind::NodePortLoopback => frontend::FLAG_NODE_PORT | frontend::FLAG_HOST_ONLY,
            FrontendKind::LoadBalancer if table.source_ranges.is_some() => {
                frontend::FLAG_LOAD_BALANCER | frontend::FLAG_SOURCE_RANGES
            }
            FrontendKind::LoadBalancer => frontend::FLAG_LOAD_BALANCER,
            FrontendKind::ExternalIp => frontend::FLAG_EXTERNAL_IP,
        };
        Frontend {
            service: id,
            flags: kind | inside_flag | outside_flag,
            affinity_seconds: table.affinity_seconds,
            inside,
            outside,
        }
    };
    addresses(table).zip(table.frontends.iter().map(entry)).collect()
}
