//! Developer commands of this workspace: `cargo xtask help`.
//!
//! One file per command. Each command runs what it needs of the others by itself, so that `cargo xtask demo` and
//! `cargo xtask test` are enough on a fresh machine. Nothing here is part of the product.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod demo;
mod deny;
mod ebpf;
mod fuzz;
mod image;
mod lint;
mod process;
mod setup;
mod test;
mod vm;
mod workspace;

#[cfg(test)]
mod deploy_tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing need, and is missing; the second time it only looks
    Setup,
    /// Build the kernel object into .build/ebpf/svc.o
    Ebpf(ebpf::Options),
    /// Build the kernel object, the agent (svc) and the lab (svc-lab)
    Build(build::Options),
    /// Show the main job on this machine: a small cluster of network namespaces, and requests along every path (root)
    Demo(demo::Options),
    /// Run every test: units, the loaded programs, and clusters of network namespaces (root)
    Test(test::Options),
    /// Fuzz the packet path and the agent's way from objects to maps (a nightly compiler)
    Fuzz(fuzz::Options),
    /// Measure packets in the loaded programs and in the lab beside kube-proxy's way, and print one table (root)
    Bench(bench::Options),
    /// Check formatting and lints; licences and advisories as well where cargo-deny is here already
    Lint,
    /// Check licences, sources and advisories of all dependencies; builds cargo-deny first where it is missing
    Deny,
    /// Boot another kernel in a virtual machine and run the agent there
    Vm(vm::Options),
    /// Build the container image and leave it as an OCI archive in .build/
    Image(image::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::Ebpf(options) => ebpf::run(&options).map(|_| ()),
        Command::Build(options) => build::run(&options).map(|_| ()),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Lint => lint::run(),
        Command::Deny => deny::run(),
        Command::Vm(options) => vm::run(&options),
        Command::Image(options) => image::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
