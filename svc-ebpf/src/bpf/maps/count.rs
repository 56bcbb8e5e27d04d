//! The counters: packets, bytes and connections, each CPU's on its own.

use svc_common::{Counters, Reason};
use svc_ebpf::tables::Drops;

use super::{Maps, statics::DROPS};

#[inline(always)]
pub(super) fn add(map_value: Option<*mut Counters>, packets: u64, bytes: u64, connections: u64) {
    if let Some(counters) = map_value {
        // SAFETY: a value of a per-CPU array belongs to this CPU while the program runs; the pointer stays valid.
        unsafe {
            (*counters).packets += packets;
            (*counters).bytes += bytes;
            (*counters).connections += connections;
        }
    }
}

impl Drops for Maps {
    #[inline(always)]
    fn count_drop(&mut self, reason: Reason, bytes: u32) {
        add(DROPS.get_ptr_mut(reason as u32), 1, u64::from(bytes), 0);
    }
}
