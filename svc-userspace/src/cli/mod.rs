//! The command line: what may be asked for, and where each command lives. It parses, calls, and turns errors into text
//! and exit codes (1: it failed, 2: it was asked wrongly); it decides nothing about Services.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

pub mod agent;
pub mod backends;
pub mod check;
pub mod cleanup;
pub mod error;
pub mod explain;
pub mod flows;
pub mod names;
pub mod preflight;
pub mod render;
pub mod services;
pub mod status;
pub mod table;

const LONG_ABOUT: &str = "\
Load-balances Kubernetes Services with eBPF, in place of kube-proxy.

One agent runs on every node. It turns Services and EndpointSlices into BPF maps that are pinned below --bpffs; the programs
that read them keep forwarding when the agent stops, and the next agent takes over where it was. Every other command
reads those pins and needs no agent.";

const EXAMPLES: &str = "\
Examples:
  svc check                                            what this kernel offers, and what is missing
  svc agent --node-name $(hostname)                    in a pod: Services come from the Kubernetes API
  svc agent --node-name n1 --kubeconfig ~/.kube/config the same from outside
  svc agent --node-name n1 --manifests ./services      no cluster: Services from YAML and JSON files
  svc status                                           is it working, how full is it, what does it drop
  svc services -n default web                          addresses of one Service and how much they carry
  svc backends default/web -o wide                     where its connections go
  svc flows --service default/web --limit 20           which connections it has now
  svc explain 10.244.1.5 10.96.0.10:53/udp             which Service that is, which endpoint answers, and why
  svc status -o json | jq .synced                      for scripts
  svc cleanup                                          detach and remove everything

What each command reads:
  agent               the Kubernetes API or --manifests; interfaces and addresses by netlink; --bpffs, --cgroup
  status              the pinned maps and links below --bpffs, and the agent's /healthz if it answers
  services, backends  the pinned maps below --bpffs
  flows               the pinned flow tables below --bpffs
  explain             the same, routes, and a copy of the program that it loads and runs on no real packet
  check               the kernel, /proc and the mounts of this machine; changes nothing
  cleanup             --bpffs, and the nftables table of this project

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// `svc`.
#[derive(Debug, Parser)]
#[command(name = "svc", version, about = "Load-balances Kubernetes Services with eBPF", long_about = LONG_ABOUT)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, propagate_version = false, max_term_width = 110)]
pub struct Cli {
    /// Directory on a bpffs below which everything is pinned; one for each agent
    #[arg(long, global = true, env = "SVC_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/svc")]
    pub bpffs: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run on a node: program Services, follow their changes
    Agent(Box<agent::AgentArgs>),
    /// Say whether the dataplane works: synced, attached, how full, what it drops
    Status(status::StatusArgs),
    /// List the Service ports that are programmed
    Services(services::ServicesArgs),
    /// List the backends that are programmed
    Backends(backends::BackendsArgs),
    /// List connections
    Flows(flows::FlowsArgs),
    /// Say what becomes of a connection and why, without sending it
    Explain(explain::ExplainArgs),
    /// Say what this kernel and this machine offer, and what will be used
    Check(check::CheckArgs),
    /// Detach and remove everything this project pinned
    Cleanup(cleanup::CleanupArgs),
}

/// Format of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// One JSON document with stable field names
    Json,
}

/// The `-o` option that every command with data has.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OutputArg {
    /// Format of the output
    #[arg(short = 'o', long = "output", env = "SVC_OUTPUT", value_enum, default_value_t)]
    pub output: Output,
}

/// Parses the arguments of this process, runs the command, prints its error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprint!("{}", error::describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let bpffs = cli.bpffs;
    match cli.command {
        Command::Agent(args) => agent::run(bpffs, *args)?,
        Command::Status(args) => status::run(&bpffs, &args)?,
        Command::Services(args) => services::run(&bpffs, &args)?,
        Command::Backends(args) => backends::run(&bpffs, &args)?,
        Command::Flows(args) => flows::run(&bpffs, &args)?,
        Command::Explain(args) => explain::run(&bpffs, &args)?,
        Command::Check(args) => return check::run(&bpffs, &args),
        Command::Cleanup(args) => cleanup::run(&bpffs, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
