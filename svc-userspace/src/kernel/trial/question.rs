//! One packet, tried until what it meets is what the live tables say.
//!
//! The trial's own flow table begins with the live entries of the packet's flow. If the packet opens a flow on a tuple that a
//! live flow has, that entry is copied as well, and the packet is tried again: it then meets what a real one would.

use std::net::IpAddr;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{TestRun, TestRunOptions},
};
use svc_common::{
    Address, Affinity, AffinityKey, Counters, Flow, FlowKey, Frontend, FrontendKey, Hook, Reason, flow::FLOW_DIRECT,
};

use super::{Forward, Outcome, Packet, TrialError, bytes, classifier};
use crate::kernel::{
    error::{KernelError, chain},
    maps,
    pins::Layout,
    view::{clock, decode_flow},
};

/// How often a trial is repeated because a live flow has a tuple that it would have taken: the program itself gives up
/// after fewer attempts.
const ROUNDS: u32 = 8;

/// `TCX_NEXT`, `TCX_DROP` and `TCX_REDIRECT` (include/uapi/linux/bpf.h).
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;
/// Offset of `ifindex` in `struct __sk_buff`, and the size of the whole (the same file).
const SKB_IFINDEX: usize = 40;
const SKB_LEN: usize = 192;
/// Room for what comes out: a refusal quotes a packet that has little more than headers.
const FRAME_LEN: usize = 512;
/// Entries of FLOWS.
type Entries<A> = Vec<(FlowKey<A>, Flow<A>)>;

/// One question in one family.
pub(super) struct Question<'a, A> {
    ebpf: &'a mut Ebpf,
    layout: &'a Layout,
    packet: &'a Packet,
    key: FlowKey<A>,
}

