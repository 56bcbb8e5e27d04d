//! Larger maps at run time: new ones are made beside those in use and filled, the programs are loaded with them, and then take
//! the place of the old ones at every hook.
//!
//! A program sees the old maps or the new ones, never a mixture, and both say the same: nothing is written to them in the
//! meantime. Flows, affinity and all else that keeps its size is shared by both. So no packet is lost, and an end at any
//! moment leaves pins that the next start adopts. Maps within maps would need no other programs, but one lookup more for
//! each look at a frontend, a slot and a backend.
//!
//! It never decides how large maps are to be, only whether there is memory for it.

use std::{collections::BTreeMap, fs, io, os::fd::AsFd};

use aya::maps::{MapData, MapInfo, MapType};

use super::{
    Dataplane, FlowCache, Options, attach, cgroup,
    error::KernelError,
    load, maps,
    memory::Memory,
    pins::{self, Layout},
    repair, sys, xdp,
};
use crate::tables::Capacity;

impl Dataplane {
    /// Gives maps room for `wanted`, where that is more than they have, and returns what they have room for then. If it fails,
    /// everything is as it was.
    pub fn grow(&mut self, wanted: &Capacity, object: &[u8]) -> Result<Capacity, KernelError> {
        let options = Options { capacity: *wanted, ..self.options.clone() };
        let sizes = load::sizes(&options);
        let staged = self.layout.staged();
        pins::remove_staged(&self.layout)?;
        let growing = growing(&self.layout, &sizes, options.growth_limit)?;
        staged.create()?;
        let grown = self.grow_staged(&staged, &growing, &options, object);
        if grown.is_err() {
            self.roll_back();
        }
        // What is in use by now is pinned where it belongs, and the rest by other names.
        pins::remove_staged(&self.layout)?;
        grown?;
        self.options = options;
        self.capacity()
    }

