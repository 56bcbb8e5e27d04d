//! Any number of writers against an API server that does its worst: requests that are carried out late, twice never, or
//! after their sender has given up or died; answers that get lost; watches that lag and break off; agents that end and come
//! back between any two steps; users and other controllers that change Services meanwhile. Everything is chosen by a seed.
//!
//! After every single change: no address has two owners who may not share it, and nothing that somebody else wrote was
//! changed. Once the faults are over, everybody has what they should have.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use super::{
    ledger::{Ledger, Versioned},
    requests::{Failure, Request, Timing},
    view::Seen,
    writer::Writer,
};
use crate::{
    balancer::{
        pools::Pools,
        renew::{History, renew},
    },
    model::{Asking, Asks, Claim, Family, Has, ObjectName, Protocol},
};

const FILES: [&str; 2] = [
    "pools:\n- name: a\n  addresses: [203.0.113.0-203.0.113.4, '2001:db8::1-2001:db8::2']\n",
    "pools:\n- name: a\n  addresses: [203.0.113.1-203.0.113.5, '2001:db8::1-2001:db8::3']\n",
];
const SERVICES: u64 = 9;

/// Numbers that depend on the seed alone.
struct Chance(u64);

impl Chance {
    /// Below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The nth Service: whether it shares, and its port, never change.
fn claim(nth: u64, chance: &mut Chance) -> Claim {
    let wanted = chance.one_in(3).then(|| IpAddr::from([203, 0, 113, chance.below(6) as u8]));
    Claim {
        name: name(nth),
        labels: BTreeMap::new(),
        families: if chance.one_in(3) { vec![Family::V4, Family::V6] } else { vec![Family::V4] },
        all_families: chance.one_in(5),
        wanted: wanted.into_iter().collect(),
        pool: None,
        share: (nth >= 6).then(|| "k".into()),
        ports: vec![(Protocol::Tcp, if nth == 8 { 81 } else { 80 })],
    }
}

fn name(nth: u64) -> ObjectName {
    ObjectName::new("shop", format!("web-{nth}"))
}

fn may_share(one: &ObjectName, other: &ObjectName) -> bool {
    let number = |name: &ObjectName| name.name[4..].parse::<u64>().unwrap_or(0);
    let (one, other) = (number(one), number(other));
    one >= 6 && other >= 6 && (one == 8) != (other == 8)
}

#[derive(Default)]
struct Server {
    version: u64,
    lease: Option<Versioned>,
    services: BTreeMap<ObjectName, Asking>,
    log: Vec<Seen>,
    /// Patches that were carried out.
    patches: u64,
}

enum Answer {
    Read(Result<Option<Versioned>, Failure>),
    Written(Result<String, Failure>),
    Patched(u64, ObjectName, Result<Asking, Failure>),
}

impl Server {
    fn put(&mut self, name: &ObjectName, change: impl FnOnce(&mut Asking)) {
        self.version += 1;
        let new = || Asking {
            uid: format!("uid-{}", self.version),
            version: 0,
            leaving: false,
            asks: Asks::Nothing,
            has: Has::Nothing,
            conditions: Vec::new(),
        };
        let object = self.services.entry(name.clone()).or_insert_with(new);
        change(object);
        object.version = self.version;
        self.log.push(Seen::Object(name.clone(), Box::new(object.clone())));
    }

    fn delete(&mut self, name: &ObjectName) {
        if self.services.remove(name).is_some() {
            self.version += 1;
            self.log.push(Seen::Gone(name.clone()));
        }
    }

    fn carry_out(&mut self, request: &Request) -> Answer {
        match request {
            Request::ReadLease => Answer::Read(Ok(self.lease.clone())),
            Request::WriteLease { over, ledger } => {
                let now = self.lease.as_ref().map(|lease| lease.version.clone());
                if now != *over {
                    let missing = now.is_none();
                    return Answer::Written(Err(if missing { Failure::Missing } else { Failure::Conflict }));
                }
                self.version += 1;
                let version = self.version.to_string();
                self.lease = Some(Versioned { version: version.clone(), ledger: ledger.clone() });
                Answer::Written(Ok(version))
            }
            Request::Patch { term, name, object, version, addresses } => {
                let result = match self.services.get(name) {
                    None => Err(Failure::Missing),
                    Some(found) if found.version != *version || found.uid != object.uid => Err(Failure::Conflict),
                    Some(found) => {
                        assert!(!matches!(found.has, Has::Others(_)), "{name} is somebody else's");
                        let since = i64::try_from(self.version).unwrap_or_default();
                        let has = if addresses.is_empty() {
                            Has::Nothing
                        } else {
                            Has::Given { addresses: addresses.clone(), since }
                        };
                        self.put(name, |object| object.has = has);
                        self.patches += 1;
                        self.check(name);
                        Ok(self.services[name].clone())
                    }
                };
                Answer::Patched(*term, name.clone(), result)
            }
            Request::Watch(_) | Request::Unwatch | Request::Report { .. } => unreachable!("these are no requests"),
        }
    }

