//! What to ask of the API server, and when: a state machine without clock, network or chance.
//!
//! Everybody who could write reads the Lease now and then. Who finds that it has not changed for as long as it lasts (by
//! the own clock: that of others is never looked at) takes it, and is the writer until somebody else has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    case::{Case, case},
    ledger::{Intent, Intents, Ledger, Versioned},
    requests::{Failure, News, Request, Standing, Timing},
    view::{Seen, View},
};
use crate::{
    balancer::{owners::Refusal, pools::Pools, renew::renew},
    model::{Asking, Has, ObjectName},
};

impl Lease {
    /// Whether an intent that is in the Lease, or may be, names a Service.
    fn names(&self, name: &ObjectName) -> bool {
        let known = self.known.as_ref().map(|known| &known.ledger);
        known.into_iter().chain(self.writing.as_ref().map(|(ledger, _)| ledger)).any(|it| it.intents.contains_key(name))
    }

    /// Intents that are in the Lease or may be.
    fn intents(&self) -> Intents {
        let mut intents = self.known.as_ref().map(|known| known.ledger.intents.clone()).unwrap_or_default();
        if let Some((ledger, _)) = &self.writing {
            intents.extend(ledger.intents.clone());
        }
        intents
    }
}

/// Most intents in the Lease, and most patches under way.
const MOST_INTENTS: usize = 128;
const MOST_PATCHES: usize = 16;

/// What this agent knows of the Lease.
#[derive(Debug, Default)]
struct Lease {
    /// As it was read or written last.
    known: Option<Versioned>,
    /// When it was first seen like that.
    since: u64,
    /// What is being written, since when, or what may have been.
    writing: Option<(Ledger, u64)>,
    /// A request is under way.
    busy: bool,
    /// When to ask again.
    next: u64,
}

/// What the writer knows, for as long as it is the writer.
#[derive(Debug, Default)]
struct Term {
    number: u64,
    /// When the request was sent that renewed the Lease last.
    renewed: u64,
    view: View,
    /// There is something to decide, since when.
    dirty: Option<u64>,
    /// Decided, and not an intent yet.
    wanted: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// To be taken back.
    unwanted: BTreeSet<ObjectName>,
    refusals: BTreeMap<ObjectName, Refusal>,
    /// Patches under way.
    patching: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// When to try again, and after how many failures.
    again: BTreeMap<ObjectName, (u64, u32)>,
    /// Until when what is in no pool is left alone.
    lenient_until: Option<u64>,
}

/// One who may become the writer.
#[derive(Debug)]
pub struct Writer {
    identity: Arc<str>,
    timing: Timing,
    pools: Pools,
    lease: Lease,
    term: Option<Term>,
    terms: u64,
    requests: Vec<Request>,
}

impl Writer {
    /// One that has not looked yet. No two may have the same identity, ever.
    pub fn new(identity: Arc<str>, timing: Timing, pools: Pools) -> Self {
        Self { identity, timing, pools, lease: Lease::default(), term: None, terms: 0, requests: Vec::new() }
    }

    /// What is to be asked now.
    pub fn poll(&mut self, now: u64) -> Vec<Request> {
        if self.term.as_ref().is_some_and(|term| now >= term.renewed + self.timing.deadline) {
            self.step_down(now);
        }
        if let Some(term) = &mut self.term
            && term.lenient_until.is_some_and(|until| now >= until)
        {
            term.lenient_until = None;
            term.dirty.get_or_insert(now);
        }
        self.decide(now);
        self.tend_lease(now);
        self.patch(now);
        std::mem::take(&mut self.requests)
    }

    /// When [`poll`](Self::poll) has something to do at the latest.
    pub fn wake(&self) -> u64 {
        let mut at = if self.lease.busy { u64::MAX } else { self.lease.next };
        if let Some(term) = &self.term {
            at = at.min(term.renewed + self.timing.deadline).min(term.lenient_until.unwrap_or(u64::MAX));
            at = at.min(term.dirty.map_or(u64::MAX, |since| since + self.timing.gather));
            at = term.again.values().map(|(at, _)| *at).fold(at, u64::min);
        }
        at
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let Some(term) = &self.term else { return Standing::default() };
        let given = term.view.iter().filter(|(_, object)| matches!(object.has, Has::Given { .. })).count();
        Standing { leads: true, given, refused: term.refusals.len() }
    }

    /// Other pools from now on.
    pub fn set_pools(&mut self, now: u64, pools: Pools) {
        self.pools = pools;
        if let Some(term) = &mut self.term {
            // The file has just been read: what it does not have is meant.
            term.lenient_until = None;
            term.dirty = Some(now);
        }
    }

