//! The agent: from objects to maps, at sizes of large clusters.
//!
//! A real agent in a lab's node, fed by the API server's double or from files. Times are those of the agent's own log, or
//! from before a change to the map that shows it, seen from outside; nothing here is inside of the agent.

mod cluster;
mod objects;
mod observe;

use std::time::Duration;

use anyhow::{Context, Result};

use self::{cluster::Cluster, objects::Size, observe::Memory};
use crate::report::{Cell, Row, Section};

/// Where the agent's objects come from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// A double of the API server, through the real client.
    Api,
    /// A directory of manifests.
    Files,
}

const FEW: Size = Size { services: 10, endpoints: 10 };
const MANY: Size = Size { services: 10_000, endpoints: 10 };
const MOST: Size = Size { services: 50_000, endpoints: 5 };

/// Columns; the goals are in the order of the rows.
const COLUMNS: &[(&str, Size, Origin)] = &[
    ("10 × 10 api", FEW, Origin::Api),
    ("10,000 × 10 api", MANY, Origin::Api),
    ("files", MANY, Origin::Files),
    ("50,000 × 5 api", MOST, Origin::Api),
    ("files", MOST, Origin::Files),
];
const QUICK_COLUMNS: usize = 3;

/// Changes that are measured one by one.
const CHANGES: u32 = 500;
const QUICK_CHANGES: u32 = 100;

/// What was measured of one agent.
#[derive(Debug, Default)]
struct Outcome {
    total: Duration,
    after_list: Duration,
    cpu: f64,
    loaded: Option<Memory>,
    churned: Option<Memory>,
    maps: f64,
    /// Sorted.
    latencies: Vec<Duration>,
    burst: f64,
    change_cpu: f64,
    scrape: (Duration, f64),
    started: Duration,
    adopted: Duration,
    adopted_after_list: Duration,
    /// A comparison of everything: all of its work, and the longest slice, seconds.
    repair: (f64, f64),
}

impl Outcome {
    fn latency(&self, percent: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// A row of the table.
struct Figure {
    name: &'static str,
    digits: usize,
    of: fn(&Outcome) -> f64,
    /// At most this: 10 × 10, 10,000 × 10, 50,000 × 5.
    goals: [Option<f64>; 3],
}

const MIB: f64 = 1024.0 * 1024.0;

fn mib(memory: Option<Memory>, part: fn(&Memory) -> f64) -> f64 {
    memory.as_ref().map_or(f64::NAN, part) / MIB
}

const FIGURES: &[Figure] = &[
    Figure {
        name: "last list byte → last map write, s",
        digits: 2,
        of: |it| it.after_list.as_secs_f64(),
        goals: [None, Some(0.5), Some(2.0)],
    },
    Figure { name: "start → all programmed, s", digits: 2, of: |it| it.total.as_secs_f64(), goals: [None; 3] },
    Figure { name: "… CPU s of the agent", digits: 2, of: |it| it.cpu, goals: [None; 3] },
    Figure {
        name: "one change → kernel, p50, ms",
        digits: 2,
        of: |it| it.latency(50),
        goals: [Some(0.3), Some(0.3), Some(0.3)],
    },
    Figure {
        name: "one change → kernel, p99, ms",
        digits: 2,
        of: |it| it.latency(99),
        goals: [Some(3.0), Some(3.0), Some(3.0)],
    },
    Figure { name: "changes at 1,000/s: done/s", digits: 0, of: |it| it.burst, goals: [None; 3] },
    Figure { name: "… CPU µs of the agent, each", digits: 0, of: |it| it.change_cpu * 1e6, goals: [None; 3] },
    Figure {
        name: "RSS after load, MiB",
        digits: 1,
        of: |it| mib(it.loaded, |memory| memory.resident),
        goals: [Some(12.0), Some(40.0), Some(120.0)],
    },
    Figure { name: "… anonymous", digits: 1, of: |it| mib(it.loaded, |memory| memory.anonymous), goals: [None; 3] },
    Figure {
        name: "RSS after changes, MiB",
        digits: 1,
        of: |it| mib(it.churned, |memory| memory.resident),
        goals: [Some(12.0), Some(40.0), Some(120.0)],
    },
    Figure { name: "… anonymous", digits: 1, of: |it| mib(it.churned, |memory| memory.anonymous), goals: [None; 3] },
    Figure { name: "maps besides flows, MiB", digits: 1, of: |it| it.maps / MIB, goals: [None, Some(48.0), None] },
    Figure { name: "one scrape, ms", digits: 0, of: |it| it.scrape.0.as_secs_f64() * 1e3, goals: [None; 3] },
    Figure { name: "… CPU ms of the agent", digits: 0, of: |it| it.scrape.1 * 1e3, goals: [None; 3] },
    Figure {
        name: "killed, start → maps adopted, s",
        digits: 2,
        of: |it| it.started.as_secs_f64(),
        goals: [None, Some(0.7), None],
    },
    Figure {
        name: "killed, last list byte → compared, s",
        digits: 2,
        of: |it| it.adopted_after_list.as_secs_f64(),
        goals: [None; 3],
    },
    Figure { name: "killed, start → compared, s", digits: 2, of: |it| it.adopted.as_secs_f64(), goals: [None; 3] },
    Figure { name: "repair, work of a pass, ms", digits: 0, of: |it| it.repair.0 * 1e3, goals: [None; 3] },
    Figure { name: "… its longest slice, ms", digits: 1, of: |it| it.repair.1 * 1e3, goals: [None; 3] },
];

/// Measures all sizes and sources.
pub fn run(quick: bool) -> Result<Section> {
    let (columns, changes) = if quick { (&COLUMNS[..QUICK_COLUMNS], QUICK_CHANGES) } else { (COLUMNS, CHANGES) };
    let mut outcomes = Vec::new();
    for &(_, size, from) in columns {
        let Size { services, endpoints } = size;
        let what = format!("control: {services} × {endpoints}, {from:?}");
        eprintln!("{what}");
        let outcome = Cluster::build(size, from).and_then(|mut cluster| cluster.measure(changes));
        outcomes.push(outcome.with_context(|| what)?);
    }
    let cell = |value: f64, digits| Some(Cell { value, digits, spread: None, ratio: None });
    let goal_columns = ["goal 10", "goal 10,000", "goal 50,000"];
    let rows = FIGURES.iter().map(|figure| {
        let measured = outcomes.iter().map(|outcome| cell((figure.of)(outcome), figure.digits));
        let goals = figure.goals.iter().map(|goal| goal.and_then(|goal| cell(goal, figure.digits.min(1))));
        Row { name: figure.name.into(), cells: measured.chain(goals).collect() }
    });
    Ok(Section {
        name: "control",
        title: "THE AGENT, SERVICES × ENDPOINTS".into(),
        columns: columns.iter().map(|(name, ..)| *name).chain(goal_columns).map(Into::into).collect(),
        rows: rows.collect(),
        notes: vec![
            "api: a double of the API server in this process, through the real client; it shares the CPUs.".into(),
            "files: a hundred Services in each; the last list byte is when all have been read and understood.".into(),
            format!("one change: of {changes}, one after another, from before it is made to the frontend in the map."),
            "10 × 10 has the default sizes of maps, the others as large ones as they need.".into(),
        ],
    })
}
