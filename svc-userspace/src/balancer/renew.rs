//! Who gets which address where Services have some already: a pure function of the pools, of what Services ask for and of
//! what they have.
//!
//! What a Service has stays with it for as long as the pools let it and nobody shares it who may not. A wish that cannot be
//! granted costs nobody the address they have. An address that a Service is to lose is nobody else's before its status says
//! that it is gone.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    owners::{Owners, Refusal},
    pools::Pools,
};
use crate::model::{Claim, Family, ObjectName};

/// What a Service shall have, and what keeps it from having what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Why it does not get what it asks for.
    pub refusal: Option<Refusal>,
}

/// Who has what.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Addresses that have been decided about: these Services get them, and are not decided about again.
    pub fixed: Vec<(ObjectName, Vec<IpAddr>)>,
    /// Addresses that these have, and that can be taken from them: who comes first comes first when two clash.
    pub held: Vec<(ObjectName, Vec<IpAddr>)>,
    /// Addresses that somebody has whom nothing can be taken from or given to.
    pub blocked: Vec<(ObjectName, Vec<IpAddr>)>,
    /// What is in no pool at all stays: the file may be about to change.
    pub lenient: bool,
}

/// What everybody who asks shall have, those with fixed or blocked addresses left out.
pub fn renew(pools: &Pools, claims: &BTreeMap<ObjectName, Claim>, history: &History) -> BTreeMap<ObjectName, Outcome> {
    let mut owners = Owners::default();
    let mut kept: BTreeMap<&ObjectName, Vec<IpAddr>> = BTreeMap::new();
    for (name, addresses) in &history.fixed {
        match claims.get(name) {
            Some(claim) => owners.give(claim, addresses),
            None => owners.block(name, addresses),
        }
        kept.insert(name, Vec::new());
    }
    let mut order: Vec<&Claim> = Vec::new();
    for (name, addresses) in &history.held {
        let Some(claim) = claims.get(name) else { continue };
        let mut keeps: Vec<IpAddr> = Vec::new();
        for &address in addresses {
            let family = Family::of(address);
            let first = !keeps.iter().any(|other| Family::of(*other) == family);
            let allowed = pools.allow(claim, address) || history.lenient && !pools.contain(address);
            if first && claim.families.contains(&family) && allowed && owners.admits(claim, address) {
                keeps.push(address);
            }
        }
        owners.give(claim, &keeps);
        kept.insert(name, keeps);
        order.push(claim);
    }
    // Once everybody has what is theirs: what somebody is to lose, nobody gets to share either.
    for (name, addresses) in &history.held {
        let keeps = kept.get(name).map(Vec::as_slice).unwrap_or_default();
        let lost: Vec<IpAddr> = addresses.iter().filter(|address| !keeps.contains(address)).copied().collect();
        owners.block(name, &lost);
    }
    for (name, addresses) in &history.blocked {
        owners.block(name, addresses);
        kept.insert(name, Vec::new());
    }
    let new = || claims.values().filter(|claim| !kept.contains_key(&claim.name));
    order.extend(new().filter(|claim| !claim.wanted.is_empty()));
    order.extend(new().filter(|claim| claim.wanted.is_empty()));
    let mut outcomes = BTreeMap::new();
    for claim in order {
        let keeps = kept.get(&claim.name).map(Vec::as_slice).unwrap_or_default();
        let suits = |address: &&IpAddr| {
            pools.suit(claim, **address) && (claim.wanted.is_empty() || claim.wanted.contains(address))
        };
        let suitable: Vec<IpAddr> = keeps.iter().filter(suits).copied().collect();
        let outcome = match owners.grant(pools, claim, &suitable) {
            Ok(addresses) => {
                owners.give(claim, &addresses);
                Outcome { addresses: in_order(addresses, keeps), refusal: None }
            }
            Err(refusal) => Outcome { addresses: keeps.to_vec(), refusal: Some(refusal) },
        };
        outcomes.insert(claim.name.clone(), outcome);
    }
    outcomes
}

/// The same addresses, those that were there first and as they were.
fn in_order(addresses: Vec<IpAddr>, before: &[IpAddr]) -> Vec<IpAddr> {
    let (mut old, new): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| before.contains(address));
    old.sort_by_key(|address| before.iter().position(|other| other == address));
    old.extend(new);
    old
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;

    const FILE: &str = "\
pools:
- name: small
  addresses: [203.0.113.0-203.0.113.5, '2001:db8::1-2001:db8::3']