    /// Gives the Lease up, at the end; the request that does so, unless another one about the Lease is under way.
    pub fn resign(&mut self) -> Option<Request> {
        self.term.as_ref().filter(|_| !self.lease.busy)?;
        let intents = self.open_intents();
        let known = self.lease.known.clone()?;
        let ledger = Ledger { holder: "".into(), transitions: known.ledger.transitions, intents };
        Some(Request::WriteLease { over: Some(known.version), ledger })
    }

    /// The Lease as it is; `None`: there is none.
    pub fn lease_read(&mut self, now: u64, result: Result<Option<Versioned>, Failure>) {
        self.lease.busy = false;
        self.lease.next = now + self.pause();
        match result {
            Err(_) => {}
            Ok(None) if self.term.is_some() => self.step_down(now),
            Ok(None) => self.take(now, None, Ledger::default()),
            Ok(Some(found)) => {
                // Only what is known to be in the Lease is ever acted upon: what else was to be in it is decided about anew.
                if self.lease.writing.take().is_some()
                    && let Some(term) = &mut self.term
                {
                    term.dirty.get_or_insert(now);
                }
                if self.lease.known.as_ref().map(|known| &known.version) != Some(&found.version) {
                    self.lease.since = now;
                }
                let Ledger { holder, .. } = &found.ledger;
                let (mine, free) = (*holder == self.identity, holder.is_empty());
                let expired = free || now >= self.lease.since + self.timing.lease;
                self.lease.known = Some(found.clone());
                if mine {
                    self.begin(now);
                } else if self.term.is_some() {
                    self.step_down(now);
                } else if expired {
                    self.take(now, Some(found.version), found.ledger);
                }
            }
        }
    }

    fn take(&mut self, now: u64, over: Option<String>, found: Ledger) {
        let ledger =
            Ledger { holder: self.identity.clone(), transitions: found.transitions + 1, intents: found.intents };
        self.write_lease(now, over, ledger);
    }

    fn write_lease(&mut self, now: u64, over: Option<String>, ledger: Ledger) {
        self.lease.busy = true;
        self.lease.writing = Some((ledger.clone(), now));
        self.requests.push(Request::WriteLease { over, ledger });
    }

    /// The Lease was written and has this version now, or not.
    pub fn lease_written(&mut self, now: u64, result: Result<String, Failure>) {
        self.lease.busy = false;
        self.lease.next = now + self.pause();
        match result {
            Ok(version) => {
                let Some((ledger, sent)) = self.lease.writing.take() else { return };
                self.lease.known = Some(Versioned { version, ledger });
                self.lease.since = now;
                self.begin(now);
                if let Some(term) = &mut self.term {
                    term.renewed = sent;
                }
            }
            Err(Failure::Missing) => self.step_down(now),
            // Whose is it? What is being written stays reserved until that is known.
            Err(Failure::Conflict | Failure::Unknown) if self.term.is_some() => {
                self.lease.busy = true;
                self.requests.push(Request::ReadLease);
            }
            Err(_) => self.lease.writing = None,
        }
    }

    fn pause(&self) -> u64 {
        if self.term.is_some() { self.timing.renew } else { self.timing.look }
    }

    fn begin(&mut self, now: u64) {
        if self.term.is_none() {
            self.terms += 1;
            self.lease.next = now + self.timing.renew;
            let lenient_until = Some(now + self.timing.lenient);
            self.term = Some(Term { number: self.terms, renewed: now, lenient_until, ..Term::default() });
            self.requests.push(Request::Watch(self.terms));
        }
    }

    fn step_down(&mut self, now: u64) {
        self.lease.writing = None;
        if self.term.take().is_some() {
            self.lease.next = now + self.timing.look;
            self.requests.push(Request::Unwatch);
        }
    }

    /// Something that the watch of a term says.
    pub fn seen(&mut self, now: u64, number: u64, seen: Seen) {
        let Some(term) = self.term.as_mut().filter(|term| term.number == number) else { return };
        if term.view.see(seen, &|name| self.lease.names(name)) && term.view.is_complete() {
            term.dirty.get_or_insert(now);
        }
    }

    /// What became of a patch of a term.
    pub fn patched(&mut self, now: u64, number: u64, name: &ObjectName, result: Result<Asking, Failure>) {
        let (first, longest) = self.timing.again;
        let Some(term) = self.term.as_mut().filter(|term| term.number == number) else { return };
        let Some(addresses) = term.patching.remove(name) else { return };
        match result {
            Ok(object) => {
                term.again.remove(name);
                let before = term.view.get(name).map(|object| object.has.addresses().to_vec()).unwrap_or_default();
                let news = if addresses.is_empty() { News::TakenBack(before) } else { News::Given(addresses) };
                self.requests.push(Request::Report { name: name.clone(), uid: object.uid.clone(), news });
                if term.view.patched(name, object, &|name| self.lease.names(name)) {
                    term.dirty.get_or_insert(now);
                }
            }
            Err(_) => {
                let failures = term.again.get(name).map_or(0, |(_, failures)| *failures);
                let pause = first.saturating_mul(1 << failures.min(16)).min(longest);
                term.again.insert(name.clone(), (now + pause, failures + 1));
            }
        }
    }

