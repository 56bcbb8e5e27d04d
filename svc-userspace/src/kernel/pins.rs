//! The directory of pins: where it is, whose it is, and whether what is pinned there is what this release expects.
//!
//! ```text
//! <bpffs>/layout-2/maps/NAME  programs/NAME  links/INDEX-{ingress,egress,xdp,xdp-generic}  links/PROGRAM (cgroup)
//! ```
//!
//! It never loads and never attaches.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use svc_common::LAYOUT_VERSION;

use super::error::KernelError;

/// Paths of one layout below a bpffs directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The agent's `--bpffs`.
    pub(super) bpffs: PathBuf,
    /// `<bpffs>/layout-N`.
    pub(super) root: PathBuf,
}

impl Layout {
    /// The layout of this release.
    pub(super) fn current(bpffs: &Path) -> Self {
        Self { bpffs: bpffs.to_owned(), root: bpffs.join(format!("layout-{LAYOUT_VERSION}")) }
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where a program is pinned.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Makes the directories that are missing. The bpffs itself must be mounted already.
    pub(super) fn create(&self) -> Result<(), KernelError> {
        require_bpffs(&self.bpffs)?;
        for directory in ["maps", "programs", "links"] {
            let path = self.root.join(directory);
            fs::create_dir_all(&path).map_err(|error| KernelError::Pin { path, action: "create it", error })?;
        }
        Ok(())
    }

    /// Names in `links` and their paths, sorted.
    pub(super) fn links(&self) -> Result<Vec<(String, PathBuf)>, KernelError> {
        entries(&self.root.join("links"))
    }
}

/// Names in a directory and their paths, sorted; none if there is no such directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let failed = |error| KernelError::Pin { path: directory.to_owned(), action: "list it", error };
    let mut found = Vec::new();
    match fs::read_dir(directory) {
        Ok(listing) => {
            for entry in listing {
                let entry = entry.map_err(failed)?;
                found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    found.sort();
    Ok(found)
}

/// Refuses a path that is not below a mounted bpffs. The path itself, or the end of it, may not exist yet.
pub(super) fn require_bpffs(path: &Path) -> Result<(), KernelError> {
    let missing = || KernelError::NoBpffs(path.to_owned());
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).ok_or_else(missing)?;
    match statfs(existing) {
        Ok(kind) if kind.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(missing()),
    }
}

/// Held by the one process that may change what is pinned below a directory; gone with that process.
#[derive(Debug)]
pub(super) struct Lock {
    held: Flock<OwnedFd>,
}

impl Lock {
    /// Takes the lock of a directory, or says that somebody else has it.
    pub(super) fn take(bpffs: &Path) -> Result<Self, KernelError> {
        let failed = |error| KernelError::Pin { path: bpffs.to_owned(), action: "lock it", error };
        let directory = fs::File::open(bpffs).map_err(failed)?;
        match Flock::lock(OwnedFd::from(directory), FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self { held }),
            Err((_, Errno::EWOULDBLOCK)) => Err(KernelError::Locked(bpffs.to_owned())),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// What the directory is.
    pub(super) fn metadata(&self) -> io::Result<fs::Metadata> {
        fs::File::from(self.held.try_clone()?).metadata()
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

/// Versions of all layouts below a directory, sorted.
pub(super) fn layouts(bpffs: &Path) -> Result<Vec<u32>, KernelError> {
    let mut versions: Vec<u32> = entries(bpffs)?
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("layout-"))
        .filter_map(|version| version.parse().ok())
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

/// Refuses a directory where a newer release has its pins: what it forwards must not be disturbed.
pub(super) fn refuse_newer(bpffs: &Path) -> Result<(), KernelError> {
    match layouts(bpffs)?.last() {
        Some(&found) if found > LAYOUT_VERSION => Err(KernelError::NewerLayout { dir: bpffs.to_owned(), found }),
        _ => Ok(()),
    }
}

/// What the object says about a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key_size: u32,
    /// Bytes of a value.
    pub(super) value_size: u32,
    /// `BPF_F_*` flags of its creation.
    pub(super) flags: u32,
    /// Greatest number of entries, as configured.
    pub(super) max_entries: u32,
    /// Nobody configures the size: a smaller map is an older release's, and lacks what this one has.
    pub(super) is_fixed: bool,
}

impl MapShape {
    /// Why a pinned map cannot be used in place of this one; `None`: it can.
    fn difference(&self, pinned: &MapInfo) -> Option<String> {
        let kind = pinned.map_type().map_or(0, |kind| kind as u32);
        let pairs = [
            ("type", self.kind, kind),
            ("key size", self.key_size, pinned.key_size()),
            ("value size", self.value_size, pinned.value_size()),
            ("flags", self.flags, pinned.map_flags()),
        ];
        if self.is_fixed && pinned.max_entries() < self.max_entries {
            return Some(format!(
                "it has {} entries, of {} that this release uses",
                pinned.max_entries(),
                self.max_entries
            ));
        }
        let differing = pairs.iter().find(|(_, expected, found)| expected != found)?;
        Some(format!("its {} is {}, expected {}", differing.0, differing.2, differing.1))
    }
}

/// Makes way for a map: what is pinned under its name stays if it can be adopted and is removed if it is foreign.
/// True if it stays.
pub(super) fn adopt_or_remove(path: &Path, shape: &MapShape) -> Result<bool, KernelError> {
    if !path.exists() {
        return Ok(false);
    }
    let problem = match MapInfo::from_pin(path) {
        Ok(info) => {
            let Some(difference) = shape.difference(&info) else {
                if info.max_entries() != shape.max_entries {
                    tracing::warn!(
                        map = %path.display(),
                        entries = info.max_entries(),
                        configured = shape.max_entries,
                        "the pinned map keeps its size: run `svc cleanup` to apply the configured one"
                    );
                }
                return Ok(true);
            };
            difference
        }
        Err(error) => format!("it is not a map: {}", super::error::chain(&error)),
    };
    tracing::warn!(pin = %path.display(), problem, "removed a pin that this release cannot use; the map is built anew");
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    removed.map_err(|error| KernelError::Pin { path: path.to_owned(), action: "remove the foreign pin", error })?;
    Ok(false)
}
