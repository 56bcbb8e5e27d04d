//! The container image: one static binary in an otherwise empty image, as an OCI archive that was tried.

mod content;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf,
    process::{host_cargo, note, run as run_command, step},
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
    setup::ensure_programs(&[
        ("buildah", "buildah"),
        ("crun", "crun"),
        ("tar", "tar"),
        ("unshare", "util-linux"),
        ("chroot", "coreutils"),
    ])?;
    ebpf::run(&ebpf::Options::default())?;
    let binary = static_binary()?;

    step(format!("building the image {}", options.tag));
    let context = workspace::build_directory().join("image");
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    copy(&binary, &context.join("svc"))?;
    let containerfile = workspace::root().join("deploy").join("Containerfile");
    // Images and layers stay below .build, away from whatever else uses this machine's container storage.
    let storage = workspace::build_directory().join("containers");
    remove(&storage)?;
    let buildah = || {
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
    // buildah appends to an archive that is there.
    remove(&archive)?;
    run_command(buildah().args(["push", "--quiet", &options.tag]).arg(format!(
        "oci-archive:{}:{}",
        archive.display(),
        options.tag
    )))?;
    remove(&storage)?;

    step("trying the image");
    content::verify(&archive, &workspace::build_directory().join("image-content"))?;
    let kibibytes = |path: &Path| path.metadata().map(|metadata| metadata.len() >> 10);
    note(format!("{}, {} KiB; svc unpacked {} KiB", archive.display(), kibibytes(&archive)?, kibibytes(&binary)?));
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
    if content::needs_loader(&binary)? {
        bail!("{} needs shared libraries and would not start in an empty image", binary.display());
    }
    Ok(binary)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