    /// Intents that are in the Lease, or may be, and have not come to their end.
    fn open_intents(&self) -> Intents {
        let mut intents = self.lease.intents();
        if let Some(term) = &self.term {
            intents.retain(|name, intent| term.view.is_open(name, intent));
        }
        intents
    }

    /// Plans anew if something has changed.
    fn decide(&mut self, now: u64) {
        let intents = self.open_intents();
        let Some(term) = &mut self.term else { return };
        let due = term.dirty.is_some_and(|since| now >= since + self.timing.gather);
        if !due || !term.view.is_complete() {
            return;
        }
        term.dirty = None;
        let lenient = term.lenient_until.is_some();
        let Case { claims, history, mut refusals, mut unwanted } = case(&term.view, &intents, lenient);
        let outcomes = renew(&self.pools, &claims, &history);
        term.wanted.clear();
        for (name, outcome) in outcomes {
            let has = term.view.get(&name).map(|object| object.has.addresses()).unwrap_or_default();
            if outcome.addresses.is_empty() && !has.is_empty() {
                unwanted.insert(name.clone());
            } else if outcome.addresses != has {
                term.wanted.insert(name.clone(), outcome.addresses);
            }
            if let Some(refusal) = outcome.refusal {
                refusals.insert(name, refusal);
            }
        }
        term.unwanted = unwanted;
        for (name, refusal) in &refusals {
            if term.refusals.get(name) != Some(refusal)
                && let Some(object) = term.view.get(name)
            {
                let news = News::Refused(refusal.clone());
                self.requests.push(Request::Report { name: name.clone(), uid: object.uid.clone(), news });
            }
        }
        // Of those that are being written nothing new is known.
        let mut before = std::mem::take(&mut term.refusals);
        before.retain(|name, _| intents.contains_key(name));
        before.extend(refusals);
        term.refusals = before;
    }

    /// Reads the Lease, renews it, or writes new intents into it.
    fn tend_lease(&mut self, now: u64) {
        if self.lease.busy {
            return;
        }
        let Some(term) = &self.term else {
            if now >= self.lease.next {
                self.lease.busy = true;
                self.requests.push(Request::ReadLease);
            }
            return;
        };
        let Some(known) = self.lease.known.clone() else { return };
        let mut intents = self.open_intents();
        let mut added = false;
        // What was decided before the latest news is not written any more.
        if term.dirty.is_none() {
            for (name, addresses) in &term.wanted {
                if intents.len() >= MOST_INTENTS {
                    break;
                }
                let Some(object) = term.view.get(name).filter(|_| !intents.contains_key(name)) else { continue };
                let intent = Intent { uid: object.uid.clone(), version: object.version, addresses: addresses.clone() };
                intents.insert(name.clone(), intent);
                added = true;
            }
        }
        if added || now >= self.lease.next {
            let ledger = Ledger { holder: self.identity.clone(), transitions: known.ledger.transitions, intents };
            if let Some(term) = &mut self.term {
                term.wanted.retain(|name, _| !ledger.intents.contains_key(name));
            }
            self.write_lease(now, Some(known.version), ledger);
        }
    }

    /// Writes what the Lease says, and takes back what is to be taken back.
    fn patch(&mut self, now: u64) {
        let written = self.lease.known.as_ref().map(|known| known.ledger.intents.clone()).unwrap_or_default();
        let open = self.open_intents();
        let Some(term) = self.term.as_mut().filter(|term| term.view.is_complete()) else { return };
        let given = written.into_iter().filter(|(name, intent)| open.get(name) == Some(intent));
        let given = given.map(|(name, intent)| (name, intent.version, intent.addresses));
        let settled = term.dirty.is_none();
        let back = term.unwanted.iter().filter(|name| settled && !open.contains_key(*name));
        let back = back.filter_map(|name| Some((name.clone(), term.view.get(name)?.version, Vec::new())));
        let all: Vec<(ObjectName, u64, Vec<IpAddr>)> = given.chain(back).collect();
        term.again.retain(|name, _| all.iter().any(|(other, ..)| other == name));
        for (name, version, addresses) in all {
            let waits = term.again.get(&name).is_some_and(|(at, _)| now < *at);
            if term.patching.len() >= MOST_PATCHES || waits || term.patching.contains_key(&name) {
                continue;
            }
            let Some(object) = term.view.get(&name) else { continue };
            if addresses.is_empty() && !matches!(object.has, Has::Given { .. }) {
                continue;
            }
            let object = Box::new(object.clone());
            term.again.remove(&name);
            term.patching.insert(name.clone(), addresses.clone());
            self.requests.push(Request::Patch { term: term.number, name, object, version, addresses });
        }
    }
}
