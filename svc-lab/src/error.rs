//! What can go wrong while a lab is built or used. It never decides what to do about it.

use std::{io, path::Path};

/// Why the lab could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program such as `ip` or `nft` failed.
    #[error("{command} failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to its standard error, or its exit status.
        stderr: String,
    },
    /// A system call or a file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to which object.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Something that was waited for did not happen in time.
    #[error("{what} did not happen within {seconds} s{detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        seconds: u64,
        /// The last thing that was seen, or the end of a log; may be empty.
        detail: String,
    },
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl LabError {
    /// Wraps an I/O error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an I/O error with a verb and the path it concerns.
    pub(crate) fn path(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{verb} {}", path.display()))
    }
}
