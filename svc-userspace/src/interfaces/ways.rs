//! Says that something has changed that the way of a packet depends on: a link, an address, a neighbour, a route, a rule or a next
//! hop. What it was is nobody's business here.

use std::io;

use nix::sys::socket::{SockFlag, SockProtocol};
use tokio::io::unix::AsyncFd;

use crate::netlink::Socket;

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE` and `_NEXTHOP` as
/// bits.
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

/// Notifications that are taken for one: packets may be on their way by what has changed.
const MOST: u32 = 64;

/// Listens in the calling thread's network namespace, from the return on.
pub(crate) fn listen() -> io::Result<Ways> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, GROUPS, SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: a Socket owns its descriptor, names the same one for as long as it lives, and closes it when it is dropped.
    let socket = unsafe { AsyncFd::register(socket) }?;
    Ok(Ways { socket })
}

/// Notifications of what packets' ways depend on.
#[derive(Debug)]
pub(crate) struct Ways {
    socket: AsyncFd<Socket>,
}

impl Ways {
    /// Waits for a change; several at once are one. Nothing that has been lost was anything else than a change.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut changes = 0;
            while changes < MOST {
                match self.socket.get_ref().receive() {
                    Ok(_) => changes += 1,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes += 1,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if changes > 0 {
                return Ok(());
            }
        }
    }
}
