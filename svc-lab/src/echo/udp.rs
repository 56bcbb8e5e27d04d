//! The UDP side of an echo server: it replies from the very address that was asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};

use super::answer;

/// A socket that learns where each datagram was sent to.
pub(super) fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(socket)
}

/// Answers datagram by datagram, for ever.
pub(super) fn serve(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let port = socket.local_addr()?.port();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match exchange(socket, name, port, &mut buffer) {
            Ok(()) => {}
            // Replies that find no way, and ICMP errors about earlier ones, concern one client only.
            Err(error) => eprintln!("datagram: {error}"),
        }
    }
}

fn exchange(socket: &UdpSocket, name: &str, port: u16, buffer: &mut [u8]) -> io::Result<()> {
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let (length, from, to) = {
        let mut slices = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
        let to = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(std::net::Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).to_ipv6_mapped())
            }
            _ => None,
        });
        (message.bytes, message.address, to)
    };
    let (Some(from), Some(to)) = (from, to) else {
        return Err(io::Error::other("a datagram without addresses"));
    };
    let client = socket_address(&from).ok_or_else(|| io::Error::other("a datagram from no IP address"))?;
    let text = serde_json::to_vec(&answer(name, client, SocketAddr::new(to.into(), port), &buffer[..length]))?;
    let reply = [IoSlice::new(&text)];
    let v6;
    let v4;
    // Interface 0 leaves the way back to the routing table; link-local clients carry theirs in their address.
    let control = if let Some(to) = to.to_ipv4_mapped().filter(|_| client.is_ipv4()) {
        let address = libc::in_addr { s_addr: u32::from_ne_bytes(to.octets()) };
        v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
        ControlMessage::Ipv4PacketInfo(&v4)
    } else {
        v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: to.octets() }, ipi6_ifindex: 0 };
        ControlMessage::Ipv6PacketInfo(&v6)
    };
    match sendmsg(socket.as_raw_fd(), &reply, &[control], MsgFlags::empty(), Some(&from)) {
        Err(Errno::EINTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v6) = address.as_sockaddr_in6() {
        return Some(SocketAddr::new(v6.ip().into(), v6.port()));
    }
    address.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()))
}
