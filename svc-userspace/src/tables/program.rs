//! From accepted ports to operations, in an order that is safe after each single one.
//!
//! Frontends that go away; names; backends that get better; slots and source ranges; frontends that are or become; source
//! ranges that go away; backends that get worse; names that go away. Bits of the filter come before
//! everything, and no operation takes one away. VIPs go before their frontends and come after them. An address that moves between two ports of a Service is one write, never a gap.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;
use svc_common::{BackendState, Frontend, SlotRange, frontend};

use super::{
    Flat, FrontendAddress, Op, Place, Placed, Port, Range, Refused, Sets, Tables,
    plan::{Desired, Plan, PlannedRange, addresses},
    shared::{SharedOps, Touched},
    slot_sum, to_service_name,
};
use crate::{
    compile::{BackendEntry, FrontendKind, PortKey, PortTable, Set},
    model::ObjectName,
};

/// Steps of an update, in the order in which they are carried out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    Filter,
    RemoveVips,
    RemoveFrontends,
    Names,
    RaiseBackends,
    Slots,
    SetSources,
    SetFrontends,
    SetVips,
    RemoveSources,
    LowerBackends,
    RemoveNames,
}

/// Operations by phase.
#[derive(Default)]
pub(super) struct Phases([Vec<Op>; Phase::RemoveNames as usize + 1]);

impl Phases {
    pub(super) fn push(&mut self, phase: Phase, op: Op) {
        self.0[phase as usize].push(op);
    }

    pub(super) fn into_ops(self) -> Vec<Op> {
        let mut ops = Vec::with_capacity(self.0.iter().map(Vec::len).sum());
        self.0.into_iter().for_each(|phase| ops.extend(phase));
        ops
    }

    /// Takes over the writes to what Services share.
    pub(super) fn share(&mut self, ops: SharedOps) {
        let SharedOps { remove_vips, filter, set_vips } = ops;
        for (phase, ops) in [(Phase::RemoveVips, remove_vips), (Phase::Filter, filter), (Phase::SetVips, set_vips)] {
            self.0[phase as usize].extend(ops);
        }
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
        for (key, port) in old.iter() {
            self.shared.count(key, port, false, &mut touched);
        }
        let mut new: Flat<PortKey, Port> = Flat::with_capacity(plans.len());
        for (key, port) in refusals.keys().filter_map(|key| old.remove_entry(key)) {
            new.insert(key, port);
        }
        // First all that lose addresses, then all that gain them: ownership of one that moves must end with the gainer.
        let mut previous: Flat<PortKey, Port> = Flat::with_capacity(plans.len());
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
            let port = previous.remove_entry(&key).map(|(_, port)| port);
            if let Some(port) = self.program_port(plan, port, now_ms, &mut phases) {
                new.insert(key, port);
            }
        }
        for (key, port) in new.iter() {
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
        for address in port.frontends.keys().filter(|address| !keeps.contains(*address)) {
            self.owners.remove(address);
            *self.frontend_count(address) -= 1;
            if !taken.contains(address) {
                phases.push(Phase::RemoveFrontends, Op::RemoveFrontend(*address));
            }
        }
    }

    fn drop_port(&mut self, port: Port, now_ms: u64, phases: &mut Phases) {
        let Port { id, backends, ranges, sources, frontends: _ } = port;
        self.program_sources(id, sources, &BTreeSet::new(), phases);
        for (place, placed) in backends {
            self.drop_backend(placed, place, id, now_ms, phases);
        }
        for range in ranges {
            self.slots.release(range.slots, now_ms);
        }
        self.keys.remove(&id);
        self.service_ids.release(id, now_ms);
        phases.push(Phase::RemoveNames, Op::RemoveService(id));
    }

    fn drop_backend(&mut self, placed: Placed, place: Place, service: u32, now_ms: u64, phases: &mut Phases) {
        let gone = Placed { state: BackendState::Gone, sets: Sets::default(), ..placed }.value(place, service);
        phases.push(Phase::LowerBackends, Op::SetBackend(placed.id, gone));
        self.backend_ids.release(placed.id, now_ms);
    }

