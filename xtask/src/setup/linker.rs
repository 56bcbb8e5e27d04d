//! bpf-linker: turns rustc's LLVM bitcode into the kernel object.
//!
//! It has an LLVM of its own, which has to be able to read what rustc's LLVM wrote: the same major version, or a newer
//! one. One that is found on PATH or in cargo's bin directory is taken if it fits; else it is built from source.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages;
use crate::{
    process::{find_program, host_cargo, is_executable, note, output, run, step},
    workspace,
};

/// The version that this project is built and tested with.
const VERSION: &str = "0.13.0";

/// LLVM versions that this bpf-linker can be built with.
pub(crate) const LLVM_MAJORS: &[u32] = &[21, 22, 23];

/// Finds a bpf-linker for bitcode of this LLVM, or builds it.
pub(crate) fn ensure(llvm: u32) -> Result<PathBuf> {
    let ours = workspace::tools_directory().join(format!("bpf-linker-{VERSION}-llvm-{llvm}"));
    let binary = ours.join("bin/bpf-linker");
    for candidate in [Some(binary.clone()), find_program("bpf-linker"), in_cargo_home()].into_iter().flatten() {
        if is_executable(&candidate) && fits(&candidate, llvm) {
            return Ok(candidate);
        }
    }
    build(llvm, &ours)?;
    if !fits(&binary, llvm) {
        bail!("{} was built, and does not run or has another LLVM than {llvm}", binary.display());
    }
    Ok(binary)
}

fn in_cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
    Some(home.join("bin/bpf-linker"))
}

/// Whether this one runs, has the wanted version, and an LLVM that is new enough.
fn fits(linker: &Path, llvm: u32) -> bool {
    let prints = |command: &mut Command| output(command).ok();
    let Some(version) = prints(Command::new(linker).arg("--version")) else { return false };
    if version.split_whitespace().last() != Some(VERSION) {
        return false;
    }
    // `ldd` fails for static binaries: these bring a current LLVM with them.
    let libraries = prints(Command::new("ldd").arg(linker)).unwrap_or_default();
    linked_llvm(&libraries).is_none_or(|linked| linked >= llvm)
}

/// The major version of the shared libLLVM in what `ldd` prints; `None` if there is none.
fn linked_llvm(ldd: &str) -> Option<u32> {
    let library = ldd.split_whitespace().find(|word| word.starts_with("libLLVM"))?;
    let digits = library.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Builds it with the system's LLVM of this major version.
fn build(llvm: u32, root: &Path) -> Result<()> {
    let feature = feature(llvm)?;
    let prefix = llvm_prefix(llvm)?;
    step(format!("building bpf-linker {VERSION} with LLVM {llvm} (about a minute, once for this user)"));
    note(format!("into {}", root.display()));
    let mut command = host_cargo();
    command
        .args(["install", "--quiet", "--locked", "--force", "bpf-linker", "--version", VERSION])
        .args(["--no-default-features", "--features", &feature, "--root"])
        .arg(root)
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        // Not the checkout's: what its .cargo/config.toml and its environment set is for other targets.
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(&mut command)
        .context("bpf-linker cannot be built; one that was installed otherwise and is on PATH is used as well")
}

/// The feature of bpf-linker for this LLVM.
fn feature(llvm: u32) -> Result<String> {
    if LLVM_MAJORS.contains(&llvm) {
        return Ok(format!("llvm-{llvm}"));
    }
    bail!(
        "rustc has LLVM {llvm}, and bpf-linker {VERSION} can be built with {LLVM_MAJORS:?} only: use another toolchain"
    )
}

/// Where LLVM's headers and libraries are; installs them if they are nowhere.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    if let Some(prefix) = find_llvm(llvm) {
        return Ok(prefix);
    }
    let (dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    packages::install(&[&dev, &polly, "libzstd-dev", "zlib1g-dev"])
        .with_context(|| format!("the development files of LLVM {llvm} are missing"))?;
    find_llvm(llvm).with_context(|| format!("{dev} was installed, and its llvm-config is still not found"))
}

fn find_llvm(llvm: u32) -> Option<PathBuf> {
    let names = [format!("/usr/lib/llvm-{llvm}/bin/llvm-config"), format!("llvm-config-{llvm}"), "llvm-config".into()];
    names.iter().find_map(|name| {
        let config = find_program(name)?;
        let version = output(Command::new(&config).arg("--version")).ok()?;
        let prefix = PathBuf::from(output(Command::new(&config).arg("--prefix")).ok()?.trim());
        // Some distributions ship llvm-config with the tools and the headers apart from it.
        let has_headers = prefix.join("include/llvm-c/Core.h").is_file();
        (version.split('.').next()?.parse() == Ok(llvm) && has_headers).then_some(prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_llvm_is_read_from_either_name_of_the_library() {
        let new =
            "\tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6\n";
        assert_eq!(linked_llvm(new), Some(22));
        assert_eq!(linked_llvm("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x00007f)\n"), Some(17));
        assert_eq!(linked_llvm("\tstatically linked\n"), None);
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6\n"), None);
    }

    #[test]
    fn the_feature_is_named_after_llvm_and_an_unknown_llvm_is_refused() {
        assert_eq!(feature(22).unwrap(), "llvm-22");
        let error = feature(20).unwrap_err().to_string();
        assert!(error.contains("LLVM 20") && error.contains("another toolchain"), "{error}");
    }

    #[test]
    fn a_program_that_is_no_linker_does_not_fit() {
        assert!(!fits(Path::new("/bin/true"), 22));
        assert!(!fits(Path::new("/nonexistent/bpf-linker"), 22));
    }
}
