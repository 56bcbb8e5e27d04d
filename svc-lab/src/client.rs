//! Requests from a place of the lab: the library's side of `svc-lab probe`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use crate::{
    LabError, binary,
    place::{Place, capture},
    probe::{ASK, Failure, Outcome, Outcomes, Protocol, Report, Success},
    process::Process,
};

/// What to send; see [`Place::ask`]. Made by [`Request::tcp`] and [`Request::udp`] and refined by its methods.
#[derive(Clone, Debug)]
pub struct Request {
    protocol: Protocol,
    destination: SocketAddr,
    options: Vec<String>,
}

impl Request {
    /// A request over a TCP connection of its own.
    pub fn tcp(destination: impl Into<SocketAddr>) -> Self {
        Self { protocol: Protocol::Tcp, destination: destination.into(), options: Vec::new() }
    }

    /// A datagram from a socket that is not connected.
    pub fn udp(destination: impl Into<SocketAddr>) -> Self {
        Self { protocol: Protocol::Udp, destination: destination.into(), options: Vec::new() }
    }

    /// One or the other.
    pub fn new(protocol: Protocol, destination: impl Into<SocketAddr>) -> Self {
        Self { protocol, destination: destination.into(), options: Vec::new() }
    }

    /// From this source port.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        self.with("--source-port", port)
    }

    /// From this source address.
    #[must_use]
    pub fn from_address(self, address: impl Into<IpAddr>) -> Self {
        self.with("--source", address.into())
    }

    /// Requests of that many bytes.
    #[must_use]
    pub fn payload(self, bytes: usize) -> Self {
        self.with("--payload", bytes)
    }

    /// Answers of at least that many bytes.
    #[must_use]
    pub fn pad(self, bytes: usize) -> Self {
        self.with("--pad", bytes)
    }

    /// So many requests, each from a socket of its own unless [`kept`](Self::kept).
    #[must_use]
    pub fn count(self, count: u32) -> Self {
        self.with("--count", count)
    }

    /// All requests from one connection or socket.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.options.push("--kept".into());
        self
    }

    /// Send nothing more after a request that was not answered.
    #[must_use]
    pub fn stop_at_failure(mut self) -> Self {
        self.options.push("--stop-at-failure".into());
        self
    }

    /// UDP: a connected socket.
    #[must_use]
    pub fn connected(mut self) -> Self {
        self.options.push("--connected".into());
        self
    }

    /// UDP: the datagram ends at the router after so many, which says so.
    #[must_use]
    pub fn hops(self, hops: u8) -> Self {
        self.with("--hops", hops)
    }

    /// Steady UDP: after a failure other than a time-out, go on with a new socket, as a well-made application does.
    #[must_use]
    pub fn reopened(mut self) -> Self {
        self.options.push("--reopen".into());
        self
    }

    /// TCP: close the connection by a reset.
    #[must_use]
    pub fn reset(mut self) -> Self {
        self.options.push("--reset".into());
        self
    }

    /// Wait at most so many milliseconds for the connection and for each answer.
    #[must_use]
    pub fn timeout_ms(self, milliseconds: u64) -> Self {
        self.with("--timeout", milliseconds)
    }

    /// TCP: download that many bytes and check them.
    #[must_use]
    pub fn download(self, bytes: u64) -> Self {
        self.with("--download", bytes)
    }

    /// TCP: upload that many bytes, which the server's hash must match.
    #[must_use]
    pub fn upload(self, bytes: u64) -> Self {
        self.with("--upload", bytes)
    }

    fn with(mut self, option: &str, value: impl std::fmt::Display + Copy) -> Self {
        self.options.extend([option.to_owned(), format!("{value}")]);
        self
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.protocol.as_str().into(), self.destination.to_string()];
        arguments.extend(self.options.iter().cloned());
        arguments
    }
}

impl Place {
    /// Sends from a new process in this place; the outcome of each request, in order.
    pub fn ask_all(&self, request: &Request) -> Result<Vec<Result<Success, Failure>>, LabError> {
        let mut command = self.command(binary::lab()?)?;
        command.arg("probe").args(request.arguments());
        capture(&mut command, None)?.lines().map(|line| parse(line).map(settle)).collect()
    }

