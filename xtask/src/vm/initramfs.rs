//! The root file system of a small virtual machine: a cpio archive in the format that the kernel unpacks itself.
//!
//! It knows files, not what they are for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// Types of inodes (`S_IFMT`, uapi/linux/stat.h).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that grows. Directories are made as files need them.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    inodes: u32,
    present: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds an empty directory.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents(Path::new(path).join("-").as_path());
    }

    /// Adds a file; a second one of the same path is left out.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, executable: bool, content: &[u8]) {
        let mode = FILE | if executable { 0o755 } else { 0o644 };
        self.add(path.as_ref(), mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: impl AsRef<Path>, target: &str) {
        self.add(path.as_ref(), LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device; the kernel opens /dev/console before anything can be mounted.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(Path::new(path), CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// Adds a program of this machine, with the shared libraries that it needs where it looks for them.
    pub(super) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let mut copy = |to: &Path, from: &Path| -> Result<()> {
            let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            self.file(to, true, &content);
            Ok(())
        };
        copy(Path::new(path), from)?;
        // ldd fails for static programs, which need nothing.
        let output = Command::new("ldd").arg(from).output().context("cannot start ldd")?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            libraries(&text).try_for_each(|library| copy(library, library))?;
        }
        Ok(())
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        self.parents(path);
        if self.present.insert(path.to_owned()) {
            self.record(&path.to_string_lossy(), mode, device, content);
        }
    }

    fn parents(&mut self, path: &Path) {
        let mut parents: Vec<_> = path.ancestors().skip(1).filter(|parent| parent.parent().is_some()).collect();
        parents.reverse();
        for parent in parents {
            if self.present.insert(parent.to_owned()) {
                self.record(&parent.to_string_lossy(), DIRECTORY | 0o755, (0, 0), &[]);
            }
        }
    }

    /// One record, as Documentation/driver-api/early-userspace/buffer-format.rst of the kernel has it.
    fn record(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inodes += 1;
        let name = name.trim_start_matches('/');
        let fields = [
            self.inodes,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device that the file is on
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, of another variant of the format
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Paths of libraries in what `ldd` prints: `name => path (address)`, or `path (address)` for the loader.
fn libraries(ldd: &str) -> impl Iterator<Item = &Path> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(Path::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parent_comes_first_and_once() {
        let mut archive = Initramfs::default();
        archive.file("/a/b/one", false, b"1");
        archive.file("/a/b/two", true, b"22");
        archive.file("/a/b/two", true, b"not again");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let names: Vec<_> = text.split("070701").skip(1).map(|record| record[104..].split('\0').next()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "TRAILER!!!"].map(Some));
        assert!(!text.contains("not again"));
    }

    #[test]
    fn a_record_has_its_mode_size_and_device() {
        let mut archive = Initramfs::default();
        archive.device("/console", 5, 1);
        archive.link("/sh", "busybox");
        let text = String::from_utf8(archive.finish()).unwrap();
        let device = &text[..text.find("070701").unwrap() + 110];
        assert_eq!((&device[14..22], &device[78..86], &device[86..94]), ("00002180", "00000005", "00000001"));
        assert!(text.contains("sh\0\0\0\0busybox\0"), "{text:?}");
    }

    #[test]
    fn libraries_are_found_with_and_without_an_arrow() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so (0x00007f)\n";
        assert_eq!(libraries(ldd).collect::<Vec<_>>(), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so")]);
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
