//! End to end: client pod, node, backend pod; without any Service, with svc, and with what kube-proxy would write.
//!
//! Each way of serving has a lab of its own, all of them up at once. They are measured in turn, round by round, so that what
//! disturbs the machine disturbs all of them; figures are compared within a round.

mod cluster;
mod conntrack;
mod nftables;
mod services;

use anyhow::{Context, Result};

use self::cluster::{Cluster, Serving};
use crate::{
    load::{Outcome, Way},
    report::{Cell, Row, Section},
    stats::Sample,
};

/// Rounds that a figure which is quoted needs.
const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;

/// What is measured with one kind of traffic.
struct Test {
    way: Way,
    count: u32,
    figures: &'static [Figure],
}

/// A row of the table.
struct Figure {
    name: &'static str,
    of: fn(&Outcome) -> f64,
    digits: usize,
}

fn rate(outcome: &Outcome) -> f64 {
    f64::from(outcome.operations) / outcome.seconds
}

fn cpu_ns(outcome: &Outcome) -> f64 {
    outcome.cpu_seconds * 1e9 / f64::from(outcome.operations)
}

fn cpu_us(outcome: &Outcome) -> f64 {
    cpu_ns(outcome) / 1e3
}

fn connect_us(outcome: &Outcome) -> f64 {
    outcome.connect_seconds * 1e6
}

const TESTS: &[Test] = &[
    Test {
        way: Way::Datagrams,
        count: 200_000,
        figures: &[
            Figure { name: "established UDP: packets/s", of: rate, digits: 0 },
            Figure { name: "established UDP: CPU ns/packet", of: cpu_ns, digits: 0 },
        ],
    },
    Test {
        way: Way::Answered,
        count: 60_000,
        figures: &[Figure { name: "established UDP, answered: CPU ns/exchange", of: cpu_ns, digits: 0 }],
    },
    Test {
        way: Way::Flows,
        count: 60_000,
        figures: &[
            Figure { name: "each packet a new UDP flow: packets/s", of: rate, digits: 0 },
            Figure { name: "each packet a new UDP flow: CPU ns/packet", of: cpu_ns, digits: 0 },
        ],
    },
    Test {
        way: Way::Sockets,
        count: 30_000,
        figures: &[Figure { name: "each packet a new UDP socket: CPU ns/packet", of: cpu_ns, digits: 0 }],
    },
    Test {
        way: Way::Connections,
        count: 8_000,
        figures: &[
            Figure { name: "TCP, 32 open: connections/s", of: rate, digits: 0 },
            Figure { name: "TCP, 32 open: CPU µs/connection", of: cpu_us, digits: 1 },
        ],
    },
    Test {
        way: Way::Connect,
        count: 2_000,
        figures: &[Figure { name: "TCP, 1 open: connect p50, µs", of: connect_us, digits: 1 }],
    },
];

/// Ways of serving, in the order of the columns; the first is what the others are compared with.
const WAYS: &[Serving] = &[
    Serving::Plain,
    Serving::Svc { socket_lb: "off", services: 1_000 },
    Serving::Svc { socket_lb: "all", services: 1_000 },
    Serving::Nftables { services: 1_000 },
    Serving::Svc { socket_lb: "off", services: 10_000 },
    Serving::Nftables { services: 10_000 },
];
const QUICK_WAYS: usize = 4;

/// Measures all tests in all ways of serving.
pub fn run(quick: bool) -> Result<Section> {
    let (ways, rounds) = if quick { (&WAYS[..QUICK_WAYS], QUICK_ROUNDS) } else { (WAYS, ROUNDS) };
    let mut clusters = Vec::new();
    for &serving in ways {
        eprintln!("lab: {}", serving.name());
        clusters.push(Cluster::build(serving).with_context(|| serving.name())?);
    }
    let mut notes = vec![
        "×: median of the rounds' multiples of plain forwarding. ±: of the figure itself.".to_owned(),
        "CPU: of client, server and the kernel's softirq threads together.".to_owned(),
        "A raw socket, which has no hooks, sends new flows: tc serves them in every column of svc.".to_owned(),
    ];
    // By test, way and round.
    let mut outcomes = vec![vec![Vec::new(); ways.len()]; TESTS.len()];
    for round in 1..=rounds {
        eprintln!("lab: round {round} of {rounds}");
        for (test, outcomes) in TESTS.iter().zip(&mut outcomes) {
            let count = if quick { test.count / 4 } else { test.count };
            for (cluster, outcomes) in clusters.iter_mut().zip(outcomes) {
                let name = cluster.serving.name();
                let outcome =
                    cluster.measure(test.way, count).with_context(|| format!("{}, {name}", test.way.name()))?;
                if u64::from(outcome.delivered) * 1000 < u64::from(outcome.operations) * 999 {
                    let (delivered, operations) = (outcome.delivered, outcome.operations);
                    notes.push(format!("{}, {name}: {delivered} of {operations} arrived", test.way.name()));
                }
                outcomes.push(outcome);
            }
        }
    }
    Ok(Section {
        name: "lab",
        title: format!("CLIENT POD – NODE – BACKEND POD, IPv4, {rounds} rounds"),
        columns: ways.iter().map(Serving::name).collect(),
        rows: rows(&outcomes),
        notes,
    })
}

fn rows(outcomes: &[Vec<Vec<Outcome>>]) -> Vec<Row> {
    let of_test = |(test, outcomes): (&'static Test, &Vec<Vec<Outcome>>)| {
        let outcomes = outcomes.clone();
        test.figures.iter().map(move |figure| {
            let values = |way: &[Outcome]| way.iter().map(figure.of).collect::<Vec<_>>();
            let plain = outcomes.first().map(|way| values(way)).unwrap_or_default();
            let cells = outcomes.iter().enumerate().map(|(at, way)| {
                let own = values(way);
                let ratios = own.iter().zip(&plain).map(|(own, plain)| own / plain).collect();
                let (sample, ratio) = (Sample::of(own), Sample::of(ratios).median);
                let ratio = (at > 0).then_some(ratio);
                Some(Cell { value: sample.median, digits: figure.digits, spread: Some(sample.spread()), ratio })
            });
            Row { name: figure.name.into(), cells: cells.collect() }
        })
    };
    TESTS.iter().zip(outcomes).flat_map(of_test).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_are_of_the_same_round() {
        let outcome = |seconds| Outcome { operations: 100, delivered: 100, seconds, ..Outcome::default() };
        // The machine was three times as slow in the second round, for both.
        let ways = vec![vec![outcome(1.0), outcome(3.0), outcome(1.0)], vec![outcome(2.0), outcome(6.0), outcome(2.0)]];
        let rows = rows(&[ways]);
        assert_eq!(rows[0].name, "established UDP: packets/s");
        assert_eq!(rows[0].cells[0].as_ref().unwrap().ratio, None);
        assert_eq!(rows[0].cells[1].as_ref().unwrap().ratio, Some(0.5));
    }
}
