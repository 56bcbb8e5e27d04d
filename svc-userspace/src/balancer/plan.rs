//! Who gets which address: a pure function of the pools and of what Services ask for.
//!
//! It depends on nothing else, neither on order of arrival nor on what was given before, so that all nodes that read the
//! same manifests come to the same result. Who asks for an address by name gets it before those who do not; among equals
//! the name of the Service decides. Each Service begins to look at an address of its own, found by hashing its name, so
//! that one that comes or goes rarely moves another.

use std::collections::BTreeMap;

use super::{
    owners::{Grant, Owners},
    pools::Pools,
};
use crate::model::{Claim, ObjectName};

/// Grants what can be granted.
pub fn plan(pools: &Pools, claims: &BTreeMap<ObjectName, Claim>) -> BTreeMap<ObjectName, Grant> {
    let mut owners = Owners::default();
    let mut grants = BTreeMap::new();
    let (asking, others): (Vec<&Claim>, Vec<&Claim>) = claims.values().partition(|claim| !claim.wanted.is_empty());
    for claim in asking.into_iter().chain(others) {
        let grant = owners.grant(pools, claim, &[]);
        if let Ok(addresses) = &grant {
            owners.give(claim, addresses);
        }
        grants.insert(claim.name.clone(), grant);
    }
    grants
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeSet, HashMap},
        net::IpAddr,
        sync::Arc,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        balancer::owners::Refusal,
        model::{Family, Protocol},
    };

    const FILE: &str = "\
pools:
- name: small
  addresses: [203.0.113.0-203.0.113.9, '2001:db8::1-2001:db8::5']
- name: shop
  addresses: [10.200.0.0/30]
  namespaces: [shop]
