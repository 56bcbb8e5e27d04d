//! Requests over TCP connections, and long transfers.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket, sockopt,
    },
};

use super::{Options, Success, check, micros, source, time_left};
use crate::echo::{
    Answer, canonical,
    tcp::{receive, send},
};

/// One connection.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    timeout: Duration,
}

impl Connection {
    pub(super) fn open(options: &Options) -> io::Result<Self> {
        let timeout = Duration::from_millis(options.timeout);
        let stream = dial(source(options), options.destination, timeout)?;
        stream.set_nodelay(true)?;
        if options.reset {
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 16, stream), timeout })
    }

    /// Sends one line, reads one line.
    pub(super) fn request(&mut self, request: &[u8], started: Instant) -> io::Result<Success> {
        let mut line = request.to_vec();
        line.push(b'\n');
        self.stream().write_all(&line)?;
        let answer = self.answer()?;
        check(&answer, request)?;
        self.success(answer, started)
    }

    fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let deadline = Instant::now() + self.timeout;
        let mut text = Vec::new();
        // A segment at a time may arrive within the timeout of each read and still be too late as a whole.
        while !text.ends_with(b"\n") {
            self.stream().set_read_timeout(Some(time_left(deadline)?))?;
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            let used = chunk.iter().position(|&byte| byte == b'\n').map_or(chunk.len(), |at| at + 1);
            text.extend_from_slice(&chunk[..used]);
            self.reader.consume(used);
        }
        serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn success(&self, answer: Answer, started: Instant) -> io::Result<Success> {
        let stream = self.stream();
        Ok(Success {
            answer,
            source: canonical(stream.local_addr()?),
            peer: canonical(stream.peer_addr()?),
            micros: micros(started),
        })
    }
}

/// A long transfer; the answer's length and hash are those of one end, and checked against the other's.
pub(super) fn transfer(options: &Options) -> io::Result<Success> {
    let started = Instant::now();
    let mut connection = Connection::open(options)?;
    let ask = |connection: &Connection, word: &str, length: u64| {
        connection.stream().write_all(format!("{word} {length}\n").as_bytes())
    };
    let (length, hash) = match options.upload {
        Some(length) => {
            ask(&connection, "HASH", length)?;
            (length, send(connection.stream(), length)?)
        }
        None => {
            let length = options.download.unwrap_or(0);
            ask(&connection, "BYTES", length)?;
            (length, receive(&mut connection.reader, length)?)
        }
    };
    let answer = connection.answer()?;
    if (answer.length, answer.hash) != (length, hash) {
        let text = format!("{} bytes arrived, but not those that were sent", answer.length);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    connection.success(answer, started)
}

/// Connects within `timeout`, from a chosen source if it has a port or an address.
fn dial(source: SocketAddr, destination: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    if source.port() == 0 && source.ip().is_unspecified() {
        return TcpStream::connect_timeout(&destination, timeout);
    }
    let family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(destination)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let limit = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], limit)? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"));
            }
            let error = getsockopt(&fd, sockopt::SocketError)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
