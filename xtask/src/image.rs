//! The container image: one static binary in an otherwise empty image, as an OCI archive.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf,
    process::{host_cargo, note, output, run as run_command, step},
    setup, workspace,
};

/// How the image is called.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Name and tag of the image
    #[arg(long, default_value = concat!("localhost/svc:", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

/// Builds the image and leaves it in `.build/svc-image.tar`.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_programs(&[("buildah", "buildah"), ("crun", "crun")])?;
    ebpf::run()?;
    let binary = static_binary()?;

    step(format!("building the image {}", options.tag));
    let context = workspace::build_directory().join("image");
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    copy(&binary, &context.join("svc"))?;
    let containerfile = workspace::root().join("deploy").join("Containerfile");
    // Images and layers stay below .build, away from whatever else uses this machine's container storage.
    let buildah = || {
        let storage = workspace::build_directory().join("containers");
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs", "--root"]).arg(storage.join("root"));
        command.arg("--runroot").arg(storage.join("run"));
        command
    };
    run_command(
        buildah()
            .args(["build", "--quiet", "--isolation", "chroot", "--tag", &options.tag, "--file"])
            .arg(&containerfile)
            .arg(&context),
    )?;
    let archive = workspace::build_directory().join("svc-image.tar");
    if archive.exists() {
        // buildah appends to an archive that is there.
        fs::remove_file(&archive).with_context(|| format!("cannot replace {}", archive.display()))?;
    }
    run_command(buildah().args(["push", "--quiet", &options.tag]).arg(format!(
        "oci-archive:{}:{}",
        archive.display(),
        options.tag
    )))?;
    note(format!("{}, {} MiB", archive.display(), archive.metadata()?.len() >> 20));
    note(format!("on a node: ctr --namespace k8s.io images import {}", archive.display()));
    Ok(())
}

/// Builds `svc` without any shared library.
fn static_binary() -> Result<PathBuf> {
    step("building svc, static and optimised (some minutes the first time)");
    let host = crate::test::host_triple()?;
    let mut command = host_cargo();
    command
        .current_dir(workspace::root())
        // --target keeps the flag away from build scripts and macros, which have to be dynamic.
        .args(["build", "--quiet", "--release", "--package", "svc-userspace", "--bin", "svc", "--target", &host])
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    run_command(&mut command)?;
    let binary = workspace::target_directory().join(&host).join("release").join("svc");
    // ldd succeeds for static-pie ("statically linked") and fails for plain static binaries.
    if let Ok(text) = output(Command::new("ldd").arg(&binary))
        && !text.contains("statically linked")
    {
        bail!("{} needs shared libraries and would not start in an empty image:\n{text}", binary.display());
    }
    Ok(binary)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