";

    fn pools() -> Pools {
        Pools::parse(FILE).expect("a good file")
    }

    fn claim(name: &str) -> Claim {
        Claim::plain(ObjectName::new("shop", name))
    }

    fn planned(claims: &[Claim]) -> BTreeMap<String, Grant> {
        let claims = claims.iter().map(|claim| (claim.name.clone(), claim.clone())).collect();
        plan(&pools(), &claims).into_iter().map(|(name, grant)| (name.name.to_string(), grant)).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_wanted_address_goes_to_who_asked_for_it() {
        let wanted = |name: &str, address: &str| Claim { wanted: vec![ip(address)], ..claim(name) };
        let plan =
            planned(&[claim("a"), wanted("b", "203.0.113.3"), wanted("c", "203.0.113.3"), wanted("d", "192.0.2.1")]);
        assert_eq!(plan["b"], Ok(vec![ip("203.0.113.3")]));
        let owner = ObjectName::new("shop", "b");
        assert_eq!(plan["c"], Err(Refusal::Taken { address: ip("203.0.113.3"), owner }));
        assert_eq!(plan["d"], Err(Refusal::Foreign(ip("192.0.2.1"))));
        assert!(plan["a"].as_ref().is_ok_and(|addresses| addresses[0] != ip("203.0.113.3")));
        let both = Claim { wanted: vec![ip("203.0.113.1"), ip("203.0.113.2")], ..claim("e") };
        assert_eq!(planned(&[both])["e"], Err(Refusal::Surplus(ip("203.0.113.2"))));
    }

    #[test]
    fn services_of_one_key_share_an_address_unless_a_port_is_in_common() {
        let shared =
            |name: &str, port| Claim { share: Some("dns".into()), ports: vec![(Protocol::Udp, port)], ..claim(name) };
        let plan = planned(&[shared("a", 53), shared("b", 853), shared("c", 53)]);
        assert_eq!(plan["a"], plan["b"]);
        assert_ne!(plan["a"], plan["c"]);
    }

    #[test]
    fn dual_stack_is_granted_as_far_as_it_must_be() {
        let only_four = Claim { pool: Some("shop".into()), families: vec![Family::V4, Family::V6], ..claim("a") };
        assert_eq!(planned(std::slice::from_ref(&only_four))["a"].as_ref().map(Vec::len), Ok(1));
        let required = Claim { all_families: true, ..only_four };
        let refused = Refusal::Exhausted { pools: "shop".to_owned(), family: "IPv6" };
        assert_eq!(planned(&[required])["a"], Err(refused));
        assert_eq!(planned(&[Claim { pool: Some("none".into()), ..claim("a") }])["a"], Err(Refusal::NoPool));
    }

    #[test]
    fn thousands_ask_for_two_addresses_and_two_get_one() {
        let claims: Vec<Claim> =
            (0..3000).map(|n| Claim { pool: Some("shop".into()), ..claim(&format!("web-{n}")) }).collect();
        let plan = planned(&claims);
        assert_eq!(plan.values().filter(|grant| grant.is_ok()).count(), 4);
    }

    fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (0..40_u8, 0..3_u8, any::<bool>(), prop::option::of(0..14_u8), prop::option::of(0..2_u8), 0..3_u16);
        prop::collection::vec(one, 0..40).prop_map(|all| {
            let claim =
                |(name, families, all_families, wanted, share, port): (u8, u8, bool, Option<u8>, Option<u8>, u16)| {
                    Claim {
                        families: [&[Family::V4][..], &[Family::V6], &[Family::V6, Family::V4]][usize::from(families)]
                            .to_vec(),
                        all_families,
                        wanted: wanted.map(|n| IpAddr::from([203, 0, 113, n])).into_iter().collect(),
                        share: share.map(|share| share.to_string().into()),
                        ports: vec![(Protocol::Tcp, port)],
                        ..claim(&format!("web-{name}"))
                    }
                };
            all.into_iter().map(claim).collect()
        })
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners_who_would_meet(claims in any_claims()) {
            let claims: BTreeMap<ObjectName, Claim> = claims.into_iter().map(|claim| (claim.name.clone(), claim)).collect();
            let plan = plan(&pools(), &claims);
            let mut ports = BTreeSet::new();
            let mut keys: HashMap<IpAddr, Option<Arc<str>>> = HashMap::new();
            prop_assert_eq!(plan.len(), claims.len());
            for (name, grant) in &plan {
                let Ok(addresses) = grant else { continue };
                let claim = &claims[name];
                prop_assert!(!addresses.is_empty());
                let families: BTreeSet<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
                prop_assert_eq!(families.len(), addresses.len(), "two of one family");
                prop_assert!(!claim.all_families || !claim.wanted.is_empty() || addresses.len() == claim.families.len());
                for address in addresses {
                    prop_assert!(pools().pools.iter().any(|pool| pool.contains(*address)));
                    prop_assert!(claim.families.contains(&Family::of(*address)));
                    for port in &claim.ports {
                        prop_assert!(ports.insert((*address, *port)), "{} twice", address);
                    }
                    let first = keys.entry(*address).or_insert_with(|| claim.share.clone());
                    prop_assert!(*first == claim.share && (claim.share.is_some() || addresses.len() <= 2));
                }
            }
            // Without a key nobody shares at all.
            let alone: Vec<IpAddr> = plan.iter().filter(|(name, _)| claims[*name].share.is_none())
                .filter_map(|(_, grant)| grant.as_ref().ok()).flatten().copied().collect();
            prop_assert_eq!(alone.iter().collect::<BTreeSet<_>>().len(), alone.len());
        }

        #[test]
        fn somebody_who_goes_takes_nothing_from_those_who_asked(claims in any_claims(), gone in 0..40_usize) {
            let mut claims: BTreeMap<ObjectName, Claim> = claims.into_iter().map(|claim| (claim.name.clone(), claim)).collect();
            let before = plan(&pools(), &claims);
            let Some(name) = claims.keys().nth(gone).cloned() else { return Ok(()) };
            claims.remove(&name);
            let after = plan(&pools(), &claims);
            for (name, claim) in &claims {
                if before[name].is_ok() && !claim.wanted.is_empty() {
                    prop_assert_eq!(&after[name], &before[name]);
                }
            }
        }
    }
}
