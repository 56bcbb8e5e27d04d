//! The pinned maps as plain values, for the command line, metrics and tests: reads only, never writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::Path,
};

use aya::maps::{MapData, MapType, PerCpuArray};
use svc_common::{
    Address, Backend, BackendState, Config, Counters, Flow, FlowKey, FlowState, Frontend, Hook, Interface, Reason,
    ServiceName, SlotLine, SlotRange,
    flow::{FLOW_DIRECT, FLOW_MASQUERADE, FLOW_MASQUERADED, FLOW_OWN_PORT},
    hash::SLOTS_PER_LINE,
};

use super::{
    attachments, decode,
    error::KernelError,
    maps::{Table, each_entry},
    object, observe,
    pins::Layout,
    sys,
    trial::{self, Packet, Trial, TrialError},
};
use crate::{
    model::Protocol,
    tables::{BackendValue, FrontendAddress},
};

/// What the pinned maps say, read one map after the other (so counters and flows may be some milliseconds apart).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// SERVICES by service id.
    pub services: BTreeMap<u32, Box<ServiceName>>,
    /// FRONTENDS of both families.
    pub frontends: BTreeMap<FrontendAddress, Frontend>,
    /// BACKENDS of both families by id, without those that are gone.
    pub backends: BTreeMap<u32, BackendValue>,
    /// STATS_SERVICE by service id, summed over CPUs; ids of `services` only.
    pub service_counters: BTreeMap<u32, Counters>,
    /// STATS_BACKEND by backend id, summed over CPUs; ids of `backends` only.
    pub backend_counters: BTreeMap<u32, Counters>,
    /// DROPS.
    pub drops: Vec<(Reason, Counters)>,
    /// INTERFACES by interface index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// CONFIG.
    pub config: Config,
    /// Entries and capacity of every map, by map name; `entries` is `None` for arrays without a notion of it.
    pub maps: BTreeMap<String, MapFill>,
    /// Programs and where they are attached, from the pinned links.
    pub attachments: Vec<Attachment>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MapFill {
    /// Entries in use.
    pub entries: Option<u64>,
    /// Greatest number of entries.
    pub capacity: u64,
    /// Kernel memory in bytes, as the kernel accounts it (`memlock` of the map's fdinfo).
    pub bytes: u64,
}

/// One attached program.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Attachment {
    /// Program name (`svc_ingress`).
    pub program: String,
    /// `tcx`, `clsact`, `xdp` or `cgroup`.
    pub how: &'static str,
    /// Interface name (or its index, if it has none in this network namespace), or cgroup path.
    pub to: String,
}

/// One entry of FLOWS_V4/V6, decoded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FlowEntry {
    /// `ingress` entries rewrite destinations, `egress` entries sources.
    pub hook: &'static str,
    /// Protocol.
    pub protocol: Protocol,
    /// Source as the hook sees it, port in *host order*.
    pub source: SocketAddr,
    /// Destination as the hook sees it, port in *host order*.
    pub destination: SocketAddr,
    /// New destination (ingress) or new source (egress).
    pub rewrite: SocketAddr,
    /// New port of the other side, 0: unchanged.
    pub peer_port: u16,
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
    /// `open` or `closing`.
    pub state: &'static str,
    /// Masqueraded on its way out.
    pub masquerade: bool,
    /// A client and an endpoint talk directly; the entry keeps flows of Services off their tuple.
    pub direct: bool,
}

/// Why pins cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Nothing is pinned below the directory.
    #[error("no dataplane is pinned below {0}: start `svc agent`, or name its directory with --bpffs")]
    NotFound(String),
    /// A map cannot be opened or read.
    #[error("map {map} below {bpffs}: {message}")]
    Map {
        /// Directory of the pins.
        bpffs: String,
        /// Map name.
        map: String,
        /// What the kernel said, and what to do.
        message: String,
    },
}

/// A handle on the pinned maps of one agent, which need not run.
#[derive(Debug)]
pub struct Pins {
    layout: Layout,
}

