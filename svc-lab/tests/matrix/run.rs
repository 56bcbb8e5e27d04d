//! Fills a lab with the Services of a table and asks for its cells, many at a time.

use std::{collections::BTreeSet, net::IpAddr, thread};

use anyhow::{Context, Result, ensure};
use svc_lab::{
    Failure, FailureKind, Place, Success, manifests,
    model::{Backend, Client, Expected},
    plan,
};

use crate::{
    support::{Cluster, TARGET, service},
    table::{CLIENT, Published, Question, Table, external_ips, node_port},
};

/// Probes that run at the same time for one client; those that wait for silence cost nothing but time.
const WORKERS: usize = 16;
const SILENT_WORKERS: usize = 64;
/// Requests in a round for a cell with several backends: on average five have all answered after eleven.
const ROUND: usize = 12;
/// Of five backends, one is missed once in 10¹² runs by so many rounds.
const ROUNDS: usize = 12;
/// Rounds in which a refusal may be missing: they are rate-limited.
const PATIENT_ROUNDS: usize = 4;

/// Starts what else the matrix needs, and publishes the Services of the table, all in one file.
pub(crate) fn prepare(cluster: &Cluster, table: &Table) -> Result<()> {
    let Cluster { lab, client, near, far, host, .. } = cluster;
    let here = lab.host_pod(1, "here")?;
    for pod in [client, &here] {
        lab.serve(pod, TARGET)?;
    }
    for (net, via) in ["10.96.0.0/16", "fd00:10:96::/64"].into_iter().zip(plan::node(1).both()) {
        lab.route(net, via)?;
    }
    let pods = [client.clone(), near.clone(), here, far.clone(), host.clone()];
    let mut objects = Vec::new();
    for Published { nth, policies, row } in table.services() {
        let policy = |local| if local { "Local" } else { "Cluster" };
        let addresses: Vec<String> = external_ips(nth).iter().map(ToString::to_string).collect();
        let service = service(&format!("service-{nth}"), nth, node_port(nth))
            .spec("externalIPs", addresses)
            .spec("externalTrafficPolicy", policy(policies.external_local))
            .spec("internalTrafficPolicy", policy(policies.internal_local));
        let endpoints: Vec<manifests::Endpoint<'_>> = row
            .endpoints
            .iter()
            .map(|it| {
                let pod = pods.iter().find(|pod| pod.name() == it.identity.name).context(it.identity.name)?;
                ensure!(pod.addresses == it.identity.addresses(), "{} is not where the model has it", pod.name());
                let (for_nodes, for_zones) = (&it.for_nodes[..], &it.for_zones[..]);
                let (ready, serving, terminating) = (it.ready, it.serving, it.terminating);
                Ok(manifests::Endpoint { pod, ready, serving, terminating, for_nodes, for_zones })
            })
            .collect::<Result<_>>()?;
        objects.push(service.object.clone());
        objects.extend(service.slices_of(&endpoints));
    }
    cluster.manifests.write("services", &objects)?;
    Ok(())
}

/// Asks for all cells; what is not right, the counters of drops included.
pub(crate) fn ask(cluster: &Cluster, cells: &[Question]) -> Result<Vec<String>> {
    let lab = &cluster.lab;
    let clients: [(Client, &Place); 3] =
        [(Client::Pod(CLIENT), &cluster.client), (Client::Host, lab.node(1)), (Client::Outside, lab.outside())];
    let mut wrong = thread::scope(|scope| {
        let threads = clients.map(|(client, place)| {
            scope.spawn(move || {
                let (silent, others): (Vec<_>, Vec<_>) = cells
                    .iter()
                    .filter(|cell| cell.client == client)
                    .partition(|cell| cell.expected == Expected::Silence);
                let mut ports = Ports::of(client);
                let mut wrong = silence(place, &silent, &mut ports)?;
                wrong.extend(answers(place, &others, &mut ports)?);
                anyhow::Ok(wrong)
            })
        });
        let results = threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        results.into_iter().collect::<Result<Vec<_>>>().map(|lists| lists.concat())
    })?;
    let silent = cells.iter().filter(|cell| cell.expected == Expected::Silence).count() as u64;
    let counted = cluster.drops(1, "policy_empty")? + cluster.drops(2, "policy_empty")?;
    if counted < silent {
        wrong.push(format!("{silent} requests were dropped because of a policy, and {counted} counted"));
    }
    wrong.extend(cluster.losses(&["policy_empty", "no_endpoint", "refusal_limit"])?);
    Ok(wrong)
}

/// Cells that nobody must answer. They are asked first, at once, and once: a missing answer takes its time.
fn silence(place: &Place, cells: &[&Question], ports: &mut Ports) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let requests: Vec<_> = cells
        .iter()
        .map(|cell| Ok(cell.transport.request(cell.asked).from_port(ports.next(cell)?).timeout_ms(400)))
        .collect::<Result<_>>()?;
    for (cell, outcomes) in cells.iter().zip(place.ask_many(&requests, SILENT_WORKERS)?) {
        match &outcomes[..] {
            [Err(Failure { kind: FailureKind::Timeout, .. })] => {}
            other => wrong.push(format!("{cell}: no silence but {}", describe(other))),
        }
    }
    Ok(wrong)
}

