//! Echo servers: they answer every request with who they are and whom they saw. They know nothing of Services.
//!
//! A request is a UDP datagram or a line of TCP; its first word is given back as the tag. Over TCP, `BYTES n` asks for
//! a stream of n bytes and `HASH n` announces n bytes of which the answer carries the hash; a request that starts with
//! `PAD n` gets n bytes of padding in its answer, in both protocols.

pub(crate) mod tcp;
mod udp;

use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};

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
    /// FNV-1a hash of the payload that arrived.
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
        hash: fnv1a(FNV_OFFSET, request),
        padding: "x".repeat(asked.min(LONGEST)),
    }
}

/// An IPv4 address that arrived through an IPv6 socket, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Start value of [`fnv1a`].
pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, continued from `hash`.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Byte number `at` of the stream that `BYTES` sends and a long upload consists of; never a line feed pattern that
/// repeats with a power of two, so that lost or swapped segments change the hash.
pub(crate) fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_its_published_values() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
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
