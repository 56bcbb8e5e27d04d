//! Which way the kernel sends packets to an address: one question to rtnetlink. It follows nothing.

use std::{io, net::IpAddr};

use nix::sys::socket::{SockFlag, SockProtocol};

use super::link::{self, ip};
use crate::netlink::{ACK, Message, REQUEST, Received, Socket, attributes, u32_at};

/// `RTN_LOCAL`.
const LOCAL: u8 = 2;
/// `RTA_DST`, `RTA_OIF`, `RTA_GATEWAY` (uapi/linux/rtnetlink.h).
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;

/// A way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface that packets leave by.
    pub interface: u32,
    /// The next router; `None`: the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The address is this node's own.
    pub local: bool,
}

/// The way to an address, in the network namespace of the calling thread.
pub fn route(to: IpAddr) -> io::Result<Route> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?;
    // struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags.
    let mut header = [0; 12];
    let request = |header: &[u8], address: &[u8]| {
        Message::new(link::GET_ROUTE, REQUEST | ACK, 1, header).bytes(DESTINATION, address).finish()
    };
    let request = match to {
        IpAddr::V4(address) => {
            (header[0], header[1]) = (libc::AF_INET as u8, 32);
            request(&header, &address.octets())
        }
        IpAddr::V6(address) => {
            (header[0], header[1]) = (libc::AF_INET6 as u8, 128);
            request(&header, &address.octets())
        }
    };
    let mut found = None;
    // The answer, then the acknowledgement that ends it.
    socket.dump(&request, &mut |message| found = parse(&message).or(found))?;
    found.ok_or_else(|| io::Error::other("the kernel's answer names no interface"))
}

fn parse(message: &Received<'_>) -> Option<Route> {
    let header = message.payload;
    if message.kind != link::NEW_ROUTE {
        return None;
    }
    let mut route = Route { local: *header.get(7)? == LOCAL, ..Route::default() };
    for (kind, value) in attributes(header.get(12..)?) {
        match kind {
            INTERFACE => route.interface = u32_at(value, 0)?,
            GATEWAY => route.gateway = ip(value),
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_loopback_address_is_this_nodes_own() -> io::Result<()> {
        for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let route = route(address)?;
            assert!(route.local && route.gateway.is_none() && route.interface == 1, "{route:?}");
        }
        Ok(())
    }
}
