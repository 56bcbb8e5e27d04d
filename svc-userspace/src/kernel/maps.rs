//! Typed handles on the pinned maps, and arrays as shared memory.
//!
//! Handles are opened from the pins, never taken from the loaded object: an adopted map may be larger or smaller than
//! the object says.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicU32, Ordering, fence},
};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray};
use svc_common::{
    Address, Announced, AnnouncedKey, Backend, Cidr, Config, Counters, Frontend, FrontendKey, Interface, ServiceName,
    SlotLine, SourcePrefix,
};

use super::{error::KernelError, memory::Memory, pins::Layout, sys};
use crate::tables::Capacity;

/// The maps that the agent writes.
pub(super) struct Maps {
    pub(super) services: HashMap<MapData, u32, ServiceName>,
    pub(super) frontends_v4: HashMap<MapData, FrontendKey<[u8; 4]>, Frontend>,
    pub(super) frontends_v6: HashMap<MapData, FrontendKey<[u8; 16]>, Frontend>,
    pub(super) backends_v4: Table<Backend<[u8; 4]>>,
    pub(super) backends_v6: Table<Backend<[u8; 16]>>,
    pub(super) slots: Table<SlotLine>,
    pub(super) stats_service: PerCpuArray<MapData, Counters>,
    pub(super) stats_backend: PerCpuArray<MapData, Counters>,
    pub(super) interfaces: HashMap<MapData, u32, Interface>,
    pub(super) announced: HashMap<MapData, AnnouncedKey, Announced>,
    pub(super) config: Array<MapData, Config>,
    pub(super) vips_v4: HashMap<MapData, [u8; 4], u32>,
    pub(super) vips_v6: HashMap<MapData, [u8; 16], u32>,
    pub(super) service_cidrs_v4: Array<MapData, Cidr<[u8; 4]>>,
    pub(super) service_cidrs_v6: Array<MapData, Cidr<[u8; 16]>>,
    pub(super) source_ranges_v4: LpmTrie<MapData, SourcePrefix<[u8; 4]>, u32>,
    pub(super) source_ranges_v6: LpmTrie<MapData, SourcePrefix<[u8; 16]>, u32>,
    pub(super) masquerade_v4: HashMap<MapData, u32, [u8; 4]>,
    pub(super) masquerade_v6: HashMap<MapData, u32, [u8; 16]>,
    pub(super) filter: Table<u64>,
    pub(super) unusual: Array<MapData, u64>,
    /// The unit of the clock that CONFIG names as that of the last removal of a frontend, as far as this agent wrote it.
    pub(super) removal: Option<u32>,
    /// No earlier agent has had these maps: ids that were never given have never counted anything.
    pub(super) counters_are_new: bool,
}

impl Maps {
    /// Opens all of them; `adopted`: an earlier agent has had some of them.
    pub(super) fn open(layout: &Layout, adopted: bool) -> Result<Self, KernelError> {
        Ok(Self {
            removal: None,
            counters_are_new: !adopted,
            services: open(layout, "SERVICES")?,
            frontends_v4: open(layout, "FRONTENDS_V4")?,
            frontends_v6: open(layout, "FRONTENDS_V6")?,
            backends_v4: Table::open(layout, "BACKENDS_V4")?,
            backends_v6: Table::open(layout, "BACKENDS_V6")?,
            slots: Table::open(layout, "SLOTS")?,
            stats_service: open(layout, "STATS_SERVICE")?,
            stats_backend: open(layout, "STATS_BACKEND")?,
            interfaces: open(layout, "INTERFACES")?,
            announced: open(layout, "ANNOUNCED")?,
            config: open(layout, "CONFIG")?,
            vips_v4: open(layout, "VIPS_V4")?,
            vips_v6: open(layout, "VIPS_V6")?,
            service_cidrs_v4: open(layout, "SERVICE_CIDRS_V4")?,
            service_cidrs_v6: open(layout, "SERVICE_CIDRS_V6")?,
            source_ranges_v4: open(layout, "SOURCE_RANGES_V4")?,
            source_ranges_v6: open(layout, "SOURCE_RANGES_V6")?,
            masquerade_v4: open(layout, "MASQUERADE_V4")?,
            masquerade_v6: open(layout, "MASQUERADE_V6")?,
            filter: Table::open(layout, "FILTER")?,
            unusual: open(layout, "UNUSUAL")?,
        })
    }
}

