//! What the agent tells the programs apart from Services: flags of the whole and of interfaces, and the filter. Only read.

use svc_common::{
    Config,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
};

use super::statics::{CONFIG, FILTER, INTERFACES};

/// CONFIG.
#[inline(always)]
pub(in crate::bpf) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// True if an interface has a flag in INTERFACES.
#[inline(always)]
pub(in crate::bpf) fn has_flag(interface: u32, flag: u8) -> bool {
    // SAFETY: copied at once.
    unsafe { INTERFACES.get(&interface) }.is_some_and(|interface| interface.flags & flag != 0)
}

/// True if a flag of CONFIG is set.
#[inline(always)]
pub(super) fn has(flag: u32) -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & flag != 0)
}

/// The two bits at a place of FILTER.
#[inline(always)]
pub(super) fn bits(place: u32) -> u32 {
    match FILTER.get(place / 64) {
        Some(word) => (*word >> (place % 64)) as u32 & (KNOWN_FRONTEND | KNOWN_ENDPOINT),
        None => KNOWN_FRONTEND | KNOWN_ENDPOINT, // never taken: an array's entries are always there
    }
}
