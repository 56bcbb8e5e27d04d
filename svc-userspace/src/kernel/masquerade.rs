//! Masquerading by the programs, as far as it is in maps: each interface's address, and which ports were reserved before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use aya::maps::{Array, HashMap, MapData};
use svc_common::{Config, config::CONFIG_PORTS_RESERVED};

use super::{Dataplane, error::KernelError, is_absent, maps, pins::Layout};
use crate::reserved_ports::{self, WORDS};

/// The addresses that packets get which leave by an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Dataplane {
    /// Makes MASQUERADE hold these and nothing else, the addresses by interface index; returns how many entries were others.
    pub fn set_masquerade_sources(&mut self, sources: &BTreeMap<u32, Sources>) -> Result<usize, KernelError> {
        let v4 = sources.iter().filter_map(|(index, of)| Some((*index, of.v4?.octets()))).collect();
        let v6 = sources.iter().filter_map(|(index, of)| Some((*index, of.v6?.octets()))).collect();
        let changed = replace(&mut self.maps.masquerade_v4, "MASQUERADE_V4", &v4)?;
        Ok(changed + replace(&mut self.maps.masquerade_v6, "MASQUERADE_V6", &v6)?)
    }

    /// Keeps the ports that the programs masquerade with from this host's sockets, until [`super::cleanup`]; true if they were
    /// not kept before.
    pub fn reserve_ports(&mut self) -> Result<bool, KernelError> {
        let ports = reserved_ports::read().map_err(KernelError::ReservedPorts)?;
        let wanted = ports.clone().with_own();
        if self.config.flags & CONFIG_PORTS_RESERVED == 0 {
            let mut before: Array<MapData, u64> = maps::open(&self.layout, "RESERVED")?;
            for (index, word) in (0..).zip(ports.own()) {
                before.set(index, word, 0).map_err(|error| KernelError::map("RESERVED", error))?;
            }
            // What RESERVED says is of use only for a setting that was changed. An end between the two writes leaves ports
            // reserved for nobody; an end between them the other way round would have them given up though others had them.
            reserved_ports::write(&wanted).map_err(KernelError::ReservedPorts)?;
            self.set_flags(CONFIG_PORTS_RESERVED)?;
            return Ok(ports != wanted);
        }
        reserved_ports::write(&wanted).map_err(KernelError::ReservedPorts)?;
        Ok(ports != wanted)
    }
}

/// Gives up the ports that were reserved; false if none were.
pub(super) fn restore_ports(layout: &Layout) -> Result<bool, KernelError> {
    if !layout.map("CONFIG").exists() || !layout.map("RESERVED").exists() {
        return Ok(false);
    }
    let config: Array<MapData, Config> = maps::open(layout, "CONFIG")?;
    let config = config.get(&0, 0).map_err(|error| KernelError::map("CONFIG", error))?;
    if config.flags & CONFIG_PORTS_RESERVED == 0 {
        return Ok(false);
    }
    let map: Array<MapData, u64> = maps::open(layout, "RESERVED")?;
    let mut before = [0; WORDS];
    for (index, word) in (0..).zip(&mut before) {
        *word = map.get(&index, 0).map_err(|error| KernelError::map("RESERVED", error))?;
    }
    let ports = reserved_ports::read().map_err(KernelError::ReservedPorts)?;
    reserved_ports::write(&ports.restored(&before)).map_err(KernelError::ReservedPorts)?;
    Ok(true)
}

fn replace<V: aya::Pod + PartialEq>(
    map: &mut HashMap<MapData, u32, V>,
    name: &str,
    wanted: &BTreeMap<u32, V>,
) -> Result<usize, KernelError> {
    let failed = |error| KernelError::map(name, error);
    let there: BTreeSet<u32> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
    let mut changed = 0;
    for (index, value) in wanted {
        let is_right = match map.get(index, 0) {
            Ok(found) => found == *value,
            Err(error) if is_absent(&error) => false,
            Err(error) => return Err(failed(error)),
        };
        if !is_right {
            map.insert(index, value, 0).map_err(failed)?;
            changed += 1;
        }
    }
    for index in there.iter().filter(|index| !wanted.contains_key(index)) {
        match map.remove(index) {
            Err(error) if !is_absent(&error) => return Err(failed(error)),
            _ => changed += 1,
        }
    }
    Ok(changed)
}
