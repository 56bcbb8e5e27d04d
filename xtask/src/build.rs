//! Builds what runs on a node: the kernel object, the agent that embeds it, and the lab.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    ebpf,
    process::{host_cargo, note, run as run_command, step},
    workspace,
};

/// What to build.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// With optimisation
    #[arg(long)]
    pub(crate) release: bool,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// The agent and command line.
    pub(crate) svc: PathBuf,
    /// The lab.
    pub(crate) lab: PathBuf,
}

/// Builds everything and returns where the binaries are.
pub(crate) fn run(options: &Options) -> Result<Binaries> {
    ebpf::run(&ebpf::Options::default())?;
    host(options)
}

/// Builds the host's side only, with the kernel object that is there.
pub(crate) fn host(options: &Options) -> Result<Binaries> {
    step("building svc and svc-lab (some minutes the first time)");
    let mut command = host_cargo();
    command.current_dir(workspace::root()).args(["build", "--bin", "svc", "--bin", "svc-lab"]);
    command.args(["--package", "svc-userspace", "--package", "svc-lab"]);
    if options.release {
        command.arg("--release");
    }
    run_command(&mut command).context("the agent and the lab cannot be built")?;
    let directory = workspace::target_directory().join(if options.release { "release" } else { "debug" });
    let binaries = Binaries { svc: directory.join("svc"), lab: directory.join("svc-lab") };
    note(format!("{}, {}", binaries.svc.display(), binaries.lab.display()));
    Ok(binaries)
}
