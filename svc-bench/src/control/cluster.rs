//! One lab with one agent and so many Services, from an API server's double or from files; how it is measured.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::prctl;
use serde_json::Value;
use svc_lab::{
    Agent, Lab, METRICS, Manifests, Source, Spec,
    api::{Api, serve, write_kubeconfig},
};
use tokio::runtime::Runtime;

use super::{
    Origin, Outcome,
    objects::{self, Size},
    observe::{self, Frontends, Log, between, cpu, memory},
};

/// Where the double listens within the node.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);
/// Services in one file.
const IN_A_FILE: u32 = 100;
/// What the agent says when it has the maps of its predecessor, when it knows all objects, and when all is programmed.
const STARTED: &str = "dataplane started";
const LISTED: &str = "have been listed";
const PROGRAMMED: &str = "every Service is programmed";

/// Where the agent's objects come from.
enum Objects {
    /// Shares the runtime that serves it.
    Api {
        api: Api,
        kubeconfig: PathBuf,
        _runtime: Runtime,
    },
    Files(Manifests),
}

pub(super) struct Cluster {
    size: Size,
    objects: Objects,
    lab: Lab,
    /// How often each Service's endpoints have changed.
    versions: Vec<u32>,
}

impl Cluster {
    pub(super) fn build(size: Size, from: Origin) -> Result<Self> {
        let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
        let versions = vec![0; size.services as usize];
        let objects = match from {
            Origin::Api => {
                let api = Api::new();
                lab.node_objects().into_iter().for_each(|node| {
                    api.apply(node);
                });
                for number in 0..size.services {
                    api.apply(objects::service(number));
                    api.apply(objects::slice(size, number, 0));
                }
                let kubeconfig = lab.directory().join("kubeconfig");
                write_kubeconfig(&kubeconfig, API.into())?;
                let listener = lab.node(1).enter(|| TcpListener::bind(SocketAddr::from(API)))??;
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
                runtime.spawn(serve(listener, api.clone()));
                Objects::Api { api, kubeconfig, _runtime: runtime }
            }
            Origin::Files => Objects::Files(lab.manifests("manifests")?),
        };
        let cluster = Self { size, objects, lab, versions };
        for first in (0..size.services).step_by(IN_A_FILE as usize) {
            cluster.write(first)?;
        }
        Ok(cluster)
    }

    /// Writes the file that a Service is in, if Services are in files.
    fn write(&self, service: u32) -> Result<()> {
        let Objects::Files(manifests) = &self.objects else { return Ok(()) };
        let first = service - service % IN_A_FILE;
        let numbers = first..(first + IN_A_FILE).min(self.size.services);
        let objects: Vec<Value> = numbers.flat_map(|number| [objects::service(number), self.slice(number)]).collect();
        Ok(manifests.write(&format!("services-{first}"), &objects)?)
    }

    fn slice(&self, service: u32) -> Value {
        objects::slice(self.size, service, self.versions[service as usize])
    }

    /// Another endpoint for a Service.
    fn change(&mut self, service: u32) -> Result<()> {
        self.versions[service as usize] += 1;
        match &self.objects {
            Objects::Api { api, .. } => {
                api.apply(self.slice(service));
                Ok(())
            }
            Objects::Files(_) => self.write(service),
        }
    }

    fn agent(&self) -> Result<Agent> {
        let source = match &self.objects {
            Objects::Api { kubeconfig, .. } => Source::Kubeconfig(kubeconfig),
            Objects::Files(manifests) => Source::Manifests(manifests.path()),
        };
        // Room for all, and for as much again as rests while endpoints change.
        let backends = (self.size.services * (self.size.endpoints + 2)).max(16_384) + 65_536;
        let slots = self.size.services * 100 * self.size.endpoints.next_power_of_two() * 11 / 10 + 4_194_304;
        let options = [
            ("--services", self.size.services.max(16_384) + 16_384),
            ("--frontends", self.size.services.max(16_384) + 16_384),
            ("--backends", backends),
            ("--slots", slots),
        ];
        let mut extra: Vec<String> =
            options.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect();
        if self.size == super::FEW {
            // As an operator would start it.
            extra.clear();
        }
        let extra: Vec<&str> = extra.iter().map(String::as_str).collect();
        Ok(self.lab.agent(1, source, &extra)?)
    }

    /// Everything that is measured of one agent; `changes` single ones, then so many as fast as they come.
    pub(super) fn measure(&mut self, changes: u32) -> Result<Outcome> {
        let mut agent = self.agent()?;
        let outcome = self.measure_agent(&mut agent, changes);
        outcome.map_err(|error| error.context(format!("the agent's log ends with\n{}", agent.log_tail())))
    }

