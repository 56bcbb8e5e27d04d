//! Datagrams cut into fragments by hand and sent in any order, from raw sockets in the namespaces of the lab. It judges
//! nothing; what arrives is put together by the kernel.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};
use svc_lab::Place;

/// In which order the fragments of a datagram leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As they are cut.
    AsCut,
    /// The last one first, the first one last.
    Reversed,
    /// The last one, then the others as they are cut.
    LastFirst,
}

/// Every order.
pub(crate) const ORDERS: [Order; 3] = [Order::AsCut, Order::Reversed, Order::LastFirst];

/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A UDP port of a place: what it sends leaves in fragments.
pub(crate) struct End {
    socket: UdpSocket,
    raw: OwnedFd,
    /// Its address and port.
    pub(crate) address: SocketAddr,
}

impl End {
    /// Opens a port; 0 is any.
    pub(crate) fn open(place: &Place, address: IpAddr, port: u16) -> Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (socket, raw) = place.enter(|| -> Result<_> {
            let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            Ok((UdpSocket::bind((address, port))?, raw))
        })??;
        socket.set_read_timeout(Some(PATIENCE))?;
        let address = socket.local_addr()?;
        Ok(Self { socket, raw, address })
    }

    /// The fragments of a datagram from here, each an IP packet of at most `mtu` bytes, in this order.
    pub(crate) fn cut(&self, to: SocketAddr, payload: &[u8], mtu: usize, order: Order) -> Vec<Vec<u8>> {
        let mut fragments = cut(self.address, to, payload, mtu);
        match order {
            Order::AsCut => {}
            Order::Reversed => fragments.reverse(),
            Order::LastFirst => fragments.rotate_right(1),
        }
        fragments
    }

    /// Sends packets that begin with an IP header.
    pub(crate) fn send(&self, to: SocketAddr, packets: &[Vec<u8>]) -> Result<()> {
        // A raw socket of IPv6 takes the port for a protocol, and wants none.
        let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        for packet in packets {
            sendto(self.raw.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        }
        Ok(())
    }

    /// Sends a datagram in fragments.
    pub(crate) fn send_cut(&self, to: SocketAddr, payload: &[u8], mtu: usize, order: Order) -> Result<()> {
        self.send(to, &self.cut(to, payload, mtu, order))
    }

    /// The next datagram and who sent it.
    pub(crate) fn receive(&self) -> Result<(Vec<u8>, SocketAddr)> {
        let mut buffer = vec![0; 1 << 16];
        let (length, from) =
            self.socket.recv_from(&mut buffer).with_context(|| format!("nothing came to {}", self.address))?;
        buffer.truncate(length);
        Ok((buffer, from))
    }
}

/// Sends a datagram to `asked`, where `server` must get it, and sends one back: it must come from `asked`. Returns the
/// client as the server sees it.
pub(crate) fn exchange(
    client: &End,
    asked: SocketAddr,
    server: &End,
    length: usize,
    mtu: usize,
    order: Order,
) -> Result<SocketAddr> {
    let (request, answer) = (payload(length), payload(length + 1));
    client.send_cut(asked, &request, mtu, order)?;
    let (got, seen) = server.receive().context("the request")?;
    ensure!(got == request, "{} bytes of a request of {length} arrived, or other ones", got.len());
    server.send_cut(seen, &answer, mtu, order)?;
    let (got, from) = client.receive().context("the answer")?;
    ensure!(got == answer, "{} bytes of an answer of {} arrived, or other ones", got.len(), answer.len());
    ensure!(from == asked, "the answer came from {from}");
    Ok(seen)
}

/// Bytes that are another datagram's only by chance.
pub(crate) fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31) ^ (at >> 8) ^ (length * 7)) as u8).collect()
}

/// The fragments of a UDP datagram in order.
fn cut(from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    static IDS: AtomicU16 = AtomicU16::new(1);
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let length = (8 + payload.len()) as u16;
    let mut datagram = [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    datagram.extend(payload);
    let sum = checksum(
        &[octets(from.ip()), octets(to.ip()), vec![0, 17], length.to_be_bytes().into(), datagram.clone()].concat(),
    );
    datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());

    let headers = if from.is_ipv4() { 20 } else { 48 };
    let step = (mtu - headers) / 8 * 8;
    let count = datagram.len().div_ceil(step);
    let piece = |(number, bytes): (usize, &[u8])| {
        let (offset, more) = ((number * step) as u16, number + 1 < count);
        [header(from.ip(), to.ip(), id, offset, more, bytes.len()), bytes.to_vec()].concat()
    };
    datagram.chunks(step).enumerate().map(piece).collect()
}

/// IP header of a fragment of UDP (RFC 791 section 3.1, RFC 8200 sections 3 and 4.5); `offset` and `length` in bytes.
fn header(from: IpAddr, to: IpAddr, id: u16, offset: u16, more: bool, length: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let position = (offset / 8) | if more { 0x2000 } else { 0 };
            let mut bytes = vec![0x45, 0];
            for word in [20 + length as u16, id, position] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend([64, 17, 0, 0]);
            for address in [from, to] {
                bytes.extend(Ipv4Addr::octets(&address));
            }
            let sum = checksum(&bytes);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes
        }
        _ => {
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend((8 + length as u16).to_be_bytes());
            bytes.extend([44, 64]);
            bytes.extend([octets(from), octets(to)].concat());
            bytes.extend([17, 0]);
            bytes.extend((offset | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(id).to_be_bytes());
            bytes
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u64::from(*byte)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
