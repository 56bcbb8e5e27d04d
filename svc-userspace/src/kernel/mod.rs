//! The only module that touches BPF: load, pin, attach, adopt, apply, and read back.
//!
//! [`Dataplane`] is the agent's handle (read and write); [`view::Pins`] is what every other command reads. What is
//! attached stays attached when a `Dataplane` is dropped: forwarding outlives the agent, and [`cleanup`] ends it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use svc_common::{
    Cidr, Config, Interface,
    config::{
        CONFIG_BRIDGES, CONFIG_FILTER, CONFIG_MASQUERADE, CONFIG_PORTS_RESERVED, CONFIG_REMOVAL, CONFIG_SERVICE_CIDRS,
        CONFIG_SYNCED, INTERFACE_BRIDGE_PORT, INTERFACE_XDP,
    },
    vip::SERVICE_CIDRS,
};

use crate::tables::{Capacity, FilterWords, Observed, Op};

mod announced;
mod apply;
mod attach;
mod attachments;
mod cache;
mod cgroup;
pub mod check;
mod cleanup;
mod clsact;
mod compare;
mod decode;
mod error;
mod filter;
mod grow;
mod links;
mod load;
mod log;
mod maps;
mod masquerade;
mod memory;
pub mod object;
mod observe;
mod pins;
mod redirects;
mod repair;
mod sys;
pub mod trial;
pub mod view;
mod xdp;

pub use cache::FlowCache;
pub use cleanup::{CleanupReport, cleanup};
pub use error::{ApplyError, KernelError};
pub use log::ProgramLog;
pub use masquerade::Sources;
pub use redirects::Redirects;
pub use repair::Repaired;
pub use xdp::Xdp;

/// Bit of `skb->mark` that asks for masquerading; see [`crate::masquerade`].
pub const MASQUERADE_MARK: u32 = 0x1000;

/// What of CONFIG another agent goes on with.
const KEPT: u32 = CONFIG_SYNCED | CONFIG_BRIDGES | CONFIG_PORTS_RESERVED | CONFIG_REMOVAL;

/// What a dataplane is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of all pins, on a bpffs.
    pub bpffs: PathBuf,
    /// Directory on cgroup v2 for the socket hooks; `None`: no socket hooks.
    pub cgroup: Option<PathBuf>,
    /// Sizes of the maps that `tables` accounts for.
    pub capacity: Capacity,
    /// Entries of FLOWS_V4 and of FLOWS_V6.
    pub flows: u32,
    /// Most kernel memory that all maps together may grow to, bytes; 0: they keep their sizes.
    pub growth_limit: u64,
    /// `CONFIG_SOCKET_*` of `svc_common::config`; they mean nothing without `cgroup`.
    pub config_flags: u32,
    /// The programs masquerade flows that open from now on; otherwise nftables does.
    pub programs_masquerade: bool,
    /// Prefixes that Services are given cluster IPs of, at most [`SERVICE_CIDRS`] of each family: packets to addresses of
    /// them that no Service owns are dropped. Empty: unknown.
    pub service_cidrs: Vec<IpNet>,
    /// How classifiers are attached.
    pub attach: AttachMode,
    /// Whether uplinks get the XDP program.
    pub xdp: Xdp,
}

/// How classifiers are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// By TCX where the kernel has it (6.6), else by clsact.
    #[default]
    Auto,
    /// By clsact.
    Clsact,
}

/// What packets on an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tunnels and WireGuard.
    None,
}

/// An interface that carries Service traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// Interface index in the agent's network namespace.
    pub index: u32,
    /// Interface name, for messages.
    pub name: String,
    /// What its packets begin with.
    pub link: LinkLayer,
    /// Its hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its value in INTERFACES.
    pub entry: Interface,
}

