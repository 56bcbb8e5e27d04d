//! Echo servers: they answer every request with who they are and whom they saw. They know nothing of Services.
//!
//! A request is a UDP datagram or a line of TCP; its first word is given back as the tag. Over TCP, `BYTES n` asks for
//! a stream of n bytes before the answer, and `HASH n` announces n bytes; the answer carries their hash. A request that
//! starts with `PAD n` gets n bytes of padding in its answer, in both protocols.

pub(crate) mod tcp;
mod udp;

use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// Longest line of TCP and longest datagram of UDP that a server takes, in bytes.
pub(crate) const LONGEST: usize = 60_000;

/// What an echo server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// The client's address and port as the server saw them.
    pub client: SocketAddr,
    /// The server's own address and port, as the packet named them.
    pub local: SocketAddr,
    /// First word of the request.
    pub tag: String,
    /// Length of the payload that arrived, in bytes.
    pub length: u64,
    /// XXH3 hash of the payload that arrived; of a stream that `BYTES` asked for, of what was sent.
    pub hash: u64,
    /// Padding that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub padding: String,
}

/// Command line of `svc-lab echo`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Name to answer with
    #[arg(long)]
    pub name: String,
    /// TCP port to listen on
    #[arg(long, value_name = "PORT")]
    pub tcp: Option<u16>,
    /// UDP port to listen on
    #[arg(long, value_name = "PORT")]
    pub udp: Option<u16>,
    /// Address to listen on; by default all addresses of both families
    #[arg(long, default_value = "::")]
    pub address: std::net::IpAddr,
    /// End when standard input ends
    #[arg(long)]
    pub with_stdin: bool,
}

/// Serves until killed, or until standard input ends if that was asked for. Prints `listening` once it does.
pub fn run(options: &Options) -> io::Result<()> {
    let mut threads = Vec::new();
    if let Some(port) = options.tcp {
        let listener = tcp::listen(SocketAddr::new(options.address, port))?;
        let name = options.name.clone();
        threads.push(std::thread::spawn(move || tcp::serve(&listener, &name)));
    }
    if let Some(port) = options.udp {
        let socket = udp::listen(SocketAddr::new(options.address, port))?;
        let name = options.name.clone();
        threads.push(std::thread::spawn(move || udp::serve(&socket, &name)));
    }
    println!("listening");
    if options.with_stdin {
        return io::copy(&mut io::stdin().lock(), &mut io::sink()).map(drop);
    }
    threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// The answer to a request.
fn answer(name: &str, client: SocketAddr, local: SocketAddr, request: &[u8]) -> Answer {
    let mut words = request.split(|&byte| byte == b' ').map(String::from_utf8_lossy);
    let tag = words.next().unwrap_or_default().into_owned();
    let asked: usize = if tag == "PAD" { words.next().and_then(|word| word.parse().ok()).unwrap_or(0) } else { 0 };
    Answer {
        server: name.into(),
        client: canonical(client),
        local: canonical(local),
        tag: tag.chars().take(64).collect(),
        length: request.len() as u64,
        hash: hash(request),
        padding: "x".repeat(asked.min(LONGEST)),
    }
}

/// An IPv4 address that arrived through an IPv6 socket, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// XXH3 of some bytes: as fast as memory, so that long transfers measure the network and not the hash.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_matches_its_published_value() {
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn an_answer_names_the_real_family_and_pads_on_demand() {
        let client = "[::ffff:10.244.1.10]:4000".parse().unwrap();
        let local = "[fd00::1]:80".parse().unwrap();
        let answer = answer("web", client, local, b"PAD 5 rest");
        assert_eq!(answer.client.to_string(), "10.244.1.10:4000");
        assert_eq!((answer.tag.as_str(), answer.padding.as_str(), answer.length), ("PAD", "xxxxx", 10));
    }
}