impl<'a, A: Address + Pod> Question<'a, A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FrontendKey<A>: Pod,
    AffinityKey<A>: Pod,
    IpAddr: From<A>,
{
    pub(super) fn new(ebpf: &'a mut Ebpf, layout: &'a Layout, packet: &'a Packet, source: A, destination: A) -> Self {
        let key = FlowKey {
            source,
            destination,
            source_port: packet.source.port(),
            destination_port: packet.destination.port(),
            protocol: packet.protocol.number(),
            hook: Hook::Ingress as u8,
            pad: [0; 2],
        };
        Self { ebpf, layout, packet, key }
    }

    /// Repeats the trial until it took no tuple that a live flow has.
    pub(super) fn outcome(mut self) -> Result<Outcome, TrialError> {
        let mut live: Entries<A> = Vec::new();
        let idle = self.follow(self.key, &mut live)?;
        self.copy_affinity()?;
        for _ in 0..ROUNDS {
            self.set_flows(&live)?;
            let outcome = self.try_once(idle)?;
            let taken = self.taken(&live)?;
            if taken.is_empty() {
                return Ok(outcome);
            }
            live.extend(taken);
        }
        Ok(Outcome::Drop(Reason::TupleTaken))
    }

    /// Copies the live entry of a key, and the one of its replies; returns for how many seconds it has been idle.
    fn follow(&self, key: FlowKey<A>, live: &mut Entries<A>) -> Result<Option<u64>, KernelError> {
        let flows: HashMap<MapData, FlowKey<A>, Flow<A>> = maps::open(self.layout, flows_name::<A>())?;
        let Some(flow) = found(flows.get(&key, 0), flows_name::<A>())? else { return Ok(None) };
        let reply = FlowKey {
            source: flow.address,
            destination: key.source,
            source_port: flow.port,
            destination_port: if flow.peer_port == 0 { key.source_port } else { flow.peer_port },
            hook: Hook::Egress as u8,
            ..key
        };
        live.push((key, flow));
        live.extend(found(flows.get(&reply, 0), flows_name::<A>())?.map(|entry| (reply, entry)));
        Ok(decode_flow(&key, &flow, clock()).map(|entry| entry.idle_seconds))
    }

    /// Copies what the live tables remember of the client, if the frontend has session affinity.
    fn copy_affinity(&mut self) -> Result<(), KernelError> {
        let (frontends, affinity) = match A::VERSION {
            4 => ("FRONTENDS_V4", "AFFINITY_V4"),
            _ => ("FRONTENDS_V6", "AFFINITY_V6"),
        };
        let key = FrontendKey::new(self.key.destination, self.key.destination_port, self.key.protocol);
        let live: HashMap<MapData, FrontendKey<A>, Frontend> = maps::open(self.layout, frontends)?;
        let Some(frontend) = found(live.get(&key, 0), frontends)? else { return Ok(()) };
        let key = AffinityKey { client: self.key.source, service: frontend.service };
        let live: HashMap<MapData, AffinityKey<A>, Affinity> = maps::open(self.layout, affinity)?;
        if let Some(binding) = found(live.get(&key, 0), affinity)? {
            let mut own: HashMap<&mut MapData, AffinityKey<A>, Affinity> = own(self.ebpf, affinity)?;
            own.insert(key, binding, 0).map_err(|error| KernelError::map(affinity, error))?;
        }
        Ok(())
    }

    /// Makes the trial's flow table hold these entries and no other.
    fn set_flows(&mut self, entries: &[(FlowKey<A>, Flow<A>)]) -> Result<(), KernelError> {
        let name = flows_name::<A>();
        let failed = |error| KernelError::map(name, error);
        let mut flows: HashMap<&mut MapData, FlowKey<A>, Flow<A>> = own(self.ebpf, name)?;
        let keys: Vec<FlowKey<A>> = flows.keys().collect::<Result<_, _>>().map_err(failed)?;
        for key in keys {
            flows.remove(&key).map_err(failed)?;
        }
        entries.iter().try_for_each(|(key, flow)| flows.insert(key, flow, 0)).map_err(failed)
    }

    /// Live entries whose keys the trial has just used for itself.
    fn taken(&mut self, known: &[(FlowKey<A>, Flow<A>)]) -> Result<Entries<A>, KernelError> {
        let name = flows_name::<A>();
        let flows: HashMap<&mut MapData, FlowKey<A>, Flow<A>> = own(self.ebpf, name)?;
        let used: Vec<FlowKey<A>> = flows.keys().collect::<Result<_, _>>().map_err(|e| KernelError::map(name, e))?;
        let live: HashMap<MapData, FlowKey<A>, Flow<A>> = maps::open(self.layout, name)?;
        let mut taken = Vec::new();
        for key in used.into_iter().filter(|key| known.iter().all(|(other, _)| other != key)) {
            taken.extend(found(live.get(&key, 0), name)?.map(|flow| (key, flow)));
        }
        Ok(taken)
    }

    fn try_once(&mut self, idle: Option<u64>) -> Result<Outcome, TrialError> {
        let frame = bytes::frame(self.packet, idle.is_none()).map_err(|error| TrialError::Run(error.to_string()))?;
        let mut context = [0; SKB_LEN];
        context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&self.packet.interface.to_ne_bytes());
        let mut out = [0; FRAME_LEN];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let before = self.drops()?;
        let verdict = classifier(self.ebpf)?.test_run(options).map_err(|error| TrialError::Run(chain(&error)))?;
        let after = self.drops()?;
        // What an object without this reason did would be its own contradiction.
        let counted = before.iter().zip(&after).position(|(before, after)| before != after);
        let reason = counted.and_then(|index| Reason::ALL.get(index).copied()).unwrap_or(Reason::Inconsistent);
        Ok(match verdict.return_value {
            NEXT => self.forward(idle)?,
            REDIRECT => Outcome::Refuse(reason),
            DROP => Outcome::Drop(reason),
            other => return Err(TrialError::Run(format!("the program returned {other}"))),
        })
    }

    /// What the flow table says of a packet that passed.
    fn forward(&mut self, idle: Option<u64>) -> Result<Outcome, KernelError> {
        let name = flows_name::<A>();
        let flows: HashMap<&mut MapData, FlowKey<A>, Flow<A>> = own(self.ebpf, name)?;
        let flow = found(flows.get(&self.key, 0), name)?.filter(|flow| flow.flags & FLOW_DIRECT == 0);
        let Some(mut entry) = flow.and_then(|flow| decode_flow(&self.key, &flow, clock())) else {
            return Ok(Outcome::Pass);
        };
        entry.idle_seconds = idle.unwrap_or(0);
        Ok(Outcome::Forward(Box::new(Forward { flow: entry, exists: idle.is_some() })))
    }

    /// Packets that the trial dropped, by reason.
    fn drops(&mut self) -> Result<Vec<u64>, KernelError> {
        let failed = |error| KernelError::map("DROPS", error);
        let drops: PerCpuArray<&mut MapData, Counters> = own(self.ebpf, "DROPS")?;
        let sum = |reason: &Reason| {
            let counters = drops.get(&(*reason as u32), 0).map_err(failed)?;
            Ok(counters.iter().map(|counters| counters.packets).sum())
        };
        Reason::ALL.iter().map(sum).collect()
    }
}

fn flows_name<A: Address>() -> &'static str {
    if A::VERSION == 4 { "FLOWS_V4" } else { "FLOWS_V6" }
}

/// A map of the trial's own.
fn own<'a, T: TryFrom<&'a mut Map, Error = MapError>>(ebpf: &'a mut Ebpf, name: &str) -> Result<T, KernelError> {
    let map = ebpf.map_mut(name).ok_or_else(|| KernelError::Object(format!("it has no map {name}")))?;
    T::try_from(map).map_err(|error| KernelError::map(name, error))
}

/// A value, if the key has one.
fn found<T>(value: Result<T, MapError>, map: &str) -> Result<Option<T>, KernelError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(KernelError::map(map, error)),
    }
}
