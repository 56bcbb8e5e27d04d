//! The pools file: names, addresses, and whose Services may have them. Understood as a whole or not at all.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde::Deserialize;
use serde_saphyr::{Options, Spanned};

use crate::model::{Claim, Family};

/// Pools in the order of the file, which is the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    pub(super) pools: Vec<Pool>,
}

/// One pool.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) name: Arc<str>,
    /// Sorted, without overlaps.
    pub(super) ranges: Vec<Range>,
    /// Empty: every namespace.
    namespaces: BTreeSet<String>,
    selector: Selector,
    layer2: Option<Layer2>,
}

/// How addresses of a pool are announced in the networks of their nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer2 {
    /// Names of the uplinks; empty: all.
    pub(super) interfaces: BTreeSet<String>,
    /// Names of the nodes that may answer, never empty.
    pub(super) nodes: BTreeSet<Arc<str>>,
}

/// Addresses of one family from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct PoolsError {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pools: Vec<Spanned<PoolEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PoolEntry {
    name: Spanned<String>,
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    namespaces: Vec<String>,
    service_selector: Option<Spanned<LabelSelector>>,
    announce: Option<AnnounceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnnounceEntry {
    layer2: Spanned<Layer2Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer2Entry {
    #[serde(default)]
    interfaces: BTreeSet<String>,
    #[serde(default)]
    nodes: BTreeSet<String>,
}

impl Pools {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, PoolsError> {
        let mut options = Options::default();
        options.with_snippet = false;
        let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |at| (at.line().max(1), at.column().max(1)));
            let message = error.without_snippet().to_string();
            let message = message.split(" at line ").next().unwrap_or_default().trim_start_matches("error: ");
            PoolsError { line, column, message: message.replace('\n', " ") }
        })?;
        let mut pools: Vec<Pool> = Vec::new();
        for entry in file.pools {
            let pool = entry.value.check(&entry.referenced, &pools)?;
            pools.push(pool);
        }
        Ok(Self { pools })
    }

    /// True if one of them has the address.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(address))
    }

    /// True if the file lets the Service have the address.
    pub(super) fn allow(&self, claim: &Claim, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(address) && pool.is_for(claim))
    }

    /// True if the address is not of another pool than the Service asks for.
    pub(super) fn suit(&self, claim: &Claim, address: IpAddr) -> bool {
        self.pools.iter().all(|pool| !pool.contains(address) || pool.is_wished(claim))
    }

    /// How an address is announced, if it is.
    pub(super) fn layer2(&self, address: IpAddr) -> Option<&Layer2> {
        self.pools.iter().find(|pool| pool.contains(address))?.layer2.as_ref()
    }

    /// The pools that a Service may have addresses of, in their order.
    pub fn of<'a>(&'a self, claim: &'a Claim) -> impl Iterator<Item = &'a Pool> {
        self.pools.iter().filter(|pool| pool.admits(claim))
    }
}

fn wrong(at: &serde_saphyr::Location, message: String) -> PoolsError {
    PoolsError { line: at.line().max(1), column: at.column().max(1), message }
}

