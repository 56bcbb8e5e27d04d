//! The Rust toolchain of the kernel side.
//!
//! The bpf target has no precompiled `core`, so what is needed is a rustc *with the sources of `core` beside it*
//! (rust-src). It need not be a nightly: `RUSTC_BOOTSTRAP=1` opens `-Z build-std` on any. Taken is, in this order: a
//! rustup nightly, another rustup toolchain, a system rustc; else Debian's rustc-web is installed, else a nightly by rustup.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{linker, packages};
use crate::process::{find_program, note, output, run, step};

/// Debian's newer toolchain (its security suite carries it for browsers), with the sources.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// Oldest rustc that builds this workspace: cargo refuses older ones because of `rust-version`.
fn minimum() -> Version {
    Version::parse(env!("CARGO_PKG_RUST_VERSION")).unwrap_or(Version { major: 1, minor: 95, patch: 0 })
}

/// A version of Rust; what follows the numbers (`-nightly`) is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Reads `1.96.0`, `1.95` or `1.97.0-nightly`.
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.trim().split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        let major = parts.next()?.ok()?;
        let minor = parts.next()?.ok()?;
        let patch = parts.next().transpose().ok()?.unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A toolchain that has the sources of `core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Its root: `bin/rustc` and `bin/cargo` are below it.
    pub(crate) sysroot: PathBuf,
    /// Version of rustc.
    pub(crate) version: Version,
    /// Major version of its LLVM: bpf-linker needs one at least as new.
    pub(crate) llvm: u32,
    /// Whether it is a nightly.
    nightly: bool,
}

impl Toolchain {
    /// Its compiler.
    pub(crate) fn rustc(&self) -> PathBuf {
        self.sysroot.join("bin/rustc")
    }

    /// Its cargo.
    pub(crate) fn cargo(&self) -> PathBuf {
        self.sysroot.join("bin/cargo")
    }

    /// From what `rustc -vV` prints.
    fn parse(sysroot: PathBuf, verbose_version: &str) -> Option<Self> {
        let field = |name: &str| verbose_version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?;
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some(Self { sysroot, version: Version::parse(release)?, llvm, nightly: release.contains("nightly") })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nightly = if self.nightly { "-nightly" } else { "" };
        write!(f, "rustc {}{nightly} with LLVM {}, {}", self.version, self.llvm, self.sysroot.display())
    }
}

/// Finds a toolchain, or installs one.
pub(crate) fn ensure() -> Result<Toolchain> {
    if let Some(found) = choose(find()?, minimum()) {
        return Ok(found);
    }
    step(format!("no rustc >= {} with the sources of `core` (rust-src) is here: installing one", minimum()));
    let failure = install().err();
    match (choose(find()?, minimum()), failure) {
        (Some(found), _) => Ok(found),
        (None, Some(error)) => Err(error).context("no toolchain for the bpf target"),
        (None, None) => bail!(
            "the toolchain that was installed is older than {} or its LLVM is none of {:?}: {}",
            minimum(),
            linker::LLVM_MAJORS,
            BY_HAND
        ),
    }
}

const BY_HAND: &str = "install one by hand: `rustup toolchain install nightly --component rust-src`";

/// The best of those that can be used: nightlies first, then the newest; a tie keeps the order in which they were found.
fn choose(candidates: Vec<Toolchain>, minimum: Version) -> Option<Toolchain> {
    let mut usable: Vec<_> = candidates
        .into_iter()
        .filter(|candidate| candidate.version >= minimum && linker::LLVM_MAJORS.contains(&candidate.llvm))
        .collect();
    usable.sort_by_key(|candidate| std::cmp::Reverse((candidate.nightly, candidate.version)));
    usable.into_iter().next()
}

/// Every toolchain on this machine that has its sources.
fn find() -> Result<Vec<Toolchain>> {
    let mut sysroots = Vec::new();
    if let Some(rustup) = find_program("rustup") {
        sysroots.extend(parse_rustup_list(&output(Command::new(rustup).args(["toolchain", "list", "-v"]))?));
    }
    // A distribution's rustc hides behind rustup's on PATH, so its usual place is looked at, too.
    let compilers: BTreeSet<_> = find_program("rustc").into_iter().chain(["/usr/bin/rustc".into()]).collect();
    for rustc in compilers.iter().filter(|rustc| crate::process::is_executable(rustc)) {
        let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
        if !sysroots.contains(&sysroot) {
            sysroots.push(sysroot);
        }
    }
    let mut found = Vec::new();
    for sysroot in sysroots.into_iter().filter(|sysroot| has_sources(sysroot)) {
        let rustc = sysroot.join("bin/rustc");
        let text = output(Command::new(&rustc).arg("-vV"))?;
        match Toolchain::parse(sysroot, &text) {
            Some(toolchain) => found.push(toolchain),
            None => note(format!("{} is left out: `rustc -vV` does not say its LLVM version", rustc.display())),
        }
    }
    Ok(found)
}

/// Whether the sources of `core`, a rustc and a cargo are below this root.
fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
        && ["rustc", "cargo"].iter().all(|program| crate::process::is_executable(&sysroot.join("bin").join(program)))
}

/// The paths in what `rustup toolchain list -v` prints: a name, perhaps `(active, default)`, a path.
fn parse_rustup_list(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| Some(PathBuf::from(&line[line.find(['/'])?..])))
}

/// Installs the distribution's packages, else a nightly by rustup.
fn install() -> Result<()> {
    if DEBIAN_PACKAGES.iter().all(|package| packages::is_available(package)) {
        return packages::install(DEBIAN_PACKAGES);
    }
    let Some(rustup) = find_program("rustup") else {
        bail!("there is no rustup here; {BY_HAND}; or {}", packages::by_hand(DEBIAN_PACKAGES));
    };
    step("rustup toolchain install nightly --component rust-src");
    run(Command::new(rustup)
        .args(["toolchain", "install", "nightly", "--profile", "minimal"])
        .args(["--component", "rust-src"]))
    .with_context(|| format!("{BY_HAND}; or {}", packages::by_hand(DEBIAN_PACKAGES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn toolchain(path: &str, release: &str, llvm: u32) -> Toolchain {
        Toolchain::parse(path.into(), &format!("release: {release}\nLLVM version: {llvm}.1.2\n")).unwrap()
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_are_read_and_ordered_by_number() {
        assert_eq!(version("1.95"), Version { major: 1, minor: 95, patch: 0 });
        assert_eq!(version("1.97.0-nightly"), Version { major: 1, minor: 97, patch: 0 });
        assert!(version("1.100.0") > version("1.99.1"));
        for bad in ["", "1", "one.two", "1.x.0", "1.2.x"] {
            assert_eq!(Version::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_minimum_is_the_workspaces() {
        assert_eq!(minimum(), version(env!("CARGO_PKG_RUST_VERSION")));
    }

    #[test]
    fn the_verbose_version_says_release_and_llvm() {
        let found = Toolchain::parse("/usr".into(), SYSTEM).unwrap();
        assert_eq!((found.version, found.llvm, found.nightly), (version("1.96.0"), 22, false));
        assert_eq!(found.rustc(), Path::new("/usr/bin/rustc"));
        assert_eq!(Toolchain::parse("/usr".into(), "release: 1.96.0\n"), None, "no LLVM: another backend");
    }

    #[test]
    fn a_nightly_wins_then_the_newest_and_the_unusable_never() {
        let old = toolchain("/old", "1.80.0-nightly", 22);
        let stable = toolchain("/stable", "1.95.0", 22);
        let newer = toolchain("/newer", "1.96.0", 22);
        let nightly = toolchain("/nightly", "1.97.0-nightly", 23);
        let future = toolchain("/future", "1.120.0-nightly", 40);
        let all = [&old, &stable, &newer, &nightly, &future].map(Clone::clone);
        let minimum = version("1.95");
        assert_eq!(choose(all.to_vec(), minimum), Some(nightly));
        assert_eq!(choose(vec![old.clone(), stable, newer.clone(), future], minimum), Some(newer));
        assert_eq!(choose(vec![old], minimum), None);
    }

    #[test]
    fn the_paths_of_rustups_list_are_read() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default) /home/a b/.rustup/toolchains/stable\n\
            mine /opt/rust\nno toolchains\n";
        let paths: Vec<_> = parse_rustup_list(list).collect();
        assert_eq!(paths, [Path::new("/home/a b/.rustup/toolchains/stable"), Path::new("/opt/rust")]);
    }
}
