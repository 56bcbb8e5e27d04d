//! No program may outgrow what is recorded of it in svc-ebpf/budget.json without somebody's saying so.
//!
//! Needs root, bpftool, and the kernel object that `cargo xtask ebpf` builds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use svc_bench::budget::{Budget, RENEW, kernel};

#[test]
fn no_program_outgrows_its_budget() -> Result<()> {
    let object = std::env::var_os("SVC_EBPF_OBJECT").map(PathBuf::from).context("SVC_EBPF_OBJECT is not set")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../svc-ebpf/budget.json");
    let record = Budget::read(&path)?;
    if record.kernel != kernel()? {
        println!("skipped: the budget was recorded on Linux {}, whose verifier counts otherwise", record.kernel);
        return Ok(());
    }
    let exceeded = record.exceeded_by(&Budget::count(&object)?);
    assert!(
        exceeded.is_empty(),
        "{}\nIf that is worth it, `{RENEW}` writes {} anew; commit it with the reason.",
        exceeded.join("\n"),
        path.display()
    );
    Ok(())
}
