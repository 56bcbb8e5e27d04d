//! What is in an image archive, and whether it runs with nothing else around it: taken out of the archive itself, not out
//! of what the archive was made from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{is_root, note, output, run};

/// Unpacks an OCI archive below `directory` and checks everything that can be checked without a container runtime.
pub(super) fn verify(archive: &Path, directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    let layout = directory.join("layout");
    let root = directory.join("root");
    unpack(archive, &layout)?;
    let index = json(&layout.join("index.json"))?;
    let manifest = json(&blob(&layout, &index["manifests"][0])?)?;
    let config = json(&blob(&layout, &manifest["config"])?)?;
    let start = (&config["config"]["Entrypoint"], &config["config"]["Cmd"]);
    if start != (&["/svc"].as_slice().into(), &["agent"].as_slice().into()) {
        bail!("the image would start {start:?}, not `/svc agent`");
    }
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        unpack(&blob(&layout, layer)?, &root)?;
    }
    let files: Vec<_> = fs::read_dir(&root)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    if files != ["svc"] {
        bail!("the image holds {files:?}, not one file `svc`");
    }
    if needs_loader(&root.join("svc"))? {
        bail!("the image's svc needs shared libraries, and there are none in the image");
    }
    start_in(&root)
}

/// Runs the binary with the unpacked image as its root.
fn start_in(root: &Path) -> Result<()> {
    let mut version = Command::new("unshare");
    if !is_root() {
        version.arg("--map-root-user");
    }
    version.arg(format!("--root={}", root.display())).args(["/svc", "--version"]);
    let version = output(&mut version).context("the image's svc does not run")?;
    note(format!("the image holds one static file, which runs: {}", version.trim()));
    if !is_root() {
        note("`svc check` was not tried inside: that takes root");
        return Ok(());
    }
    // What a runtime gives to a privileged container of the host's network.
    for directory in ["proc", "sys"] {
        fs::create_dir(root.join(directory))?;
    }
    let script =
        r#"mount --rbind /proc "$0/proc" && mount --rbind /sys "$0/sys" && exec chroot "$0" /svc check -o json"#;
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(root);
    let mut outside = Command::new(root.join("svc"));
    outside.args(["check", "-o", "json"]);
    let (inside, outside) = (findings(&mut inside)?, findings(&mut outside)?);
    if inside != outside {
        bail!("`svc check` says within the image\n{inside}\nand outside of it\n{outside}");
    }
    note(format!("`svc check` within the image finds what it finds outside, {} things", inside.lines().count()));
    Ok(())
}

/// What `svc check` found, a line for each thing. It fails on a machine that lacks something, and still says what.
fn findings(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`svc check` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    let lines = found.iter().map(|finding| format!("{} {}\n", finding["verdict"], finding["what"]));
    Ok(lines.collect())
}

fn unpack(archive: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    run(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(directory))
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Where the content that a descriptor names is.
fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("the image's index names no content")?;
    let (algorithm, hash) = digest.split_once(':').with_context(|| format!("{digest:?} is no digest"))?;
    Ok(layout.join("blobs").join(algorithm).join(hash))
}

/// Whether the kernel would look for a loader of shared libraries, before it starts this program: `PT_INTERP` of ELF.
pub(super) fn needs_loader(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    interpreted(&bytes).with_context(|| format!("{} is no 64-bit ELF program", program.display()))
}

fn interpreted(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |offset: usize| Some(usize::from(u16::from_le_bytes(elf.get(offset..offset + 2)?.try_into().ok()?)));
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (u16_at(54)?, u16_at(56)?);
    let mut kinds = (0..count).map(|n| {
        let at = table.checked_add(n * size)?;
        Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?))
    });
    kinds.try_fold(false, |found, kind| Some(found || kind? == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with program headers of these types.
    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = kinds.len() as u8;
        for kind in kinds {
            bytes.extend(kind.to_le_bytes());
            bytes.extend([0; 52]);
        }
        bytes
    }

    #[test]
    fn a_program_that_names_a_loader_is_told_from_a_static_one() {
        assert_eq!(interpreted(&elf(&[6, 1, 1])), Some(false));
        assert_eq!(interpreted(&elf(&[6, 3, 1])), Some(true));
        assert!(needs_loader(&std::env::current_exe().unwrap()).unwrap(), "tests are linked to shared libraries");
    }

    #[test]
    fn what_is_no_program_or_ends_early_is_refused() {
        for bad in [&b"#!/bin/sh"[..], b"", &elf(&[1, 1])[..100]] {
            assert_eq!(interpreted(bad), None);
        }
    }

    #[test]
    fn content_is_found_by_its_digest() {
        let descriptor = serde_json::json!({"digest": "sha256:00ff"});
        assert_eq!(blob(Path::new("/x"), &descriptor).unwrap(), Path::new("/x/blobs/sha256/00ff"));
        assert!(blob(Path::new("/x"), &Value::Null).is_err());
    }
}
