//! The TCP side of an echo server: a line is a request, the connection stays open.

use std::{
    hash::Hasher,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use twox_hash::XxHash3_64;

use super::{LONGEST, answer};

/// Bytes of one write of a stream.
const BLOCK: usize = 251 * 1021;

/// Listens; on `::` for IPv4 as well.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// A thread for each connection, for ever.
pub(super) fn serve(listener: &TcpListener, name: &str) -> io::Result<()> {
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client gave up between its SYN and our accept.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let name = name.to_owned();
        thread::spawn(move || {
            if let Err(error) = connection(&stream, &name) {
                eprintln!("connection: {error}");
            }
        });
    }
}

fn connection(stream: &TcpStream, name: &str) -> io::Result<()> {
    let (client, local) = (stream.peer_addr()?, stream.local_addr()?);
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    loop {
        let mut line = Vec::new();
        let limit = LONGEST as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.pop() != Some(b'\n') {
            return Err(io::Error::other(format!("a request without an end after {} bytes", line.len())));
        }
        let mut answer = answer(name, client, local, &line);
        if let Some(count) = argument(&line, "BYTES ") {
            (answer.length, answer.hash) = (count, send(stream, count)?);
        } else if let Some(count) = argument(&line, "HASH ") {
            (answer.length, answer.hash) = (count, receive(&mut reader, count)?);
        }
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        (&mut &*stream).write_all(&text)?;
    }
}

fn argument(line: &[u8], command: &str) -> Option<u64> {
    std::str::from_utf8(line).ok()?.strip_prefix(command)?.trim().parse().ok()
}

/// Sends `count` bytes; returns their hash. No two blocks are alike and none ends where a segment would, so that what is
/// lost, doubled or swapped changes the hash.
pub(crate) fn send(mut stream: &TcpStream, count: u64) -> io::Result<u64> {
    let mut hasher = XxHash3_64::new();
    let mut block: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
    let mut left = count;
    while left > 0 {
        block[..8].copy_from_slice(&left.to_be_bytes());
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&block[..length])?;
        hasher.write(&block[..length]);
        left -= length as u64;
    }
    Ok(hasher.finish())
}

/// Receives `count` bytes; returns their hash.
pub(crate) fn receive(reader: &mut impl Read, count: u64) -> io::Result<u64> {
    let mut hasher = XxHash3_64::new();
    let mut left = count;
    let mut chunk = vec![0; BLOCK];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        match reader.read(&mut chunk[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                hasher.write(&chunk[..read]);
                left -= read as u64;
            }
        }
    }
    Ok(hasher.finish())
}
