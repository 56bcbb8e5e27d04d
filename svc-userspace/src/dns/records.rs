//! From the objects of one Service to its records: pure.
//!
//! It decides which records there are, and keeps them so that a question needs no search of the whole Service. It never
//! writes a DNS message and knows no other Service.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::names::{from_dashes, with_dashes};
use crate::{
    model::{ObjectName, Protocol, Slice, Unbalanced, is_label, is_object_label, is_port_label},
    world::World,
};

/// The records of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// It has addresses of its own.
    Virtual {
        /// One of each family at most, IPv4 first.
        addresses: Vec<IpAddr>,
        /// Named ports.
        ports: Vec<Port>,
    },
    /// Its ready endpoints; at least one.
    Headless(Members),
    /// It stands for another name, without the dot at its end.
    Alias(Arc<str>),
}

/// A named port, which has an SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name in small letters, without the underscore.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number, *host order*.
    pub number: u16,
}

/// A ready endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its address.
    pub address: IpAddr,
    /// Its name in small letters; `None`: it is called by its address.
    pub hostname: Option<Arc<str>>,
}

/// Indices of endpoints, and the number that a port has there.
type Having = Vec<(u32, u16)>;

/// The ready endpoints of a headless Service, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Sorted by address, IPv4 first; one address may have several names.
    all: Vec<Member>,
    /// Their addresses, each once.
    addresses: Vec<IpAddr>,
    /// Indices of those with a name, sorted by it.
    named: Vec<u32>,
    /// By protocol and name of a port: who has it (an index; of several with one name, the first), and its number.
    ports: BTreeMap<(Protocol, Arc<str>), Having>,
    /// Entries of slices' ports that were left out of it.
    left_out: usize,
}

/// Most records of the named ports of one Service, one for each port and endpoint: more would hold up everybody's changes. An
/// answer has room for a hundred or so.
const MOST_PORT_RECORDS: usize = 65_536;

impl Records {
    /// The records of a Service as it is now; `None`: it has none.
    pub fn of(world: &World, name: &ObjectName) -> Option<Self> {
        if !is_object_label(&name.name) || !is_object_label(&name.namespace) {
            return None;
        }
        if let Some(service) = world.service(name) {
            let ports = service.ports.iter().filter_map(|port| named_port(&port.name, port.protocol, port.port));
            return Some(Self::with_addresses(service.cluster_ips.clone(), ports.collect()));
        }
        match world.unbalanced(name)? {
            Unbalanced::ExternalName(target) => Some(Self::Alias(target.clone())),
            Unbalanced::Elsewhere { cluster_ips, ports } => {
                let ports = ports.iter().filter_map(|port| named_port(&port.name, port.protocol, port.port));
                Some(Self::with_addresses(cluster_ips.clone(), ports.collect()))
            }
            Unbalanced::Headless => {
                let slices: Vec<&Slice> = world.every_slice_of(name).collect();
                let members = Members::of(&slices);
                (!members.all.is_empty()).then_some(Self::Headless(members))
            }
        }
    }

    fn with_addresses(mut addresses: Vec<IpAddr>, mut ports: Vec<Port>) -> Self {
        addresses.sort_unstable();
        // Names that differ in case alone are one.
        ports.sort();
        ports.dedup();
        Self::Virtual { addresses, ports }
    }

    /// Addresses that the name of the Service has, sorted, each once.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Virtual { addresses, .. } => addresses,
            Self::Headless(members) => &members.addresses,
            Self::Alias(_) => &[],
        }
    }
}

/// A port that has a name which DNS can have.
fn named_port(name: &str, protocol: Protocol, number: u16) -> Option<Port> {
    is_port_label(name).then(|| Port { name: name.to_ascii_lowercase().into(), protocol, number })
}

impl Members {
    fn of(slices: &[&Slice]) -> Self {
        // Names that look like addresses: whoever is called by such an address shares that name.
        let taken: HashSet<Arc<str>> =
            slices.iter().flat_map(|slice| ready(slice)).filter_map(|it| it.hostname).collect();
        let taken: HashSet<Arc<str>> = taken.into_iter().filter(|name| from_dashes(name).is_some()).collect();
        let ready = |slice| {
            ready(slice).map(|mut member| {
                if member.hostname.is_none() && !taken.is_empty() {
                    member.hostname = taken.get(&*with_dashes(member.address)).cloned();
                }
                member
            })
        };
        let mut all: Vec<Member> = slices.iter().flat_map(|slice| ready(slice)).collect();
        all.sort();
        all.dedup();
        let mut addresses: Vec<IpAddr> = all.iter().map(|member| member.address).collect();
        addresses.dedup();
        let mut named: Vec<u32> = (0..).zip(&all).filter(|(_, it)| it.hostname.is_some()).map(|(i, _)| i).collect();
        named.sort_by_key(|&index| hostname(&all, index));
        let mut members = Self { all, addresses, named, ports: BTreeMap::new(), left_out: 0 };
        let mut room = MOST_PORT_RECORDS;
        for slice in slices {
            let endpoints = ready(slice).count();
            for port in slice.ports.iter().filter_map(|port| named_port(&port.name, port.protocol, port.port)) {
                let Some(left) = room.checked_sub(endpoints) else {
                    members.left_out += 1;
                    continue;
                };
                room = left;
                let having: Vec<_> =
                    ready(slice).filter_map(|it| Some((members.first_of(&it)?, port.number))).collect();
                if !having.is_empty() {
                    members.ports.entry((port.protocol, port.name)).or_default().extend(having);
                }
            }
        }
        for having in members.ports.values_mut() {
            having.sort_unstable();
            having.dedup();
        }
        members
    }

