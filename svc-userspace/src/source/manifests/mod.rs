//! Objects from a directory of manifests, followed for changes: the default where there is no cluster.
//!
//! A file that cannot be read or understood never takes its objects away: they go when the file, or the object in it, is
//! gone. A directory that is gone altogether keeps the last known state in force.

mod parse;
mod store;
pub(crate) mod watch;

use std::{path::PathBuf, time::Duration};

use tokio::sync::mpsc;

use self::{
    store::Store,
    watch::{Dirty, Watch},
};
use super::{SourceError, SourceOptions};
use crate::model::Change;

/// How often the directory is tried again while it cannot be read.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked through without any notice: file systems of other machines may not tell.
const RESCAN: Duration = Duration::from_secs(30);

/// Reads `dir` and follows it; returns when the receiver is gone, or if the directory cannot be read at the start.
pub async fn run(dir: PathBuf, options: SourceOptions, changes: mpsc::Sender<Change>) -> Result<(), SourceError> {
    let directory = |cause: std::io::Error| SourceError::Directory { path: dir.clone(), cause: cause.to_string() };
    let dir = std::path::absolute(&dir).map_err(directory)?;
    std::fs::read_dir(&dir).map_err(directory)?;
    let mut watch =
        Watch::new(&dir).map_err(|error| SourceError::Watch { path: dir.clone(), cause: error.to_string() })?;
    let mut store = Store::new(dir.clone(), options);
    let mut dirty = Dirty { all: true, ..Dirty::default() };
    let mut synced = false;
    let mut failing = false;
    loop {
        // Watched before it is read, so that nothing falls in between.
        let targets = store.target_directories();
        let watched = watch.refresh(&targets);
        // What is read is told: a scan whose findings were thrown away would find no difference the next time.
        let result = match watched {
            Ok(()) => {
                let (back, result) = scan(store, dirty).await;
                store = back;
                result
            }
            Err(error) => Err(std::io::Error::other(error.to_string())),
        };
        match result {
            Ok(found) => {
                if failing {
                    tracing::info!("manifests {}: readable again", dir.display());
                }
                failing = false;
                if !synced {
                    tracing::info!("Services and EndpointSlices have been listed");
                }
                for change in found {
                    if let Change::Problem(problem) = &change {
                        tracing::warn!("{problem}");
                    }
                    if changes.send(change).await.is_err() {
                        return Ok(());
                    }
                }
                if !synced {
                    synced = true;
                    if changes.send(Change::Synced).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) if !synced => return Err(SourceError::Directory { path: dir, cause: error.to_string() }),
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        "manifests {}: {error}: the last known state stays in force until the directory is back",
                        dir.display()
                    );
                }
                failing = true;
            }
        }
        if !failing && store.target_directories() != targets {
            // Links lead to a directory that is not watched yet.
            dirty = Dirty { all: true, ..Dirty::default() };
            continue;
        }
        dirty = tokio::select! {
            () = changes.closed() => return Ok(()),
            dirty = watch.next(if failing { RETRY } else { RESCAN }) => dirty,
        };
        dirty.all |= failing;
    }
}

/// A directory that exists in memory only: the same reading and comparing without files, for what makes its manifests up.
pub struct InMemory(Store);

impl InMemory {
    /// An empty directory.
    pub fn new(options: SourceOptions) -> Self {
        Self(Store::new(PathBuf::from("/"), options))
    }

    /// Writes a file; its name says whether it is JSON or YAML. Returns what changed.
    pub fn write(&mut self, name: &str, text: &str) -> Vec<Change> {
        self.0.put(name.as_ref(), Some(text))
    }

    /// Removes a file. Returns what changed.
    pub fn remove(&mut self, name: &str) -> Vec<Change> {
        self.0.put(name.as_ref(), None)
    }
}

/// Scans without holding up the runtime.
async fn scan(mut store: Store, dirty: Dirty) -> (Store, std::io::Result<Vec<Change>>) {
    let task = tokio::task::spawn_blocking(move || {
        let result = store.scan(&dirty);
        (store, result)
    });
    match task.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