/// What the pinned maps hold, whatever was configured: an adopted map keeps its size.
pub(super) fn capacity(layout: &Layout) -> Result<Capacity, KernelError> {
    let least = |names: &[&str]| -> Result<u32, KernelError> {
        let mut least = u32::MAX;
        for name in names {
            let info = MapInfo::from_pin(layout.map(name)).map_err(|error| KernelError::map(name, error))?;
            least = least.min(info.max_entries());
        }
        Ok(least)
    };
    Ok(Capacity {
        services: least(&["SERVICES", "STATS_SERVICE"])?,
        backends: least(&["BACKENDS_V4", "BACKENDS_V6", "STATS_BACKEND"])?,
        frontends_v4: least(&["FRONTENDS_V4", "VIPS_V4"])?,
        frontends_v6: least(&["FRONTENDS_V6", "VIPS_V6"])?,
        slots: least(&["SLOTS"])?.saturating_mul(svc_common::hash::SLOTS_PER_LINE),
        source_ranges: least(&["SOURCE_RANGES_V4", "SOURCE_RANGES_V6"])?,
    })
}

/// Opens a pinned map and checks its type and sizes.
pub(super) fn open<T>(layout: &Layout, name: &str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(layout.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|error| KernelError::map(name, error))
}

/// An array map, written through shared memory where the kernel allows it and element by element where it does not.
pub(super) struct Table<T: aya::Pod> {
    array: Array<MapData, T>,
    memory: Option<Memory>,
    element: PhantomData<T>,
}

impl<T: aya::Pod + bytemuck::Pod> Table<T> {
    /// 32-bit words from one element to the next: the kernel rounds elements up to 8 bytes (`array_map_alloc`,
    /// kernel/bpf/arraymap.c).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8) / 4;

    /// Opens a pinned array.
    pub(super) fn open(layout: &Layout, name: &str) -> Result<Self, KernelError> {
        Self::new(name, MapData::from_pin(layout.map(name)).map_err(|error| KernelError::map(name, error))?)
    }

    fn new(name: &str, data: MapData) -> Result<Self, KernelError> {
        let entries = data.info().map_err(|error| KernelError::map(name, error))?.max_entries() as usize;
        let memory = match Memory::map(std::os::fd::AsFd::as_fd(data.fd()), entries * Self::STRIDE * 4) {
            Ok(memory) => Some(memory),
            Err(error) => {
                tracing::warn!(map = name, %error, "the map cannot be shared with the kernel; it is written by system calls");
                None
            }
        };
        let map = Map::from_map_data(data).map_err(|error| KernelError::map(name, error))?;
        let array = Array::try_from(map).map_err(|error| KernelError::map(name, error))?;
        Ok(Self { array, memory, element: PhantomData })
    }

    /// Forgets the shared memory, as if the kernel had refused it.
    #[cfg(test)]
    pub(super) fn without_memory(self) -> Self {
        Self { memory: None, ..self }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.array.len()
    }

    /// Does something with the words of an element, if the map is shared.
    fn with<R>(&self, index: u32, work: impl FnOnce(&[AtomicU32]) -> R) -> Option<Result<R, MapError>> {
        let memory = self.memory.as_ref()?;
        if index >= self.len() {
            return Some(Err(MapError::OutOfBounds { index, max_entries: self.len() }));
        }
        Some(memory.with(index as usize * Self::STRIDE, size_of::<T>() / 4, work).map_err(MapError::IoError))
    }

    /// An element. Another process that writes it meanwhile may be seen half-way.
    pub(super) fn get(&self, index: u32) -> Result<T, MapError> {
        let read = |words: &[AtomicU32]| {
            let mut value = T::zeroed();
            let bytes = bytemuck::bytes_of_mut(&mut value);
            for (target, word) in bytes.chunks_exact_mut(4).zip(words) {
                target.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
            }
            value
        };
        self.with(index, read).unwrap_or_else(|| self.array.get(&index, 0))
    }
}

