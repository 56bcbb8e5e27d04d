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
    /// Writes MASQUERADE whole: the addresses by interface index.
    pub fn set_masquerade_sources(&mut self, sources: &BTreeMap<u32, Sources>) -> Result<(), KernelError> {
        let v4 = sources.iter().filter_map(|(index, of)| Some((*index, of.v4?.octets()))).collect();
        let v6 = sources.iter().filter_map(|(index, of)| Some((*index, of.v6?.octets()))).collect();
        replace(&mut self.maps.masquerade_v4, "MASQUERADE_V4", &v4)?;
        replace(&mut self.maps.masquerade_v6, "MASQUERADE_V6", &v6)
    }

    /// Keeps the ports that the programs masquerade with from this host's sockets, until [`super::cleanup`].
    pub fn reserve_ports(&mut self) -> Result<(), KernelError> {
        let ports = reserved_ports::read().map_err(KernelError::ReservedPorts)?;
        let failed = |error| KernelError::map("CONFIG", error);
        let mut config: Config = self.maps.config.get(&0, 0).map_err(failed)?;
        if config.flags & CONFIG_PORTS_RESERVED == 0 {
            let mut before: Array<MapData, u64> = maps::open(&self.layout, "RESERVED")?;
            for (index, word) in (0..).zip(ports.own()) {
                before.set(index, word, 0).map_err(|error| KernelError::map("RESERVED", error))?;
            }
            config.flags |= CONFIG_PORTS_RESERVED;
            self.maps.config.set(0, config, 0).map_err(failed)?;
        }
        reserved_ports::write(&ports.with_own()).map_err(KernelError::ReservedPorts)
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

fn replace<V: aya::Pod>(
    map: &mut HashMap<MapData, u32, V>,
    name: &str,
    wanted: &BTreeMap<u32, V>,
) -> Result<(), KernelError> {
    let there: BTreeSet<u32> = map.keys().filter_map(Result::ok).collect();
    for (index, value) in wanted {
        map.insert(index, value, 0).map_err(|error| KernelError::map(name, error))?;
    }
    for index in there.iter().filter(|index| !wanted.contains_key(index)) {
        match map.remove(index) {
            Err(error) if !is_absent(&error) => return Err(KernelError::map(name, error)),
            _ => {}
        }
    }
    Ok(())
}
