//! What the API server does wrong on demand.

use std::{
    collections::{HashMap, HashSet},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use super::Resource;

/// How open watches end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// At the end of a line, as at the end of `timeoutSeconds`.
    Clean,
    /// After this many more bytes, wherever that is, with a proper end of the response.
    Truncated {
        /// Bytes still sent.
        after: usize,
    },
    /// After this many more bytes, wherever that is, by closing the connection.
    Abrupt {
        /// Bytes still sent.
        after: usize,
    },
}

impl Cut {
    /// Bytes still sent; `None`: none, and not in the middle of a line either.
    pub(super) fn budget(self) -> usize {
        match self {
            Self::Clean => 0,
            Self::Truncated { after } | Self::Abrupt { after } => after,
        }
    }
}

/// How a watch learns that its version is too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gone {
    /// HTTP status 410.
    Status,
    /// An event of type ERROR in an answer with status 200.
    #[default]
    Event,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) delay: Duration,
    /// Requests for these get no answer yet.
    pub(super) held: HashSet<Resource>,
    /// Requests still to fail, and the status.
    pub(super) fail: (u32, u16),
    /// Watches of each resource still to refuse, and how.
    pub(super) gone: HashMap<Resource, (u32, Gone)>,
    /// Writes of each resource whose answers are still to be lost.
    pub(super) lost: HashMap<Resource, u32>,
    pub(super) duplicate: bool,
    pub(super) refuse: bool,
    /// Bookmarks asked for so far.
    pub(super) bookmarks: u64,
    pub(super) bookmark_every: u64,
    /// Cuts so far: a watch that began before cut number n is ended by it.
    pub(super) cuts: Vec<Cut>,
    /// Second handles of the open connections.
    pub(super) connections: Vec<TcpStream>,
}

impl Faults {
    pub(super) fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
    }

    /// The failure the next request meets.
    pub(super) fn take_failure(&mut self) -> Option<u16> {
        let (left, status) = &mut self.fail;
        *left = left.checked_sub(1)?;
        Some(*status)
    }

    /// Whether the answer to the next write of a resource is lost.
    pub(super) fn take_loss(&mut self, resource: Resource) -> bool {
        let left = self.lost.entry(resource).or_default();
        let lost = *left > 0;
        *left -= u32::from(lost);
        lost
    }

    /// How the next watch of a resource is refused.
    pub(super) fn take_gone(&mut self, resource: Resource) -> Option<Gone> {
        let (left, how) = self.gone.get_mut(&resource)?;
        *left = left.checked_sub(1)?;
        Some(*how)
    }

    pub(super) fn disconnect(&mut self) {
        for connection in self.connections.drain(..) {
            if let Err(error) = connection.shutdown(Shutdown::Both) {
                tracing::debug!("connection was closed already: {error}");
            }
        }
    }

    /// Remembers a connection, and forgets those that are gone.
    pub(super) fn connected(&mut self, connection: TcpStream) {
        self.connections.retain(|connection| connection.peer_addr().is_ok());
        self.connections.push(connection);
    }
}
