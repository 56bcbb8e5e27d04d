//! SOCKETS_V4/V6 and PEERS_V4/V6: what the connect-time hooks remember about a socket.

use bytemuck::{Pod, Zeroable};

/// Key of SOCKETS (where `address:port` is the VIP) and of PEERS (where it is the backend).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey<A> {
    /// Socket cookie (`bpf_get_socket_cookie`), low half first: split so that the key needs no padding in either family.
    pub cookie: [u32; 2],
    /// Address, *network order*.
    pub address: A,
    /// Port, *host order*.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of SOCKETS: the backend an unconnected datagram socket uses for a VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketBackend {
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend.
    pub generation: u32,
}

/// Value of PEERS: the VIP that the application believes to talk to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer<A> {
    /// VIP, *network order*.
    pub address: A,
    /// Port, *host order*.
    pub port: u16,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<SocketKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<SocketKey<[u8; 16]>>() == 28);
const _: () = assert!(size_of::<SocketPeer<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<SocketPeer<[u8; 16]>>() == 20);
