//! Many probes in one process: command lines of single ones come in, their outcomes go out as they are known.

use std::{
    io::{self, BufRead, Write},
    sync::{Mutex, PoisonError},
    thread,
};

use clap::Parser;
use serde::{Deserialize, Serialize};

use super::{Options, Outcome, each};

/// Command line of `svc-lab probes`, which reads the command lines of probes from standard input, one a line.
#[derive(clap::Args, Debug)]
pub struct BatchOptions {
    /// Number of probes that run at the same time
    #[arg(long, default_value_t = 16)]
    pub workers: usize,
}

/// One line of its output: the outcomes of a probe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    /// Number of the probe's line of input, from 0.
    pub(crate) line: usize,
    /// Its outcomes, in order.
    pub(crate) outcomes: Vec<Outcome>,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// Runs the probes of standard input; prints [`Outcomes`] a line, in the order in which they end.
pub fn run_batch(options: &BatchOptions) -> io::Result<()> {
    let probes: Vec<Options> = io::stdin().lock().lines().map(|line| parse(&line?)).collect::<io::Result<_>>()?;
    let waiting = Mutex::new(probes.iter().enumerate());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> io::Result<()> {
        while let Some((line, probe)) = next() {
            let mut outcomes = Vec::new();
            each(probe, |outcome| {
                outcomes.push(outcome);
                Ok(())
            })?;
            let mut text = serde_json::to_vec(&Outcomes { line, outcomes })?;
            text.push(b'\n');
            io::stdout().lock().write_all(&text)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.workers.clamp(1, probes.len().max(1))).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn parse(line: &str) -> io::Result<Options> {
    let parsed = Line::try_parse_from(line.split_whitespace());
    parsed.map(|line| line.options).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_command_line_of_a_probe() {
        let options = parse("udp [fd00::1]:80 --connected --timeout 7").unwrap();
        assert_eq!((options.destination, options.timeout), ("[fd00::1]:80".parse().unwrap(), 7));
        assert!(options.connected);
        assert!(parse("udp nonsense").is_err());
    }
}
