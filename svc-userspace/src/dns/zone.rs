//! The records of all Services, and who has which address: question in, answer out, pure.
//!
//! It is changed one Service at a time, with work in proportion to that Service. It knows no sizes and no messages.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use hickory_proto::{
    ProtoError,
    rr::{
        Name, RData, RecordType,
        rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT},
    },
};

use super::{
    names::{Asked, Labels, Place, below, from_dashes, with_dashes},
    records::{Member, Records},
};
use crate::model::{ObjectName, Protocol};

/// Time to live of answers, seconds: what an endpoint that is gone is asked for in vain at most.
pub const TTL: u32 = 5;
/// Time to live of the version of the schema, seconds.
pub const VERSION_TTL: u32 = 28_800;
/// Version of the schema.
pub const VERSION: &str = "1.1.0";

/// The answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The name is none of ours.
    Elsewhere,
    /// It would be ours, and it is too early to tell.
    NotYet,
    /// It does not exist: NXDOMAIN.
    NoName,
    /// It exists, without such a record.
    NoData,
    /// These records.
    Data(Data),
    /// It stands for another name, which the question goes on with.
    Alias(Name),
}

/// Records of one name and type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Data {
    /// As many as were asked for, beginning with another one each turn.
    pub records: Vec<RData>,
    /// How many there are.
    pub total: usize,
    /// Time to live, seconds.
    pub ttl: u32,
    /// Addresses of names in the records.
    pub additional: Vec<(Name, IpAddr)>,
}

/// How many records, and from which on.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Number of the question: the first record is this one, counted around.
    pub turn: usize,
    /// At most this many.
    pub most: usize,
}

/// All records.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    labels: Labels,
    /// By namespace and name.
    services: HashMap<Arc<str>, HashMap<Arc<str>, Records>>,
    count: usize,
    /// Services that have an address. Nearly always one.
    owners: HashMap<IpAddr, Vec<ObjectName>>,
    /// Addresses this server listens on.
    own: Vec<IpAddr>,
    serial: u32,
    complete: bool,
}

impl Zone {
    /// A zone without Services, for a server with these addresses. Serial numbers go on from `serial`.
    pub fn new(domain: Name, own: Vec<IpAddr>, serial: u32) -> Self {
        let labels = Labels::new(&domain);
        Self {
            domain,
            labels,
            services: HashMap::new(),
            count: 0,
            owners: HashMap::new(),
            own,
            serial,
            complete: false,
        }
    }

    /// From now on, what is not here does not exist.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Number of Services with records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A Service has these records now.
    pub fn set(&mut self, name: &ObjectName, records: Option<Records>) {
        let old = match &records {
            Some(_) => None,
            None => self.take(name),
        };
        let old = match records {
            None => old,
            Some(records) => {
                let services = self.services.entry(name.namespace.clone()).or_default();
                match services.entry(name.name.clone()) {
                    Entry::Occupied(mut known) if *known.get() != records => Some(known.insert(records)),
                    Entry::Occupied(_) => return,
                    Entry::Vacant(new) => {
                        new.insert(records);
                        self.count += 1;
                        None
                    }
                }
            }
        };
        self.serial = self.serial.wrapping_add(1);
        let empty: &[IpAddr] = &[];
        let new = self.services.get(&name.namespace).and_then(|services| services.get(&name.name));
        let (old, new) = (old.as_ref().map_or(empty, Records::addresses), new.map_or(empty, Records::addresses));
        difference(old, new, |address, is_new| {
            if is_new {
                self.owners.entry(address).or_default().push(name.clone());
            } else if let Entry::Occupied(mut owners) = self.owners.entry(address) {
                owners.get_mut().retain(|owner| owner != name);
                if owners.get().is_empty() {
                    owners.remove();
                }
            }
        });
    }

    fn take(&mut self, name: &ObjectName) -> Option<Records> {
        let services = self.services.get_mut(&name.namespace)?;
        let records = services.remove(&name.name)?;
        self.count -= 1;
        if services.is_empty() {
            self.services.remove(&name.namespace);
        }
        Some(records)
    }

    /// The cluster domain.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// The SOA record of negative answers, for the cluster domain.
    pub fn soa(&self) -> Result<SOA, ProtoError> {
        let server = below(&["ns", "dns"], &self.domain)?;
        let mailbox = below(&["hostmaster"], &self.domain)?;
        Ok(SOA::new(server, mailbox, self.serial, 7200, 1800, 86_400, TTL))
    }

