//! [`Decisions`] on the maps: what choosing a backend reads, and the one thing it writes, affinity.

use aya_ebpf::bindings::BPF_ANY;
use svc_common::{
    Address as _, Affinity, AffinityKey, Backend, Frontend, FrontendKey,
    config::{CONFIG_FILTER, CONFIG_SERVICE_CIDRS},
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
    hash::SLOTS_PER_LINE,
};
use svc_ebpf::tables::Decisions;

use super::{
    A4, A6, Maps,
    clock::coarse_now,
    globals::{svc_in_cidr_v4, svc_in_cidr_v6},
    settings::{bits, has},
    statics::{
        AFFINITY_V4, AFFINITY_V6, BACKENDS_V4, BACKENDS_V6, FRONTENDS_V4, FRONTENDS_V6, SLOTS, VIPS_V4, VIPS_V6,
    },
};

macro_rules! family {
    ($address:ty, $frontends:ident, $backends:ident, $affinity:ident, $vips:ident, $in_cidr:ident) => {
        impl Decisions<$address> for Maps {
            #[inline(always)]
            fn frontend(&mut self, key: &FrontendKey<$address>) -> Option<Frontend> {
                // SAFETY: copied before anything else touches the map.
                let found = unsafe { $frontends.get(key) }.copied();
                if found.is_some() || self.known(&key.address, key.port, key.protocol) & KNOWN_FRONTEND == 0 {
                    return found;
                }
                // The kernel overwrites an entry by a new one in front of its bucket, and then takes the old one out: who is between
                // the two meanwhile misses both (`htab_map_update_elem`, kernel/bpf/hashtab.c). Twice in a row nobody does.
                // SAFETY: as above.
                unsafe { $frontends.get(key) }.copied()
            }

            #[inline(always)]
            fn slot(&mut self, index: u32) -> Option<u32> {
                let line = SLOTS.get(index / SLOTS_PER_LINE)?;
                line.backends.get((index % SLOTS_PER_LINE) as usize).copied()
            }

            #[inline(always)]
            fn backend(&mut self, id: u32) -> Option<Backend<$address>> {
                let backend = $backends.get(id)?;
                Some(Backend { address: backend.address.copy(), ..*backend })
            }

            #[inline(always)]
            fn affinity(&mut self, key: &AffinityKey<$address>) -> Option<Affinity> {
                // SAFETY: copied at once.
                unsafe { $affinity.get(key) }.copied()
            }

            #[inline(always)]
            fn set_affinity(&mut self, key: &AffinityKey<$address>, affinity: Affinity) {
                // An LRU map evicts rather than refuse; a lost binding costs the client its affinity, not its flow.
                let _ = $affinity.insert(key, &affinity, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn vip(&mut self, address: &$address) -> u32 {
                // SAFETY: copied at once.
                unsafe { $vips.get(address) }.copied().unwrap_or(0)
            }

            #[inline(always)]
            fn in_service_cidr(&mut self, address: &$address) -> bool {
                has(CONFIG_SERVICE_CIDRS) && $in_cidr(address) != 0
            }

            #[inline(always)]
            fn known(&mut self, address: &$address, port: u16, protocol: u8) -> u32 {
                if has(CONFIG_FILTER) {
                    bits(filter_place(address, port, protocol))
                } else {
                    KNOWN_FRONTEND | KNOWN_ENDPOINT
                }
            }

            #[inline(always)]
            fn now(&mut self) -> u32 {
                coarse_now()
            }
        }
    };
}

family!(A4, FRONTENDS_V4, BACKENDS_V4, AFFINITY_V4, VIPS_V4, svc_in_cidr_v4);
family!(A6, FRONTENDS_V6, BACKENDS_V6, AFFINITY_V6, VIPS_V6, svc_in_cidr_v6);
