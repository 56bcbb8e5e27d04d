//! Why the dataplane cannot be started, attached or removed: one line each, with the object's name and the remedy.

use std::{io, path::PathBuf};

/// Why something about the dataplane failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel or this process lacks something that nothing else can stand in for.
    #[error("{what}: {consequence}: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What does not work without it.
        consequence: String,
        /// What to do.
        remedy: String,
    },
    /// The directory of pins is not on a bpffs.
    #[error("bpffs is not mounted at {0}: mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs(PathBuf),
    /// Another process holds the directory.
    #[error("{0} is in use by another agent: stop that agent, or give this one its own directory with --bpffs")]
    Locked(PathBuf),
    /// A newer release left its pins here.
    #[error(
        "{dir} holds pins of layout {found}, this release knows layout {}: run the newer release, or remove its pins \
         with its own `svc cleanup`",
        svc_common::LAYOUT_VERSION
    )]
    NewerLayout {
        /// Directory of pins.
        dir: PathBuf,
        /// The newer layout.
        found: u32,
    },
    /// The BPF object is missing or not what this release was built with.
    #[error("BPF object: {0}: build it with `cargo xtask build`")]
    Object(String),
    /// The kernel refused the object.
    #[error("BPF object: {message}: `svc check` says what this kernel lacks")]
    Load {
        /// Errors of the loader, outermost first.
        message: String,
    },
    /// A map cannot be opened, written or read.
    #[error("map {map}: {message}: `svc cleanup` removes all pins, and the next start builds them anew")]
    Map {
        /// Map name.
        map: String,
        /// What went wrong.
        message: String,
    },
    /// A file or directory below the pins.
    #[error("{path}: cannot {action}: {error}")]
    Pin {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A program cannot be attached to an interface.
    #[error("interface {name} (index {index}): cannot attach {program}: {error}: {remedy}")]
    Interface {
        /// Interface name.
        name: String,
        /// Interface index.
        index: u32,
        /// Program name.
        program: &'static str,
        /// What the kernel said.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The cgroup directory cannot be used.
    #[error("cgroup {path}: {message}")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The ports that the programs masquerade with cannot be kept from the host's sockets, or given back.
    #[error(
        "{path}: {0}: sockets of this host may get ports that the programs masquerade with: write it as the host's root, or make \
         /proc/sys writable: the ports {first}-65535 are to be reserved",
        path = crate::reserved_ports::PATH,
        first = svc_common::masquerade::FIRST_PORT
    )]
    ReservedPorts(io::Error),
    /// nf_tables.
    #[error(transparent)]
    Masquerade(#[from] crate::masquerade::MasqueradeError),
}

impl KernelError {
    pub(super) fn map(map: &str, error: impl std::error::Error) -> Self {
        Self::Map { map: map.to_owned(), message: chain(&error) }
    }
}

/// An error and its causes in one line, without the repetitions of causes that quote theirs.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    // A refused program brings the verifier's whole log along: the reason is its last line before the statistics.
    let is_statistics = |line: &str| {
        ["processed ", "stack depth ", "verification time ", "peak_states"].iter().any(|start| line.starts_with(start))
    };
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_statistics(line)).collect();
    match lines.as_slice() {
        [first, .., reason] if lines.len() > 3 => format!("{first} … {reason}"),
        _ => lines.join(" "),
    }
}

/// Why an operation on the maps failed; all operations before it have been applied.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {object}: {message}")]
pub struct ApplyError {
    /// Index of the operation that failed.
    pub index: usize,
    /// Map name.
    pub map: &'static str,
    /// What the operation is about.
    pub object: String,
    /// What the kernel said, and what to do.
    pub message: String,
}
