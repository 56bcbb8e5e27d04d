//! A packet as bytes: the smallest one that opens a flow, or that continues one.

use std::net::SocketAddr;

use etherparse::{IpNumber, PacketBuilder, err::packet::BuildWriteError};

use super::Packet;
use crate::model::Protocol;

/// Hardware addresses do not matter: the program reads none of them.
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const TTL: u8 = 64;
const WINDOW: u16 = 64_240;
/// An SCTP chunk that opens an association, and one of data (RFC 9260 section 3.2), and their length without a value.
const SCTP_INIT: u8 = 1;
const SCTP_DATA: u8 = 0;
const SCTP_CHUNK_LEN: u8 = 4;

/// The Ethernet frame of a packet; `opens`: it is the first one of its connection.
pub(super) fn frame(packet: &Packet, opens: bool) -> Result<Vec<u8>, BuildWriteError> {
    let (from, to) = (packet.source.port(), packet.destination.port());
    let link = PacketBuilder::ethernet2(FROM, TO);
    let network = match (packet.source, packet.destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            link.ipv4(source.ip().octets(), destination.ip().octets(), TTL)
        }
        (source, destination) => link.ipv6(to_ipv6(source), to_ipv6(destination), TTL),
    };
    let mut bytes = Vec::new();
    match packet.protocol {
        Protocol::Tcp => {
            let segment = network.tcp(from, to, 0, WINDOW);
            if opens { segment.syn() } else { segment.ack(0) }.write(&mut bytes, &[])?;
        }
        Protocol::Udp => network.udp(from, to).write(&mut bytes, &[])?,
        Protocol::Sctp => {
            let mut header = Vec::from(from.to_be_bytes());
            header.extend(to.to_be_bytes());
            // Verification tag and checksum: the program reads neither.
            header.extend([0; 8]);
            header.extend([if opens { SCTP_INIT } else { SCTP_DATA }, 0, 0, SCTP_CHUNK_LEN]);
            network.write(&mut bytes, IpNumber::SCTP, &header)?;
        }
    }
    Ok(bytes)
}

fn to_ipv6(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    }
}
