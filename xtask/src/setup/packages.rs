//! Packages of the distribution: installed with apt by root, else named, so that somebody can do it by hand.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};

use crate::process::{find_program, is_root, run, step};

/// Makes sure that each program is there; the second of each pair is the Debian package that has it.
pub(crate) fn ensure_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    install(&packages).with_context(|| format!("missing: {}", names.join(", ")))?;
    match missing.iter().find(|(program, _)| find_program(program).is_none()) {
        Some((program, package)) => bail!("{package} was installed, and `{program}` is still not found"),
        None => Ok(()),
    }
}

/// Whether apt knows a package of this name and may install it.
pub(crate) fn is_available(package: &str) -> bool {
    if may_install().is_err() || refresh().is_err() {
        return false;
    }
    Command::new("apt-cache").args(["show", "--no-all-versions", package]).output().is_ok_and(|o| o.status.success())
}

/// Installs packages, or says why it may not and what to do instead.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = by_hand(packages);
    if let Err(reason) = may_install() {
        bail!("{reason}; {by_hand}");
    }
    refresh()?;
    step(format!("installing {}", packages.join(" ")));
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    run(command.env("DEBIAN_FRONTEND", "noninteractive")).with_context(|| by_hand)
}

/// What somebody has to type, or to look for on another distribution.
pub(crate) fn by_hand(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    format!(
        "install by hand: `apt-get update && apt-get install -y --no-install-recommends {packages}` as root \
         (these are Debian's names; elsewhere they may be called differently)"
    )
}

/// Why nothing can be installed here, if so.
fn may_install() -> Result<(), &'static str> {
    if find_program("apt-get").is_none() {
        return Err("packages are only installed with apt, and this machine has none");
    }
    if !is_root() {
        return Err("only root may install packages");
    }
    Ok(())
}

/// Fetches apt's lists once per run: on a fresh machine they are absent or old.
fn refresh() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    step("apt-get update");
    run(Command::new("apt-get").args(["update", "-qq"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_install_by_hand_is_one_command() {
        let text = by_hand(&["bpftool", "nftables"]);
        assert!(text.contains("apt-get install -y --no-install-recommends bpftool nftables`"), "{text}");
    }

    #[test]
    fn programs_that_are_there_need_nothing() {
        ensure_programs(&[("sh", "no-such-package")]).unwrap();
    }
}
