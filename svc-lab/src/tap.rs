//! Frames as they arrive on an interface, for tests of what no socket sees: hardware addresses.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::{LabError, Place};

/// What arrives on one interface of a place from now on.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Listens on the interface `name` of a place.
    pub fn open(place: &Place, name: &str) -> Result<Self, LabError> {
        let opened = place.enter(|| open(name))?;
        opened.map(|socket| Self { socket }).map_err(LabError::io(format!("listen on {name} of {}", place.name())))
    }

    /// The next frame that has arrived (not one that was sent), if there is one already.
    pub fn frame(&self) -> Result<Option<Vec<u8>>, LabError> {
        loop {
            let mut frame = vec![0_u8; 2048];
            // SAFETY: all zero is a value of it.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: both buffers are as long as the kernel is told.
            let received = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            match usize::try_from(received) {
                Ok(_) if from.sll_pkttype == libc::PACKET_OUTGOING => {}
                Ok(len) => {
                    frame.truncate(len);
                    return Ok(Some(frame));
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    return match error.kind() {
                        io::ErrorKind::WouldBlock => Ok(None),
                        io::ErrorKind::Interrupted => continue,
                        _ => Err(LabError::io("receive a frame".to_owned())(error)),
                    };
                }
            }
        }
    }
}

fn open(name: &str) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(name)?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: an address of as many bytes.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