/// The maps, programs and links of this node, owned by one agent at a time.
pub struct Dataplane {
    layout: pins::Layout,
    options: Options,
    programs: load::Programs,
    maps: maps::Maps,
    /// All maps, for pins that go missing.
    pinned: Vec<repair::Pinned>,
    /// What CONFIG holds.
    config: Config,
    service_cidrs: Vec<IpNet>,
    cgroup: Option<PathBuf>,
    /// As they were set.
    interfaces: BTreeMap<u32, InterfaceSpec>,
    tcx: bool,
    xdp: Xdp,
    /// Interfaces that have the XDP program.
    xdp_attached: BTreeSet<u32>,
    /// Interfaces that should have it, and what the kernel said.
    xdp_refused: BTreeMap<u32, Option<i32>>,
    cache: Option<FlowCache>,
    walk: Option<compare::Progress>,
    log: Option<ProgramLog>,
    lock: pins::Lock,
}

impl Dataplane {
    /// [`Dataplane::start_with_object`] with the object that is embedded in this binary.
    pub fn start(options: &Options) -> Result<(Self, Observed), KernelError> {
        Self::start_with_object(options, object::object())
    }

    /// Loads `object`, adopting what is pinned below `options.bpffs` and replacing its socket hooks in place; returns
    /// what the adopted maps say. It writes no Service; CONFIG is written, and links of interfaces that are gone are
    /// removed. Interfaces keep the programs they have until [`Dataplane::set_interface`].
    pub fn start_with_object(options: &Options, object: &[u8]) -> Result<(Self, Observed), KernelError> {
        pins::require_bpffs(&options.bpffs)?;
        check::require()?;
        if let Some(cgroup) = &options.cgroup {
            cgroup::require_cgroup2(cgroup)?;
        }
        let layout = pins::Layout::current(&options.bpffs);
        pins::refuse_newer(&options.bpffs)?;
        std::fs::create_dir_all(&options.bpffs).map_err(|error| KernelError::Pin {
            path: options.bpffs.clone(),
            action: "create it",
            error,
        })?;
        let lock = pins::Lock::take(&options.bpffs)?;
        layout.create()?;
        pins::remove_staged(&layout)?;

        let load::Loaded { programs, adopted, cache, log } = load::load(object, &layout, options)?;
        let mut maps = maps::Maps::open(&layout, adopted)?;
        let cookie = sys::netns_cookie().map_err(|error| KernelError::Missing {
            what: "SO_NETNS_COOKIE".to_owned(),
            consequence: format!("the host's sockets cannot be told from those of pods ({error})"),
            remedy: "use Linux 5.15 or newer".to_owned(),
        })?;
        let previous: Config = maps.config.get(&0, 0).map_err(|error| KernelError::map("CONFIG", error))?;
        let same_namespace = previous.host_netns_cookie == cookie;
        attach::remove_stale(&layout, same_namespace)?;
        if adopted && !same_namespace {
            forget_interfaces(&mut maps)?;
        }
        let config = Config {
            host_netns_cookie: cookie,
            masquerade_mark: MASQUERADE_MARK,
            flags: if options.cgroup.is_some() { options.config_flags } else { 0 }
                | if options.programs_masquerade { CONFIG_MASQUERADE } else { 0 }
                | if options.service_cidrs.is_empty() { 0 } else { CONFIG_SERVICE_CIDRS }
                // Not CONFIG_FILTER: another release may have been at work since it was set.
                | if adopted { previous.flags & KEPT } else { 0 },
        };
        maps.config.set(0, config, 0).map_err(|error| KernelError::map("CONFIG", error))?;

        set_service_cidrs(&mut maps, &options.service_cidrs)?;

        match &options.cgroup {
            Some(directory) => cgroup::attach(&layout, &programs, directory)?,
            None => cgroup::detach(&layout)?,
        }
        let observed = observe::observe(&layout, &maps)?;
        let tcx = options.attach == AttachMode::Auto
            && programs.get("svc_ingress").is_some_and(|program| attach::has_tcx(std::os::fd::AsFd::as_fd(program)));
        let dataplane = Self {
            options: options.clone(),
            interfaces: BTreeMap::new(),
            pinned: repair::maps(&layout)?,
            layout,
            programs,
            maps,
            config,
            service_cidrs: options.service_cidrs.clone(),
            cgroup: options.cgroup.clone(),
            tcx,
            xdp: options.xdp,
            xdp_attached: BTreeSet::new(),
            xdp_refused: BTreeMap::new(),
            cache,
            walk: None,
            log,
            lock,
        };
        Ok((dataplane, observed))
    }

