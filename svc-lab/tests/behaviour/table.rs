//! The table of `docs/behaviour.md` names tests that exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Where tests are, from the root of the workspace.
const PLACES: [&str; 4] = ["svc-lab/tests", "svc-userspace/tests", "svc-userspace/src", "svc-ebpf/tests"];

/// The text of all Rust files below a directory.
fn read(directory: &Path, texts: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, texts)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn the_table_of_behaviour_names_tests_that_exist() -> Result<()> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = fs::read_to_string(root.join("docs/behaviour.md"))?;
    let rows = table.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.rsplit(" | ").next());
    let names: BTreeSet<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    let mut sources = String::new();
    PLACES.iter().try_for_each(|place| read(&root.join(place), &mut sources))?;
    let (files, names): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| name.contains('/'));
    let tests: Vec<&str> = names.into_iter().filter(|name| name.matches('_').count() >= 3).collect();
    ensure!(tests.len() > 40 && files.len() > 8, "the table was not understood: {tests:?}, {files:?}");
    let missing: Vec<&str> = tests.into_iter().filter(|test| !sources.contains(&format!("fn {test}("))).collect();
    ensure!(missing.is_empty(), "docs/behaviour.md names tests that do not exist: {missing:?}");
    let exists =
        |file: &str| root.join(file).exists() || root.join("svc-lab/tests").join(format!("{file}.rs")).exists();
    let missing: Vec<&str> = files.into_iter().filter(|file| !exists(file)).collect();
    ensure!(missing.is_empty(), "docs/behaviour.md names files that do not exist: {missing:?}");
    Ok(())
}
