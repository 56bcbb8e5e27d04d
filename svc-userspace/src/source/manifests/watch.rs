//! Notices of the file system, gathered until they can be acted upon.
//!
//! A file that is being written is not read before its writer closes it, so that half a file is never taken for the
//! whole. The directory may be replaced, or be a symbolic link that is switched, as in a mounted ConfigMap.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsString,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::sync::Notify;

/// Quiet time after which notices are acted upon, and the longest they wait for one.
const QUIET: Duration = Duration::from_millis(4);
const LONGEST: Duration = Duration::from_millis(20);
/// A writer that keeps a file open longer than this after its last write is not waited for.
const OPEN_LIMIT: Duration = Duration::from_millis(500);

/// What has to be looked at again.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Every file, whatever its time stamp says.
    pub(super) all: bool,
    /// These files of the directory.
    pub(super) files: HashSet<OsString>,
    /// These are being written: leave them alone.
    pub(super) open: HashSet<OsString>,
}

#[derive(Debug, Default)]
struct State {
    dirty: Dirty,
    /// Files that are being written, and since when nothing has been added.
    open: HashMap<OsString, Instant>,
    /// Directories whose entries matter by one name only: the way to the directory.
    guards: HashSet<(PathBuf, OsString)>,
    /// Counts notices.
    count: u64,
}

/// What the watcher's thread and the reader share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a directory.
pub(crate) struct Watch {
    dir: PathBuf,
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
    /// Watched directories and their identity: device and inode.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watch {
    /// Prepares to follow `dir`, an absolute path; nothing is watched before `refresh`.
    pub(crate) fn new(dir: &Path) -> notify::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watcher = notify::recommended_watcher({
            let (shared, dir) = (Arc::clone(&shared), dir.to_owned());
            move |event| {
                if shared.state().notice(&dir, event) {
                    shared.wake.notify_one();
                }
            }
        })?;
        Ok(Self { dir: dir.to_owned(), watcher, shared, watched: BTreeMap::new() })
    }

    /// Watches the directory that has the name now, the way to it, and `targets`, where files that are links really are.
    pub(crate) fn refresh(&mut self, targets: &BTreeSet<PathBuf>) -> notify::Result<()> {
        let mut wanted: BTreeSet<PathBuf> = targets.clone();
        let mut guards = HashSet::new();
        for step in self.dir.ancestors() {
            let (Some(parent), Some(name)) = (step.parent(), step.file_name()) else { continue };
            if step == self.dir || step.is_symlink() {
                wanted.insert(parent.to_owned());
                guards.insert((parent.to_owned(), name.to_owned()));
            }
        }
        wanted.insert(self.dir.clone());
        self.shared.state().guards = guards;
        let gone: Vec<_> = self.watched.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            self.forget(&path);
        }
        let mut result = Ok(());
        for path in wanted {
            let identity = match std::fs::metadata(&path) {
                Ok(metadata) => (metadata.dev(), metadata.ino()),
                Err(error) => {
                    self.forget(&path);
                    if path == self.dir {
                        result = Err(notify::Error::io(error));
                    }
                    continue;
                }
            };
            if self.watched.get(&path) == Some(&identity) {
                continue;
            }
            self.forget(&path);
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, identity);
                }
                Err(error) if path == self.dir => result = Err(error),
                Err(error) => tracing::debug!("cannot watch {}: {error}", path.display()),
            }
        }
        result
    }

    fn forget(&mut self, path: &Path) {
        if self.watched.remove(path).is_some()
            && let Err(error) = self.watcher.unwatch(path)
        {
            // The kernel drops the watch of a directory that is gone by itself.
            tracing::debug!("{}: {error}", path.display());
        }
    }

    /// Waits until something has to be looked at, or until `patience` is over.
    pub(crate) async fn next(&mut self, patience: Duration) -> Dirty {
        let patience = tokio::time::sleep(patience);
        tokio::pin!(patience);
        loop {
            let woken = self.shared.wake.notified();
            let (ready, deadline) = self.shared.state().due(Instant::now());
            if ready {
                break;
            }
            let open = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = open => {}
                () = &mut patience => break,
            }
        }
        let first = Instant::now();
        let mut count = self.shared.state().count;
        while first.elapsed() + QUIET <= LONGEST {
            tokio::time::sleep(QUIET).await;
            let now = self.shared.state().count;
            if now == count {
                break;
            }
            count = now;
        }
        let mut state = self.shared.state();
        state.due(Instant::now());
        let mut dirty = std::mem::take(&mut state.dirty);
        dirty.open = state.open.keys().cloned().collect();
        dirty
    }
}

impl State {
    /// Whether there is something to look at, and else when there will be.
    fn due(&mut self, now: Instant) -> (bool, Option<Instant>) {
        let Self { dirty, open, guards: _, count: _ } = self;
        open.retain(|name, since| {
            let waiting = now < *since + OPEN_LIMIT;
            if !waiting {
                dirty.files.insert(name.clone());
            }
            waiting
        });
        (dirty.all || !dirty.files.is_empty(), open.values().min().map(|since| *since + OPEN_LIMIT))
    }

    /// Takes a notice; whether it matters.
    fn notice(&mut self, dir: &Path, event: notify::Result<Event>) -> bool {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => return self.everything(),
            Err(error) => {
                tracing::debug!("{}: {error}", dir.display());
                return self.everything();
            }
        };
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        if matches!(event.kind, EventKind::Access(_)) && !closed {
            return false;
        }
        let writing =
            matches!(event.kind, EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)));
        let mut matters = false;
        for path in &event.paths {
            matters |= self.path(dir, path, writing);
        }
        matters
    }

    fn path(&mut self, dir: &Path, path: &Path, writing: bool) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        if self.guards.contains(&(parent.to_owned(), name.to_owned())) {
            return self.everything();
        }
        if parent == dir {
            if name.as_encoded_bytes().starts_with(b"..") {
                // `..data` of a mounted ConfigMap: every file leads through it.
                return self.everything();
            }
            self.count += 1;
            if writing && !is_link(path) {
                self.open.insert(name.to_owned(), Instant::now());
            } else {
                self.open.remove(name);
                self.dirty.files.insert(name.to_owned());
            }
            return true;
        }
        if self.guards.iter().any(|(guarded, _)| guarded == parent) || writing {
            // Somebody else's file beside the directory, or a target whose end of writing will be told.
            return false;
        }
        self.everything()
    }

    fn everything(&mut self) -> bool {
        self.count += 1;
        self.dirty.all = true;
        true
    }
}

/// Whether a new file is complete from the start: a symbolic link, or a second name of a file.
fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
