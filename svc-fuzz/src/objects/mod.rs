//! Objects, on their way to the maps: manifests → conversion → model → compile → tables → operations on a model of the maps,
//! through the agent's own engine, with writes that fail, time that passes, agents that start over and agents that end in the
//! middle of their writes.
//!
//! What must hold: nothing panics; after every single operation nothing dangles and nothing is given before its rest is
//! over (`maps`); in the end the maps hold what a fresh start on the same objects gives; and when the objects are gone,
//! nothing is left.

mod make;
mod maps;

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use arbitrary::{Result, Unstructured};
use svc_userspace::{
    agent::engine::{Engine, adopt},
    compile::NodeContext,
    kernel::view::Snapshot,
    metrics::Metrics,
    model::{Change, ObjectName},
    source::{SourceOptions, manifests::InMemory},
    tables::{Capacity, Tables},
};

use maps::{Maps, View};

/// At most this many things happen.
const MOST_ACTIONS: usize = 40;
/// Beyond every rest and every pause between attempts, milliseconds.
const LONG: u64 = 70_000;

/// Something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// A file gets this text.
    Write(String, String),
    /// A file is removed.
    Remove(String),
    /// The node becomes another.
    Node(NodeContext),
    /// Milliseconds pass.
    Wait(u64),
    /// After so many operations, one fails.
    Fail(u32),
    /// The agent starts over on the maps as they are.
    Restart,
}

/// What the bytes stand for. After a first byte of 0, the rest is text: YAML of files, set apart by lines of `%%`.
fn actions(bytes: &[u8]) -> (Capacity, Vec<Action>) {
    const ROOMY: Capacity = Capacity {
        services: 100,
        backends: 1000,
        frontends_v4: 200,
        frontends_v6: 200,
        slots: 120_000,
        source_ranges: 200,
    };
    if let [0, text @ ..] = bytes {
        let text = String::from_utf8_lossy(text);
        let files = text.split("%%\n").take(MOST_ACTIONS).enumerate();
        let write = |(n, text): (usize, &str)| Action::Write(format!("{}.yaml", n % 3), text.to_owned());
        return (ROOMY, files.map(write).collect());
    }
    let mut u = Unstructured::new(bytes);
    let capacity = capacity(&mut u, ROOMY).unwrap_or(ROOMY);
    let mut actions = vec![Action::Node(node(3))];
    while !u.is_empty() && actions.len() < MOST_ACTIONS {
        match action(&mut u) {
            Ok(action) => actions.push(action),
            Err(_) => break,
        }
    }
    (capacity, actions)
}

fn capacity(u: &mut Unstructured<'_>, roomy: Capacity) -> Result<Capacity> {
    if u.int_in_range(0..=3)? < 3 {
        return Ok(roomy);
    }
    Ok(Capacity {
        services: u.int_in_range(1..=8)?,
        backends: u.int_in_range(1..=24)?,
        frontends_v4: u.int_in_range(0..=12)?,
        frontends_v6: u.int_in_range(0..=6)?,
        slots: u.int_in_range(0..=6000)?,
        source_ranges: roomy.source_ranges,
    })
}

fn action(u: &mut Unstructured<'_>) -> Result<Action> {
    let n = u.int_in_range(0..=3)?;
    let of = u.int_in_range(0..=19)?;
    Ok(match of {
        0..=6 => Action::Write(format!("service-{n}.json"), make::service(u, n)?),
        7..=12 => Action::Write(format!("slice-{n}.json"), make::slice(u, n)?),
        13 => Action::Remove(format!("service-{n}.json")),
        14 => Action::Remove(format!("slice-{n}.json")),
        15 => Action::Node(node(u.arbitrary()?)),
        16 | 17 => Action::Wait(*u.choose(&[100, 5_000, 6_000, 31_000, 61_000])?),
        18 => Action::Fail(u.int_in_range(0..=20)?),
        _ => Action::Restart,
    })
}

