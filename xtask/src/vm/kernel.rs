//! A kernel to boot: Debian's cloud kernel, downloaded and unpacked beside this user's other tools, never installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    process::{note, run, step},
    setup, workspace,
};

/// The package that depends on the current kernel for virtual machines.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel and its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The image that a boot loader would load.
    pub(super) image: PathBuf,
    /// Path of every module by its name.
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The kernel in a package file, or Debian's, which is downloaded if no kernel is here yet.
    pub(super) fn ensure(package: Option<&Path>) -> Result<Self> {
        let kernels = workspace::tools_directory().join("kernels");
        let directory = match package {
            Some(file) => {
                let name = file.file_stem().with_context(|| format!("{} is no package", file.display()))?;
                kernels.join("other").join(name)
            }
            None => kernels.join(PACKAGE),
        };
        if !directory.is_dir() {
            // Unpacked elsewhere and renamed: what is there is whole.
            let partial = directory.with_extension("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
            }
            fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
            let file = match package {
                Some(file) => file.to_owned(),
                None => setup::download_dependency(PACKAGE, &partial)?,
            };
            step(format!("unpacking {}", file.display()));
            run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&partial))?;
            if package.is_none() {
                fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
            fs::rename(&partial, &directory).with_context(|| format!("cannot create {}", directory.display()))?;
            note(format!("kept in {}; removed, it is fetched again", directory.display()));
        }
        Self::find(&directory)
    }

    fn find(directory: &Path) -> Result<Self> {
        let boot = directory.join("boot");
        let image = fs::read_dir(&boot)
            .with_context(|| format!("{} has no kernel", directory.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-")))
            .with_context(|| format!("{} has no kernel", boot.display()))?;
        let mut modules = BTreeMap::new();
        for root in ["lib/modules", "usr/lib/modules"] {
            collect(&directory.join(root), &mut modules)?;
        }
        Ok(Self { image, modules })
    }

    /// The modules of these names and all that they depend on, in an order in which they can be loaded: name and content.
    /// A name without a module is left out: it may be built in.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            self.add(name, &mut loaded, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, loaded: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if !loaded.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.modules.get(name) else { return Ok(()) };
        let content = read(path)?;
        for dependency in dependencies(&content) {
            self.add(&dependency, loaded, order)?;
        }
        order.push((name.to_owned(), content));
        Ok(())
    }
}

/// Notes every module below a directory, which may be absent.
fn collect(directory: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), modules)?;
        } else if let Some((name, "ko" | "ko.xz")) = entry.file_name().to_str().and_then(|name| name.split_once('.')) {
            modules.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let unpacked = Command::new("xz").arg("-dc").arg(path).output().context("cannot start xz (package xz-utils)")?;
    if !unpacked.status.success() {
        bail!("xz cannot read {}", path.display());
    }
    Ok(unpacked.stdout)
}

/// What the entry `depends=` in the section .modinfo names; the entries of that section end with a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_modules_own_information() {
        let module = b"\x7fELF..\0license=GPL\0depends=nf_conntrack,nf-defrag-ipv4\0name=nf_nat\0";
        assert_eq!(dependencies(module), ["nf_conntrack", "nf_defrag_ipv4"]);
        assert!(dependencies(b"\0depends=\0name=veth\0").is_empty());
        assert!(dependencies(b"no module").is_empty());
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_built_in_ones_are_left_out() {
        let directory = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let kernel = directory.join("lib/modules/6.1/kernel");
        fs::create_dir_all(&kernel).unwrap();
        fs::create_dir_all(directory.join("boot")).unwrap();
        fs::write(directory.join("boot/vmlinuz-6.1"), "").unwrap();
        fs::write(kernel.join("a-b.ko"), b"\0depends=c,d\0").unwrap();
        fs::write(kernel.join("c.ko"), b"\0depends=d\0").unwrap();
        fs::write(kernel.join("d.ko"), b"\0depends=\0").unwrap();
        let found = Kernel::find(&directory).unwrap();
        let modules = found.modules(&["a_b", "built_in", "c"]);
        fs::remove_dir_all(&directory).unwrap();
        let names: Vec<_> = modules.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["d", "c", "a_b"]);
    }
}