impl Pins {
    /// Pins below `bpffs` (the agent's `--bpffs`).
    pub fn open(bpffs: &Path) -> Result<Self, ViewError> {
        let layout = Layout::current(bpffs);
        match fs::metadata(layout.map("CONFIG")) {
            Ok(_) => Ok(Self { layout }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(ViewError::Map {
                bpffs: bpffs.display().to_string(),
                map: "CONFIG".to_owned(),
                message: format!("{error}: run as root"),
            }),
            Err(_) => Err(ViewError::NotFound(bpffs.display().to_string())),
        }
    }

    /// Everything but flows.
    pub fn snapshot(&self) -> Result<Snapshot, ViewError> {
        self.read_snapshot().map_err(|error| self.failed(error))
    }

    fn read_snapshot(&self) -> Result<Snapshot, KernelError> {
        let layout = &self.layout;
        let mut snapshot = Snapshot::default();
        each_entry(layout, "SERVICES", &mut |id: u32, name: ServiceName| {
            snapshot.services.insert(id, Box::new(name));
        })?;
        snapshot.frontends = observe::frontends(layout)?.into_iter().collect();
        backends::<[u8; 4]>(layout, "BACKENDS_V4", &mut snapshot.backends)?;
        backends::<[u8; 16]>(layout, "BACKENDS_V6", &mut snapshot.backends)?;
        snapshot.service_counters = counters(layout, "STATS_SERVICE", snapshot.services.keys())?;
        snapshot.backend_counters = counters(layout, "STATS_BACKEND", snapshot.backends.keys())?;
        let indexes: Vec<u32> = Reason::ALL.iter().map(|reason| *reason as u32).collect();
        let mut drops = counters(layout, "DROPS", indexes.iter())?;
        snapshot.drops =
            Reason::ALL.iter().map(|reason| (*reason, drops.remove(&(*reason as u32)).unwrap_or_default())).collect();
        each_entry(layout, "INTERFACES", &mut |index: u32, interface: Interface| {
            snapshot.interfaces.insert(index, interface);
        })?;
        each_entry(layout, "CONFIG", &mut |_: u32, config: Config| snapshot.config = config)?;
        for name in super::load::MAPS {
            snapshot.maps.insert(name.to_owned(), fill(layout, name)?);
        }
        // What has been read need not be counted again.
        let ranges: BTreeSet<(u32, u32)> = snapshot
            .frontends
            .values()
            .flat_map(|frontend| [frontend.inside, frontend.outside])
            .map(|range| (range.offset, range.len))
            .collect();
        let lines = ranges.iter().map(|(_, len)| len.div_ceil(SLOTS_PER_LINE) as usize).sum();
        let counted = [
            ("SLOTS", lines),
            ("STATS_SERVICE", snapshot.services.len()),
            ("STATS_BACKEND", snapshot.backends.len()),
            ("SERVICES", snapshot.services.len()),
            ("INTERFACES", snapshot.interfaces.len()),
            ("FRONTENDS_V4", snapshot.frontends.keys().filter(|key| key.address.is_ipv4()).count()),
            ("FRONTENDS_V6", snapshot.frontends.keys().filter(|key| key.address.is_ipv6()).count()),
            ("BACKENDS_V4", snapshot.backends.values().filter(|backend| backend.address.is_ipv4()).count()),
            ("BACKENDS_V6", snapshot.backends.values().filter(|backend| backend.address.is_ipv6()).count()),
        ];
        for (name, entries) in counted {
            if let Some(fill) = snapshot.maps.get_mut(name) {
                fill.entries = Some(entries as u64);
            }
        }
        snapshot.attachments = attachments::read(layout, snapshot.interfaces.keys().copied())?;
        Ok(snapshot)
    }

    /// Calls `each` for every entry of FLOWS_V4 and FLOWS_V6. Flows that come and go meanwhile may be missed or seen.
    pub fn flows(&self, each: &mut dyn FnMut(FlowEntry)) -> Result<(), ViewError> {
        let now = clock();
        each_entry(&self.layout, "FLOWS_V4", &mut |key: FlowKey<[u8; 4]>, value: Flow<[u8; 4]>| {
            if let Some(flow) = decode_flow(&key, &value, now) {
                each(flow);
            }
        })
        .and_then(|()| {
            each_entry(&self.layout, "FLOWS_V6", &mut |key: FlowKey<[u8; 16]>, value: Flow<[u8; 16]>| {
                if let Some(flow) = decode_flow(&key, &value, now) {
                    each(flow);
                }
            })
        })
        .map_err(|error| self.failed(error))
    }

    /// Backend ids in a range of SLOTS.
    pub fn slots(&self, range: SlotRange) -> Result<Vec<u32>, ViewError> {
        let read = || {
            let slots = Table::<SlotLine>::open(&self.layout, "SLOTS")?;
            if !slots.contains(range.offset, range.len as usize) {
                return Err(KernelError::map("SLOTS", io::Error::other("a frontend names slots that do not exist")));
            }
            slots.read_slots(range.offset, range.len).map_err(|error| KernelError::map("SLOTS", error))
        };
        read().map_err(|error| self.failed(error))
    }

    /// Tries a packet in a copy of the ingress program that leaves no trace.
    pub fn try_packet(&self, packet: &Packet) -> Result<Trial, TrialError> {
        trial::run(object::object(), &self.layout, packet)
    }

    fn failed(&self, error: KernelError) -> ViewError {
        let bpffs = self.layout.bpffs.display().to_string();
        match error {
            KernelError::Map { map, message } => ViewError::Map { bpffs, map, message },
            error => ViewError::Map { bpffs, map: "links".to_owned(), message: error.to_string() },
        }
    }
}

fn backends<A: Address>(layout: &Layout, name: &str, found: &mut BTreeMap<u32, BackendValue>) -> Result<(), KernelError>
where
    Backend<A>: bytemuck::Pod,
    IpAddr: From<A>,
{
    each_entry(layout, name, &mut |id: u32, value: Backend<A>| {
        if let Some(backend) = decode::backend(&value)
            && backend.state != BackendState::Gone
        {
            found.insert(id, backend);
        }
    })
}

fn counters<'a>(
    layout: &Layout,
    name: &str,
    indexes: impl Iterator<Item = &'a u32>,
) -> Result<BTreeMap<u32, Counters>, KernelError> {
    let map: PerCpuArray<MapData, Counters> = super::maps::open(layout, name)?;
    let mut sums = BTreeMap::new();
    for &index in indexes.filter(|index| **index < map.len()) {
        let values = map.get(&index, 0).map_err(|error| KernelError::map(name, error))?;
        let mut sum = Counters::default();
        for value in values.iter() {
            sum.packets += value.packets;
            sum.bytes += value.bytes;
            sum.connections += value.connections;
        }
        sums.insert(index, sum);
    }
    Ok(sums)
}

