//! What building and running need on this machine: found, or installed, or else explained.
//!
//! Everything is looked at afresh each time (about a tenth of a second), nothing is remembered: there is no state that
//! could disagree with the machine. Only packages of the distribution, cargo and rustup are used to install.

mod bpffs;
mod linker;
mod packages;
mod toolchain;

use std::path::PathBuf;

use anyhow::Result;

pub(crate) use packages::{download_dependency, ensure_programs};
pub(crate) use toolchain::Toolchain;

use crate::process::{note, step};

/// What builds the kernel object.
#[derive(Debug)]
pub(crate) struct BuildTools {
    /// A rustc with the sources of `core` beside it, and its cargo.
    pub(crate) toolchain: Toolchain,
    /// A bpf-linker that reads what this rustc writes.
    pub(crate) linker: PathBuf,
}

/// Programs that the agent's environment, the lab and the tests call, and the package that has each.
const RUN_PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("crun", "crun"),
    ("bpftool", "bpftool"),
    ("dig", "bind9-dnsutils"),
];

/// Installs everything that is missing and says what there is.
pub(crate) fn run() -> Result<()> {
    step("setup");
    let tools = build_tools()?;
    note(format!("toolchain   {}", tools.toolchain));
    note(format!("bpf-linker  {}", tools.linker.display()));
    run_tools()?;
    let programs: Vec<_> = RUN_PROGRAMS.iter().map(|(program, _)| *program).collect();
    note(format!("programs    {}", programs.join(", ")));
    note(format!("bpffs       {}", bpffs::PATH));
    note("everything is there");
    Ok(())
}

/// What `cargo xtask ebpf` needs; says nothing if it is there.
pub(crate) fn build_tools() -> Result<BuildTools> {
    ensure_programs(&[("cc", "gcc"), ("c++", "g++")])?;
    let toolchain = toolchain::ensure()?;
    let linker = linker::ensure(toolchain.llvm)?;
    Ok(BuildTools { toolchain, linker })
}

/// What the lab, and so demo and test, need at run time; says nothing if it is there.
pub(crate) fn run_tools() -> Result<()> {
    ensure_programs(RUN_PROGRAMS)?;
    bpffs::ensure()
}
