//! Requests as UDP datagrams on one socket.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use super::{Options, Success, check, micros, source, time_left};
use crate::echo::{Answer, canonical};

/// One socket, connected or not.
pub(super) struct Socket {
    inner: UdpSocket,
    destination: SocketAddr,
    connected: bool,
    timeout: Duration,
}

impl Socket {
    pub(super) fn open(options: &Options) -> io::Result<Self> {
        let socket = bind(source(options), options.connected && options.source_port != 0)?;
        let destination = options.destination;
        if options.connected {
            socket.connect(destination)?;
        }
        if !options.connected || options.hops.is_some() {
            // A socket hears of ICMP errors only on demand; one that is connected, of those that may pass.
            if destination.is_ipv4() {
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            } else {
                setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            }
        }
        if let Some(hops) = options.hops {
            if destination.is_ipv4() {
                setsockopt(&socket, sockopt::Ipv4Ttl, &hops.into())?;
            } else {
                setsockopt(&socket, sockopt::Ipv6Ttl, &hops.into())?;
            }
        }
        let timeout = Duration::from_millis(options.timeout);
        Ok(Self { inner: socket, destination, connected: options.connected, timeout })
    }

    /// Sends one datagram and waits for its answer; answers to earlier requests are passed over.
    pub(super) fn request(&mut self, request: &[u8], started: Instant) -> io::Result<Success> {
        if self.connected {
            self.inner.send(request)?;
        } else {
            self.inner.send_to(request, self.destination)?;
        }
        let deadline = Instant::now() + self.timeout;
        let mut buffer = vec![0; 1 << 16];
        loop {
            self.inner.set_read_timeout(Some(time_left(deadline)?))?;
            let (length, from) = if self.connected {
                (self.inner.recv(&mut buffer)?, self.inner.peer_addr()?)
            } else {
                self.inner.recv_from(&mut buffer)?
            };
            let answer: Answer = serde_json::from_slice(&buffer[..length])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let tag = request.split(|&byte| byte == b' ').next().unwrap_or_default();
            if tag != b"PAD" && answer.tag.as_bytes() != tag {
                continue;
            }
            check(&answer, request)?;
            return Ok(Success {
                answer,
                source: canonical(self.inner.local_addr()?),
                peer: canonical(from),
                micros: micros(started),
            });
        }
    }
}

/// A socket with this address; two that are connected to different peers may share one.
fn bind(source: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    if !shared {
        return UdpSocket::bind(source);
    }
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    Ok(UdpSocket::from(fd))
}
