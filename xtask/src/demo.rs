//! Shows the main job: builds everything and hands over to the lab, which owns the cluster and the story.

use std::{ffi::OsString, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    process::{check, describe, is_root, step},
    setup, workspace,
};

/// Passed on to the lab.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the cluster up, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Build with optimisation
    #[arg(long)]
    release: bool,
    /// Anything else is passed on to `svc-lab demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<OsString>,
}

/// Runs the demonstration.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    let binaries = build::run(&build::Options { release: options.release })?;
    setup::run_tools()?;
    step("demo");
    let mut command = Command::new(&binaries.lab);
    command.current_dir(workspace::root()).args(["demo", "--svc"]).arg(&binaries.svc);
    if options.keep {
        command.arg("--keep");
    }
    command.args(&options.rest);
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(&command)))?;
    check(&command, status)
}
