//! Loads the BPF object: maps adopted from or pinned below the layout's directory, programs verified and pinned.
//!
//! It attaches nothing, and writes to no map.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, OwnedFd},
};

use aya::{EbpfLoader, programs::Program};

use super::{
    Options,
    cache::{self, FlowCache},
    error::{KernelError, chain},
    log::ProgramLog,
    pins::{Layout, MapShape, adopt_or_remove},
    sys,
    xdp::{self, Xdp},
};

/// Classifiers of the object.
pub(super) const CLASSIFIERS: [&str; 4] = ["svc_ingress", "svc_egress", "svc_ingress_l3", "svc_egress_l3"];

/// Every map of the object, in the order in which it is reported.
pub(super) const MAPS: [&str; 35] = [
    "SERVICES",
    "FRONTENDS_V4",
    "FRONTENDS_V6",
    "SLOTS",
    "BACKENDS_V4",
    "BACKENDS_V6",
    "FLOWS_V4",
    "FLOWS_V6",
    "AFFINITY_V4",
    "AFFINITY_V6",
    "VIPS_V4",
    "VIPS_V6",
    "SERVICE_CIDRS_V4",
    "SERVICE_CIDRS_V6",
    "SOURCE_RANGES_V4",
    "SOURCE_RANGES_V6",
    "MASQUERADE_V4",
    "MASQUERADE_V6",
    "RESERVED",
    "FILTER",
    "UNUSUAL",
    "FRAGMENTS_V4",
    "FRAGMENTS_V6",
    "HELD_V4",
    "HELD_V6",
    "SOCKETS_V4",
    "SOCKETS_V6",
    "PEERS_V4",
    "PEERS_V6",
    "STATS_SERVICE",
    "STATS_BACKEND",
    "DROPS",
    "CONFIG",
    "INTERFACES",
    "ANNOUNCED",
];

/// The loaded programs by name.
pub(super) type Programs = BTreeMap<&'static str, OwnedFd>;

/// What was loaded.
pub(super) struct Loaded {
    pub(super) programs: Programs,
    /// Maps were there and were adopted.
    pub(super) adopted: bool,
    /// `None`: there is no XDP program.
    pub(super) cache: Option<FlowCache>,
    pub(super) log: Option<ProgramLog>,
}

