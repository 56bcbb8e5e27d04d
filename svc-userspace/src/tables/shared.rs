//! What Services have in common in the maps: VIPS and TARGETS. Every user of an address or a bit is counted, so that it is
//! there from the first to the last of them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use svc_common::{
    frontend::{FLAG_CLUSTER_IP, FLAG_LOAD_BALANCER},
    target::target_bit,
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};

use super::{Op, Place, Port};
use crate::compile::PortKey;

/// Users of VIPs and target bits, and what of it is in the maps.
#[derive(Debug, Default)]
pub(super) struct Shared {
    vips: HashMap<IpAddr, Vip>,
    own_addresses: HashSet<IpAddr>,
    /// Backends by bit.
    bits: HashMap<u32, u32>,
    /// Words of TARGETS that are not zero, or should not be.
    words: HashMap<u32, Word>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    /// Bits that have users.
    wanted: u64,
    /// Its value in the map.
    programmed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Vip {
    /// Frontends that have the address as a `clusterIP`.
    cluster: u32,
    /// Frontends that have it as a load balancer's.
    balancer: u32,
    /// Its value in the map, if it is there.
    programmed: Option<u32>,
}

/// Addresses and words that may have to be written.
#[derive(Debug, Default)]
pub(super) struct Touched {
    vips: BTreeSet<IpAddr>,
    words: BTreeSet<u32>,
}

/// Writes to the two maps.
#[derive(Debug, Default)]
pub(super) struct SharedOps {
    pub(super) remove_vips: Vec<Op>,
    pub(super) targets: Vec<Op>,
    pub(super) set_vips: Vec<Op>,
}

impl Shared {
    /// What the maps of an earlier agent hold; users are added afterwards.
    pub(super) fn adopt(vips: &[(IpAddr, u32)], words: &[(u32, u64)]) -> Self {
        let programmed =
            |&(address, programmed): &(IpAddr, u32)| (address, Vip { programmed: Some(programmed), ..Vip::default() });
        let programmed_word = |&(word, programmed): &(u32, u64)| (word, Word { wanted: 0, programmed });
        Self {
            vips: vips.iter().map(programmed).collect(),
            words: words.iter().map(programmed_word).collect(),
            ..Self::default()
        }
    }

    /// Counts the frontends and backends of a port as users, or (`add` false) no longer.
    pub(super) fn count(&mut self, key: &PortKey, port: &Port, add: bool, touched: &mut Touched) {
        let protocol = key.protocol.number();
        for (address, frontend) in port.frontends.iter() {
            self.count_frontend(address.address.ip(), frontend.flags, add, touched);
        }
        for address in port.backends.keys() {
            let bit = bit(*address, protocol);
            let users = self.bits.entry(bit).or_default();
            *users = if add { *users + 1 } else { users.saturating_sub(1) };
            let word = self.words.entry(bit / 64).or_default();
            if *users == 0 {
                self.bits.remove(&bit);
                word.wanted &= !(1 << (bit % 64));
            } else {
                word.wanted |= 1 << (bit % 64);
            }
            touched.words.insert(bit / 64);
        }
    }

    /// Counts one frontend by its flags.
    pub(super) fn count_frontend(&mut self, address: IpAddr, flags: u32, add: bool, touched: &mut Touched) {
        let vip = self.vips.entry(address).or_default();
        let users = match flags {
            flags if flags & FLAG_CLUSTER_IP != 0 => &mut vip.cluster,
            flags if flags & FLAG_LOAD_BALANCER != 0 => &mut vip.balancer,
            _ => {
                if vip.is_unknown() {
                    self.vips.remove(&address);
                }
                return;
            }
        };
        *users = if add { *users + 1 } else { users.saturating_sub(1) };
        touched.vips.insert(address);
    }

    /// Sets the node's own addresses; whoever has one of them as a load balancer's does not own its other ports.
    pub(super) fn set_own_addresses(&mut self, addresses: HashSet<IpAddr>) -> Touched {
        let vips = self.own_addresses.symmetric_difference(&addresses).copied();
        let touched = Touched { vips: vips.filter(|it| self.vips.contains_key(it)).collect(), ..Touched::default() };
        self.own_addresses = addresses;
        touched
    }

    /// Everything that is counted or in the maps.
    pub(super) fn everything(&self) -> Touched {
        Touched { vips: self.vips.keys().copied().collect(), words: self.words.keys().copied().collect() }
    }

    /// What is to be written of what was touched; it counts as written from then on.
    pub(super) fn settle(&mut self, touched: Touched) -> SharedOps {
        let mut ops = SharedOps::default();
        for address in touched.vips {
            let Some(vip) = self.vips.get_mut(&address) else { continue };
            let wanted = vip.wanted().filter(|_| !self.own_addresses.contains(&address));
            if wanted != vip.programmed {
                vip.programmed = wanted;
                match wanted {
                    None => ops.remove_vips.push(Op::RemoveVip(address)),
                    Some(flags) => ops.set_vips.push(Op::SetVip(address, flags)),
                }
            }
            if vip.is_unknown() {
                self.vips.remove(&address);
            }
        }
        for index in touched.words {
            let Some(word) = self.words.get_mut(&index) else { continue };
            if word.wanted != word.programmed {
                word.programmed = word.wanted;
                ops.targets.push(Op::WriteTargets(index, word.wanted));
            }
            if word.programmed == 0 {
                self.words.remove(&index);
            }
        }
        ops
    }
}

impl Vip {
    fn wanted(self) -> Option<u32> {
        match (self.cluster, self.balancer) {
            (0, 0) => None,
            (0, _) => Some(VIP_OUTSIDE),
            _ => Some(VIP_INSIDE | VIP_OUTSIDE),
        }
    }

    fn is_unknown(self) -> bool {
        self.cluster == 0 && self.balancer == 0 && self.programmed.is_none()
    }
}

fn bit(Place(address, port): Place, protocol: u8) -> u32 {
    match address {
        IpAddr::V4(ip) => target_bit(&ip.octets(), port, protocol),
        IpAddr::V6(ip) => target_bit(&ip.octets(), port, protocol),
    }
}
