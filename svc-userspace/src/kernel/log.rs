//! Log lines of the programs, from objects that were built with them (`cargo xtask ebpf --log`), for this process's log.
//!
//! An ordinary object has none, and nothing is set up for it.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// What the programs have to say.
pub struct ProgramLog {
    /// The ring buffer, readable when there are lines.
    ring: OwnedFd,
    /// Passes on the lines that are there.
    flush: Box<dyn FnMut() + Send>,
}

impl ProgramLog {
    /// The log of a loaded object; `None` if it has none.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        let mut logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(aya_log::Error::MapNotFound) => return None,
            Err(error) => {
                tracing::warn!(%error, "the programs were built to log, and their log cannot be read");
                return None;
            }
        };
        let ring = match logger.as_fd().try_clone_to_owned() {
            Ok(ring) => ring,
            Err(error) => {
                tracing::warn!(%error, "the log of the programs cannot be read");
                return None;
            }
        };
        Some(Self { ring, flush: Box::new(move || logger.flush()) })
    }

    /// Passes lines on for as long as it is polled.
    pub async fn pass_on(self) -> io::Result<()> {
        let Self { ring, mut flush } = self;
        // SAFETY: the descriptor is owned by what is registered, and stays open as long.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
        loop {
            // Cleared first: a line that comes while others are passed on makes it readable again.
            ring.readable().await?.clear_ready();
            flush();
        }
    }
}

impl fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramLog").field("ring", &self.ring).finish_non_exhaustive()
    }
}