    fn grow_staged(
        &mut self,
        staged: &Layout,
        growing: &[&'static str],
        options: &Options,
        object: &[u8],
    ) -> Result<(), KernelError> {
        for name in load::MAPS.into_iter().filter(|name| !growing.contains(name)) {
            let path = self.layout.map(name);
            let pinned = sys::object_get(&path).and_then(|map| sys::object_pin(map.as_fd(), &staged.map(name)));
            pinned.map_err(|error| KernelError::Pin { path, action: "pin it a second time", error })?;
        }
        let loaded = load::load(object, staged, options)?;
        for name in growing {
            copy(&self.layout, staged, name)?;
        }
        let mut opened = maps::Maps::open(staged, true)?;
        opened.counters_are_new = self.maps.counters_are_new;
        let was_on = self.cache.as_ref().map(FlowCache::suspend).transpose()?;
        let replaced = self.replace(&loaded.programs);
        if let (Some(cache), Some(was_on)) = (&self.cache, was_on) {
            // That of the new programs begins empty. Of a neighbour that changes, the old ones learn from the agent alone.
            match (&replaced, loaded.cache) {
                (Ok(()), Some(new)) => cache.move_to(new),
                (Ok(()), None) => {}
                (Err(_), _) => self.roll_back(),
            }
            cache.resume(was_on)?;
        }
        replaced?;
        for name in growing {
            let (from, path) = (staged.map(name), self.layout.map(name));
            fs::rename(&from, &path).map_err(|error| KernelError::Pin {
                path,
                action: "put the larger map there",
                error,
            })?;
        }
        self.maps = opened;
        self.programs = loaded.programs;
        self.pinned = repair::maps(&self.layout)?;
        self.walk = None;
        Ok(())
    }

    /// Puts programs in place of those that are attached.
    fn replace(&self, programs: &load::Programs) -> Result<(), KernelError> {
        for interface in self.interfaces.values() {
            let attached = attach::attach(&self.layout, programs, self.tcx, interface)
                .and_then(|()| xdp::attach(&self.layout, programs, self.xdp, interface));
            match attached {
                Err(KernelError::Interface { ref error, .. }) if error.raw_os_error() == Some(libc::ENODEV) => {}
                attached => drop(attached?),
            }
        }
        match &self.options.cgroup {
            Some(directory) => cgroup::attach(&self.layout, programs, directory),
            None => Ok(()),
        }
    }

    /// Puts the programs of before back where others are.
    fn roll_back(&self) {
        let pinned = self.programs.iter().try_for_each(|(name, fd)| load::pin_program(&self.layout, name, fd));
        if let Err(error) = self.replace(&self.programs).and(pinned) {
            let error = anyhow::Error::from(error);
            tracing::error!("programs with larger maps cannot be taken back, restart the agent: {error:#}");
        }
    }
}

const MIB: u64 = 1 << 20;

/// Maps that have fewer entries than they should; refused if all maps together would take more than `limit` bytes.
fn growing(layout: &Layout, sizes: &BTreeMap<&'static str, u32>, limit: u64) -> Result<Vec<&'static str>, KernelError> {
    let (mut growing, mut bytes) = (Vec::new(), 0);
    for name in load::MAPS {
        let failed =
            |error: &dyn std::error::Error| KernelError::Map { map: name.to_owned(), message: error.to_string() };
        let map = sys::object_get(&layout.map(name)).map_err(|error| failed(&error))?;
        let now = sys::memlock(&map).map_err(|error| failed(&error))?;
        let entries = MapInfo::from_pin(layout.map(name)).map_err(|error| failed(&error))?.max_entries();
        match sizes.get(name).filter(|wanted| **wanted > entries) {
            Some(&wanted) => {
                growing.push(name);
                bytes += now * u64::from(wanted) / u64::from(entries.max(1));
            }
            None => bytes += now,
        }
    }
    if bytes > limit {
        return Err(KernelError::Growth { needed: bytes.div_ceil(MIB), limit: limit / MIB });
    }
    Ok(growing)
}

/// Copies all entries of a map into a larger one of the same kind.
fn copy(from: &Layout, to: &Layout, name: &'static str) -> Result<(), KernelError> {
    let failed =
        |error: io::Error| KernelError::Map { map: name.to_owned(), message: format!("cannot be copied: {error}") };
    let open = |layout: &Layout| MapData::from_pin(layout.map(name)).map_err(|error| KernelError::map(name, error));
    let (old, new) = (open(from)?, open(to)?);
    let info = old.info().map_err(|error| KernelError::map(name, error))?;
    let (key_size, mut value_size) = (info.key_size() as usize, info.value_size() as usize);
    match info.map_type() {
        Ok(MapType::Array) => {
            let len = |entries: u32| entries as usize * value_size.next_multiple_of(8);
            let larger = new.info().map_err(|error| KernelError::map(name, error))?.max_entries();
            let source = Memory::map(old.fd().as_fd(), len(info.max_entries()));
            let target = Memory::map(new.fd().as_fd(), len(larger));
            if let (Ok(source), Ok(target)) = (source, target) {
                return copy_words(&source, &target, len(info.max_entries()) / 4).map_err(failed);
            }
        }
        Ok(MapType::PerCpuArray) => {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(error))?;
            value_size = value_size.next_multiple_of(8) * cpus;
        }
        _ => {}
    }
    let mut result = Ok(());
    sys::each_entry(old.fd().as_fd(), key_size, value_size, &mut |key, value| {
        // A new map is all zeros, where it is not empty.
        if result.is_ok() && value.iter().any(|byte| *byte != 0) {
            result = sys::update(new.fd().as_fd(), key, value);
        }
    })
    .and(result)
    .map_err(failed)
}

/// Copies the first words of a map.
fn copy_words(source: &Memory, target: &Memory, count: usize) -> io::Result<()> {
    use std::sync::atomic::Ordering;
    const AT_ONCE: usize = 4096;
    for first in (0..count).step_by(AT_ONCE) {
        let count = AT_ONCE.min(count - first);
        let words: Vec<u32> =
            source.with(first, count, |words| words.iter().map(|word| word.load(Ordering::Relaxed)).collect())?;
        if words.iter().any(|word| *word != 0) {
            target.with(first, count, |targets| {
                targets.iter().zip(words).for_each(|(target, word)| target.store(word, Ordering::Relaxed));
            })?;
        }
    }
    Ok(())
}
