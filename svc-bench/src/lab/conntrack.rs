//! Empties a namespace's table of connections, so that no round finds those of the one before.

use std::{io, os::fd::AsRawFd};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use svc_lab::Place;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` (include/uapi/linux/netfilter): without a tuple it means all.
const DELETE: u16 = 1 << 8 | 2;
const NLMSG_ERROR: u16 = 2;
const REQUEST_AND_ACK: u16 = 1 | 4;

/// Empties it.
pub(super) fn flush(place: &Place) -> Result<()> {
    place.enter(flush_here)?.with_context(|| format!("cannot flush the connections of {}", place.name()))
}

fn flush_here() -> io::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    // A header of 16 bytes, and a family, version and number of 4 bytes: all zero.
    let mut message = [0_u8; 20];
    message[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&DELETE.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let is_error = length >= 20 && answer[4..6] == NLMSG_ERROR.to_ne_bytes();
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if !is_error || code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}