/// One of eight nodes: with and without a zone, IPv4 and IPv6.
fn node(bits: u8) -> NodeContext {
    let has = |bit: u8| bits & bit != 0;
    let v4 = has(1).then_some(Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = has(2).then_some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    NodeContext {
        name: Arc::from("n1"),
        zone: has(4).then(|| Arc::from("z1")),
        node_port_addresses: v4.into_iter().chain(v6).collect(),
        loopback_addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

/// An agent without a kernel.
struct Agent {
    engine: Engine<Maps>,
    capacity: Capacity,
    node: NodeContext,
    /// What the source reports of every object that there is.
    objects: BTreeMap<(u8, ObjectName), Change>,
}

fn engine(tables: Tables, maps: Maps, node: &NodeContext) -> Engine<Maps> {
    let metrics = Arc::new(Metrics::new(|| Ok(Snapshot::default())));
    let mut engine = Engine::new(tables, maps, metrics);
    engine.set_node(node.clone());
    engine.interfaces_listed();
    engine
}

impl Agent {
    fn new(capacity: Capacity, node: NodeContext) -> Self {
        let mut engine = engine(Tables::new(capacity), Maps::new(capacity), &node);
        engine.change(Change::Synced);
        Self { engine, capacity, node, objects: BTreeMap::new() }
    }

    fn change(&mut self, change: Change) {
        let key = match &change {
            Change::Service(name, _) | Change::Unbalanced(name, _) => (0, name.clone()),
            Change::Slice(name, _) => (1, name.clone()),
            _ => return,
        };
        match &change {
            Change::Service(_, None) | Change::Slice(_, None) => self.objects.remove(&key),
            _ => self.objects.insert(key, change.clone()),
        };
        self.engine.change(change);
    }

    /// Does whatever there is to do, and lets time pass. An agent that ends has a successor at once.
    fn work(&mut self, ms: u64) {
        self.engine.maps().now += ms;
        let now = self.engine.maps().now;
        self.engine.tick(now);
        while self.engine.has_work() {
            self.engine.step(1, now, 0);
            if self.engine.maps().has_crashed() {
                self.restart();
            }
        }
        if self.engine.maps().has_crashed() {
            self.restart();
            self.work(0);
        }
        self.engine.maps().check();
    }

    /// Another agent continues with the maps.
    fn restart(&mut self) {
        let mut maps = std::mem::replace(self.engine.maps(), Maps::new(Capacity { slots: 0, ..self.capacity }));
        maps.crash_at = None;
        let tables = adopt(self.capacity, &maps.observed());
        self.engine = engine(tables, maps, &self.node);
        for change in self.objects.values() {
            self.engine.change(change.clone());
        }
        self.engine.change(Change::Synced);
    }

    /// Lets everything come to rest.
    fn settle(&mut self) {
        self.engine.maps().fail_after = None;
        for _ in 0..4 {
            self.work(LONG);
        }
        assert!(!self.engine.is_behind(), "changes are still waiting, though nothing fails");
    }

    fn refuses(&self) -> bool {
        self.engine.has_refused()
    }
}

/// What a history amounted to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// Writes to the maps.
    pub writes: u32,
    /// Writes of frontends that have endpoints.
    pub served: u32,
}

/// Runs what the bytes stand for: once as they say, and once with an agent that ends after one of its writes.
pub fn run(bytes: &[u8]) -> Met {
    let met = run_to_the_end(bytes, None);
    if met.writes > 0 {
        let which = bytes.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        run_to_the_end(bytes, Some(which % met.writes));
    }
    met
}

/// Runs what the bytes stand for with an agent that ends after its first write, then with one that ends after its second, and
/// so on, if there are no more than `most` writes.
pub fn run_crashing(bytes: &[u8], most: u32) -> Met {
    let met = run_to_the_end(bytes, None);
    let writes = met.writes;
    if writes > most {
        return Met::default();
    }
    for at in 0..writes {
        let crashed = catch_unwind(AssertUnwindSafe(|| run_to_the_end(bytes, Some(at))));
        if let Err(panic) = crashed {
            eprintln!("the agent had ended after {at} of {writes} writes");
            resume_unwind(panic);
        }
    }
    met
}

/// Everything that the bytes stand for; an agent ends after so many writes.
fn run_to_the_end(bytes: &[u8], crash_at: Option<u32>) -> Met {
    let (capacity, actions) = actions(bytes);
    let options = SourceOptions {
        node_name: Arc::from("n1"),
        external_ips: true,
        claims: svc_userspace::model::Claims::Nobody,
        names: true,
    };
    let mut files = InMemory::new(options);
    let mut agent = Agent::new(capacity, node(3));
    agent.engine.maps().crash_at = crash_at;
    let mut names = Vec::new();
    for action in actions {
        match action {
            Action::Write(name, text) => {
                files.write(&name, &text).into_iter().for_each(|change| agent.change(change));
                names.push(name);
            }
            Action::Remove(name) => files.remove(&name).into_iter().for_each(|change| agent.change(change)),
            Action::Node(node) => {
                agent.node = node.clone();
                agent.engine.set_node(node);
            }
            Action::Wait(ms) => agent.work(ms),
            Action::Fail(after) => agent.engine.maps().fail_after = Some(after),
            Action::Restart => agent.restart(),
        }
        agent.work(10);
    }
    agent.settle();
    tampered(&mut agent, bytes);
    let mut fresh = Agent::new(capacity, agent.node.clone());
    for change in agent.objects.values().cloned().collect::<Vec<_>>() {
        fresh.change(change);
    }
    fresh.settle();
    // Who of two claimants has an address, and who found room, depends on history.
    if !agent.refuses() && !fresh.refuses() {
        assert_same(&agent.engine.maps().view(), &fresh.engine.maps().view());
        assert_eq!(
            agent.engine.maps().live(),
            fresh.engine.maps().live(),
            "left: after all that happened, right: afresh"
        );
    }
    for name in names {
        files.remove(&name).into_iter().for_each(|change| agent.change(change));
    }
    agent.settle();
    let maps = agent.engine.maps();
    assert!(maps.is_empty(), "the objects are gone, and something is left: {maps:?}");
    Met { writes: maps.written, served: maps.served }
}

/// Somebody else writes to the maps, and the agent finds it.
fn tampered(agent: &mut Agent, bytes: &[u8]) {
    let seed = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let maps = agent.engine.maps();
    let (crash_at, written) = (maps.crash_at.take(), maps.written);
    let before = maps.tamper(seed);
    while !agent.engine.repair() {}
    let maps = agent.engine.maps();
    maps.assert_put_right(&before);
    (maps.crash_at, maps.written) = (crash_at, written);
}

fn assert_same(history: &View, afresh: &View) {
    for address in history.keys().chain(afresh.keys()) {
        let (left, right) = (history.get(address), afresh.get(address));
        assert_eq!(left, right, "{address:?}; left: after all that happened, right: afresh");
    }
}

/// What the bytes stand for, for people.
pub fn describe(bytes: &[u8]) -> String {
    let (capacity, actions) = actions(bytes);
    let mut text = format!("{capacity:?}\n");
    for action in actions {
        let _ = match action {
            Action::Write(name, content) => writeln!(text, "{name}: {content}"),
            other => writeln!(text, "{other:?}"),
        };
    }
    text
}
