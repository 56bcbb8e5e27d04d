//! What has to be clean before a change is merged: formatting, lints, licences and advisories.

use anyhow::{Context, Result};

use crate::{
    deny,
    process::{host_cargo, run as run_command, step},
    workspace,
};

/// Runs all checks; the first that fails ends the run.
pub(crate) fn run() -> Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut command = host_cargo();
        command.current_dir(workspace::root()).args(arguments);
        command
    };
    step("cargo fmt");
    run_command(&mut cargo(&["fmt", "--all", "--check"])).context("`cargo fmt` puts it right")?;
    step("cargo clippy");
    run_command(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    deny::run_if_here()
}
