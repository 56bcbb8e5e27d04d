//! The command line of the lab: echo servers, probes, clean-up, and the demonstration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Clusters of network namespaces on one machine
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Answer requests with who is asking whom
    Echo(svc_lab::echo::Options),
    /// Send requests and print who answered, as lines of JSON
    Probe(svc_lab::probe::Options),
    /// Send the requests of many probes, whose command lines are read from standard input
    Probes(svc_lab::probe::BatchOptions),
    /// Build a cluster of two nodes and show every path of a Service
    Demo(svc_lab::demo::Options),
    /// Remove what labs left behind whose process is gone
    Clean {
        /// Only the lab of this name
        #[arg(long)]
        lab: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> anyhow::Result<()> {
    match task {
        Task::Echo(options) => svc_lab::echo::run(options)?,
        Task::Probe(options) => svc_lab::probe::run(options)?,
        Task::Probes(options) => svc_lab::probe::run_batch(options)?,
        Task::Demo(options) => svc_lab::demo::run(options)?,
        Task::Clean { lab } => {
            for id in svc_lab::clean(lab.as_deref())? {
                println!("removed {id}");
            }
        }
    }
    Ok(())
}
