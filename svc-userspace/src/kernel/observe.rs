//! What an agent finds in the maps of its predecessor: read once at its start, nothing is written.

use std::{collections::BTreeSet, net::IpAddr};

use svc_common::{Address, Backend, Frontend, FrontendKey, ServiceName, SourcePrefix};

use super::{
    decode,
    error::KernelError,
    maps::{Maps, Table, each_entry, each_raw_entry},
    pins::Layout,
};
use crate::tables::{BackendValue, FrontendAddress, Observed};

/// Reads everything that `tables` accounts for.
pub(super) fn observe(layout: &Layout, maps: &Maps) -> Result<Observed, KernelError> {
    let mut observed = Observed::default();
    each_entry(layout, "SERVICES", &mut |id: u32, name: ServiceName| observed.services.push((id, Box::new(name))))?;
    observed.services.sort_by_key(|(id, _)| *id);
    observed.frontends = frontends(layout)?;
    backends(&maps.backends_v4, "BACKENDS_V4", &mut observed.backends)?;
    backends(&maps.backends_v6, "BACKENDS_V6", &mut observed.backends)?;

    let ranges: BTreeSet<_> = observed
        .frontends
        .iter()
        .flat_map(|(_, frontend)| [frontend.inside, frontend.outside])
        .filter(|range| range.len > 0)
        .map(|range| (range.offset, range.len))
        .collect();
    for (offset, len) in ranges {
        if maps.slots.contains(offset, len as usize) {
            let slots = maps.slots.read_slots(offset, len).map_err(|error| KernelError::map("SLOTS", error))?;
            observed.slots.push((offset, slots));
        } else {
            tracing::warn!(offset, len, "a frontend names slots that do not exist; its Service is programmed anew");
        }
    }
    sources::<[u8; 4]>(layout, "SOURCE_RANGES_V4", &mut observed.sources)?;
    sources::<[u8; 16]>(layout, "SOURCE_RANGES_V6", &mut observed.sources)?;
    each_entry(layout, "VIPS_V4", &mut |address: [u8; 4], flags: u32| observed.vips.push((address.into(), flags)))?;
    each_entry(layout, "VIPS_V6", &mut |address: [u8; 16], flags: u32| observed.vips.push((address.into(), flags)))?;
    for word in 0..maps.filter.len() {
        let bits = maps.filter.get(word).map_err(|error| KernelError::map("FILTER", error))?;
        if bits != 0 {
            observed.filter.push((word, bits));
        }
    }
    Ok(observed)
}

/// The entries of SOURCE_RANGES: a key is the length of the prefix, then the prefix (`struct bpf_lpm_trie_key`).
fn sources<A: Address>(layout: &Layout, name: &str, found: &mut Vec<(u32, ipnet::IpNet)>) -> Result<(), KernelError>
where
    SourcePrefix<A>: bytemuck::Pod,
    IpAddr: From<A>,
{
    each_raw_entry(layout, name, size_of::<u32>() + size_of::<SourcePrefix<A>>(), size_of::<u32>(), &mut |key, _| {
        let (prefix_len, prefix) = key.split_at(size_of::<u32>());
        let prefix: SourcePrefix<A> = bytemuck::pod_read_unaligned(prefix);
        found.extend(decode::source(bytemuck::pod_read_unaligned(prefix_len), &prefix));
    })
}

/// The entries of FRONTENDS_V4 and FRONTENDS_V6, sorted.
pub(super) fn frontends(layout: &Layout) -> Result<Vec<(FrontendAddress, Frontend)>, KernelError> {
    let mut found = Vec::new();
    each_entry(layout, "FRONTENDS_V4", &mut |key: FrontendKey<[u8; 4]>, value: Frontend| {
        found.extend(decode::frontend(&key).map(|address| (address, value)));
    })?;
    each_entry(layout, "FRONTENDS_V6", &mut |key: FrontendKey<[u8; 16]>, value: Frontend| {
        found.extend(decode::frontend(&key).map(|address| (address, value)));
    })?;
    found.sort_by_key(|(address, _)| *address);
    Ok(found)
}

fn backends<A: Address>(
    table: &Table<Backend<A>>,
    name: &str,
    found: &mut Vec<(u32, BackendValue)>,
) -> Result<(), KernelError>
where
    Backend<A>: aya::Pod + bytemuck::Pod,
    IpAddr: From<A>,
{
    for id in 0..table.len() {
        let value = table.get(id).map_err(|error| KernelError::map(name, error))?;
        found.extend(decode::backend(&value).map(|backend| (id, backend)));
    }
    Ok(())
}