    /// Programs an accepted port over its previous state. `None` only if [`Tables::admit`] promised more than there is.
    fn program_port(&mut self, plan: Plan, old: Option<Port>, now_ms: u64, phases: &mut Phases) -> Option<Port> {
        let Plan { table, ranges } = plan;
        let old = match old {
            Some(old) => old,
            None => self.new_port(&table.key, phases)?,
        };
        let mut port = Port {
            id: old.id,
            backends: Flat::with_capacity(table.backends.len()),
            frontends: Flat::with_capacity(table.frontends.len()),
            ..Port::default()
        };
        for (index, entry) in table.backends.iter().enumerate() {
            let place = Place::of(entry.address);
            let is_in = |set: &[usize]| set.binary_search(&index).is_ok();
            let sets = Sets { cluster: is_in(&table.cluster), local: is_in(&table.local) };
            let placed = self.program_backend(old.backends.get(&place).copied(), entry, sets, old.id, phases)?;
            port.backends.insert(place, placed);
        }
        for (place, placed) in old.backends.iter().filter(|(place, _)| !port.backends.contains_key(place)) {
            self.drop_backend(*placed, *place, old.id, now_ms, phases);
        }
        port.ranges =
            ranges.iter().map(|range| self.program_range(range, &table, &port, &old.ranges, phases)).collect();
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
                phases.push(Phase::SetFrontends, Op::SetFrontend(address, frontend));
            }
            port.frontends.insert(address, frontend);
        }
        Some(port)
    }

    fn program_sources(&mut self, id: u32, old: BTreeSet<IpNet>, new: &BTreeSet<IpNet>, phases: &mut Phases) {
        for range in new.difference(&old) {
            self.sources[family_index(range)] += 1;
            phases.push(Phase::SetSources, Op::SetSource(id, *range));
        }
        for range in old.into_iter().filter(|range| !new.contains(range)) {
            self.sources[family_index(&range)] -= 1;
            phases.push(Phase::RemoveSources, Op::RemoveSource(id, range));
        }
    }

    fn new_port(&mut self, key: &PortKey, phases: &mut Phases) -> Option<Port> {
        let name = to_service_name(key)?;
        let (id, _) = self.service_ids.take()?;
        self.keys.insert(id, key.clone());
        phases.push(Phase::Names, Op::SetService(id, name));
        Some(Port { id, ..Port::default() })
    }

    fn program_backend(
        &mut self,
        old: Option<Placed>,
        entry: &BackendEntry,
        sets: Sets,
        service: u32,
        phases: &mut Phases,
    ) -> Option<Placed> {
        let state = if entry.terminating { BackendState::Terminating } else { BackendState::Active };
        let place = Place::of(entry.address);
        let Some(previous) = old else {
            let (id, generation) = self.backend_ids.take()?;
            let placed = Placed { id, generation, state, local: entry.local, sets };
            phases.push(Phase::RaiseBackends, Op::SetBackend(id, placed.value(place, service)));
            return Some(placed);
        };
        let placed = Placed { state, local: entry.local, sets, ..previous };
        // What it gains comes before the frontends that make use of it, what it loses after them.
        let worse = state == BackendState::Terminating && previous.state == BackendState::Active;
        let raised =
            Placed { state: if worse { previous.state } else { state }, sets: previous.sets.and(sets), ..placed };
        for (phase, value) in [(Phase::RaiseBackends, raised), (Phase::LowerBackends, placed)] {
            if value != if matches!(phase, Phase::RaiseBackends) { previous } else { raised } {
                phases.push(phase, Op::SetBackend(placed.id, value.value(place, service)));
            }
        }
        Some(placed)
    }

    fn program_range(
        &mut self,
        range: &PlannedRange,
        table: &PortTable,
        port: &Port,
        old: &[Range],
        phases: &mut Phases,
    ) -> Range {
        if let Some(kept) = old.iter().find(|old| !range.fresh && old.slots == range.slots) {
            return kept.clone();
        }
        let members = || {
            range.members.iter().filter_map(|index| {
                let address = table.backends[*index].address;
                Some((address, port.backends.get(&Place::of(address))?.id))
            })
        };
        let slots = self.maglev.build(members());
        let sum = slot_sum(&slots);
        phases.push(Phase::Slots, Op::WriteSlots(range.slots.offset, slots));
        let mut set: Vec<u32> = members().map(|(_, id)| id).collect();
        set.sort_unstable();
        Range { set: set.into(), slots: range.slots, sum }
    }
}

/// Which of two families a range is of.
pub(super) fn family_index(range: &IpNet) -> usize {
    usize::from(matches!(range, IpNet::V6(_)))
}

/// The entries of FRONTENDS of a port.
fn frontends(table: &PortTable, id: u32, ranges: &[PlannedRange]) -> Vec<(FrontendAddress, Frontend)> {
    let side = |set: Set, local: u32, drop: u32| -> (SlotRange, u32) {
        let (members, kind) = match set {
            Set::Cluster => (&table.cluster, 0),
            Set::Local => (&table.local, local),
        };
        let range = ranges.iter().find(|range| range.members == *members);
        // An empty Local set drops while the Service has endpoints elsewhere; without any it rejects, as Cluster does.
        let flag = if set == Set::Local && members.is_empty() && !table.cluster.is_empty() { drop } else { 0 };
        (range.map_or_else(SlotRange::default, |range| range.slots), kind | flag)
    };
    let entry = |f: &crate::compile::FrontendEntry| {
        let (inside, inside_flag) = side(f.inside, frontend::FLAG_INSIDE_LOCAL, frontend::FLAG_INSIDE_DROP);
        let (outside, outside_flag) = side(f.outside, frontend::FLAG_OUTSIDE_LOCAL, frontend::FLAG_OUTSIDE_DROP);
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
