//! Runs a fuzz target with cargo-fuzz, which is installed if it is missing. Not part of any test run: what fuzzing finds
//! becomes a file in `fuzz/regressions`, which the tests replay.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    process::{cargo, find_program, note, output, run as run_command, step},
    workspace,
};

/// What to fuzz.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The target; without it, all of them one after another
    #[arg(value_name = "TARGET", value_parser = TARGETS)]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
}

const TARGETS: [&str; 3] = ["frames", "sequences", "objects"];

/// Runs the targets; what they find is in `fuzz/artifacts/TARGET`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let nightly = nightly()?;
    if find_program("cargo-fuzz").is_none() {
        step("installing cargo-fuzz");
        run_command(cargo("cargo").args(["install", "--locked", "cargo-fuzz"]))?;
    }
    let directory = workspace::root().join("fuzz");
    // The versions that the tests have run with; cargo adds what only fuzzing needs.
    fs::copy(workspace::root().join("Cargo.lock"), directory.join("Cargo.lock"))?;
    for target in TARGETS.iter().filter(|target| options.target.as_ref().is_none_or(|wanted| wanted == *target)) {
        step(format!("fuzzing {target} for {} s", options.seconds));
        let corpus = directory.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let mut command = cargo("cargo");
        // Safe Rust gains nothing from a sanitizer, which would halve the speed.
        command.current_dir(&directory).env("RUSTUP_TOOLCHAIN", &nightly);
        command.args(["fuzz", "run", "--fuzz-dir", ".", "--sanitizer", "none", target]).arg(&corpus);
        for known in ["seeds", "regressions"] {
            let known = directory.join(known).join(target);
            if known.is_dir() {
                command.arg(known);
            }
        }
        command.args(["--", "-max_len=4096", "-timeout=20"]).arg(format!("-max_total_time={}", options.seconds));
        run_command(&mut command).with_context(|| {
            format!("see what it found with `cargo run -p svc-fuzz --example show -- {target} FILE`, keep it in fuzz/regressions")
        })?;
    }
    Ok(())
}

/// The nightly toolchain of rustup: coverage needs unstable flags.
fn nightly() -> Result<String> {
    let list = output(Command::new("rustup").args(["toolchain", "list"])).context("fuzzing needs rustup")?;
    let found = list.lines().filter_map(|line| line.split_whitespace().next()).find(|name| name.starts_with("nightly"));
    let Some(found) = found else {
        bail!("fuzzing needs a nightly compiler: `rustup toolchain install nightly`");
    };
    note(format!("with {found}"));
    Ok(found.to_owned())
}