    /// Nobody else has an address of this Service.
    fn check(&self, name: &ObjectName) {
        for address in self.services[name].has.addresses() {
            for (other, object) in &self.services {
                let both = other != name && object.has.addresses().contains(address);
                assert!(!both || may_share(name, other), "{address} is {name}'s and {other}'s");
            }
        }
    }
}

struct Watch {
    term: u64,
    /// Where in the log it is; `None`: it has not begun.
    cursor: Option<usize>,
    queue: VecDeque<Seen>,
}

struct Agent {
    /// Counts its lives.
    life: u64,
    writer: Writer,
    watch: Option<Watch>,
}

/// A request under way.
struct Flight {
    agent: usize,
    life: u64,
    request: Request,
    answer: Option<Answer>,
    /// Whoever sent it has given it up.
    given_up: bool,
}

struct World {
    chance: Chance,
    now: u64,
    server: Server,
    agents: Vec<Agent>,
    flights: Vec<Flight>,
    lives: u64,
}

fn timing() -> Timing {
    Timing { lenient: 20_000, ..Timing::default() }
}

impl World {
    fn new(seed: u64, agents: usize) -> Self {
        let mut world = Self {
            chance: Chance(seed),
            now: 0,
            server: Server { version: 1, ..Server::default() },
            agents: Vec::new(),
            flights: Vec::new(),
            lives: 0,
        };
        for _ in 0..agents {
            let agent = world.agent(0);
            world.agents.push(agent);
        }
        world
    }

    fn agent(&mut self, file: usize) -> Agent {
        self.lives += 1;
        let pools = Pools::parse(FILES[file]).expect("a good file");
        let identity = format!("agent-{}", self.lives).into();
        Agent { life: self.lives, writer: Writer::new(identity, timing(), pools), watch: None }
    }

    fn poll(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        for request in agent.writer.poll(self.now) {
            match request {
                Request::Watch(term) => agent.watch = Some(Watch { term, cursor: None, queue: VecDeque::new() }),
                Request::Unwatch => agent.watch = None,
                Request::Report { .. } => {}
                request => {
                    let flight = Flight { agent: at, life: agent.life, request, answer: None, given_up: false };
                    self.flights.push(flight);
                }
            }
        }
    }

    fn any_flight(&mut self, wanted: impl Fn(&Flight) -> bool) -> Option<usize> {
        let those: Vec<usize> = (0..self.flights.len()).filter(|&at| wanted(&self.flights[at])).collect();
        let count = u64::try_from(those.len()).ok().filter(|&count| count > 0)?;
        Some(those[self.chance.below(count) as usize])
    }

    /// Carries out one of these requests.
    fn carry_out(&mut self, wanted: impl Fn(&Flight) -> bool) -> bool {
        let Some(at) = self.any_flight(|flight| flight.answer.is_none() && wanted(flight)) else { return false };
        self.flights[at].answer = Some(self.server.carry_out(&self.flights[at].request));
        if self.flights[at].given_up {
            self.flights.swap_remove(at);
        }
        true
    }

    /// Hands an answer to who waits for it.
    fn answer(&mut self, lost: bool) -> bool {
        let Some(at) = self.any_flight(|flight| flight.answer.is_some()) else { return false };
        let mut flight = self.flights.swap_remove(at);
        if let Some(answer) = flight.answer.take().filter(|_| !lost) {
            self.hand(flight.agent, flight.life, answer);
        } else {
            self.give_up(&flight);
        }
        true
    }

