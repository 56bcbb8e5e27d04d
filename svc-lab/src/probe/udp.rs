//! Requests as UDP datagrams on one socket.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

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
        let socket = UdpSocket::bind(source(options))?;
        let destination = options.destination;
        if options.connected {
            socket.connect(destination)?;
        } else if destination.is_ipv4() {
            // A socket that is not connected hears of ICMP errors only on demand.
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
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
