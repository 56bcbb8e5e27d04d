//! Packages of the distribution: installed with apt by root, else named, so that somebody can do it by hand.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};

use crate::process::{find_program, is_root, output, run, step};

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

/// Downloads the package that `package`, which is empty itself, depends on first; installs nothing.
pub(crate) fn download_dependency(package: &str, directory: &Path) -> Result<PathBuf> {
    if find_program("apt-get").is_none() {
        bail!("{package} is only downloaded with apt, and this machine has none");
    }
    // The lists may be too old to download from, and only root may fetch new ones.
    if is_root() {
        refresh()?;
    }
    let text = output(Command::new("apt-cache").args(["depends", "--no-recommends", package]))?;
    let name = dependency(&text).with_context(|| format!("{package} depends on no package"))?;
    step(format!("downloading {name}"));
    let mut command = Command::new("apt-get");
    // As the user that runs this: the directory is not open to apt's own.
    command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", name]).current_dir(directory);
    run(&mut command)?;
    std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("{name} was downloaded and is not in {}", directory.display()))
}

/// The first package in what `apt-cache depends` prints.
fn dependency(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
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
    fn the_first_dependency_is_found() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn programs_that_are_there_need_nothing() {
        ensure_programs(&[("sh", "no-such-package")]).unwrap();
    }
}
