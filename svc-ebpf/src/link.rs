//! Ethernet and VLAN headers: where the IP header begins.

use network_types::eth::{EthHdr, EtherType};

use crate::frame::Frame;

/// IP version found behind the link header, and where its header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// 4 or 6.
    pub version: u8,
    /// Offset of the IP header.
    pub offset: usize,
}

const TAG_LEN: usize = 4;
const VLAN: u16 = 0x8100; // IEEE 802.1Q
const VLAN_SERVICE: u16 = 0x88a8; // IEEE 802.1ad
const IPV4: u16 = EtherType::Ipv4 as u16;
const IPV6: u16 = EtherType::Ipv6 as u16;

/// Finds the IP header behind an Ethernet header and up to two VLAN tags. (The kernel strips the outermost tag into the
/// sk_buff before ingress hooks run; the rest is in the frame.)
#[inline(always)]
pub fn ethernet<F: Frame>(frame: &mut F) -> Option<Network> {
    if !frame.require(EthHdr::LEN) {
        return None;
    }
    let mut ethertype = ethertype(frame, EthHdr::LEN - 2)?;
    let mut offset = EthHdr::LEN;
    if ethertype == VLAN || ethertype == VLAN_SERVICE {
        if !frame.require(offset + 2 * TAG_LEN) {
            return None;
        }
        ethertype = self::ethertype(frame, offset + 2)?;
        offset += TAG_LEN;
        if ethertype == VLAN || ethertype == VLAN_SERVICE {
            ethertype = self::ethertype(frame, offset + 2)?;
            offset += TAG_LEN;
        }
    }
    network(ethertype, frame.forget(offset))
}

/// The IP header of a frame without a link header; `ethertype` in *host order*, as the kernel keeps it beside the frame.
#[inline(always)]
pub fn bare(ethertype: u16) -> Option<Network> {
    network(ethertype, 0)
}

#[inline(always)]
fn ethertype<F: Frame>(frame: &F, offset: usize) -> Option<u16> {
    frame.get::<[u8; 2]>(offset).map(u16::from_be_bytes)
}

#[inline(always)]
fn network(ethertype: u16, offset: usize) -> Option<Network> {
    // EtherType's discriminants are in network order, to be compared with raw header fields.
    match ethertype.to_be() {
        IPV4 => Some(Network { version: 4, offset }),
        IPV6 => Some(Network { version: 6, offset }),
        _ => None,
    }
}

/// Turns an Ethernet frame round: it goes to where it came from. Without a link header (`ip` is the offset of the IP header)
/// there is nothing to turn.
#[inline(always)]
pub fn turn_round<F: Frame>(frame: &mut F, ip: usize) -> Option<()> {
    if ip < EthHdr::LEN {
        return Some(());
    }
    let addresses: [[u8; 6]; 2] = frame.get(0)?;
    frame.put(0, &[addresses[1], addresses[0]])
}
