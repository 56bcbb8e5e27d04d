//! Many datagrams with one system call: sendmmsg(2) and recvmmsg(2).

use std::{
    io,
    net::SocketAddrV4,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Most datagrams of a call.
pub(super) const BURST: usize = 32;
/// Bytes of a datagram, the IP header of a raw socket's included.
pub(super) const LEN: usize = 92;

/// Room for a burst.
pub(super) struct Burst {
    /// The datagrams.
    pub(super) datagrams: [[u8; LEN]; BURST],
    addresses: [libc::sockaddr_in; BURST],
    controls: [Control; BURST],
    lengths: [usize; BURST],
}

/// The only control message: which address a datagram was sent to (`IP_PKTINFO`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
}

/// A control message with its padding.
const CONTROL_LEN: usize = size_of::<Control>();

impl Burst {
    /// All zero.
    pub(super) fn new() -> Box<Self> {
        // SAFETY: both are made of integers, for which zero is a value.
        let (addresses, controls) = unsafe { std::mem::zeroed() };
        Box::new(Self { datagrams: [[0; LEN]; BURST], addresses, controls, lengths: [0; BURST] })
    }

    /// Sends the first `count` datagrams, to where the socket is connected to or to `to`.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, count: usize, to: Option<SocketAddrV4>) -> io::Result<()> {
        if let Some(to) = to {
            self.addresses.fill(raw(to));
        }
        self.lengths.fill(LEN);
        let mut sent = 0;
        while sent < count {
            sent += self.call(sent..count, to.is_some(), false, |messages, len| {
                // SAFETY: the messages point to memory that `call` borrows, `len` of them.
                unsafe { libc::sendmmsg(socket.as_raw_fd(), messages, len, 0) }
            })?;
        }
        Ok(())
    }

    /// Waits for a datagram and takes as many as there are; their number.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.lengths.fill(LEN);
        self.call(0..BURST, true, true, |messages, len| {
            // SAFETY: as above; a null time-out is none.
            unsafe { libc::recvmmsg(socket.as_raw_fd(), messages, len, libc::MSG_WAITFORONE, std::ptr::null_mut()) }
        })
    }

    /// Answers a received datagram from the address that it was sent to.
    pub(super) fn answer(&mut self, socket: BorrowedFd<'_>, index: usize, bytes: &[u8]) -> io::Result<()> {
        let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: made of integers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut self.addresses[index]).cast();
        message.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut self.controls[index]).cast();
        message.msg_controllen = CONTROL_LEN;
        // The kernel has filled it in with where the datagram went to, which it takes as where the answer comes from;
        // the interface is left to the routes.
        self.controls[index].info.ipi_ifindex = 0;
        // SAFETY: everything that the message points to lives until the call returns.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn call(
        &mut self,
        range: std::ops::Range<usize>,
        addressed: bool,
        controlled: bool,
        call: impl FnOnce(*mut libc::mmsghdr, u32) -> i32,
    ) -> io::Result<usize> {
        // SAFETY: both are made of integers and pointers, for which zero is a value.
        let (mut vectors, mut messages): ([libc::iovec; BURST], [libc::mmsghdr; BURST]) = unsafe { std::mem::zeroed() };
        for at in range.clone() {
            vectors[at] = libc::iovec { iov_base: self.datagrams[at].as_mut_ptr().cast(), iov_len: self.lengths[at] };
            let header = &mut messages[at].msg_hdr;
            header.msg_iov = &raw mut vectors[at];
            header.msg_iovlen = 1;
            if addressed {
                header.msg_name = (&raw mut self.addresses[at]).cast();
                header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            }
            if controlled {
                header.msg_control = (&raw mut self.controls[at]).cast();
                header.msg_controllen = CONTROL_LEN;
            }
        }
        let len = u32::try_from(range.len()).unwrap_or(0);
        let done = call(messages[range.start..].as_mut_ptr(), len);
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}
