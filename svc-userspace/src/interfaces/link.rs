//! rtnetlink's messages about links, addresses and routes as plain values.
//!
//! Unknown attributes are passed over, and a message that is cut short is ignored alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{Received, attributes, text, u32_at};

// uapi/linux/rtnetlink.h.
pub(super) const NEW_LINK: u16 = 16;
pub(super) const DELETE_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
pub(super) const NEW_ADDRESS: u16 = 20;
pub(super) const DELETE_ADDRESS: u16 = 21;
pub(super) const GET_ADDRESS: u16 = 22;
pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const DELETE_ROUTE: u16 = 25;
pub(super) const GET_ROUTE: u16 = 26;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// `IFF_LOOPBACK`.
const LOOPBACK: u32 = 1 << 3;
/// `AF_BRIDGE`: messages about a port of a bridge, which are not about the link itself.
const AF_BRIDGE: u8 = 7;

/// A link, as much of it as matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `vxlan`, …; empty for hardware.
    pub kind: String,
    /// It is the loopback interface.
    pub loopback: bool,
    /// Its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Hardware address, if it is six bytes long.
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// Index of the link below it; of a veth, its peer. It may be in another network namespace.
    pub link: Option<u32>,
    /// Its peer (of a veth) is in another network namespace.
    pub peer_elsewhere: bool,
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Index of the link.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Of scope "global", and not deprecated, tentative, temporary or a duplicate.
    pub usable: bool,
    /// Of scope "global" at all.
    pub global: bool,
}

/// Reads a message about a link; the flag is false if the link is gone.
pub(super) fn parse_link(message: &Received<'_>) -> Option<(bool, Link)> {
    let present = match message.kind {
        NEW_LINK => true,
        DELETE_LINK => false,
        _ => return None,
    };
    // struct ifinfomsg: family, padding, type, index, flags, change mask.
    let header = message.payload;
    if header.first().copied()? == AF_BRIDGE {
        return None;
    }
    let mut link = Link {
        index: u32_at(header, 4)?,
        ethernet: crate::netlink::u16_at(header, 2)? == ETHERNET,
        loopback: u32_at(header, 8)? & LOOPBACK != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(header.get(16..)?) {
        match kind {
            1 => link.mac = value.try_into().ok(),
            3 => link.name = text(value),
            5 => link.link = u32_at(value, 0).filter(|index| *index != 0),
            10 => link.master = u32_at(value, 0).filter(|index| *index != 0),
            18 => {
                link.kind =
                    attributes(value).find(|(kind, _)| *kind == 1).map(|(_, kind)| text(kind)).unwrap_or_default();
            }
            37 => link.peer_elsewhere = true, // IFLA_LINK_NETNSID: only there when the peer is in another namespace
            _ => {}
        }
    }
    Some((present, link))
}

/// `RT_SCOPE_UNIVERSE`.
const SCOPE_GLOBAL: u8 = 0;
/// `IFA_F_SECONDARY`, which means "temporary" for IPv6.
const SECONDARY: u32 = 0x01;
/// `IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE`.
const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;
/// `IFA_F_OPTIMISTIC`: tentative, and usable.
const OPTIMISTIC: u32 = 0x04;

/// Reads a message about an address; the flag is false if the address is gone.
pub(super) fn parse_address(message: &Received<'_>) -> Option<(bool, LinkAddress)> {
    let present = match message.kind {
        NEW_ADDRESS => true,
        DELETE_ADDRESS => false,
        _ => return None,
    };
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let header = message.payload;
    let (mut flags, scope) = (u32::from(*header.get(2)?), *header.get(3)?);
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(header.get(8..)?) {
        match kind {
            1 => address = ip(value),
            2 => local = ip(value), // IFA_LOCAL: the own end of a point-to-point link, where IFA_ADDRESS is the peer's
            8 => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let address = local.or(address)?;
    let temporary = address.is_ipv6() && flags & SECONDARY != 0;
    let unusable = flags & UNUSABLE != 0 && flags & OPTIMISTIC == 0;
    let global =
        scope == SCOPE_GLOBAL && !address.is_multicast() && !address.is_unspecified() && !address.is_loopback();
    Some((
        present,
        LinkAddress { index: u32_at(header, 4)?, address, usable: global && !temporary && !unusable, global },
    ))
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;

/// Indexes of the interfaces that a default route of the main table leaves by; empty for every other message.
pub(super) fn parse_default_route(message: &Received<'_>) -> Vec<u32> {
    // struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags.
    let header = message.payload;
    let byte = |at: usize| header.get(at).copied().unwrap_or_default();
    if message.kind != NEW_ROUTE || header.len() < 12 || byte(1) != 0 || byte(7) != UNICAST {
        return Vec::new();
    }
    let (mut table, mut interfaces) = (u32::from(byte(4)), Vec::new());
    for (kind, value) in attributes(&header[12..]) {
        match kind {
            4 => interfaces.extend(u32_at(value, 0)),
            9 => interfaces.extend(next_hops(value)),
            15 => table = u32_at(value, 0).unwrap_or(table),
            _ => {}
        }
    }
    if table == TABLE_MAIN { interfaces } else { Vec::new() }
}

/// Interfaces of a multipath route: struct rtnexthop is length, flags, hops, index; then attributes.
fn next_hops(mut value: &[u8]) -> Vec<u32> {
    let mut interfaces = Vec::new();
    while let (Some(len), Some(index)) = (crate::netlink::u16_at(value, 0), u32_at(value, 4)) {
        interfaces.push(index);
        value = value.get(usize::from(len).max(8).next_multiple_of(4)..).unwrap_or_default();
    }
    interfaces
}
