//! Operations into maps: each one write, in the order given. What order that is, is the business of `tables`.

use std::{fmt::Display, net::IpAddr, time::Duration};

use aya::maps::{MapError, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use svc_common::{Counters, FrontendKey};

use super::{
    decode,
    error::{ApplyError, chain},
    maps::Maps,
};
use crate::tables::{BackendValue, FrontendAddress, Op};

/// Applies operations until one fails.
pub(super) fn apply(maps: &mut Maps, operations: &[Op]) -> Result<(), ApplyError> {
    for (index, operation) in operations.iter().enumerate() {
        one(maps, operation).map_err(|failure| failure.at(index))?;
    }
    Ok(())
}

struct Failure {
    map: &'static str,
    object: String,
    error: MapError,
}

impl Failure {
    fn at(self, index: usize) -> ApplyError {
        let Self { map, object, error } = self;
        let text = chain(&error);
        let message = if full(&error) { format!("{text}: the map is full, raise its capacity") } else { text };
        ApplyError { index, map, object, message }
    }
}

fn full(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(error) => {
            error.io_error.raw_os_error() == Some(libc::E2BIG) || error.io_error.raw_os_error() == Some(libc::ENOSPC)
        }
        MapError::OutOfBounds { .. } => true,
        _ => false,
    }
}

fn failure<'a>(map: &'static str, object: &'a dyn Display) -> impl Fn(MapError) -> Failure + 'a {
    move |error| Failure { map, object: object.to_string(), error }
}

/// Removing what is not there is no failure: operations may be repeated.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if super::is_absent(&error) => Ok(()),
        result => result,
    }
}

fn one(maps: &mut Maps, operation: &Op) -> Result<(), Failure> {
    match operation {
        Op::SetService(id, name) => {
            maps.services.insert(id, **name, 0).map_err(failure("SERVICES", &format_args!("service {id}")))
        }
        Op::RemoveService(id) => {
            let object = format_args!("service {id}");
            absent_is_fine(maps.services.remove(id)).map_err(failure("SERVICES", &object))?;
            zero(&mut maps.stats_service, *id).map_err(failure("STATS_SERVICE", &object))
        }
        Op::SetBackend(id, backend) => set_backend(maps, *id, backend),
        Op::WriteSlots(offset, backends) => maps
            .slots
            .write_slots(*offset, backends)
            .map_err(failure("SLOTS", &format_args!("{} slots from {offset}", backends.len()))),
        Op::SetFrontend(address, value) => {
            let protocol = address.protocol.number();
            match address.address.ip() {
                IpAddr::V4(ip) => {
                    let key = FrontendKey::new(ip.octets(), address.address.port(), protocol);
                    maps.frontends_v4.insert(key, value, 0).map_err(failure("FRONTENDS_V4", &named(address)))
                }
                IpAddr::V6(ip) => {
                    let key = FrontendKey::new(ip.octets(), address.address.port(), protocol);
                    maps.frontends_v6.insert(key, value, 0).map_err(failure("FRONTENDS_V6", &named(address)))
                }
            }
        }
        Op::SetSource(id, range) => {
            let named = named_source(*id, range);
            match range {
                IpNet::V4(range) => maps
                    .source_ranges_v4
                    .insert(&decode::source_v4(*id, *range), 1, 0)
                    .map_err(failure("SOURCE_RANGES_V4", &named)),
                IpNet::V6(range) => maps
                    .source_ranges_v6
                    .insert(&decode::source_v6(*id, range), 1, 0)
                    .map_err(failure("SOURCE_RANGES_V6", &named)),
            }
        }
        Op::RemoveSource(id, range) => {
            let named = named_source(*id, range);
            match range {
                IpNet::V4(range) => absent_is_fine(maps.source_ranges_v4.remove(&decode::source_v4(*id, *range)))
                    .map_err(failure("SOURCE_RANGES_V4", &named)),
                IpNet::V6(range) => absent_is_fine(maps.source_ranges_v6.remove(&decode::source_v6(*id, range)))
                    .map_err(failure("SOURCE_RANGES_V6", &named)),
            }
        }
        Op::SetVip(address, flags) => match address {
            IpAddr::V4(ip) => maps.vips_v4.insert(ip.octets(), flags, 0).map_err(failure("VIPS_V4", address)),
            IpAddr::V6(ip) => maps.vips_v6.insert(ip.octets(), flags, 0).map_err(failure("VIPS_V6", address)),
        },
        Op::RemoveVip(address) => match address {
            IpAddr::V4(ip) => absent_is_fine(maps.vips_v4.remove(&ip.octets())).map_err(failure("VIPS_V4", address)),
            IpAddr::V6(ip) => absent_is_fine(maps.vips_v6.remove(&ip.octets())).map_err(failure("VIPS_V6", address)),
        },
        Op::SetFilter(word, bits) => {
            maps.filter.set_bits(*word, *bits).map_err(failure("FILTER", &format_args!("word {word}")))
        }
        Op::RemoveFrontend(address) => {
            // Before, so that no packet finds the frontend gone and the note missing; after, should the clock have gone on.
            note_removal(maps)?;
            remove_frontend(maps, address)?;
            note_removal(maps)
        }
    }
}

