//! The TCP side of an echo server: a line is a request, the connection stays open.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use super::{Answer, FNV_OFFSET, LONGEST, answer, fnv1a, pattern};

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
        if let Some(count) = argument(&line, "BYTES ") {
            send(stream, count)?;
            continue;
        }
        let answer = match argument(&line, "HASH ") {
            Some(count) => {
                let hash = receive(&mut reader, count)?;
                Answer { length: count, hash, ..answer(name, client, local, &line) }
            }
            None => answer(name, client, local, &line),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        (&mut &*stream).write_all(&text)?;
    }
}

fn argument(line: &[u8], command: &str) -> Option<u64> {
    std::str::from_utf8(line).ok()?.strip_prefix(command)?.trim().parse().ok()
}

/// Sends `count` bytes of the pattern; returns their hash.
pub(crate) fn send(mut stream: &TcpStream, count: u64) -> io::Result<u64> {
    let mut hash = FNV_OFFSET;
    let mut at = 0;
    while at < count {
        let chunk: Vec<u8> = (at..count.min(at + (1 << 16))).map(pattern).collect();
        stream.write_all(&chunk)?;
        hash = fnv1a(hash, &chunk);
        at += chunk.len() as u64;
    }
    Ok(hash)
}

/// Receives `count` bytes; returns their hash.
pub(crate) fn receive(reader: &mut impl Read, count: u64) -> io::Result<u64> {
    let mut hash = FNV_OFFSET;
    let mut left = count;
    let mut chunk = vec![0; 1 << 16];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        match reader.read(&mut chunk[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                hash = fnv1a(hash, &chunk[..read]);
                left -= read as u64;
            }
        }
    }
    Ok(hash)
}