    /// What the maps hold: those of an earlier agent keep their sizes, whatever the options say.
    pub fn capacity(&self) -> Result<Capacity, KernelError> {
        maps::capacity(&self.layout)
    }

    /// Most memory that maps may grow to, bytes.
    pub fn growth_limit(&self) -> u64 {
        self.options.growth_limit
    }

    /// Applies operations in their order until one fails.
    pub fn apply(&mut self, operations: &[Op]) -> Result<(), ApplyError> {
        let applied = apply::apply(&mut self.maps, operations);
        // Datagrams to an address that is no frontend any more are not to be forwarded a moment longer.
        if let Some(cache) = &self.cache
            && operations.iter().any(|operation| matches!(operation, Op::RemoveFrontend(_)))
            && let Err(error) = cache.changed()
        {
            tracing::warn!("cannot say that a frontend is gone: {:#}", anyhow::Error::from(error));
        }
        applied
    }

    /// The flow cache, if there is an XDP program that has one.
    pub fn flow_cache(&self) -> Option<FlowCache> {
        self.cache.clone()
    }

    /// Leaves in FILTER the bits of `used` and those that flows and sockets still need, which is what it returns.
    pub fn sweep_filter(&mut self, used: FilterWords) -> Result<FilterWords, KernelError> {
        filter::sweep(&self.layout, &mut self.maps, used)
    }

    /// Notes in CONFIG that every Service has been programmed once, which the next start that adopts these maps keeps.
    pub fn set_synced(&mut self) -> Result<(), KernelError> {
        self.set_flags(CONFIG_SYNCED)
    }

    /// Notes in CONFIG whether FILTER is whole.
    pub fn trust_filter(&mut self, trusted: bool) -> Result<(), KernelError> {
        if trusted { self.set_flags(CONFIG_FILTER) } else { self.clear_flags(CONFIG_FILTER) }
    }

    fn clear_flags(&mut self, flags: u32) -> Result<(), KernelError> {
        self.write_flags(self.config.flags & !flags)
    }

    fn set_flags(&mut self, flags: u32) -> Result<(), KernelError> {
        self.write_flags(self.config.flags | flags)
    }

    fn write_flags(&mut self, flags: u32) -> Result<(), KernelError> {
        let config = Config { flags, ..self.config };
        self.maps.config.set(0, config, 0).map_err(|error| KernelError::map("CONFIG", error))?;
        self.config = config;
        Ok(())
    }

    /// Attaches the classifiers to an interface, or replaces them atomically, and sets its scope. An error concerns this
    /// interface alone; nothing else has changed.
    pub fn set_interface(&mut self, interface: &InterfaceSpec) -> Result<(), KernelError> {
        if interface.entry.flags & INTERFACE_BRIDGE_PORT != 0 {
            self.set_flags(CONFIG_BRIDGES)?;
        }
        self.interfaces.insert(interface.index, interface.clone());
        self.maps
            .interfaces
            .insert(interface.index, interface.entry, 0)
            .map_err(|error| KernelError::map("INTERFACES", error))?;
        attach::attach(&self.layout, &self.programs, self.tcx, interface)?;
        // Frames leave by an uplink past the stack only once it has its programs.
        let index = interface.index;
        let refused_before = self.xdp_refused.remove(&index);
        self.xdp_attached.remove(&index);
        match xdp::attach(&self.layout, &self.programs, self.xdp, interface)? {
            xdp::Outcome::NotWanted => {}
            xdp::Outcome::Refused(error) => {
                // The reason is said once; that it persists is in the metric.
                if refused_before != Some(error.raw_os_error()) {
                    xdp::report(self.xdp, interface, &error);
                }
                self.xdp_refused.insert(index, error.raw_os_error());
            }
            xdp::Outcome::Attached => {
                self.xdp_attached.insert(index);
            }
        }
        if self.xdp_attached.contains(&index) {
            let mut entry = interface.entry;
            entry.flags |= INTERFACE_XDP;
            let set = self.maps.interfaces.insert(interface.index, entry, 0);
            set.map_err(|error| KernelError::map("INTERFACES", error))?;
        }
        Ok(())
    }

