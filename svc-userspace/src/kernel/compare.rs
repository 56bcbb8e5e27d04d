//! Whether the maps show what was written to them, and what else is in them. It reads only, but for the tries of source ranges,
//! which nothing but a write can be asked for one entry.

use std::{net::IpAddr, os::fd::AsFd};

use aya::maps::MapError;
use ipnet::IpNet;
use svc_common::{Backend, Frontend, FrontendKey, ServiceName, SlotRange, SourcePrefix};

use super::{
    Dataplane, decode,
    error::KernelError,
    is_absent,
    maps::{Maps, Table},
    sys::Walk,
};
use crate::tables::{Difference, Observed, Op, Walked};

/// Entries of a map that are read at a time.
const ENTRIES: usize = 512;
/// Elements of an array that are read at a time.
const ELEMENTS: u32 = 4096;
/// `BPF_EXIST`: only if there is one.
const EXIST: u64 = 2;

/// How far a walk has come.
pub(super) enum Progress {
    Entries(Walked, Walk),
    Elements(u32),
}

impl Dataplane {
    /// Which of these writes the maps do not show, by index.
    pub fn differing(&mut self, operations: &[Op]) -> Result<Vec<(usize, Difference)>, KernelError> {
        let mut found = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            let difference = difference(&mut self.maps, operation);
            let difference = difference.map_err(|error| KernelError::map(operation.map(), error))?;
            found.extend(difference.map(|difference| (index, difference)));
        }
        Ok(found)
    }

    /// The backend ids in these slots.
    pub fn slots(&self, range: SlotRange) -> Result<Vec<u32>, KernelError> {
        self.maps.slots.read_slots(range.offset, range.len).map_err(|error| KernelError::map("SLOTS", error))
    }

    /// Adds the next entries of a map to what was found, the first ones if `first`; true once there are no more.
    pub fn next_entries(&mut self, map: Walked, first: bool, found: &mut Observed) -> Result<bool, KernelError> {
        if first {
            self.walk = None;
        }
        if map == Walked::Backends {
            return self.next_backends(found);
        }
        let progress = self.walk.take();
        let walk = match progress {
            Some(Progress::Entries(other, walk)) if other == map => walk,
            _ => {
                let (key, value) = sizes(map);
                Walk::new(key, value, ENTRIES)
            }
        };
        let Progress::Entries(_, walk) = self.walk.insert(Progress::Entries(map, walk)) else { return Ok(true) };
        let Some(pinned) = self.pinned.iter().find(|pinned| pinned.name == map.name()) else { return Ok(true) };
        let mut each = |key: &[u8], value: &[u8]| add(map, key, value, found);
        walk.next(pinned.object.as_fd(), &mut each).map_err(|error| KernelError::map(map.name(), error))
    }

    fn next_backends(&mut self, found: &mut Observed) -> Result<bool, KernelError> {
        let Maps { backends_v4, backends_v6, .. } = &self.maps;
        let from = if let Some(Progress::Elements(from)) = self.walk { from } else { 0 };
        let to = from.saturating_add(ELEMENTS);
        let failed = |error| KernelError::map(Walked::Backends.name(), error);
        for id in from..to.min(backends_v4.len()) {
            found.backends.extend(decode::backend(&backends_v4.get(id).map_err(failed)?).map(|backend| (id, backend)));
        }
        for id in from..to.min(backends_v6.len()) {
            found.backends.extend(decode::backend(&backends_v6.get(id).map_err(failed)?).map(|backend| (id, backend)));
        }
        self.walk = Some(Progress::Elements(to));
        Ok(to >= backends_v4.len().max(backends_v6.len()))
    }
}

fn sizes(map: Walked) -> (usize, usize) {
    const PREFIX_LEN: usize = size_of::<u32>();
    match map {
        Walked::Services => (size_of::<u32>(), size_of::<ServiceName>()),
        Walked::FrontendsV4 => (size_of::<FrontendKey<[u8; 4]>>(), size_of::<Frontend>()),
        Walked::FrontendsV6 => (size_of::<FrontendKey<[u8; 16]>>(), size_of::<Frontend>()),
        Walked::SourcesV4 => (PREFIX_LEN + size_of::<SourcePrefix<[u8; 4]>>(), size_of::<u32>()),
        Walked::SourcesV6 => (PREFIX_LEN + size_of::<SourcePrefix<[u8; 16]>>(), size_of::<u32>()),
        Walked::VipsV4 => (4, size_of::<u32>()),
        Walked::VipsV6 => (16, size_of::<u32>()),
        Walked::Backends => (size_of::<u32>(), size_of::<Backend<[u8; 16]>>()),
    }
}

