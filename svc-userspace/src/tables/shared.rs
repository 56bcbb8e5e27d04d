//! What Services have in common in the maps: VIPS and FILTER. Every user of an address or a bit is counted. An address is
//! there from the first to the last of them; a bit stays, for flows that outlive their Service, until the filter is swept.

use std::net::IpAddr;

use svc_common::{
    filter::{FILTER_WORDS, KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place},
    frontend::{FLAG_CLUSTER_IP, FLAG_LOAD_BALANCER},
    vip::{VIP_INSIDE, VIP_OUTSIDE},
};

use super::{FilterWords, FrontendAddress, Op, Place, Port};
use crate::{
    compile::PortKey,
    hash::{HashMap, HashSet},
};

/// Users of VIPs and target bits, and what of it is in the maps.
#[derive(Debug, Default)]
pub(super) struct Shared {
    vips: HashMap<IpAddr, Vip>,
    own_addresses: HashSet<IpAddr>,
    /// Frontends, backends and VIPs by bit.
    bits: HashMap<u32, u32>,
    /// FILTER as it is in the map; empty: all zeros.
    words: Vec<u64>,
    /// Bits in them.
    programmed_bits: u32,
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

/// Addresses and bits that may have to be written, some of them more than once.
#[derive(Debug, Default)]
pub(super) struct Touched {
    vips: Vec<IpAddr>,
    bits: Vec<u32>,
}

/// Writes to the two maps.
#[derive(Debug, Default)]
pub(super) struct SharedOps {
    pub(super) filter: Vec<Op>,
    pub(super) remove_vips: Vec<Op>,
    pub(super) set_vips: Vec<Op>,
}

impl Shared {
    /// What the maps of an earlier agent hold; users are added afterwards.
    pub(super) fn adopt(vips: &[(IpAddr, u32)], words: &[(u32, u64)]) -> Self {
        let programmed =
            |&(address, programmed): &(IpAddr, u32)| (address, Vip { programmed: Some(programmed), ..Vip::default() });
        let mut shared = Self { vips: vips.iter().map(programmed).collect(), ..Self::default() };
        shared.swept(words.iter().copied().collect());
        shared
    }

    /// Counts the frontends and backends of a port as users, or (`add` false) no longer.
    pub(super) fn count(&mut self, key: &PortKey, port: &Port, add: bool, touched: &mut Touched) {
        let protocol = key.protocol.number();
        for (address, frontend) in port.frontends.iter() {
            self.count_frontend(address, frontend.flags, add, touched);
        }
        for address in port.backends.keys() {
            self.count_bit(bit(*address, protocol, KNOWN_ENDPOINT), add, touched);
        }
    }

    fn count_bit(&mut self, bit: u32, add: bool, touched: &mut Touched) {
        let users = self.bits.entry(bit).or_default();
        *users = if add { *users + 1 } else { users.saturating_sub(1) };
        if *users == 0 {
            self.bits.remove(&bit);
        }
        touched.bits.push(bit);
    }

    /// Counts one frontend by its flags.
    pub(super) fn count_frontend(&mut self, frontend: &FrontendAddress, flags: u32, add: bool, touched: &mut Touched) {
        let address = frontend.address.ip();
        self.count_bit(bit(Place::of(frontend.address), frontend.protocol.number(), KNOWN_FRONTEND), add, touched);
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
        touched.vips.push(address);
        self.count_bit(bit(Place(address, 0), 0, KNOWN_FRONTEND), add, touched);
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
        Touched { vips: self.vips.keys().copied().collect(), bits: self.bits.keys().copied().collect() }
    }

    /// Bits that have users.
    pub(super) fn filter(&self) -> FilterWords {
        let mut words = FilterWords::new();
        for bit in self.bits.keys() {
            *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
        }
        words
    }

    /// Takes note of what is in FILTER.
    pub(super) fn swept(&mut self, words: FilterWords) {
        self.programmed_bits = words.values().map(|word| word.count_ones()).sum();
        self.words.fill(0);
        for (word, bits) in words {
            *self.word(word) = bits;
        }
    }

    fn word(&mut self, word: u32) -> &mut u64 {
        if self.words.is_empty() {
            self.words = vec![0; FILTER_WORDS as usize];
        }
        &mut self.words[word as usize]
    }

    /// The value of an address in VIPS, if it is there.
    pub(super) fn vip(&self, address: IpAddr) -> Option<u32> {
        self.vips.get(&address).and_then(|vip| vip.programmed)
    }

    /// Words of FILTER that are not zero, from `word` on.
    pub(super) fn words(&self, word: u32) -> impl Iterator<Item = (u32, u64)> {
        let words = self.words.get(word as usize..).unwrap_or_default();
        (word..).zip(words.iter().copied()).filter(|(_, bits)| *bits != 0)
    }

    /// Bits in FILTER that have no user.
    pub(super) fn stale_bits(&self) -> u32 {
        self.programmed_bits.saturating_sub(u32::try_from(self.bits.len()).unwrap_or(u32::MAX))
    }

    /// What is to be written of what was touched; it counts as written from then on.
    pub(super) fn settle(&mut self, mut touched: Touched) -> SharedOps {
        let mut ops = SharedOps::default();
        touched.vips.sort_unstable();
        touched.vips.dedup();
        touched.bits.sort_unstable();
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
        if !touched.bits.is_empty() {
            self.word(0);
        }
        for bit in touched.bits.iter().filter(|bit| self.bits.contains_key(bit)) {
            let mask = 1 << (bit % 64);
            let programmed = &mut self.words[(bit / 64) as usize];
            if *programmed & mask == 0 {
                *programmed |= mask;
                self.programmed_bits += 1;
                match ops.filter.last_mut() {
                    Some(Op::SetFilter(word, bits)) if *word == bit / 64 => *bits |= mask,
                    _ => ops.filter.push(Op::SetFilter(bit / 64, mask)),
                }
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

/// The number in FILTER of a `KNOWN_*` bit of an address and port.
fn bit(Place(address, port): Place, protocol: u8, known: u32) -> u32 {
    let place = match address {
        IpAddr::V4(ip) => filter_place(&ip.octets(), port, protocol),
        IpAddr::V6(ip) => filter_place(&ip.octets(), port, protocol),
    };
    place + known.trailing_zeros()
}