    /// Detaches from an interface, which may be gone already, and forgets it.
    pub fn remove_interface(&mut self, index: u32) -> Result<(), KernelError> {
        self.xdp_attached.remove(&index);
        self.xdp_refused.remove(&index);
        self.interfaces.remove(&index);
        xdp::detach(&self.layout, index)?;
        attach::detach(&self.layout, index)?;
        match self.maps.interfaces.remove(&index) {
            Err(error) if !is_absent(&error) => Err(KernelError::map("INTERFACES", error)),
            _ => Ok(()),
        }
    }

    /// Indexes of all interfaces that a program was ever attached to and not removed from: after an adoption, those that
    /// are not set again are to be removed by the caller.
    pub fn interfaces(&self) -> Result<Vec<u32>, KernelError> {
        let mut found = std::collections::BTreeSet::new();
        maps::each_entry(&self.layout, "INTERFACES", &mut |index: u32, _: Interface| {
            found.insert(index);
        })?;
        found.extend(
            self.layout.links()?.iter().filter_map(|(name, _)| {
                attach::parse_pin(name).map(|(index, _)| index).or_else(|| xdp::parse_pin(name))
            }),
        );
        Ok(found.into_iter().collect())
    }

    /// What the programs log, once, if they were built to.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// True if classifiers are attached by TCX, false if by clsact.
    pub fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// The directory of all pins.
    pub fn bpffs(&self) -> &Path {
        &self.layout.bpffs
    }
}

impl std::fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataplane").field("layout", &self.layout).field("tcx", &self.tcx).finish_non_exhaustive()
    }
}

/// Writes SERVICE_CIDRS where it says something else: what an earlier agent was told may no longer be so. True if it did.
fn set_service_cidrs(maps: &mut maps::Maps, prefixes: &[IpNet]) -> Result<bool, KernelError> {
    let mut v4 = prefixes.iter().filter_map(|prefix| if let IpNet::V4(it) = prefix { Some(it) } else { None });
    let mut v6 = prefixes.iter().filter_map(|prefix| if let IpNet::V6(it) = prefix { Some(it) } else { None });
    let mut changed = false;
    for index in 0..SERVICE_CIDRS {
        let unused = Cidr { network: [0; 4], mask: [0; 4] };
        let wanted = v4.next().map_or(unused, |prefix| decode::cidr_v4(*prefix));
        let failed = |error| KernelError::map("SERVICE_CIDRS_V4", error);
        if maps.service_cidrs_v4.get(&index, 0).map_err(failed)? != wanted {
            maps.service_cidrs_v4.set(index, wanted, 0).map_err(failed)?;
            changed = true;
        }
        let unused = Cidr { network: [0; 16], mask: [0; 16] };
        let wanted = v6.next().map_or(unused, decode::cidr_v6);
        let failed = |error| KernelError::map("SERVICE_CIDRS_V6", error);
        if maps.service_cidrs_v6.get(&index, 0).map_err(failed)? != wanted {
            maps.service_cidrs_v6.set(index, wanted, 0).map_err(failed)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Empties INTERFACES: indexes of another network namespace mean nothing here.
fn forget_interfaces(maps: &mut maps::Maps) -> Result<(), KernelError> {
    let indexes: Vec<u32> = maps.interfaces.keys().filter_map(Result::ok).collect();
    for index in indexes {
        match maps.interfaces.remove(&index) {
            Err(error) if !is_absent(&error) => return Err(KernelError::map("INTERFACES", error)),
            _ => {}
        }
    }
    Ok(())
}

/// True if an entry was to be removed and is not there.
fn is_absent(error: &aya::maps::MapError) -> bool {
    match error {
        aya::maps::MapError::KeyNotFound => true,
        aya::maps::MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
