//! The server: counts datagrams and answers those that ask for it with the count; answers one request per connection.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::messages::{BURST, Burst};

/// First byte of a datagram that wants to be answered.
pub(super) const ASKING: u8 = 1;
/// Bytes of a request over TCP, and of its answer.
pub(super) const REQUEST: usize = 64;
/// Connections that are served at a time.
const WORKERS: usize = 32;
const NAP: Duration = Duration::from_millis(1);
/// So large that a burst waits rather than be lost.
const RECEIVE_BUFFER: usize = 64 << 20;

pub(super) fn run(port: u16) -> Result<()> {
    // One socket for all addresses: more of them would be more threads to wake, and Services would pay for that.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("cannot bind")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge the receive buffer")?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    thread::spawn(move || datagrams(&socket));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("cannot listen")?;
    let listener = Arc::new(listener);
    for _ in 0..WORKERS {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own affair: it counts what was answered.
                let _ = answer(stream);
            }
        });
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn datagrams(socket: &UdpSocket) {
    let mut burst = Burst::new();
    let mut count = 0_u64;
    while let Ok(received) = burst.receive(socket.as_fd()) {
        count += received as u64;
        let mut asked = false;
        for at in 0..received {
            if burst.datagrams[at][0] == ASKING {
                asked = true;
                // A client that is not answered says so.
                let _ = burst.answer(socket.as_fd(), at, &count.to_be_bytes());
            }
        }
        if !asked && received < BURST {
            // Nothing is left. Let datagrams gather, or most of what is measured would be waking this thread.
            thread::sleep(NAP);
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)
}
