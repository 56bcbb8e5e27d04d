//! sock_diag (uapi/linux/sock_diag.h, inet_diag.h): lists connected UDP sockets and destroys one. It knows no Services.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{SockFlag, SockProtocol};

use crate::{
    model::Family,
    netlink::{ACK, DUMP, Message, REQUEST, Socket},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// A UDP socket that is connected is "established" (`TCP_ESTABLISHED`, net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Offset of `struct inet_diag_sockid` in `struct inet_diag_msg`.
const ID_OFFSET: usize = 4;
/// Length of `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_LEN: usize = 48;

/// A connected UDP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connected {
    family: u8,
    /// `struct inet_diag_sockid` as the kernel gave it, which is how the kernel is told which socket is meant.
    id: [u8; ID_LEN],
}

impl Connected {
    /// The socket in the payload of an answer; `None` if that is cut short.
    fn read(payload: &[u8]) -> Option<Self> {
        let id = payload.get(ID_OFFSET..ID_OFFSET + ID_LEN)?.try_into().ok()?;
        Some(Self { family: *payload.first()?, id })
    }

    /// Its peer, as IPv4 if an IPv6 socket talks IPv4.
    pub(crate) fn peer(&self) -> SocketAddr {
        let bytes: [u8; 16] = std::array::from_fn(|at| self.id[20 + at]);
        let [a, b, c, d, ..] = bytes;
        let address: IpAddr = match self.family {
            AF_INET => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(bytes).to_canonical(),
        };
        SocketAddr::new(address, u16::from_be_bytes([self.id[2], self.id[3]]))
    }

    /// Its cookie as `bpf_get_socket_cookie` gives it, low half first.
    pub(crate) fn cookie(&self) -> [u32; 2] {
        [40, 44].map(|at| u32::from_ne_bytes(std::array::from_fn(|byte| self.id[at + byte])))
    }
}

/// `struct inet_diag_req_v2` for UDP.
fn request(family: u8, states: u32, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut bytes = vec![family, svc_common::protocol::UDP, 0, 0];
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

/// A sock_diag socket.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: Socket,
}

impl Diag {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkSockDiag, 0, SockFlag::empty())? })
    }

    /// Calls `each` for every connected UDP socket of a family.
    pub(crate) fn connected(&self, family: Family, each: &mut dyn FnMut(Connected)) -> io::Result<()> {
        let family = match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let all = request(family, 1 << ESTABLISHED, &[0; ID_LEN]);
        let message = Message::new(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, 1, &all).finish();
        self.socket.dump(&message, &mut |message| {
            if let Some(socket) = Connected::read(message.payload) {
                each(socket);
            }
        })
    }

    /// Ends a socket: it is connected no more, and has the error ECONNABORTED (`udp_abort`, net/ipv4/udp.c). False if it is
    /// not what it was any more.
    pub(crate) fn destroy(&self, socket: &Connected) -> io::Result<bool> {
        let which = request(socket.family, u32::MAX, &socket.id);
        let message = Message::new(SOCK_DESTROY, REQUEST | ACK, 1, &which).finish();
        match self.socket.request(&message, 1) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel has said that it cannot destroy sockets at all.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// Tries it with a socket of its own, which sends nothing.
pub(crate) fn probe() -> io::Result<()> {
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // To itself: no port of anybody else is needed.
    own.connect(own.local_addr()?)?;
    let (peer, diag) = (own.peer_addr()?, Diag::open()?);
    let mut found = None;
    diag.connected(Family::V4, &mut |socket| {
        if socket.peer() == peer && socket.id[..2] == socket.id[2..4] {
            found = Some(socket);
        }
    })?;
    // Without udp_diag (CONFIG_INET_UDP_DIAG), the kernel knows of no UDP socket.
    let found = found.ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    diag.destroy(&found)?;
    match own.take_error()? {
        Some(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        _ => Err(io::Error::other("a socket was destroyed and has not noticed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(diag: &Diag, family: Family, socket: &UdpSocket) -> Option<Connected> {
        let port = socket.local_addr().expect("an address").port().to_be_bytes();
        let mut found = None;
        diag.connected(family, &mut |candidate| {
            if candidate.id[..2] == port {
                found = Some(candidate);
            }
        })
        .expect("a list");
        found
    }

    #[test]
    fn a_destroyed_socket_has_no_peer_and_says_so() {
        let diag = Diag::open().expect("a socket");
        for (family, own, peer) in [
            (Family::V4, "127.0.0.1:0", "127.0.0.1:9"),
            (Family::V6, "[::1]:0", "[::1]:9"),
            (Family::V6, "[::]:0", "[::ffff:127.0.0.1]:9"),
        ] {
            let socket = UdpSocket::bind(own).expect("a socket");
            assert_eq!(find(&diag, family, &socket), None, "{peer}: not connected yet");
            socket.connect(peer).expect("connect");
            let found = find(&diag, family, &socket).expect("connected");
            let peer: SocketAddr = peer.parse().expect("an address");
            assert_eq!(found.peer(), SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            assert!(diag.destroy(&found).expect("this test needs root"));
            // Send looks for a peer before it looks for an error.
            let error = socket.send(b"hello").expect_err("the socket was destroyed");
            assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
            let error = socket.recv(&mut [0; 8]).expect_err("the socket was destroyed");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            assert!(socket.peer_addr().is_err());
            assert!(!diag.destroy(&found).expect("no error"), "it is connected no more");
        }
    }

    #[test]
    fn another_socket_in_the_same_place_is_left_alone() {
        let diag = Diag::open().expect("a socket");
        let first = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let own = first.local_addr().expect("an address");
        first.connect("127.0.0.1:9").expect("connect");
        let found = find(&diag, Family::V4, &first).expect("connected");
        drop(first);
        let second = UdpSocket::bind(own).expect("the port is free again");
        second.connect("127.0.0.1:9").expect("connect");
        assert!(!diag.destroy(&found).expect("this test needs root"));
        assert!(second.peer_addr().is_ok());
        assert!(second.take_error().expect("an answer").is_none());
    }

    #[test]
    fn the_probe_works_where_the_kernel_can_destroy_sockets() {
        probe().expect("this kernel has CONFIG_INET_DIAG_DESTROY");
    }

    #[test]
    fn what_is_cut_short_is_no_socket() {
        assert_eq!(Connected::read(&[2; ID_OFFSET + ID_LEN - 1]), None);
        assert_eq!(Connected::read(&[]), None);
        assert!(Connected::read(&[2; 72]).is_some());
    }
}
