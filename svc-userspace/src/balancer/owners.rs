//! Who has which address while addresses are being given out, and the rules of giving. It knows nothing of order: who comes
//! first is first.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use twox_hash::XxHash3_64;

use super::pools::{Pool, Pools};
use crate::model::{CLAIM_POOL, CLAIM_SHARE, Claim, Family, ObjectName, Protocol};

/// Addresses of a Service, at most one of each family; or why it has none.
pub type Grant = Result<Vec<IpAddr>, Refusal>;

/// Why a Service gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No pool is for it.
    #[error(
        "no pool is for this Service: see namespaces and serviceSelector of the pools, and its annotation {}",
        CLAIM_POOL
    )]
    NoPool,
    /// The pools that are for it have no address left.
    #[error(
        "the pools {pools} have no {family} address left: add addresses, or let Services share one ({})",
        CLAIM_SHARE
    )]
    Exhausted {
        /// Names of the pools.
        pools: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A wanted address is in no pool that is for the Service.
    #[error("{0} is in no pool that is for this Service: ask for another one, or add it to a pool")]
    Foreign(IpAddr),
    /// A wanted address has another owner.
    #[error("{address} is {owner}'s: ask for another one, or share it ({})", CLAIM_SHARE)]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: ObjectName,
    },
    /// What it asks for makes no sense.
    #[error("{0}")]
    Nonsense(String),
    /// Two wanted addresses of one family, or one of a family that the Service does not have.
    #[error(
        "{0} is a second address of its family, or of one that the Service does not have: ask for one of each of its families"
    )]
    Surplus(IpAddr),
}

/// Namespace and value of the annotation that Services share an address by.
type Key = (Arc<str>, Arc<str>);

/// Who has an address, and with what in common.
struct Owner {
    first: ObjectName,
    share: Option<Key>,
    ports: BTreeSet<(Protocol, u16)>,
}

/// Every address that somebody has.
#[derive(Default)]
pub(super) struct Owners {
    by_address: HashMap<IpAddr, Owner>,
    /// Addresses that are shared.
    shared: HashMap<Key, BTreeSet<IpAddr>>,
    /// Pools that were found to have no free address of a family: nothing is ever given back here.
    full: HashSet<(Arc<str>, Family)>,
}

impl Owners {
    /// What a Service gets beside those of its addresses that it keeps.
    pub(super) fn grant(&mut self, pools: &Pools, claim: &Claim, kept: &[IpAddr]) -> Grant {
        let mine: Vec<&Pool> = pools.of(claim).collect();
        if mine.is_empty() {
            return Err(Refusal::NoPool);
        }
        if !claim.wanted.is_empty() {
            return self.wanted(&mine, claim, kept);
        }
        let mut addresses = kept.to_vec();
        let mut missing = None;
        for &family in &claim.families {
            if kept.iter().any(|address| Family::of(*address) == family) {
                continue;
            }
            match self.any(&mine, claim, family) {
                Some(address) => addresses.push(address),
                None => missing = missing.or(Some(family)),
            }
        }
        match missing {
            Some(family) if claim.all_families || addresses.is_empty() => Err(Refusal::Exhausted {
                pools: mine.iter().map(|pool| &*pool.name).collect::<Vec<_>>().join(", "),
                family: if family == Family::V4 { "IPv4" } else { "IPv6" },
            }),
            _ => Ok(addresses),
        }
    }

    fn wanted(&self, mine: &[&Pool], claim: &Claim, kept: &[IpAddr]) -> Grant {
        let mut families = claim.families.clone();
        for &address in &claim.wanted {
            let Some(at) = families.iter().position(|family| *family == Family::of(address)) else {
                return Err(Refusal::Surplus(address));
            };
            families.swap_remove(at);
            if kept.contains(&address) {
                continue;
            }
            if !mine.iter().any(|pool| pool.contains(address)) {
                return Err(Refusal::Foreign(address));
            }
            if let Some(owner) = self.by_address.get(&address).filter(|owner| !owner.admits(claim)) {
                return Err(Refusal::Taken { address, owner: owner.first.clone() });
            }
        }
        Ok(claim.wanted.clone())
    }

    /// An address of a family: one that may be shared, else a free one.
    fn any(&mut self, mine: &[&Pool], claim: &Claim, family: Family) -> Option<IpAddr> {
        let shared = key(claim).and_then(|key| self.shared.get(&key)).into_iter().flatten();
        let mut in_reach = shared.filter(|address| {
            Family::of(**address) == family
                && mine.iter().any(|pool| pool.contains(**address))
                && self.by_address.get(*address).is_some_and(|owner| owner.admits(claim))
        });
        if let Some(address) = in_reach.next() {
            return Some(*address);
        }
        mine.iter().find_map(|pool| self.free(pool, &claim.name, family))
    }

    /// The first free address of a pool from the Service's own on, around.
    fn free(&mut self, pool: &Pool, name: &ObjectName, family: Family) -> Option<IpAddr> {
        let key = (pool.name.clone(), family);
        if self.full.contains(&key) {
            return None;
        }
        let size = pool.size(family);
        let start = hash(name).checked_rem(size)?;
        // As many addresses are taken as have owners, so one beyond that is free unless the pool ends before.
        let steps = size.min(self.by_address.len() as u128 + 1);
        let found = (0..steps)
            .filter_map(|step| pool.nth(family, (start + step) % size))
            .find(|address| !self.by_address.contains_key(address));
        if found.is_none() {
            self.full.insert(key);
        }
        found
    }

    /// Whether a Service may have an address beside those who have it.
    pub(super) fn admits(&self, claim: &Claim, address: IpAddr) -> bool {
        self.by_address.get(&address).is_none_or(|owner| owner.admits(claim))
    }

    /// These are the Service's from now on.
    pub(super) fn give(&mut self, claim: &Claim, addresses: &[IpAddr]) {
        for address in addresses {
            let share = key(claim);
            if let Some(key) = &share {
                self.shared.entry(key.clone()).or_default().insert(*address);
            }
            let first = || Owner { first: claim.name.clone(), share, ports: BTreeSet::new() };
            let owner = self.by_address.entry(*address).or_insert_with(first);
            owner.ports.extend(claim.ports.iter().copied());
        }
    }

    /// Nobody gets these beside those who have them: somebody has them, whatever the rules say.
    pub(super) fn block(&mut self, name: &ObjectName, addresses: &[IpAddr]) {
        for address in addresses {
            let first = || Owner { first: name.clone(), share: None, ports: BTreeSet::new() };
            self.by_address.entry(*address).or_insert_with(first).share = None;
        }
    }
}

fn key(claim: &Claim) -> Option<Key> {
    claim.share.clone().map(|share| (claim.name.namespace.clone(), share))
}

impl Owner {
    /// True if a Service may have the address as well.
    fn admits(&self, claim: &Claim) -> bool {
        self.share.is_some() && self.share == key(claim) && claim.ports.iter().all(|port| !self.ports.contains(port))
    }
}

/// The same on every node and in every release.
fn hash(name: &ObjectName) -> u128 {
    let text = name.to_string();
    let half = |seed| u128::from(XxHash3_64::oneshot_with_seed(seed, text.as_bytes()));
    half(0) << 64 | half(1)
}