    fn measure_agent(&mut self, agent: &mut Agent, changes: u32) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let (begin, log) = (observe::now(), Log::from_now(agent.log()));
        agent.start()?;
        let programmed = log.wait(PROGRAMMED)?;
        let process = agent.id().context("the agent has ended")?;
        outcome.total = between(begin, programmed);
        outcome.after_list = between(log.wait(LISTED)?, programmed);
        outcome.cpu = cpu(process)?;
        agent.wait_ready()?;
        // What is free goes back within two seconds after there is nothing more to do.
        thread::sleep(Duration::from_secs(3));
        outcome.loaded = Some(memory(process)?);
        outcome.maps = self.map_bytes()?;
        outcome.latencies = self.latencies(changes)?;
        let before = cpu(process)?;
        let burst = self.burst(changes * 5)?;
        outcome.change_cpu = (cpu(process)? - before) / f64::from(changes * 5);
        outcome.burst = burst;
        outcome.churned = Some(memory(process)?);
        let (begin, before) = (Instant::now(), cpu(process)?);
        scrape(agent)?;
        outcome.scrape = (begin.elapsed(), cpu(process)? - before);

        agent.kill()?;
        let (begin, log) = (observe::now(), Log::from_now(agent.log()));
        agent.start()?;
        outcome.started = between(begin, log.wait(STARTED)?);
        let programmed = log.wait(PROGRAMMED)?;
        outcome.adopted = between(begin, programmed);
        outcome.adopted_after_list = between(log.wait(LISTED)?, programmed);
        outcome.repair = repair(agent)?;
        Ok(outcome)
    }

    /// From before the change to the frontend that names the new slots, one change after another, in Services all over.
    fn latencies(&mut self, changes: u32) -> Result<Vec<Duration>> {
        // Or each look at the map would come 50 µs late.
        prctl::set_timerslack(1)?;
        let frontends = Frontends::open(&self.lab.node(1).maps()?)?;
        let mut latencies = Vec::new();
        for nth in 0..changes {
            let service = self.scattered(nth);
            let from = frontends.slots(service)?;
            let begin = Instant::now();
            self.change(service)?;
            latencies.push(frontends.moved(service, from)?.duration_since(begin));
            // The agent is idle when the next one comes.
            thread::sleep(Duration::from_millis(3));
        }
        latencies.sort();
        Ok(latencies)
    }

    fn scattered(&self, nth: u32) -> u32 {
        (u64::from(nth) * 7_919 % u64::from(self.size.services)) as u32
    }

    /// Changes without a pause, at most a thousand a second; how many a second the agent keeps up with.
    fn burst(&mut self, changes: u32) -> Result<f64> {
        let frontends = Frontends::open(&self.lab.node(1).maps()?)?;
        let begin = Instant::now();
        let mut last = None;
        for nth in 0..changes {
            let service = self.scattered(nth);
            last = Some((service, frontends.slots(service)?));
            self.change(service)?;
            let due = Duration::from_millis(u64::from(nth));
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        if let Some((service, from)) = last {
            frontends.moved(service, from)?;
        }
        Ok(f64::from(changes) / begin.elapsed().as_secs_f64())
    }

    /// Kernel memory of all maps but the flow tables.
    fn map_bytes(&self) -> Result<f64> {
        let status: Value = serde_json::from_str(&self.lab.svc(1, &["status", "-o", "json"])?)?;
        let maps = status["maps"].as_object().context("no maps in `svc status`")?;
        let counted = maps.iter().filter(|(name, _)| !name.starts_with("FLOWS"));
        Ok(counted.filter_map(|(_, fill)| fill["bytes"].as_f64()).sum())
    }
}

/// Work of a whole comparison of the maps, and the most of it that was done at once, seconds; it has to find nothing.
fn repair(agent: &Agent) -> Result<(f64, f64)> {
    // The first one begins a minute after the start.
    svc_lab::until("a comparison of the maps", Duration::from_secs(240), || {
        let metrics = agent.metrics().map_err(|error| error.to_string())?;
        let value = |name: &str| -> Option<f64> {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line?.parse().ok()
        };
        match (value("svc_repair_passes_total"), value("svc_repair_work_seconds")) {
            (Some(1.0..), Some(work)) if !metrics.contains("svc_repairs_total{") => {
                Ok((work, value("svc_repair_longest_slice_seconds").unwrap_or(f64::NAN)))
            }
            (passes, _) => Err(format!("{passes:?} comparisons, or one that found something")),
        }
    })
    .map_err(Into::into)
}

/// Asks for the metrics, however long it takes.
fn scrape(agent: &Agent) -> Result<()> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(SocketAddr::from(METRICS))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = agent.node().enter(ask)??;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the agent has no metrics");
    Ok(())
}