    /// The answer to a question.
    pub fn answer(&self, name: &Name, kind: RecordType, window: Window) -> Result<Answer, ProtoError> {
        let labels = Labels::new(name);
        let asked = labels.asked(&self.labels);
        match asked {
            Asked::Outside => return Ok(Answer::Elsewhere),
            // Reverse names may be somebody else's, so they wait as well.
            _ if !self.complete && asked != Asked::Version => return Ok(Answer::NotYet),
            _ => {}
        }
        let answer = self.look_up(asked, kind, window)?;
        if kind == RecordType::ANY && matches!(answer, Answer::NoData | Answer::Data(_) | Answer::Alias(_)) {
            return Ok(few([not_everything()], TTL));
        }
        Ok(answer)
    }

    fn look_up(&self, asked: Asked<'_>, kind: RecordType, window: Window) -> Result<Answer, ProtoError> {
        Ok(match asked {
            Asked::Outside => Answer::Elsewhere,
            Asked::Namespace(namespace) if self.services.contains_key(namespace) => Answer::NoData,
            Asked::Namespace(_) | Asked::Nothing => Answer::NoName,
            Asked::Version if kind == RecordType::TXT => {
                few([RData::TXT(TXT::new(vec![VERSION.to_owned()]))], VERSION_TTL)
            }
            Asked::Apex if kind == RecordType::SOA => few([RData::SOA(self.soa()?)], TTL),
            Asked::Apex if kind == RecordType::NS => {
                let server = below(&["ns", "dns"], &self.domain)?;
                let mut data =
                    Data { records: vec![RData::NS(NS(server.clone()))], total: 1, ttl: TTL, ..Data::default() };
                data.additional = self.own.iter().map(|&address| (server.clone(), address)).collect();
                Answer::Data(data)
            }
            Asked::Branch | Asked::PodNamespace | Asked::Version | Asked::Apex => Answer::NoData,
            Asked::Server => addresses(self.own.iter().copied(), kind, window),
            Asked::Pod(address) => addresses([address].into_iter(), kind, window),
            Asked::Reverse(address) => self.reverse(address, kind, window)?,
            Asked::Service(place) => match self.get(place) {
                None => Answer::NoName,
                Some(Records::Alias(target)) if kind == RecordType::CNAME => {
                    few([RData::CNAME(CNAME(absolute(target)?))], TTL)
                }
                Some(Records::Alias(target)) => Answer::Alias(absolute(target)?),
                Some(records) => addresses_of(records.addresses(), kind, window),
            },
            Asked::Member(place, label) => match self.get(place) {
                Some(Records::Headless(members)) => {
                    let mut found: Vec<IpAddr> = members.called(label).map(|member| member.address).collect();
                    let dashed = from_dashes(label).filter(|&address| with_dashes(address) == label);
                    // An endpoint with a name of its own is not called by its address.
                    let by_address = dashed.filter(|&it| members.at(it).iter().any(|member| member.hostname.is_none()));
                    found.extend(by_address);
                    found.sort_unstable();
                    found.dedup();
                    if found.is_empty() { Answer::NoName } else { addresses_of(&found, kind, window) }
                }
                _ => Answer::NoName,
            },
            Asked::Protocol(place, protocol) => match self.get(place) {
                Some(Records::Virtual { ports, .. }) if ports.iter().any(|it| it.protocol == protocol) => {
                    Answer::NoData
                }
                Some(Records::Headless(members)) if members.has_protocol(protocol) => Answer::NoData,
                _ => Answer::NoName,
            },
            Asked::Port(place, protocol, port) => self.port(place, protocol, port, kind, window)?,
        })
    }

    fn get(&self, place: Place<'_>) -> Option<&Records> {
        self.services.get(place.namespace)?.get(place.service)
    }

    fn name_of(&self, place: Place<'_>) -> Result<Name, ProtoError> {
        below(&[place.service, place.namespace, "svc"], &self.domain)
    }

    fn name_of_member(&self, member: &Member, place: Place<'_>) -> Result<Name, ProtoError> {
        let dashed;
        let hostname = match &member.hostname {
            Some(hostname) => &**hostname,
            None => {
                dashed = with_dashes(member.address);
                &dashed
            }
        };
        below(&[hostname, place.service, place.namespace, "svc"], &self.domain)
    }

