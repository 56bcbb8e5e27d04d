//! A probe that goes on until told to stop: one connection or socket, a request at every interval, losses counted.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Channel, Failure, FailureKind, Options, Outcome, Protocol, Success, print, request};

/// How a steady probe fared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Requests that were answered in time.
    pub answered: u64,
    /// Requests that were not.
    pub lost: u64,
    /// Answers by server.
    pub servers: BTreeMap<String, u64>,
    /// Longest time for one answer, in microseconds.
    pub slowest_micros: u64,
    /// The last answer.
    pub last: Option<Success>,
    /// The last failure. A TCP probe ends with its first, because its connection does not work any more.
    pub failure: Option<Failure>,
}

/// The line of standard input that asks for a request now; any other asks for a report.
pub(crate) const ASK: &str = "ask";

/// Runs until standard input ends; a line of standard input asks for a report, or for a request, in between. Without an
/// interval only those requests are sent, after the first one.
pub(super) fn run(options: &Options, interval: Option<Duration>) -> io::Result<()> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.map(|line| tell.send(line == ASK)).is_ok_and(|sent| sent.is_ok()) {
                continue;
            }
            return;
        }
    });
    let mut report = Report::default();
    let mut channel = match Channel::open(options) {
        Ok(channel) => channel,
        Err(error) => return print(&Outcome::Failed(error.into())),
    };
    loop {
        let next = interval.map(|interval| Instant::now() + interval);
        let body = request(options, report.sent);
        report.sent += 1;
        match channel.request(&body, Instant::now()) {
            Ok(success) => {
                report.answered += 1;
                *report.servers.entry(success.answer.server.clone()).or_default() += 1;
                report.slowest_micros = report.slowest_micros.max(success.micros);
                report.last = Some(success.clone());
                if report.sent == 1 {
                    print(&Outcome::Started(success))?;
                }
            }
            Err(error) if report.sent == 1 => return print(&Outcome::Failed(error.into())),
            Err(error) => {
                let failure = Failure::from(error);
                let is_over = failure.kind != FailureKind::Timeout;
                report.lost += 1;
                report.failure = Some(failure);
                if options.protocol == Protocol::Tcp {
                    break;
                }
                if options.reopen && is_over {
                    // While nobody is there, a new socket may fail like the old one, which then goes on.
                    match Channel::open(options) {
                        Ok(new) => channel = new,
                        Err(error) => report.failure = Some(error.into()),
                    }
                }
            }
        }
        if !pause(&told, next, &report)? {
            break;
        }
    }
    print(&Outcome::Report(report))
}

/// Waits for the next turn and answers questions meanwhile; false when there shall be none.
fn pause(told: &mpsc::Receiver<bool>, next: Option<Instant>, report: &Report) -> io::Result<bool> {
    loop {
        let told = match next {
            Some(next) => told.recv_timeout(next.saturating_duration_since(Instant::now())),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match told {
            Ok(false) => print(&Outcome::Report(report.clone()))?,
            Ok(true) | Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

impl Report {
    /// Nothing was lost, and something was sent.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.answered > 0 && self.failure.is_none()
    }
}

impl Failure {
    /// A failure of the lab rather than of the network.
    pub(crate) fn lab(error: impl std::fmt::Display) -> Self {
        Self { kind: FailureKind::Other, message: error.to_string() }
    }
}