impl<A: Address> Table<Backend<A>>
where
    Backend<A>: aya::Pod + bytemuck::Pod,
{
    /// The word that holds port, state and flags.
    const STATE_WORD: usize = size_of::<A>() / 4;

    /// Writes a backend so that a program never combines one endpoint's address with another's state or generation: the
    /// entry is gone while its other words change.
    pub(super) fn write(&mut self, id: u32, backend: Backend<A>) -> Result<(), MapError> {
        if id >= self.len() {
            return Err(MapError::OutOfBounds { index: id, max_entries: self.len() });
        }
        let write = |words: &[AtomicU32]| {
            let new = as_words(&backend);
            let changed =
                |(at, word): (usize, &AtomicU32)| at != Self::STATE_WORD && word.load(Ordering::Relaxed) != new[at];
            if words.iter().enumerate().any(changed) {
                let gone = as_words(&Backend { state: svc_common::BackendState::Gone as u8, ..backend });
                words[Self::STATE_WORD].store(gone[Self::STATE_WORD], Ordering::Relaxed);
                fence(Ordering::SeqCst);
                for (at, word) in words.iter().enumerate().filter(|(at, _)| *at != Self::STATE_WORD) {
                    word.store(new[at], Ordering::Relaxed);
                }
            }
            words[Self::STATE_WORD].store(new[Self::STATE_WORD], Ordering::Release);
            fence(Ordering::SeqCst);
        };
        match self.with(id, write) {
            Some(result) => result,
            None => self.array.set(id, backend, 0),
        }
    }
}

