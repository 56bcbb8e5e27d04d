//! The command line of the benchmark: `cargo xtask bench` builds what it needs and starts it.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use svc_bench::{budget, control, kernel, lab, load, machine::Machine, report::Report};

/// Measure packets in the loaded programs and in the lab
#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    /// The kernel object
    #[arg(long, default_value = ".build/ebpf/svc.o")]
    object: PathBuf,
    /// The benchmark's own programs
    #[arg(long, default_value = ".build/ebpf/bench.o")]
    bench_object: PathBuf,
    /// The recorded budgets
    #[arg(long, default_value = "svc-ebpf/budget.json")]
    budget: PathBuf,
    /// Where the tables are written as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fewer packets and rounds
    #[arg(long)]
    quick: bool,
    /// Only these sections
    #[arg(long)]
    only: Vec<Name>,
    /// Only rows of the kernel's section, and sizes of the agent's, whose name contains this, to look at them with perf
    #[arg(long)]
    row: Option<String>,
    /// Write the budgets as they are now, and measure nothing
    #[arg(long)]
    record: bool,
    /// Parts of the lab's load, which the benchmark starts in its namespaces
    #[command(subcommand)]
    load: Option<load::Load>,
}

/// The sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Cost of a packet in the loaded programs
    Kernel,
    /// End to end, in network namespaces
    Lab,
    /// The agent, from objects to maps
    Control,
    /// What the verifier counts
    Budget,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(load) = &options.load {
        return load::run(load);
    }
    if options.record {
        return budget::record(&options.object, &options.budget);
    }
    let machine = Machine::look()?;
    eprintln!("{}", machine.line());
    let mut sections = Vec::new();
    for &name in Name::value_variants() {
        if !options.only.is_empty() && !options.only.contains(&name) {
            continue;
        }
        match name {
            Name::Kernel => {
                let row = options.row.as_deref().unwrap_or_default();
                sections.extend(kernel::run(&options.object, &options.bench_object, options.quick, row)?);
            }
            Name::Lab => sections.push(lab::run(options.quick)?),
            Name::Control => sections.push(control::run(options.quick, options.row.as_deref().unwrap_or_default())?),
            Name::Budget => sections.push(budget::section(&options.object, &options.budget)?),
        }
    }
    let report = Report { machine, quick: options.quick, sections };
    print!("{}", report.text());
    if let Some(path) = &options.json {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
}