/// Adds an entry to what was found; what cannot be an entry of this project leads nowhere and is passed over.
fn add(map: Walked, key: &[u8], value: &[u8], found: &mut Observed) {
    use bytemuck::pod_read_unaligned as read;
    match map {
        Walked::Services => found.services.push((read(key), Box::new(read(value)))),
        Walked::FrontendsV4 => {
            let address = decode::frontend(&read::<FrontendKey<[u8; 4]>>(key));
            found.frontends.extend(address.map(|address| (address, read(value))));
        }
        Walked::FrontendsV6 => {
            let address = decode::frontend(&read::<FrontendKey<[u8; 16]>>(key));
            found.frontends.extend(address.map(|address| (address, read(value))));
        }
        Walked::SourcesV4 => {
            let (len, prefix) = key.split_at(size_of::<u32>());
            found.sources.extend(decode::source(read(len), &read::<SourcePrefix<[u8; 4]>>(prefix)));
        }
        Walked::SourcesV6 => {
            let (len, prefix) = key.split_at(size_of::<u32>());
            found.sources.extend(decode::source(read(len), &read::<SourcePrefix<[u8; 16]>>(prefix)));
        }
        Walked::VipsV4 => found.vips.push((read::<[u8; 4]>(key).into(), read(value))),
        Walked::VipsV6 => found.vips.push((read::<[u8; 16]>(key).into(), read(value))),
        Walked::Backends => {}
    }
}

/// What is wrong with an entry, if anything is.
fn compared<V>(found: Result<V, MapError>, is_right: impl FnOnce(&V) -> bool) -> Result<Option<Difference>, MapError> {
    match found {
        Ok(value) => Ok((!is_right(&value)).then_some(Difference::Changed)),
        Err(error) if is_absent(&error) => Ok(Some(Difference::Missing)),
        Err(error) => Err(error),
    }
}

fn removed<V>(found: Result<V, MapError>) -> Result<Option<Difference>, MapError> {
    match found {
        Ok(_) => Ok(Some(Difference::Added)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn difference(maps: &mut Maps, operation: &Op) -> Result<Option<Difference>, MapError> {
    match operation {
        Op::SetService(id, name) => {
            let is_right = |found: &ServiceName| bytemuck::bytes_of(found) == bytemuck::bytes_of(&**name);
            compared(maps.services.get(id, 0), is_right)
        }
        Op::RemoveService(id) => removed(maps.services.get(id, 0)),
        Op::SetBackend(id, backend) => match backend.address.ip() {
            IpAddr::V4(ip) => is_backend(&maps.backends_v4, *id, decode::backend_value(ip.octets(), backend)),
            IpAddr::V6(ip) => is_backend(&maps.backends_v6, *id, decode::backend_value(ip.octets(), backend)),
        },
        Op::WriteSlots(offset, ids) => compared(maps.slots.read_slots(*offset, ids.len() as u32), |found| found == ids),
        Op::SetFrontend(address, value) => match address.address.ip() {
            IpAddr::V4(ip) => {
                let key = FrontendKey::new(ip.octets(), address.address.port(), address.protocol.number());
                compared(maps.frontends_v4.get(&key, 0), |found| found == value)
            }
            IpAddr::V6(ip) => {
                let key = FrontendKey::new(ip.octets(), address.address.port(), address.protocol.number());
                compared(maps.frontends_v6.get(&key, 0), |found| found == value)
            }
        },
        Op::RemoveFrontend(address) => match address.address.ip() {
            IpAddr::V4(ip) => {
                let key = FrontendKey::new(ip.octets(), address.address.port(), address.protocol.number());
                removed(maps.frontends_v4.get(&key, 0))
            }
            IpAddr::V6(ip) => {
                let key = FrontendKey::new(ip.octets(), address.address.port(), address.protocol.number());
                removed(maps.frontends_v6.get(&key, 0))
            }
        },
        // A look-up finds the longest prefix that fits, which may be another one. Linux before 6.13 does not know the flag
        // for these maps, and adds what is missing: then it is there again without being counted.
        Op::SetSource(id, range) => {
            let written = match range {
                IpNet::V4(range) => maps.source_ranges_v4.insert(&decode::source_v4(*id, *range), 1, EXIST),
                IpNet::V6(range) => maps.source_ranges_v6.insert(&decode::source_v6(*id, range), 1, EXIST),
            };
            compared(written, |()| true)
        }
        Op::RemoveSource(..) => Ok(Some(Difference::Added)),
        Op::SetVip(address, flags) => match address {
            IpAddr::V4(ip) => compared(maps.vips_v4.get(&ip.octets(), 0), |found| found == flags),
            IpAddr::V6(ip) => compared(maps.vips_v6.get(&ip.octets(), 0), |found| found == flags),
        },
        Op::RemoveVip(address) => match address {
            IpAddr::V4(ip) => removed(maps.vips_v4.get(&ip.octets(), 0)),
            IpAddr::V6(ip) => removed(maps.vips_v6.get(&ip.octets(), 0)),
        },
        // Bits that nobody needs cost a look-up each, until the filter is swept.
        Op::SetFilter(word, bits) => compared(maps.filter.get(*word), |found| found & bits == *bits),
    }
}

fn is_backend<A: svc_common::Address>(
    table: &Table<Backend<A>>,
    id: u32,
    wanted: Backend<A>,
) -> Result<Option<Difference>, MapError>
where
    Backend<A>: aya::Pod + bytemuck::Pod,
{
    compared(table.get(id), |found| bytemuck::bytes_of(found) == bytemuck::bytes_of(&wanted))
}