/// Loads the object and pins its maps and programs.
pub(super) fn load(object: &[u8], layout: &Layout, options: &Options) -> Result<Loaded, KernelError> {
    if object.is_empty() {
        return Err(KernelError::Object("none is embedded in this binary".to_owned()));
    }
    let parsed = aya_obj::Object::parse(object).map_err(|error| KernelError::Object(chain(&error)))?;
    let sizes = sizes(options);
    let mut adopted = false;
    for name in MAPS {
        let map = parsed.maps.get(name).ok_or_else(|| KernelError::Object(format!("it has no map {name}")))?;
        let shape = MapShape {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            flags: map.map_flags(),
            max_entries: sizes.get(name).copied().unwrap_or(map.max_entries()),
            is_fixed: !sizes.contains_key(name),
        };
        adopted |= adopt_or_remove(&layout.map(name), &shape)?;
    }

    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, layout.map(name));
        if let Some(size) = sizes.get(name) {
            loader.map_max_entries(name, *size);
        }
    }
    if options.xdp != Xdp::Off {
        for (name, size) in cache::sizes() {
            loader.map_max_entries(name, size);
        }
    }
    let mut ebpf = loader.load(object).map_err(|error| KernelError::Load { message: chain(&error) })?;

    let mut programs = Programs::new();
    for name in CLASSIFIERS.into_iter().chain(super::cgroup::HOOKS.iter().map(|hook| hook.program)) {
        let program = ebpf.program_mut(name).ok_or_else(|| KernelError::Object(format!("it has no program {name}")))?;
        let refused =
            |error: &dyn std::error::Error| KernelError::Load { message: format!("program {name}: {}", chain(error)) };
        match program {
            Program::SchedClassifier(program) => program.load().map_err(|error| refused(&error))?,
            Program::CgroupSockAddr(program) => program.load().map_err(|error| refused(&error))?,
            _ => return Err(KernelError::Object(format!("program {name} is of the wrong type"))),
        }
        let fd = program.fd().map_err(|error| refused(&error))?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(|error| refused(&error))?;
        programs.insert(name, fd);
    }
    // Only once the kernel has taken all of them: what is attached and what is pinned go on being the same.
    for (name, program) in &programs {
        pin_program(layout, name, program)?;
    }
    let wanted = Some(options.xdp).filter(|mode| *mode != Xdp::Off).map(Xdp::program);
    for name in xdp::PROGRAMS {
        if wanted != Some(name) {
            super::attach::remove_pin(&layout.program(name))?;
            continue;
        }
        match load_xdp(&mut ebpf, name) {
            Ok(fd) => {
                pin_program(layout, name, &fd)?;
                programs.insert(name, fd);
            }
            Err(message) => tracing::warn!("the XDP program is not loaded, packets go through tc: {message}"),
        }
    }
    let has_xdp = xdp::PROGRAMS.iter().any(|name| programs.contains_key(name));
    let cache = if has_xdp {
        if let Err(message) = cache::count_neighbours(&mut ebpf, layout) {
            tracing::warn!(
                "the kernel does not count updates of neighbours: while no agent runs, XDP notices one within a second: {message}"
            );
        }
        Some(FlowCache::of(&mut ebpf)?)
    } else {
        cache::forget_neighbours(layout)?;
        None
    };
    Ok(Loaded { programs, adopted, cache, log: ProgramLog::of(&mut ebpf) })
}

/// Loads the XDP program, which nothing depends on. Linux before 5.18 takes none for frames in several buffers.
fn load_xdp(ebpf: &mut aya::Ebpf, name: &str) -> Result<OwnedFd, String> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => {
            program.load().map_err(|error| chain(&error))?;
            let fd = program.fd().map_err(|error| chain(&error))?;
            fd.as_fd().try_clone_to_owned().map_err(|error| error.to_string())
        }
        _ => Err("the object has none".to_owned()),
    }
}

/// Pins a program in place of its predecessor: somebody who looks always finds one.
pub(super) fn pin_program(layout: &Layout, name: &'static str, program: &OwnedFd) -> Result<(), KernelError> {
    let path = layout.program(name);
    let new = layout.program(&format!("{name}_new"));
    let failed = |error| KernelError::Pin { path: path.clone(), action: "pin the program", error };
    if new.exists() {
        fs::remove_file(&new).map_err(failed)?;
    }
    sys::object_pin(program.as_fd(), &new).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)
}

/// Sizes of the maps that are configured; the others' are in the object.
pub(super) fn sizes(options: &Options) -> BTreeMap<&'static str, u32> {
    let capacity = &options.capacity;
    BTreeMap::from([
        ("SERVICES", capacity.services),
        ("STATS_SERVICE", capacity.services),
        ("FRONTENDS_V4", capacity.frontends_v4),
        ("FRONTENDS_V6", capacity.frontends_v6),
        ("SLOTS", capacity.slots.div_ceil(svc_common::hash::SLOTS_PER_LINE)),
        ("BACKENDS_V4", capacity.backends),
        ("BACKENDS_V6", capacity.backends),
        ("STATS_BACKEND", capacity.backends),
        ("VIPS_V4", capacity.frontends_v4),
        ("VIPS_V6", capacity.frontends_v6),
        ("SOURCE_RANGES_V4", capacity.source_ranges),
        ("SOURCE_RANGES_V6", capacity.source_ranges),
        ("FLOWS_V4", options.flows),
        ("FLOWS_V6", options.flows),
    ])
}
