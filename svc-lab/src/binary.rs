//! Finds the programs that a lab starts: `svc-lab` itself and `svc`. It builds nothing.

use std::{env, path::PathBuf};

use crate::LabError;

/// `svc-lab`: `$SVC_LAB_BIN`, else this program if that is its name, else a sibling in the target directory.
pub(crate) fn lab() -> Result<PathBuf, LabError> {
    find("SVC_LAB_BIN", "svc-lab")
}

/// `svc`: `$SVC_BIN`, else a sibling in the target directory.
pub fn svc() -> Result<PathBuf, LabError> {
    find("SVC_BIN", "svc")
}

fn find(variable: &str, name: &str) -> Result<PathBuf, LabError> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let own = env::current_exe().map_err(LabError::io("find the path of this program"))?;
    // Tests are in target/debug/deps, examples in target/debug/examples, programs in target/debug.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::Invalid(format!("{name} is not built: cargo build --bin {name}, or set {variable}")))
}