impl PoolEntry {
    fn check(self, at: &serde_saphyr::Location, others: &[Pool]) -> Result<Pool, PoolsError> {
        let name = self.name.value;
        if name.is_empty() || name.len() > 63 || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
            let message = format!("{name:?} is no name of a pool: use letters, digits and hyphens, at most 63");
            return Err(wrong(&self.name.referenced, message));
        }
        if others.iter().any(|other| *other.name == name) {
            return Err(wrong(&self.name.referenced, format!("there are two pools {name}: give each its own name")));
        }
        if self.addresses.is_empty() {
            return Err(wrong(at, format!("pool {name} has no addresses: give it prefixes or ranges")));
        }
        let mut ranges: Vec<Range> = Vec::new();
        for text in self.addresses {
            let range = text.value.parse::<Range>().map_err(|message| wrong(&text.referenced, message))?;
            let known = ranges.iter().map(|range| (&*name, range));
            let elsewhere = others.iter().flat_map(|other| other.ranges.iter().map(|range| (&*other.name, range)));
            if let Some((owner, other)) = known.chain(elsewhere).find(|(_, other)| other.overlaps(&range)) {
                let message = format!("{range} and {other} of pool {owner} overlap: an address is of one pool, once");
                return Err(wrong(&text.referenced, message));
            }
            ranges.push(range);
        }
        ranges.sort_unstable();
        let selector = match self.service_selector {
            None => Selector::default(),
            Some(selector) => Selector::try_from(selector.value)
                .map_err(|error| wrong(&selector.referenced, format!("serviceSelector of pool {name}: {error}")))?,
        };
        let layer2 = self.announce.map(|announce| announce.check(&name)).transpose()?;
        Ok(Pool { name: name.into(), ranges, namespaces: self.namespaces.into_iter().collect(), selector, layer2 })
    }
}

impl AnnounceEntry {
    fn check(self, pool: &str) -> Result<Layer2, PoolsError> {
        let Spanned { value: Layer2Entry { interfaces, nodes }, referenced, .. } = self.layer2;
        if nodes.is_empty() {
            let message =
                format!("pool {pool} is announced by nobody: name the nodes that may answer for its addresses");
            return Err(wrong(&referenced, message));
        }
        Ok(Layer2 { interfaces, nodes: nodes.into_iter().map(Arc::from).collect() })
    }
}

impl Pool {
    fn admits(&self, claim: &Claim) -> bool {
        self.is_for(claim) && self.is_wished(claim)
    }

    /// True if the file lets the Service have its addresses.
    fn is_for(&self, claim: &Claim) -> bool {
        (self.namespaces.is_empty() || self.namespaces.contains(&*claim.name.namespace))
            && self.selector.matches(&claim.labels)
    }

    /// True if the Service does not ask for another pool's.
    fn is_wished(&self, claim: &Claim) -> bool {
        claim.pool.as_deref().is_none_or(|pool| *pool == *self.name)
    }

    /// True if it has the address.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Number of its addresses of a family; as many as can be counted.
    pub(super) fn size(&self, family: Family) -> u128 {
        self.of(family).fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// Its nth address of a family, from 0; `None` beyond the last.
    pub(super) fn nth(&self, family: Family, mut n: u128) -> Option<IpAddr> {
        for range in self.of(family) {
            if n < range.size() {
                return Some(number_to_address(family, to_number(range.first) + n));
            }
            n -= range.size();
        }
        None
    }

    fn of(&self, family: Family) -> impl Iterator<Item = &Range> {
        self.ranges.iter().filter(move |range| Family::of(range.first) == family)
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn number_to_address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

impl Range {
    fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first) && self.first <= address && address <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        Family::of(self.first) == Family::of(other.first) && self.first <= other.last && other.first <= self.last
    }

    fn size(&self) -> u128 {
        (to_number(self.last) - to_number(self.first)).saturating_add(1)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            || format!("{text:?}: write a prefix (203.0.113.0/28), a range (203.0.113.1-203.0.113.9) or an address");
        let text = text.trim();
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            let bound = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| form());
            (bound(first)?, bound(last)?)
        } else if let Ok(prefix) = text.parse::<IpNet>() {
            if prefix.addr() != prefix.network() {
                return Err(format!("{text:?} has bits set behind its prefix: write {}", prefix.trunc()));
            }
            match prefix {
                IpNet::V4(prefix) => (prefix.network().into(), prefix.broadcast().into()),
                IpNet::V6(prefix) => (prefix.network().into(), prefix.broadcast().into()),
            }
        } else {
            let address: IpAddr = text.parse().map_err(|_| form())?;
            (address, address)
        };
        if Family::of(first) != Family::of(last) || first > last {
            return Err(format!("{text:?}: the first address comes before the last, and both are of one family"));
        }
        for address in [first, last] {
            if !is_unicast(address) {
                return Err(format!("{text:?}: {address} is no address that packets can be sent to from elsewhere"));
            }
        }
        Ok(Self { first, last })
    }
}