    fn give_up(&mut self, flight: &Flight) {
        let answer = match &flight.request {
            Request::ReadLease => Answer::Read(Err(Failure::Unknown)),
            Request::WriteLease { .. } => Answer::Written(Err(Failure::Unknown)),
            Request::Patch { term, name, .. } => Answer::Patched(*term, name.clone(), Err(Failure::Unknown)),
            _ => return,
        };
        self.hand(flight.agent, flight.life, answer);
    }

    fn hand(&mut self, agent: usize, life: u64, answer: Answer) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(agent).filter(|agent| agent.life == life) else { return };
        match answer {
            Answer::Read(result) => agent.writer.lease_read(now, result),
            Answer::Written(result) => agent.writer.lease_written(now, result),
            Answer::Patched(term, name, result) => agent.writer.patched(now, term, &name, result),
        }
    }

    /// Passes on one line of an agent's watch.
    fn watch(&mut self, at: usize) -> bool {
        let Agent { writer, watch: Some(watch), .. } = &mut self.agents[at] else { return false };
        let cursor = *watch.cursor.get_or_insert_with(|| {
            let objects =
                self.server.services.iter().map(|(name, it)| Seen::Object(name.clone(), Box::new(it.clone())));
            watch.queue = std::iter::once(Seen::Begin).chain(objects).chain([Seen::End]).collect();
            self.server.log.len()
        });
        if let Some(seen) = watch.queue.pop_front() {
            writer.seen(self.now, watch.term, seen);
        } else if let Some(seen) = self.server.log.get(cursor) {
            watch.cursor = Some(cursor + 1);
            writer.seen(self.now, watch.term, seen.clone());
        } else {
            return false;
        }
        true
    }

    /// Somebody changes a Service.
    fn user(&mut self) {
        let nth = self.chance.below(SERVICES);
        let (name, claim) = (name(nth), claim(nth, &mut self.chance));
        let foreign = IpAddr::from([192, 0, 2, self.chance.below(4) as u8]);
        match self.chance.below(12) {
            0 | 1 => self.server.delete(&name),
            2 => self.server.put(&name, |object| object.asks = Asks::Nothing),
            3 => self.server.put(&name, |object| object.asks = Asks::Nonsense("x".to_owned())),
            4 => self.server.put(&name, |object| object.has = Has::Others(vec![foreign])),
            5 => self.server.put(&name, |object| object.has = Has::Nothing),
            // Something that does not matter.
            6 | 7 => self.server.put(&name, |_| ()),
            _ => self.server.put(&name, |object| object.asks = Asks::Claim(Box::new(claim))),
        }
    }

    /// Anything.
    fn step(&mut self) {
        let agents = self.agents.len() as u64;
        let at = self.chance.below(agents) as usize;
        match self.chance.below(100) {
            0..4 => self.user(),
            4..30 => drop(self.carry_out(|flight| !flight.given_up)),
            30..50 => {
                let lost = self.chance.one_in(12);
                self.answer(lost);
            }
            50..68 => {
                for _ in 0..self.chance.below(6) {
                    self.watch(at);
                }
            }
            68..86 => {
                let long = self.chance.one_in(10);
                self.now += self.chance.below(if long { 16_000 } else { 500 });
            }
            86..90 => {
                // It is carried out later, or never.
                if let Some(at) = self.any_flight(|flight| flight.answer.is_none() && !flight.given_up) {
                    let flight = Flight { given_up: true, ..self.flights.swap_remove(at) };
                    self.give_up(&flight);
                    self.flights.push(flight);
                }
            }
            90..92 => drop(self.carry_out(|flight| flight.given_up)),
            92 => {
                if let Some(at) = self.any_flight(|flight| flight.given_up) {
                    self.flights.swap_remove(at);
                }
            }
            93..96 if self.chance.one_in(6) => {
                // The watch breaks off, and everything is listed anew.
                if let Some(watch) = &mut self.agents[at].watch {
                    watch.cursor = None;
                }
            }
            96 => {
                let file = self.chance.below(2) as usize;
                self.agents[at].writer.set_pools(self.now, Pools::parse(FILES[file]).expect("a good file"));
            }
            97..99 if self.chance.one_in(4) => {
                // It ends, and another one comes in its place; what it asked for may be carried out still.
                let life = self.agents[at].life;
                for flight in self.flights.iter_mut().filter(|flight| flight.life == life) {
                    flight.given_up = true;
                }
                let file = self.chance.below(2) as usize;
                self.agents[at] = self.agent(file);
            }
            99 if self.chance.one_in(3) => {
                // It ends in good order.
                if let Some(request) = self.agents[at].writer.resign() {
                    let life = self.agents[at].life;
                    self.flights.push(Flight { agent: at, life, request, answer: None, given_up: true });
                    self.agents[at] = self.agent(0);
                }
            }
            _ => {}
        }
        let at = self.chance.below(agents) as usize;
        self.poll(at);
    }

