//! The pools file, followed for changes. A mistake is reported with its line, and the last good content stays in force.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;

use super::pools::{Pools, PoolsError};
use crate::{model::Problem, source::manifests::watch::Watch};

/// How often the file is read without any notice: file systems of other machines may not tell.
const RESCAN: Duration = Duration::from_secs(30);

/// Why the file cannot be used at the start.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It cannot be read.
    #[error("pools {}: {cause}: correct --pools", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It makes no sense.
    #[error("pools {}:{error}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: PoolsError,
    },
    /// It cannot be watched.
    #[error("pools {}: cannot watch: {cause}: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches", path.display())]
    Watch {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: notify::Error,
    },
}

/// What became of the file: other pools, or why it is not used as it is now.
pub type News = Result<Pools, Problem>;

/// Reads the file, which must make sense, and follows it from then on.
pub fn start(path: &Path) -> Result<(Pools, mpsc::Receiver<News>), FollowError> {
    let unreadable = |cause| FollowError::Unreadable { path: path.to_owned(), cause };
    let path = std::path::absolute(path).map_err(unreadable)?;
    let text = std::fs::read_to_string(&path).map_err(unreadable)?;
    let pools = Pools::parse(&text).map_err(|error| FollowError::Wrong { path: path.clone(), error })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let failed = |cause| FollowError::Watch { path: path.clone(), cause };
    let mut watch = Watch::new(directory).map_err(failed)?;
    watch.refresh(&real_directory(&path)).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(follow(path, text, watch, sender));
    Ok((pools, receiver))
}

/// Where the file really is, if it is a link, as in a mounted ConfigMap.
fn real_directory(path: &Path) -> BTreeSet<PathBuf> {
    path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)).into_iter().collect()
}

async fn follow(path: PathBuf, mut text: String, mut watch: Watch, news: mpsc::Sender<News>) {
    loop {
        tokio::select! {
            () = news.closed() => return,
            _ = watch.next(RESCAN) => {}
        }
        if let Err(error) = watch.refresh(&real_directory(&path)) {
            tracing::debug!("pools {}: {error}", path.display());
        }
        let now = match tokio::fs::read_to_string(&path).await {
            Ok(now) => now,
            // It is being replaced, or gone: the last content stays.
            Err(error) => {
                tracing::warn!("pools {}: {error}: the last good content stays in force", path.display());
                continue;
            }
        };
        if now == text {
            continue;
        }
        let result = Pools::parse(&now).map_err(|error| Problem {
            kind: "File",
            name: path.display().to_string(),
            field: format!("{}:{}", error.line, error.column),
            message: format!("{}: the last good content stays in force", error.message),
        });
        text = now;
        match &result {
            Ok(_) => tracing::info!("pools {}: read anew", path.display()),
            Err(problem) => tracing::warn!("{problem}"),
        }
        if news.send(result).await.is_err() {
            return;
        }
    }
}