/// False for what no Service can have: unspecified, loopback, link-local, multicast, broadcast.
fn is_unicast(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    const FILE: &str = "\
pools:
- name: public
  addresses: [203.0.113.0/28, 203.0.113.100-203.0.113.102, '2001:db8:f::/64']
- name: inner
  addresses: [10.200.0.5]
  namespaces: [shop]
  serviceSelector:
    matchLabels: {tier: inner}
";

    fn claim(namespace: &str, labels: &[(&str, &str)]) -> Claim {
        Claim {
            name: ObjectName { namespace: namespace.into(), name: "web".into() },
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            families: vec![Family::V4],
            all_families: false,
            wanted: Vec::new(),
            pool: None,
            share: None,
            ports: Vec::new(),
        }
    }

    fn names(pools: &Pools, claim: &Claim) -> Vec<String> {
        pools.of(claim).map(|pool| pool.name.to_string()).collect()
    }

    #[test]
    fn a_file_is_read_with_prefixes_ranges_addresses_and_selectors() -> Result<(), PoolsError> {
        let pools = Pools::parse(FILE)?;
        let public = &pools.pools[0];
        assert_eq!((public.size(Family::V4), public.size(Family::V6)), (19, 1 << 64));
        assert_eq!(public.nth(Family::V4, 16), "203.0.113.100".parse().ok());
        assert_eq!(public.nth(Family::V4, 19), None);
        assert_eq!(public.nth(Family::V6, 1), "2001:db8:f::1".parse().ok());
        assert_eq!(names(&pools, &claim("shop", &[("tier", "inner")])), ["public", "inner"]);
        assert_eq!(names(&pools, &claim("shop", &[])), ["public"]);
        assert_eq!(names(&pools, &claim("other", &[("tier", "inner")])), ["public"]);
        let one = Claim { pool: Some("inner".into()), ..claim("shop", &[("tier", "inner")]) };
        assert_eq!(names(&pools, &one), ["inner"]);
        Ok(())
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let cases = [
            ("pools:\n- name: a\n  addresses: [10.0.0.1/24]\n", 3, "write 10.0.0.0/24"),
            ("pools:\n- name: a\n  addresses: [10.0.0.9-10.0.0.1]\n", 3, "comes before"),
            ("pools:\n- name: a\n  addresses: [10.0.0.1]\n- name: a\n  addresses: [10.0.0.2]\n", 4, "two pools a"),
            (
                "pools:\n- name: a\n  addresses: [10.0.0.0/24]\n- name: b\n  addresses: [10.0.0.7]\n",
                5,
                "pool a overlap",
            ),
            ("pools:\n- name: a\n  addresses: [224.0.0.1]\n", 3, "no address that packets"),
            ("pools:\n- name: a\n  addresses: []\n", 2, "no addresses"),
            ("pools:\n- name: a b\n  addresses: [10.0.0.1]\n", 2, "no name"),
            ("pools:\n- name: a\n  adresses: [10.0.0.1]\n", 3, "adresses"),
            ("pools: 7\n", 1, ""),
            (
                "pools:\n- name: a\n  addresses: [10.0.0.1]\n  serviceSelector:\n    matchExpressions: [{key: a, operator: Near}]\n",
                5,
                "serviceSelector",
            ),
        ];
        for (text, line, part) in cases {
            let error = Pools::parse(text).expect_err(text);
            assert!(error.line.abs_diff(line) <= 1 && error.message.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_pools_of_the_overlay_are_good() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/overlays/pools/pools.yaml");
        let map: serde_json::Value =
            serde_saphyr::from_str(&std::fs::read_to_string(path).expect("a file")).expect("YAML");
        let pools = Pools::parse(map["data"]["pools.yaml"].as_str().expect("a text")).expect("good pools");
        assert_eq!(pools.pools.len(), 1);
    }
}