    /// Nothing goes wrong any more.
    fn settle(&mut self) {
        for at in 0..self.agents.len() {
            self.agents[at].writer.set_pools(self.now, Pools::parse(FILES[0]).expect("a good file"));
        }
        let end = self.now + 120_000;
        while self.now < end {
            for at in 0..self.agents.len() {
                self.poll(at);
                while self.watch(at) {}
            }
            while self.carry_out(|_| true) {}
            while self.answer(false) {}
            self.now += 100;
        }
    }

    /// Everybody has what they should have, by what they have.
    fn check(&self) {
        let leaders: Vec<_> = self.agents.iter().map(|it| it.writer.standing()).filter(|it| it.leads).collect();
        let given = self.server.services.values().filter(|object| matches!(object.has, Has::Given { .. })).count();
        let known: Vec<usize> = leaders.iter().map(|leader| leader.given).collect();
        assert_eq!(known, [given], "what the only writer knows");
        let Ledger { intents, .. } = self.server.lease.clone().expect("a Lease").ledger;
        assert!(intents.is_empty(), "{intents:?}");
        let mut claims = BTreeMap::new();
        let mut held = Vec::new();
        let mut history = History::default();
        for (name, object) in &self.server.services {
            match (&object.asks, &object.has) {
                (_, Has::Others(addresses)) => history.blocked.push((name.clone(), addresses.clone())),
                (Asks::Claim(claim), has) => {
                    claims.insert(name.clone(), Claim::clone(claim));
                    if let Has::Given { addresses, since } = has {
                        held.push((*since, name.clone(), addresses.clone()));
                    }
                }
                (Asks::Nothing, has) => assert_eq!(*has, Has::Nothing, "{name} asks for nothing"),
                (Asks::Nonsense(_), has) => history.blocked.push((name.clone(), has.addresses().to_vec())),
            }
        }
        held.sort();
        history.held = held.into_iter().map(|(_, name, addresses)| (name, addresses)).collect();
        let pools = Pools::parse(FILES[0]).expect("a good file");
        for (name, outcome) in renew(&pools, &claims, &history) {
            assert_eq!(self.server.services[&name].has.addresses(), outcome.addresses, "{name}: {outcome:?}");
        }
    }
}

/// Runs one history; the number of patches that were carried out.
fn run(seed: u64, agents: usize, steps: u32) -> u64 {
    let mut world = World::new(seed, agents);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world.check();
    world.server.patches
}

/// Histories with seeds from `SVC_SIMULATION_SEED` on, `SVC_SIMULATION_RUNS` of them.
fn histories() -> std::ops::Range<u64> {
    let number =
        |variable: &str, default| std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let first = number("SVC_SIMULATION_SEED", 0);
    first..first + number("SVC_SIMULATION_RUNS", 200)
}

#[test]
fn no_address_is_given_twice_whatever_is_late_lost_or_ends() {
    let mut patches = 0;
    for seed in histories() {
        let result = std::panic::catch_unwind(|| run(seed, 2 + (seed % 2) as usize, 3000));
        patches += result.unwrap_or_else(|_| panic!("history of seed {seed}: see above"));
    }
    assert!(patches > 1000, "{patches} patches are too few to say anything");
    println!("{patches} patches");
}

#[test]
fn thousands_ask_a_pool_of_five_and_five_are_served() {
    let mut world = World::new(1, 1);
    for nth in 0..3000 {
        let claim = Claim {
            name: name(nth),
            share: None,
            wanted: Vec::new(),
            families: vec![Family::V4],
            ..claim(0, &mut world.chance)
        };
        world.server.put(&name(nth), |object| object.asks = Asks::Claim(Box::new(claim)));
    }
    world.settle();
    world.check();
    assert_eq!(world.agents[0].writer.standing().given, 5);
    assert_eq!(world.agents[0].writer.standing().refused, 2995);
    assert_eq!(world.server.patches, 5, "nobody else was written to");
}