- name: shop
  addresses: [10.200.0.0/30]
  namespaces: [shop]
";

    fn pools() -> Pools {
        Pools::parse(FILE).expect("a good file")
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn claim(text: &str) -> Claim {
        Claim::plain(name(text))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(ip).collect()
    }

    fn renewed(claims: &[Claim], held: &[(&str, &str)], history: History) -> BTreeMap<String, Outcome> {
        let claims = claims.iter().map(|claim| (claim.name.clone(), claim.clone())).collect();
        let held = held.iter().map(|(who, what)| (name(who), ips(what))).collect();
        let outcomes = renew(&pools(), &claims, &History { held, ..history });
        outcomes.into_iter().map(|(name, outcome)| (name.name.to_string(), outcome)).collect()
    }

    fn after(claims: &[Claim], held: &[(&str, &str)]) -> BTreeMap<String, Outcome> {
        renewed(claims, held, History::default())
    }

    fn gets(outcomes: &BTreeMap<String, Outcome>, who: &str) -> (Vec<IpAddr>, bool) {
        let Outcome { addresses, refusal } = &outcomes[who];
        (addresses.clone(), refusal.is_none())
    }

    #[test]
    fn what_one_has_one_keeps_and_a_wish_for_it_waits() {
        let wants = Claim { wanted: ips("203.0.113.1"), ..claim("a") };
        let outcomes = after(&[wants, claim("b")], &[("b", "203.0.113.1")]);
        assert_eq!(gets(&outcomes, "b"), (ips("203.0.113.1"), true));
        assert_eq!(gets(&outcomes, "a"), (Vec::new(), false));
    }

    #[test]
    fn a_wish_that_cannot_be_granted_costs_nothing() {
        let wants = Claim { wanted: ips("192.0.2.1"), ..claim("a") };
        assert_eq!(gets(&after(&[wants], &[("a", "203.0.113.1")]), "a"), (ips("203.0.113.1"), false));
        let elsewhere = Claim { pool: Some("none".into()), ..claim("a") };
        assert_eq!(gets(&after(&[elsewhere], &[("a", "203.0.113.1")]), "a"), (ips("203.0.113.1"), false));
        let moves = Claim { pool: Some("shop".into()), ..claim("a") };
        let (now, right) = gets(&after(&[moves], &[("a", "203.0.113.1")]), "a");
        assert!(right && now.len() == 1 && now != ips("203.0.113.1"), "{now:?}");
    }

    #[test]
    fn a_family_that_is_added_gets_an_address_and_one_that_goes_loses_its() {
        let both = Claim { families: vec![Family::V6, Family::V4], ..claim("a") };
        let (addresses, right) = gets(&after(&[both], &[("a", "203.0.113.1")]), "a");
        assert!(right && addresses[0] == ip("203.0.113.1") && addresses.len() == 2 && addresses[1].is_ipv6());
        let held = [("a", "2001:db8::1 203.0.113.1")];
        assert_eq!(gets(&after(&[claim("a")], &held), "a"), (ips("203.0.113.1"), true));
    }

    #[test]
    fn what_the_pools_do_not_give_any_more_is_lost_but_not_at_once() {
        let held = [("a", "192.0.2.1")];
        let (addresses, right) = gets(&after(&[claim("a")], &held), "a");
        assert!(right && addresses != ips("192.0.2.1"));
        let lenient = renewed(&[claim("a")], &held, History { lenient: true, ..History::default() });
        assert_eq!(gets(&lenient, "a"), (ips("192.0.2.1"), true));
    }

    #[test]
    fn what_is_to_be_lost_is_nobody_elses_yet() {
        // Of two that share and now meet at a port, the second one moves.
        let shares = |who| Claim { share: Some("k".into()), ..claim(who) };
        let held = [("b", "203.0.113.1"), ("a", "203.0.113.1")];
        let outcomes = after(&[shares("a"), shares("b")], &held);
        assert_eq!(gets(&outcomes, "b"), (ips("203.0.113.1"), true));
        let (moved, right) = gets(&outcomes, "a");
        assert!(right && moved != ips("203.0.113.1"));
        // `a` leaves the family; what it still has cannot be asked for.
        let leaves = Claim { families: vec![Family::V6], ..claim("a") };
        let wants = Claim { wanted: ips("203.0.113.1"), ..claim("b") };
        assert_eq!(gets(&after(&[leaves, wants], &[("a", "203.0.113.1")]), "b"), (Vec::new(), false));
    }

    #[test]
    fn what_is_fixed_is_shared_with_those_who_may_and_nobody_else() {
        let shares = |who, port| Claim { share: Some("k".into()), ports: vec![(Protocol::Tcp, port)], ..claim(who) };
        let fixed = vec![(name("a"), ips("203.0.113.1"))];
        let blocked = vec![(name("foreign"), ips("203.0.113.2"))];
        let wants = Claim { wanted: ips("203.0.113.2"), ..claim("c") };
        let claims = [shares("a", 80), shares("b", 81), wants];
        let outcomes = renewed(&claims, &[], History { fixed, blocked, ..History::default() });
        assert_eq!(gets(&outcomes, "b"), (ips("203.0.113.1"), true));
        assert_eq!(gets(&outcomes, "c"), (Vec::new(), false));
        assert!(!outcomes.contains_key("a"), "it is not decided about");
    }

    fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (0..20_u8, 0..3_u8, any::<bool>(), prop::option::of(0..8_u8), prop::option::of(0..2_u8), 0..3_u16);
        prop::collection::vec(one, 0..30).prop_map(|all| {
            let claims = all.into_iter().map(|(who, families, all_families, wanted, share, port)| Claim {
                families: [&[Family::V4][..], &[Family::V6], &[Family::V6, Family::V4]][usize::from(families)].to_vec(),
                all_families,
                wanted: wanted.map(|n| IpAddr::from([203, 0, 113, n])).into_iter().collect(),
                share: share.map(|share| share.to_string().into()),
                ports: vec![(Protocol::Tcp, port)],
                ..claim(&format!("web-{who}"))
            });
            claims.collect()
        })
    }

    proptest! {
        /// Claims change under what was given for others before them.
        #[test]
        fn nobody_meets_at_an_address_and_nothing_moves_twice(before in any_claims(), now in any_claims()) {
            let by_name = |claims: Vec<Claim>| -> BTreeMap<ObjectName, Claim> {
                claims.into_iter().map(|claim| (claim.name.clone(), claim)).collect()
            };
            let (before, now) = (by_name(before), by_name(now));
            let held = |outcomes: BTreeMap<ObjectName, Outcome>| -> Vec<(ObjectName, Vec<IpAddr>)> {
                let had = outcomes.into_iter().map(|(name, outcome)| (name, outcome.addresses));
                had.filter(|(_, addresses)| !addresses.is_empty()).collect()
            };
            let first = held(renew(&pools(), &before, &History::default()));
            let history = History { held: first.clone(), ..History::default() };
            let second = renew(&pools(), &now, &history);
            let mut ports = BTreeSet::new();
            for (name, outcome) in &second {
                let claim = &now[name];
                let families: BTreeSet<bool> = outcome.addresses.iter().map(IpAddr::is_ipv4).collect();
                prop_assert_eq!(families.len(), outcome.addresses.len(), "two of one family");
                prop_assert!(outcome.refusal.is_some() || !outcome.addresses.is_empty());
                for address in &outcome.addresses {
                    prop_assert!(pools().contain(*address) && claim.families.contains(&Family::of(*address)));
                    for port in &claim.ports {
                        prop_assert!(ports.insert((*address, *port)), "{} twice", address);
                    }
                    let is_new = !first.iter().any(|(who, had)| who == name && had.contains(address));
                    let others = first.iter().filter(|(other, had)| is_new && other != name && had.contains(address));
                    for (other, _) in others {
                        let may = claim.share.is_some() && now.get(other).is_some_and(|other| other.share == claim.share);
                        prop_assert!(may, "{} was taken from {} in one step", address, other);
                    }
                }
            }
            // Once everybody has what is theirs, there is nothing to do any more.
            let mut settled = held(second);
            for _ in 0..4 {
                let history = History { held: settled.clone(), ..History::default() };
                settled = held(renew(&pools(), &now, &history));
            }
            let history = History { held: settled.clone(), ..History::default() };
            prop_assert_eq!(held(renew(&pools(), &now, &history)), settled);
        }
    }
}