fn remove_frontend(maps: &mut Maps, address: &FrontendAddress) -> Result<(), Failure> {
    let protocol = address.protocol.number();
    match address.address.ip() {
        IpAddr::V4(ip) => {
            let key = FrontendKey::new(ip.octets(), address.address.port(), protocol);
            absent_is_fine(maps.frontends_v4.remove(&key)).map_err(failure("FRONTENDS_V4", &named(address)))
        }
        IpAddr::V6(ip) => {
            let key = FrontendKey::new(ip.octets(), address.address.port(), protocol);
            absent_is_fine(maps.frontends_v6.remove(&key)).map_err(failure("FRONTENDS_V6", &named(address)))
        }
    }
}

/// Has the programs look up the frontends of datagram flows, which they do once in a unit of the clock otherwise.
fn note_removal(maps: &mut Maps) -> Result<(), Failure> {
    let failed = failure("CONFIG", &"the removal of a frontend");
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    let clock = clock.map_err(|errno| failed(MapError::IoError(errno.into())))?;
    let now = (Duration::from(clock).as_nanos() >> 30) as u32;
    if maps.removal == Some(now) {
        return Ok(());
    }
    let mut config = maps.config.get(&0, 0).map_err(&failed)?;
    config.set_removal(now);
    maps.config.set(0, config, 0).map_err(&failed)?;
    maps.removal = Some(now);
    Ok(())
}

fn named_source(service: u32, range: &IpNet) -> impl Display {
    std::fmt::from_fn(move |f| write!(f, "source range {range} of service {service}"))
}

fn named(frontend: &FrontendAddress) -> impl Display {
    std::fmt::from_fn(move |f| write!(f, "frontend {}/{}", frontend.address, frontend.protocol))
}

fn set_backend(maps: &mut Maps, id: u32, backend: &BackendValue) -> Result<(), Failure> {
    let object = std::fmt::from_fn(|f| write!(f, "backend {id} ({})", backend.address));
    // An id that is given to another endpoint starts to count from zero. It may have been in the other family's array.
    let (v4, v6) = (failure("BACKENDS_V4", &object), failure("BACKENDS_V6", &object));
    let previous = [
        if id < maps.backends_v4.len() { maps.backends_v4.get(id).map_err(&v4)?.generation } else { 0 },
        if id < maps.backends_v6.len() { maps.backends_v6.get(id).map_err(&v6)?.generation } else { 0 },
    ];
    let own = match backend.address.ip() {
        IpAddr::V4(ip) => {
            maps.backends_v4.write(id, decode::backend_value(ip.octets(), backend)).map_err(v4)?;
            previous[0]
        }
        IpAddr::V6(ip) => {
            maps.backends_v6.write(id, decode::backend_value(ip.octets(), backend)).map_err(v6)?;
            previous[1]
        }
    };
    let never_given = previous == [0, 0] && maps.counters_are_new;
    if own == backend.generation || never_given {
        return Ok(());
    }
    zero(&mut maps.stats_backend, id).map_err(failure("STATS_BACKEND", &object))
}

fn zero(counters: &mut PerCpuArray<aya::maps::MapData, Counters>, id: u32) -> Result<(), MapError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus]).map_err(MapError::IoError)?;
    counters.set(id, zeros, 0)
}