    /// Sends many requests from one new process in this place, `workers` at a time; the outcomes of each, in order.
    pub fn ask_many(
        &self,
        requests: &[Request],
        workers: usize,
    ) -> Result<Vec<Vec<Result<Success, Failure>>>, LabError> {
        let lines: Vec<String> = requests.iter().map(|request| request.arguments().join(" ") + "\n").collect();
        let mut command = self.command(binary::lab()?)?;
        command.args(["probes", "--workers", &workers.to_string()]);
        let mut all = vec![Vec::new(); requests.len()];
        for line in capture(&mut command, Some(&lines.concat()))?.lines() {
            let Outcomes { line, outcomes } = parse(line)?;
            let slot = all.get_mut(line).ok_or_else(|| LabError::Invalid(format!("there is no request {line}")))?;
            *slot = outcomes.into_iter().map(settle).collect();
        }
        Ok(all)
    }

    /// Sends one request from a new process in this place. A failure of the lab itself has kind `Other`.
    pub fn ask(&self, request: &Request) -> Result<Success, Failure> {
        let outcomes = self.ask_all(request).map_err(Failure::lab)?;
        outcomes.into_iter().next().unwrap_or_else(|| Err(Failure::lab("the probe said nothing")))
    }

    /// One request over TCP.
    pub fn tcp(&self, destination: impl Into<SocketAddr>) -> Result<Success, Failure> {
        self.ask(&Request::tcp(destination))
    }

    /// One request over UDP, from a socket that is not connected.
    pub fn udp(&self, destination: impl Into<SocketAddr>) -> Result<Success, Failure> {
        self.ask(&Request::udp(destination))
    }

    /// Opens one connection or socket and sends a request every `interval_ms` milliseconds, or for 0 when it is
    /// [asked](Steady::ask) to; returns after the first answer. `log` takes what the process complains about.
    pub fn steady(&self, request: &Request, interval_ms: u64, log: &Path) -> Result<Steady, Failure> {
        let start = || {
            let mut command = self.command(binary::lab()?)?;
            command.arg("probe").args(request.arguments()).args(["--steady", &interval_ms.to_string()]);
            let mut process = Process::start(command, log)?;
            let line = process.line()?;
            Ok((process, parse(&line)?))
        };
        let (process, first) = start().map_err(|error: LabError| Failure::lab(error))?;
        Ok(Steady { process, first: settle(first)? })
    }
}

/// A probe that is running.
#[derive(Debug)]
pub struct Steady {
    process: Process,
    /// The first answer.
    pub first: Success,
}

impl Steady {
    /// How it fared up to now.
    pub fn report(&mut self) -> Result<Report, LabError> {
        self.process.tell("report\n")?;
        self.read()
    }

    /// Has it send a request now; how it fared once that was answered or lost.
    pub fn ask(&mut self) -> Result<Report, LabError> {
        self.process.tell(&format!("{ASK}\nreport\n"))?;
        self.read()
    }

    /// Ends it; how it fared.
    pub fn stop(mut self) -> Result<Report, LabError> {
        drop(self.process.take_stdin());
        let mut last = self.read()?;
        // Reports that were asked for and not read come first.
        while self.process.is_talking()? {
            last = self.read()?;
        }
        Ok(last)
    }

    fn read(&mut self) -> Result<Report, LabError> {
        match parse(&self.process.line()?)? {
            Outcome::Report(report) => Ok(report),
            other => Err(LabError::Invalid(format!("the probe said {other:?} in place of a report"))),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, LabError> {
    serde_json::from_str(line).map_err(|error| LabError::Invalid(format!("the probe said {line:?}: {error}")))
}

fn settle(outcome: Outcome) -> Result<Success, Failure> {
    match outcome {
        Outcome::Answered(success) | Outcome::Started(success) => Ok(success),
        Outcome::Failed(failure) => Err(failure),
        Outcome::Report(report) => Err(Failure::lab(format!("the probe ended early: {report:?}"))),
    }
}
