//! Builds the kernel object, and the benchmark's: package svc-ebpf for the bpf target, with a `core` compiled for it.
//!
//! cargo is called directly and with a target directory of its own: the flags below must not reach the host's crates.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    process::{cargo, note, run as run_command, step},
    setup, workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// What to build.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// With log lines (aya-log) for packets that are dropped although none should be, into .build/ebpf/svc-log.o
    #[arg(long)]
    pub(crate) log: bool,
    /// More features of svc-ebpf, for measuring: array-flows, wrapper
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "output")]
    pub(crate) features: Vec<String>,
    /// Where the object goes instead
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Flags for rustc, one each.
fn rust_flags() -> Vec<String> {
    vec![
        // Register names in pt_regs and the like differ: aya-ebpf asks for the architecture of the kernel.
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // 32-bit jumps and arithmetic, kernel 5.1: a good quarter less code, and less for the verifier to follow.
        "-Ctarget-cpu=v3".into(),
        // The helpers are functions of the kernel, and maps print field names, only with type information.
        "-Clink-arg=--btf".into(),
        // Packet fields are read whole, not byte by byte: the kernel allows it where the CPU does.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
    ]
}

/// An object that is built from svc-ebpf.
struct Object {
    binary: &'static str,
    /// Separated by commas.
    features: String,
    what: &'static str,
    path: PathBuf,
}

/// Builds the kernel object and returns where it is.
pub(crate) fn run(options: &Options) -> Result<PathBuf> {
    let (features, what, path) = match options.log {
        false => ("kernel", "the kernel object", workspace::kernel_object()),
        true => ("kernel,log", "the kernel object with log lines", workspace::kernel_object_with_log()),
    };
    let features = options.features.iter().fold(features.to_owned(), |features, more| format!("{features},{more}"));
    let path = options.output.clone().unwrap_or(path);
    build(Object { binary: "svc", features, what, path })
}

/// Builds the benchmark's programs and returns where they are.
pub(crate) fn bench() -> Result<PathBuf> {
    let path = workspace::build_directory().join("ebpf").join("bench.o");
    build(Object { binary: "bench", features: "bench".to_owned(), what: "the benchmark's programs", path })
}

fn build(object: Object) -> Result<PathBuf> {
    let Object { binary, features, what, path: object } = object;
    let tools = setup::build_tools()?;
    step(format!("building {what}"));
    let target_directory = workspace::build_directory().join("ebpf-target");
    let mut command = cargo(tools.toolchain.cargo());
    command
        .current_dir(workspace::root())
        .args(["build", "--quiet", "--release", "--package", "svc-ebpf", "--features", &features, "--bin", binary])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&target_directory)
        .env("RUSTC", tools.toolchain.rustc())
        // `-Z build-std` on a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags().join("\u{1f}"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    for inherited in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(inherited);
    }
    // The workspace's release profile is made for the host.
    for (name, value) in [
        ("OPT_LEVEL", "3"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("PANIC", "abort"),
        ("DEBUG", "2"),
        ("STRIP", "none"),
        ("OVERFLOW_CHECKS", "false"),
        ("DEBUG_ASSERTIONS", "false"),
    ] {
        command.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    run_command(&mut command).with_context(|| format!("{what} cannot be built"))?;

    let built = target_directory.join(TARGET).join("release").join(binary);
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // Written only if it differs: the agent embeds it and would be built again.
    if std::fs::read(&object).is_ok_and(|present| present == bytes) {
        note(format!("{} is up to date", object.display()));
        return Ok(object);
    }
    if let Some(directory) = object.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    std::fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    note(format!("{}, {} KiB with type and line information", object.display(), bytes.len() / 1024));
    Ok(object)
}
