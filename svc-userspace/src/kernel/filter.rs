//! FILTER and UNUSUAL, as far as flows need them: the bits of entries and redirected sockets whose Service is gone.
//!
//! Bits that Services need are written by operations, as everything else; see `svc_common::filter`.

use svc_common::{
    Address, Flow, FlowKey, Hook, SocketKey, SocketPeer,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place, unusual_place},
    flow::{FLOW_DIRECT, FLOW_HAIRPIN, FLOW_MASQUERADED},
};

use super::{
    error::KernelError,
    maps::{Maps, each_entry},
    pins::Layout,
};
use crate::tables::FilterWords;

/// Writes the bits of `used` and those that flows and sockets need, and clears all others; returns what is there then.
///
/// Only flows of what is in `used` can be opened meanwhile, but for a direct flow whose client port is remapped, and one entry
/// may be made of another of the same flow. So what there is after the clearing is looked at again.
pub(super) fn sweep(layout: &Layout, maps: &mut Maps, used: FilterWords) -> Result<FilterWords, KernelError> {
    let failed = |error| KernelError::map("FILTER", error);
    let mut wanted = used;
    needed(layout, maps, &mut wanted)?;
    for word in 0..maps.filter.len() {
        let bits = wanted.get(&word).copied().unwrap_or(0);
        if maps.filter.get(word).map_err(failed)? != bits {
            maps.filter.write_bits(word, bits).map_err(failed)?;
        }
    }
    let mut late = FilterWords::new();
    needed(layout, maps, &mut late)?;
    for (word, bits) in late {
        let known = wanted.entry(word).or_default();
        if bits & !*known != 0 {
            maps.filter.set_bits(word, bits).map_err(failed)?;
            *known |= bits;
        }
    }
    Ok(wanted)
}

/// Adds the bits that entries of FLOWS and PEERS need, and marks in UNUSUAL what is to be marked there.
fn needed(layout: &Layout, maps: &mut Maps, words: &mut FilterWords) -> Result<(), KernelError> {
    flows::<[u8; 4]>(layout, "FLOWS_V4", maps, words)?;
    flows::<[u8; 16]>(layout, "FLOWS_V6", maps, words)?;
    peers::<[u8; 4]>(layout, "PEERS_V4", words)?;
    peers::<[u8; 16]>(layout, "PEERS_V6", words)
}

fn flows<A: Address>(layout: &Layout, name: &str, maps: &mut Maps, words: &mut FilterWords) -> Result<(), KernelError>
where
    FlowKey<A>: bytemuck::Pod,
    Flow<A>: bytemuck::Pod,
{
    let mut unusual = std::collections::BTreeSet::new();
    each_entry(layout, name, &mut |key: FlowKey<A>, flow: Flow<A>| {
        let mut know = |address: &A, port, bit| set(words, address, port, key.protocol, bit);
        let is_hairpin = flow.flags & FLOW_HAIRPIN != 0;
        let is_masqueraded = flow.flags & FLOW_MASQUERADED != 0;
        if is_masqueraded && key.hook == Hook::Egress as u8 {
            // Its packets are marked.
        } else if key.hook == Hook::Egress as u8 && is_hairpin {
            // Its addresses are equal.
        } else if key.hook == Hook::Egress as u8 {
            know(&key.source, key.source_port, KNOWN_ENDPOINT);
            // A direct flow has no frontend, but the endpoint's own address in its place.
            if flow.flags & FLOW_DIRECT == 0 {
                know(&flow.address, flow.port, KNOWN_FRONTEND);
            }
        } else if is_hairpin || is_masqueraded || flow.flags & FLOW_DIRECT != 0 {
            unusual.insert(unusual_place(&key.source, &key.destination));
        } else {
            know(&key.destination, key.destination_port, KNOWN_FRONTEND);
            know(&flow.address, flow.port, KNOWN_ENDPOINT);
        }
    })?;
    for place in unusual {
        maps.unusual.set(place, 1, 0).map_err(|error| KernelError::map("UNUSUAL", error))?;
    }
    Ok(())
}

fn peers<A: Address>(layout: &Layout, name: &str, words: &mut FilterWords) -> Result<(), KernelError>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
{
    each_entry(layout, name, &mut |key: SocketKey<A>, _: SocketPeer<A>| {
        set(words, &key.address, key.port, key.protocol, KNOWN_ENDPOINT);
    })
}

fn set<A: Address>(words: &mut FilterWords, address: &A, port: u16, protocol: u8, bit: u32) {
    let place = filter_place(address, port, protocol);
    *words.entry(place / 64).or_default() |= u64::from(bit) << (place % 64);
}