    /// Index of the first one with the same name: several addresses of one name are one target.
    fn first_of(&self, member: &Member) -> Option<u32> {
        match &member.hostname {
            Some(name) => self.named.get(self.start_of(name)).copied(),
            None => self.all.binary_search(member).ok().and_then(|index| u32::try_from(index).ok()),
        }
    }

    fn start_of(&self, name: &str) -> usize {
        self.named.partition_point(|&index| hostname(&self.all, index) < Some(name))
    }

    /// How many ports of slices have no records because there would be too many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// All of them, sorted by address.
    pub fn all(&self) -> &[Member] {
        &self.all
    }

    /// Those of an address.
    pub fn at(&self, address: IpAddr) -> &[Member] {
        let start = self.all.partition_point(|member| member.address < address);
        let rest = self.all.get(start..).unwrap_or_default();
        rest.get(..rest.partition_point(|member| member.address == address)).unwrap_or_default()
    }

    /// Those of a name in small letters, by address; those without a name of their own excluded.
    pub fn called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Member> {
        let rest = self.named.get(self.start_of(name)..).unwrap_or_default();
        let rest = rest.iter().filter_map(|&index| self.all.get(index as usize));
        rest.take_while(move |member| member.hostname.as_deref() == Some(name))
    }

    /// Who has a named port, and with which number.
    pub fn with_port(&self, protocol: Protocol, name: &str) -> &[(u32, u16)] {
        // The key owns its name; looking up by a borrowed one takes a range.
        let found = self.ports.range((protocol, Arc::from(name))..).next();
        found.filter(|((p, n), _)| *p == protocol && **n == *name).map_or(&[], |(_, having)| having)
    }

    /// Whether one of them has a named port of this protocol.
    pub fn has_protocol(&self, protocol: Protocol) -> bool {
        self.ports.keys().any(|(p, _)| *p == protocol)
    }
}

fn hostname(all: &[Member], index: u32) -> Option<&str> {
    all.get(index as usize).and_then(|member| member.hostname.as_deref())
}

/// The ready endpoints of a slice.
fn ready(slice: &Slice) -> impl Iterator<Item = Member> {
    let endpoints = slice.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.ready);
    endpoints.map(|(i, endpoint)| {
        let hostname = slice.hostnames.get(i).cloned().flatten().filter(|name| is_label(name)).map(lower);
        Member { address: endpoint.address, hostname }
    })
}

fn lower(name: Arc<str>) -> Arc<str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Family, NameList, SlicePort};

    fn slice(ports: u16, endpoints: u16) -> Slice {
        let endpoint = |nth: u16| Endpoint {
            address: [10, 0, (nth >> 8) as u8, nth as u8].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hint_nodes: NameList::default(),
            hint_zones: NameList::default(),
        };
        let port =
            |number: u16| SlicePort { name: format!("port-{number}").into(), protocol: Protocol::Tcp, port: number };
        Slice {
            name: ObjectName::new("ns", "s-1"),
            service: ObjectName::new("ns", "s"),
            family: Family::V4,
            ports: (1..=ports).map(port).collect(),
            endpoints: (1..=endpoints).map(endpoint).collect(),
            headless: true,
            hostnames: vec![],
            triggered_ms: None,
        }
    }

    #[test]
    fn ports_beyond_what_a_service_may_have_are_left_out_and_counted() {
        let members = Members::of(&[&slice(100, 600)]);
        assert_eq!((members.ports.len(), members.left_out()), (100, 0));
        let members = Members::of(&[&slice(10_000, 600)]);
        let kept = MOST_PORT_RECORDS / 600;
        assert_eq!((members.ports.len(), members.left_out()), (kept, 10_000 - kept));
        assert_eq!((members.all().len(), members.with_port(Protocol::Tcp, "port-1").len()), (600, 600));
        assert_eq!(members.with_port(Protocol::Tcp, "port-9999"), []);
    }
}
