//! Licences, sources and known weaknesses of the crates that are built, as deny.toml has them: by cargo-deny.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    process::{find_program, host_cargo, is_executable, note, output, run as run_command, step},
    workspace,
};

/// The version that deny.toml is written for.
const VERSION: &str = "0.20.2";

/// Builds cargo-deny if it is not here, and checks.
pub(crate) fn run() -> Result<()> {
    let program = match find() {
        Some(program) => program,
        None => build()?,
    };
    check(&program)
}

/// Checks if cargo-deny is here: to build it takes longer than all other lints together.
pub(crate) fn run_if_here() -> Result<()> {
    match find() {
        Some(program) => check(&program),
        None => {
            note("cargo-deny is not here, so licences, sources and advisories were not checked: `cargo xtask deny`");
            Ok(())
        }
    }
}

fn check(program: &PathBuf) -> Result<()> {
    step("cargo deny");
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(workspace::root()).args(["--log-level", "error"]).args(arguments);
        command
    };
    run_command(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    // Told apart from an advisory that was found: without a network that is the usual case, and nobody's fault.
    if let Err(error) = output(&mut deny(&["fetch", "db"])) {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default();
        note(format!("advisories were NOT checked, their database cannot be fetched: {reason}"));
        return Ok(());
    }
    run_command(&mut deny(&["check", "advisories"]))
}

fn find() -> Option<PathBuf> {
    [Some(ours()), find_program("cargo-deny")].into_iter().flatten().find(|program| is_executable(program))
}

fn ours() -> PathBuf {
    root().join("bin").join("cargo-deny")
}

fn root() -> PathBuf {
    workspace::tools_directory().join(format!("cargo-deny-{VERSION}"))
}

fn build() -> Result<PathBuf> {
    step(format!("building cargo-deny {VERSION} (some minutes, once for this user)"));
    note(format!("into {}", root().display()));
    let mut command = host_cargo();
    command.args(["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION, "--root"]).arg(root());
    // Not the checkout's settings.
    command.current_dir("/").env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    run_command(&mut command).context("cargo-deny cannot be built; one that is on PATH is used as well")?;
    Ok(ours())
}