    fn port(
        &self,
        place: Place<'_>,
        protocol: Protocol,
        name: &str,
        kind: RecordType,
        window: Window,
    ) -> Result<Answer, ProtoError> {
        match self.get(place) {
            Some(Records::Virtual { addresses, ports }) => {
                let mut data = Data { ttl: TTL, ..Data::default() };
                let target = self.name_of(place)?;
                for port in ports.iter().filter(|port| port.protocol == protocol && *port.name == *name) {
                    data.records.push(srv(port.number, target.clone()));
                }
                data.total = data.records.len();
                if data.total > 0 {
                    data.additional = addresses.iter().map(|&address| (target.clone(), address)).collect();
                }
                Ok(data.of_kind(kind == RecordType::SRV))
            }
            Some(Records::Headless(members)) => {
                let all = members.with_port(protocol, name);
                let mut data = Data { total: all.len(), ttl: TTL, ..Data::default() };
                if kind != RecordType::SRV {
                    return Ok(data.of_kind(false));
                }
                for &(index, number) in around(all, window) {
                    let Some(member) = members.all().get(index as usize) else { continue };
                    let target = self.name_of_member(member, place)?;
                    match &member.hostname {
                        Some(hostname) => {
                            let found = members.called(hostname).map(|member| (target.clone(), member.address));
                            data.additional.extend(found);
                        }
                        None => data.additional.push((target.clone(), member.address)),
                    }
                    data.records.push(srv(number, target));
                }
                Ok(data.of_kind(true))
            }
            _ => Ok(Answer::NoName),
        }
    }

    fn reverse(&self, address: IpAddr, kind: RecordType, window: Window) -> Result<Answer, ProtoError> {
        let Some(owners) = self.owners.get(&address) else { return Ok(Answer::Elsewhere) };
        if kind != RecordType::PTR {
            return Ok(Answer::NoData);
        }
        let mut names = Vec::new();
        let mut members_names = Vec::new();
        for owner in owners {
            let place = Place { namespace: &owner.namespace, service: &owner.name };
            match self.get(place) {
                Some(Records::Headless(members)) => {
                    for member in members.at(address) {
                        members_names.push(self.name_of_member(member, place)?);
                    }
                }
                _ => names.push(self.name_of(place)?),
            }
        }
        // Slices are written by hand as well: they do not rename what the API server gave to a Service.
        if names.is_empty() {
            names = members_names;
        }
        names.sort();
        names.dedup();
        let records = around(&names, window).map(|name| RData::PTR(PTR(name.clone()))).collect();
        Ok(Answer::Data(Data { records, total: names.len(), ttl: TTL, ..Data::default() }))
    }
}

impl Data {
    /// These records if there are any and they are of the type that was asked for.
    fn of_kind(self, is_asked: bool) -> Answer {
        match (self.total, is_asked) {
            (0, _) => Answer::NoName,
            (_, false) => Answer::NoData,
            (_, true) => Answer::Data(self),
        }
    }
}

/// What whoever asks for everything gets: one small record that says nothing (RFC 8482).
pub(super) fn not_everything() -> RData {
    RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))
}

fn srv(port: u16, target: Name) -> RData {
    // Equal weights: clients spread their connections.
    RData::SRV(SRV::new(0, 100, port, target))
}

fn few<const N: usize>(records: [RData; N], ttl: u32) -> Answer {
    Answer::Data(Data { records: records.into(), total: N, ttl, ..Data::default() })
}

/// The addresses of the family that is asked for, of a name that has these.
fn addresses(all: impl Iterator<Item = IpAddr>, kind: RecordType, window: Window) -> Answer {
    let mut all: Vec<IpAddr> = all.collect();
    all.sort_unstable();
    addresses_of(&all, kind, window)
}

/// The same of sorted addresses.
fn addresses_of(all: &[IpAddr], kind: RecordType, window: Window) -> Answer {
    let (v4, v6) = all.split_at(all.partition_point(IpAddr::is_ipv4));
    let found = match kind {
        RecordType::A => v4,
        RecordType::AAAA => v6,
        _ => &[],
    };
    if found.is_empty() {
        return Answer::NoData;
    }
    let records = around(found, window).map(|address| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    });
    Answer::Data(Data { records: records.collect(), total: found.len(), ttl: TTL, ..Data::default() })
}

/// Elements in order from one on, and around to it.
fn around<T>(all: &[T], window: Window) -> impl Iterator<Item = &T> {
    let start = window.turn.checked_rem(all.len()).unwrap_or(0);
    let (before, after) = all.split_at(start.min(all.len()));
    after.iter().chain(before).take(window.most)
}

/// The name of a target, from the root.
fn absolute(target: &str) -> Result<Name, ProtoError> {
    Name::from_ascii(format!("{target}."))
}

/// What only one of two sorted lists has; true: the second one.
fn difference(old: &[IpAddr], new: &[IpAddr], mut each: impl FnMut(IpAddr, bool)) {
    let (mut old, mut new) = (old.iter().copied().peekable(), new.iter().copied().peekable());
    while let Some(next) = old.peek().into_iter().chain(new.peek()).min().copied() {
        let (was, is) = (old.next_if_eq(&next).is_some(), new.next_if_eq(&next).is_some());
        if was != is {
            each(next, is);
        }
    }
}
