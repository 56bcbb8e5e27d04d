//! Embeds the kernel object that `cargo xtask ebpf` builds: copies it to `OUT_DIR/svc.o`, or an empty file if there is
//! none, so that this crate also compiles where the bpf toolchain is missing.
//!
//! Looked for: `SVC_EBPF_OBJECT`, else `.build/ebpf/svc.o` in the checkout. Never builds anything itself.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SVC_EBPF_OBJECT");
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("cargo does not set {name}"));
    let embedded = variable("OUT_DIR")?.join("svc.o");

    if let Some(named) = env::var_os("SVC_EBPF_OBJECT").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", named.display());
        return embed(&named, &embedded);
    }
    let directory = variable("CARGO_MANIFEST_DIR")?.join("../.build/ebpf");
    let object = directory.join("svc.o");
    if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
        return embed(&object, &embedded);
    }
    // To watch a file that does not exist would have cargo run this script, and compile the crate, every time. The
    // directory that it will appear in can be watched: it has to exist for that.
    fs::create_dir_all(&directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    println!("cargo::rerun-if-changed={}", directory.display());
    Ok(fs::write(&embedded, [])?)
}

/// Copies what is a BPF object, refuses everything else.
fn embed(object: &Path, embedded: &Path) -> Result<(), Box<dyn Error>> {
    /// `e_machine` of an ELF header, little endian, at offset 18.
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();

    let bytes = fs::read(object).map_err(|error| format!("cannot read {}: {error}", object.display()))?;
    if !bytes.starts_with(b"\x7fELF") || bytes.get(18..20) != Some(&EM_BPF) {
        return Err(format!("{} is no BPF object: `cargo xtask ebpf` builds one", object.display()).into());
    }
    Ok(fs::write(embedded, bytes)?)
}