/// What is known of a cell so far.
struct Asking<'a> {
    cell: &'a Question,
    answered: BTreeSet<Backend>,
    is_settled: bool,
    wrong: BTreeSet<String>,
}

/// All other cells, in rounds until each is settled.
fn answers(place: &Place, cells: &[&Question], ports: &mut Ports) -> Result<Vec<String>> {
    let fresh = |&cell| Asking { cell, answered: BTreeSet::new(), is_settled: false, wrong: BTreeSet::new() };
    let mut all: Vec<Asking<'_>> = cells.iter().map(fresh).collect();
    for round in 0..ROUNDS {
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for (index, asking) in all.iter().enumerate().filter(|(_, asking)| !asking.is_settled) {
            let cell = asking.cell;
            for _ in 0..cell.requests() {
                let request = cell.transport.request(cell.asked).from_port(ports.next(cell)?);
                requests.push(request.timeout_ms(if cell.expected == Expected::Refused { 3500 } else { 5000 }));
                asked.push(index);
            }
        }
        if requests.is_empty() {
            break;
        }
        for (index, outcomes) in asked.into_iter().zip(place.ask_many(&requests, WORKERS)?) {
            all[index].learn(&outcomes, round);
        }
    }
    Ok(all.into_iter().flat_map(Asking::verdict).collect())
}

impl Question {
    /// Requests in a round.
    fn requests(&self) -> usize {
        match &self.expected {
            Expected::Answers(backends) if backends.len() > 1 => ROUND,
            Expected::Answers(_) => 2,
            _ => 1,
        }
    }
}

impl Asking<'_> {
    fn learn(&mut self, outcomes: &[Result<Success, Failure>], round: usize) {
        match (&self.cell.expected, outcomes) {
            (Expected::Answers(backends), [Ok(success)]) => {
                match backends.iter().find(|(backend, _)| backend.name == success.answer.server) {
                    Some((&backend, &seen)) => self.answer(success, backend, seen),
                    None => self.wrong(format!("{} answered", success.answer.server)),
                }
                self.is_settled |= self.answered.len() == backends.len();
            }
            (Expected::Refused, [Err(failure)]) if failure.kind == FailureKind::Refused => self.is_settled = true,
            (Expected::Refused, [Err(failure)])
                if failure.kind == FailureKind::Timeout && round + 1 < PATIENT_ROUNDS => {}
            (Expected::Unreachable, [Err(failure)]) if failure.kind == FailureKind::Unreachable => {
                self.is_settled = true;
            }
            (_, other) => self.wrong(format!("not {} but {}", self.cell.outcome(), describe(other))),
        }
    }

    fn answer(&mut self, success: &Success, backend: Backend, expected: IpAddr) {
        let (name, seen, local) = (backend.name, success.answer.client.ip(), success.answer.local);
        self.answered.insert(backend);
        if seen != expected {
            self.wrong(format!("{name} saw {seen}, not {expected}"));
        }
        if success.peer != self.cell.asked {
            self.wrong(format!("{name} answered as {}", success.peer));
        }
        if local != (backend.addresses().like(expected), TARGET).into() {
            self.wrong(format!("{name} was asked as {local}"));
        }
    }

    /// One thing that is wrong settles a cell.
    fn wrong(&mut self, what: String) {
        self.wrong.insert(what);
        self.is_settled = true;
    }

    fn verdict(self) -> Vec<String> {
        let Self { cell, answered, wrong, is_settled } = self;
        if is_settled || !wrong.is_empty() {
            return wrong.into_iter().map(|what| format!("{cell}: {what}")).collect();
        }
        let Expected::Answers(backends) = &cell.expected else { return vec![format!("{cell}: never settled")] };
        let missing = backends.keys().filter(|backend| !answered.contains(backend));
        missing.map(|backend| format!("{cell}: {} never answered", backend.name)).collect()
    }
}

fn describe(outcomes: &[Result<Success, Failure>]) -> String {
    let one = |outcome: &Result<Success, Failure>| match outcome {
        Ok(success) => format!("an answer of {}", success.answer.server),
        Err(failure) => failure.to_string(),
    };
    outcomes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Source ports of a client, none of them twice: what becomes of a port that was in use before, or that another client
/// or another path to the same backend uses, has tests of its own.
struct Ports {
    by_packet: std::ops::Range<u16>,
    by_socket: std::ops::Range<u16>,
}

impl Ports {
    /// Node ports are left out, and the ports of the agent and of the servers.
    fn of(client: Client) -> Self {
        let (by_packet, by_socket) = match client {
            Client::Host => (11_000..14_000, 14_000..21_000),
            Client::Pod(_) => (21_000..30_000, 33_000..42_000),
            Client::Outside => (43_000..61_000, 0..0),
        };
        Self { by_packet, by_socket }
    }

    fn next(&mut self, cell: &Question) -> Result<u16> {
        let range = if cell.by_socket { &mut self.by_socket } else { &mut self.by_packet };
        range.next().context("there are not enough source ports for the matrix")
    }
}
