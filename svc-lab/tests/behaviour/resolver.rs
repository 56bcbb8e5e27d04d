//! A resolver outside the cluster, with names that behave in ways of their own. It counts what it is asked.
//!
//! `www`: one address. `large`: more than fits into a datagram, whole over TCP. `lost`: the first question over UDP gets no
//! answer. `silent`: never any. `none`: NXDOMAIN. Everything else: refused.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use svc_lab::Place;

/// Addresses of the name `large`.
pub(crate) const LARGE: u8 = 120;

/// Questions by first label.
type Seen = Arc<Mutex<HashMap<String, usize>>>;

/// A resolver that listens at a place for as long as the test runs.
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    seen: Seen,
}

impl Resolver {
    pub(crate) fn start(place: &Place, address: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(address, 5353);
        let (udp, tcp) =
            place.enter(|| Ok::<_, std::io::Error>((UdpSocket::bind(address)?, TcpListener::bind(address)?)))??;
        let seen = Seen::default();
        let (of_udp, of_tcp) = (seen.clone(), seen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                if let Some(answer) = answer(&buffer[..length], false, &of_udp) {
                    // Nobody to send to is nobody's loss.
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let seen = of_tcp.clone();
                thread::spawn(move || -> std::io::Result<()> {
                    loop {
                        let mut length = [0; 2];
                        stream.read_exact(&mut length)?;
                        let mut query = vec![0; u16::from_be_bytes(length).into()];
                        stream.read_exact(&mut query)?;
                        let Some(answer) = answer(&query, true, &seen) else { continue };
                        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
                        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
                    }
                });
            }
        });
        Ok(Self { address, seen })
    }

    /// How often a name has been asked for.
    pub(crate) fn asked(&self, label: &str) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(label).copied().unwrap_or(0)
    }
}

/// The answer to a query: its header and question again, with address records that refer to the name.
fn answer(query: &[u8], tcp: bool, seen: &Seen) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let label = String::from_utf8_lossy(query.get(13..13 + usize::from(*query.get(12)?))?).to_lowercase();
    let is_a = query.get(end + 1..end + 3)? == [0, 1];
    let nth = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.entry(label.clone()).or_default();
        *count += 1;
        *count
    };
    let (code, addresses, truncated) = match &*label {
        "silent" => return None,
        "lost" if nth == 1 && !tcp => return None,
        "www" | "lost" => (0, 1, false),
        "large" if tcp => (0, LARGE, false),
        "large" => (0, 0, true),
        "none" => (3, 0, false),
        _ => (5, 0, false),
    };
    let addresses = if is_a { addresses } else { 0 };
    let mut bytes = query[..end + 5].to_vec();
    // An answer, recursion desired and available; one question, no authority, nothing additional.
    bytes[2] = 0x81 | if truncated { 2 } else { 0 };
    bytes[3] = 0x80 | code;
    bytes[4..12].copy_from_slice(&[0, 1, 0, addresses, 0, 0, 0, 0]);
    for nth in 0..addresses {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, nth]);
    }
    Some(bytes)
}