/// How full a map is. The kernel keeps no number: maps that nothing else reads are counted here, large ones by a sample.
fn fill(layout: &Layout, name: &str) -> Result<MapFill, KernelError> {
    let data = MapData::from_pin(layout.map(name)).map_err(|error| KernelError::map(name, error))?;
    let info = data.info().map_err(|error| KernelError::map(name, error))?;
    let failed = |error: io::Error| KernelError::map(name, error);
    let (map, key, value) = (data.fd().as_fd(), info.key_size() as usize, info.value_size() as usize);
    let entries = match info.map_type() {
        Ok(MapType::LruHash) => Some(sys::count_entries(map, key, value, info.max_entries()).map_err(failed)?),
        Ok(kind) if kind == MapType::LpmTrie || name.starts_with("VIPS") => {
            let mut count = 0;
            sys::each_entry(map, key, value, &mut |_, _| count += 1).map_err(failed)?;
            Some(count)
        }
        _ => None,
    };
    let bytes = sys::memlock(data.fd()).map_err(failed)?;
    Ok(MapFill { entries, capacity: u64::from(info.max_entries()), bytes })
}

/// Nanoseconds in a unit of `last_seen`, as a shift.
const CLOCK_SHIFT: u32 = 30;

/// The monotonic clock in units of `last_seen`; the kernel's programs read the same clock.
pub(super) fn clock() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs());
    (now >> CLOCK_SHIFT) as u32
}

/// An entry of FLOWS at a time of [`clock`]; `None` if its protocol is none that Services carry.
pub(super) fn decode_flow<A: Address>(key: &FlowKey<A>, value: &Flow<A>, now: u32) -> Option<FlowEntry>
where
    IpAddr: From<A>,
{
    // An entry written after the clock was read is not negative seconds old.
    let idle = u64::from(now.saturating_sub(value.last_seen));
    Some(FlowEntry {
        hook: if key.hook == Hook::Egress as u8 { "egress" } else { "ingress" },
        protocol: Protocol::from_number(key.protocol)?,
        source: SocketAddr::new(key.source.into(), key.source_port),
        destination: SocketAddr::new(key.destination.into(), key.destination_port),
        rewrite: SocketAddr::new(value.address.into(), value.port),
        peer_port: value.peer_port,
        service: value.service,
        backend: value.backend,
        idle_seconds: (idle << CLOCK_SHIFT) / 1_000_000_000,
        state: if value.state == FlowState::Closing as u8 { "closing" } else { "open" },
        masquerade: value.flags & (FLOW_MASQUERADE | FLOW_OWN_PORT | FLOW_MASQUERADED) != 0,
        direct: value.flags & FLOW_DIRECT != 0,
    })
}