fn as_words<T: bytemuck::Pod>(value: &T) -> Vec<u32> {
    let words = bytemuck::bytes_of(value).as_chunks::<4>().0;
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

impl Table<u64> {
    /// Sets bits of a word of a filter, besides those that are set.
    pub(super) fn set_bits(&mut self, word: u32, bits: u64) -> Result<(), MapError> {
        let set = |words: &[AtomicU32]| {
            for (word, half) in words.iter().zip(as_words(&bits)) {
                word.fetch_or(half, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
        };
        match self.with(word, set) {
            Some(result) => result,
            None => self.array.set(word, self.array.get(&word, 0)? | bits, 0),
        }
    }

    /// Writes a word of a filter of bits.
    pub(super) fn write_bits(&mut self, word: u32, bits: u64) -> Result<(), MapError> {
        let write = |words: &[AtomicU32]| {
            for (word, half) in words.iter().zip(as_words(&bits)) {
                word.store(half, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
        };
        match self.with(word, write) {
            Some(result) => result,
            None => self.array.set(word, bits, 0),
        }
    }
}

impl Table<SlotLine> {
    /// Number of slots.
    pub(super) fn slots(&self) -> u64 {
        u64::from(self.len()) * u64::from(svc_common::hash::SLOTS_PER_LINE)
    }

    /// True if these slots exist.
    pub(super) fn contains(&self, offset: u32, len: usize) -> bool {
        u64::from(offset) + len as u64 <= self.slots()
    }

    /// Writes backend ids from a slot on.
    pub(super) fn write_slots(&mut self, offset: u32, backends: &[u32]) -> Result<(), MapError> {
        if !self.contains(offset, backends.len()) {
            return Err(MapError::OutOfBounds { index: offset, max_entries: self.slots() as u32 });
        }
        if let Some(memory) = &self.memory {
            // A line is 16 slots without a gap, so a slot's number is its word's.
            let write = |words: &[AtomicU32]| {
                for (word, backend) in words.iter().zip(backends) {
                    word.store(*backend, Ordering::Relaxed);
                }
                fence(Ordering::SeqCst);
            };
            return memory.with(offset as usize, backends.len(), write).map_err(MapError::IoError);
        }
        let mut slot = offset as usize;
        let mut rest = backends;
        while !rest.is_empty() {
            let (line, at) = (slot / LINE, slot % LINE);
            let (now, later) = rest.split_at(rest.len().min(LINE - at));
            let mut value = self.array.get(&(line as u32), 0)?;
            value.backends[at..at + now.len()].copy_from_slice(now);
            self.array.set(line as u32, value, 0)?;
            (slot, rest) = (slot + now.len(), later);
        }
        Ok(())
    }

    /// Reads backend ids from a slot on.
    pub(super) fn read_slots(&self, offset: u32, len: u32) -> Result<Vec<u32>, MapError> {
        if let Some(memory) = &self.memory
            && self.contains(offset, len as usize)
        {
            let read = |words: &[AtomicU32]| words.iter().map(|word| word.load(Ordering::Acquire)).collect();
            return memory.with(offset as usize, len as usize, read).map_err(MapError::IoError);
        }
        let mut backends = Vec::with_capacity(len as usize);
        let mut line = None;
        for slot in offset as usize..offset as usize + len as usize {
            let value = match line {
                Some((at, value)) if at == slot / LINE => value,
                _ => self.get((slot / LINE) as u32)?,
            };
            line = Some((slot / LINE, value));
            backends.push(value.backends[slot % LINE]);
        }
        Ok(backends)
    }
}

const LINE: usize = svc_common::hash::SLOTS_PER_LINE as usize;

/// Calls `each` for all entries of a pinned hash or array map.
pub(super) fn each_entry<K: bytemuck::AnyBitPattern, V: bytemuck::AnyBitPattern>(
    layout: &Layout,
    name: &str,
    each: &mut dyn FnMut(K, V),
) -> Result<(), KernelError> {
    each_raw_entry(layout, name, size_of::<K>(), size_of::<V>(), &mut |key, value| {
        each(bytemuck::pod_read_unaligned(key), bytemuck::pod_read_unaligned(value));
    })
}

/// Calls `each` with the bytes of all entries of a pinned map whose keys and values have these sizes.
pub(super) fn each_raw_entry(
    layout: &Layout,
    name: &str,
    key_size: usize,
    value_size: usize,
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), KernelError> {
    let data = MapData::from_pin(layout.map(name)).map_err(|error| KernelError::map(name, error))?;
    let info = data.info().map_err(|error| KernelError::map(name, error))?;
    if (info.key_size() as usize, info.value_size() as usize) != (key_size, value_size) {
        return Err(KernelError::map(name, std::io::Error::other("its key or value has another size")));
    }
    sys::each_entry(std::os::fd::AsFd::as_fd(data.fd()), key_size, value_size, each)
        .map_err(|error| KernelError::map(name, error))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use aya::maps::IterableMap;

    use super::*;

    /// Two handles on a new array: one with shared memory, one without.
    fn array<T: aya::Pod + bytemuck::Pod>(entries: u32) -> (Table<T>, Table<T>) {
        const MMAPABLE: u32 = 1 << 10;
        let array = Array::<MapData, T>::create(entries, MMAPABLE).expect("this test needs root");
        let handle = || {
            let fd = array.map().fd().as_fd().try_clone_to_owned().expect("a descriptor");
            Table::new("TEST", MapData::from_fd(fd).expect("a map")).expect("a table")
        };
        let shared = handle();
        assert!(shared.memory.is_some());
        (shared, handle().without_memory())
    }

    #[test]
    fn shared_memory_and_system_calls_see_the_same_backends() {
        let (mut shared, mut plain) = array::<Backend<[u8; 16]>>(9);
        let backend = |n: u8| Backend {
            address: [n; 16],
            port: 80 + u16::from(n),
            state: 1,
            flags: 1,
            generation: u32::from(n),
            service: 7,
        };
        for id in 0..9 {
            let value = backend(id as u8);
            if id % 2 == 0 { shared.write(id, value) } else { plain.write(id, value) }.expect("write");
        }
        for id in 0..9 {
            assert_eq!(shared.get(id).expect("get"), backend(id as u8));
            assert_eq!(plain.get(id).expect("get"), backend(id as u8));
        }
        let gone = Backend { state: 0, ..backend(3) };
        shared.write(3, gone).expect("write");
        assert_eq!(plain.get(3).expect("get"), gone);
        assert!(shared.write(9, gone).is_err());
        assert!(plain.write(9, gone).is_err());
    }

    #[test]
    fn shared_memory_and_system_calls_see_the_same_slots() {
        let (mut shared, mut plain) = array::<SlotLine>(9);
        let ids: Vec<u32> = (1..=50).collect();
        for (offset, table) in [(3, &mut shared), (70, &mut plain)] {
            table.write_slots(offset, &ids).expect("write");
            assert!(table.write_slots(9 * 16 - 49, &ids).is_err(), "beyond the end");
        }
        for table in [&shared, &plain] {
            assert_eq!(table.read_slots(3, 50).expect("read"), ids);
            assert_eq!(table.read_slots(70, 50).expect("read"), ids);
            assert_eq!(table.read_slots(53, 17).expect("read"), [0; 17], "nothing between");
            assert_eq!(table.read_slots(0, 3).expect("read"), [0; 3]);
        }
    }
}
