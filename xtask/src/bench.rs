//! Measures: builds everything with optimisation and hands over to svc-bench, which owns methods and tables.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    build, ebpf,
    process::{check, describe, host_cargo, is_root, run as run_command, step},
    setup, workspace,
};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Fewer packets, rounds and Services: figures for a first look, not to be quoted
    #[arg(long)]
    quick: bool,
    /// Only these sections (`kernel`, `lab`, `control`, `budget`)
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    only: Vec<String>,
    /// Where the table is written as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only rows of the kernel's section, and sizes of the agent's (as `50000 × 5 Api`), whose name contains this
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// Write the budgets that `cargo xtask test` checks, as they are now, and measure nothing
    #[arg(long)]
    record: bool,
}

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark loads BPF programs and makes network namespaces: run it as root");
    }
    setup::run_tools()?;
    let bench_object = ebpf::bench()?;
    // Recording counts instructions and measures no time: what the tests have built does.
    let release = !options.record;
    let binaries = build::run(&build::Options { release })?;
    step("building svc-bench");
    let mut build = host_cargo();
    build.current_dir(workspace::root()).args(["build", "--package", "svc-bench", "--bin", "svc-bench"]);
    if release {
        build.arg("--release");
    }
    run_command(&mut build).context("svc-bench cannot be built")?;

    step("measuring");
    let directory = workspace::target_directory();
    let mut command = Command::new(directory.join(if release { "release" } else { "debug" }).join("svc-bench"));
    command
        .current_dir(workspace::root())
        .arg("--object")
        .arg(workspace::kernel_object())
        .arg("--bench-object")
        .arg(bench_object)
        .arg("--budget")
        .arg(workspace::root().join("svc-ebpf").join("budget.json"))
        .arg("--json")
        .arg(options.json.clone().unwrap_or_else(|| directory.join("bench.json")))
        .env("SVC_BIN", binaries.svc)
        .env("SVC_LAB_BIN", binaries.lab);
    for (flag, set) in [("--quick", options.quick), ("--record", options.record)] {
        if set {
            command.arg(flag);
        }
    }
    for section in &options.only {
        command.args(["--only", section]);
    }
    if let Some(row) = &options.row {
        command.args(["--row", row]);
    }
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(&command)))?;
    check(&command, status)
}
