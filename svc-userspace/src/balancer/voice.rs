//! Says aloud what this node has come to answer for: gratuitous ARP (RFC 5944, section 4.6) and unsolicited neighbour
//! advertisements (RFC 4861, section 7.2.6), so that others forget who had the address before; and listens to the groups that
//! IPv6 addresses are asked for in. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use etherparse::{Icmpv6Type, icmpv6::NeighborAdvertisementHeader};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};
use svc_common::{Announced, AnnouncedKey};

/// How often it is said, once a second.
const TIMES: u8 = 3;

/// What has been said, and what is to be said again.
#[derive(Debug, Default)]
pub struct Voice {
    socket: Option<OwnedFd>,
    groups: BTreeMap<AnnouncedKey, UdpSocket>,
    known: BTreeMap<AnnouncedKey, Announced>,
    again: BTreeMap<AnnouncedKey, u8>,
}

impl Voice {
    /// These are announced from now on: what is new is said.
    pub fn set(&mut self, announced: &BTreeMap<AnnouncedKey, Announced>) {
        self.groups.retain(|key, _| announced.contains_key(key));
        self.again.retain(|key, _| announced.contains_key(key));
        let new: BTreeSet<AnnouncedKey> =
            announced.iter().filter(|(key, value)| self.known.get(*key) != Some(value)).map(|(key, _)| *key).collect();
        self.known = announced.clone();
        for key in new {
            if let IpAddr::V6(address) = address(&key)
                && let Err(error) = self.join(key, address)
            {
                tracing::warn!("{address}: cannot listen to who asks for it on interface {}: {error}", key.interface);
            }
            self.again.insert(key, TIMES);
        }
        self.speak();
    }

    fn join(&mut self, key: AnnouncedKey, address: Ipv6Addr) -> io::Result<()> {
        // A socket for each: how many groups one may be in is limited.
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let [.., x, y, z] = address.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
        socket.join_multicast_v6(&group, key.interface)?;
        self.groups.insert(key, socket);
        Ok(())
    }

    /// Says again what is to be said again.
    pub fn speak(&mut self) {
        let keys: Vec<AnnouncedKey> = self.again.keys().copied().collect();
        for key in keys {
            let Some(announced) = self.known.get(&key).copied() else { continue };
            if let Err(error) = self.say(&key, announced.mac) {
                let address = address(&key);
                tracing::warn!("{address}: cannot say on interface {} that it is here: {error}", key.interface);
            }
            match self.again.get_mut(&key) {
                Some(left) if *left > 1 => *left -= 1,
                _ => drop(self.again.remove(&key)),
            }
        }
    }

    fn say(&mut self, key: &AnnouncedKey, mac: [u8; 6]) -> io::Result<()> {
        let frame = match address(key) {
            IpAddr::V4(address) => gratuitous(address.octets(), mac),
            IpAddr::V6(address) => unsolicited(address, mac)?,
        };
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => {
                // Protocol 0: it never receives anything.
                let new = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
                none.insert(new)
            }
        };
        sendto(socket.as_raw_fd(), &frame, &link_address(key.interface)?, MsgFlags::empty())?;
        Ok(())
    }
}

fn address(key: &AnnouncedKey) -> IpAddr {
    Ipv6Addr::from(key.address).to_canonical()
}

/// An ARP request for the own address, to everybody.
fn gratuitous(address: [u8; 4], mac: [u8; 6]) -> Vec<u8> {
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let parts: [&[u8]; 7] = [&[0xff; 6], &mac, &kind, &mac, &address, &[0; 6], &address];
    parts.concat()
}

/// An advertisement to all nodes that nobody has asked for.
fn unsolicited(address: Ipv6Addr, mac: [u8; 6]) -> io::Result<Vec<u8>> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let header = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let payload = [&address.octets()[..], &[2, 1], &mac].concat();
    let message = Icmpv6Type::NeighborAdvertisement(header)
        .to_header(address.octets(), all.octets(), &payload)
        .map_err(io::Error::other)?;
    let ip = etherparse::Ipv6Header {
        payload_length: 32,
        next_header: etherparse::IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source: address.octets(),
        destination: all.octets(),
        ..etherparse::Ipv6Header::default()
    };
    let link = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat();
    Ok([link, ip.to_bytes().to_vec(), message.to_bytes().to_vec(), payload].concat())
}

fn link_address(interface: u32) -> io::Result<LinkAddr> {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&raw)).map_err(io::Error::other)?;
    // SAFETY: a whole sockaddr_ll with its own length, which is copied.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.ok_or_else(|| io::Error::other("no address of a link"))
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Slice, Ipv6HeaderSlice};

    use super::*;

    #[test]
    fn what_is_said_is_well_formed() {
        let mac = [2, 0, 0, 0, 0, 1];
        let arp = gratuitous([192, 0, 2, 1], mac);
        assert_eq!((arp.len(), &arp[28..32], &arp[38..]), (42, &[192, 0, 2, 1][..], &[192, 0, 2, 1][..]));
        let address: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let frame = unsolicited(address, mac).expect("a frame");
        assert_eq!(frame.len(), 86);
        let header = Ipv6HeaderSlice::from_slice(&frame[14..54]).expect("IPv6");
        let message = Icmpv6Slice::from_slice(&frame[54..]).expect("ICMPv6");
        assert!(message.is_checksum_valid(header.source(), header.destination()));
        assert_eq!((frame[54], frame[58], &frame[62..78]), (136, 0x20, &address.octets()[..]));
        assert_eq!(frame[78..], [&[2, 1][..], &mac].concat());
    }

    #[test]
    fn a_link_is_addressed_by_its_index() {
        assert_eq!(link_address(7).expect("an address").ifindex(), 7);
    }
}
