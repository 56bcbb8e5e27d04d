//! Checks of single values: addresses, ports, protocols, names, source ranges.
//!
//! Each yields a value that makes sense, or one line that says why it does not and what would.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::model::{MAX_LABEL, Protocol, is_label};

/// Longest name in DNS, bytes as it is written.
const MAX_NAME: usize = 253;

/// An address that packets can carry.
fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address: left out; write it like 10.0.0.1 or fd00::1"))?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{address} is an IPv4 address in IPv6 notation: left out; write it as IPv4"))
        }
        address => Ok(address),
    }
}

/// An address clients can use for a Service.
pub(super) fn virtual_address(text: &str) -> Result<IpAddr, String> {
    unicast(address(text)?, "which no Service can have: left out; give it a unicast address")
}

/// Refuses what is no address of one host that others can reach. Link-local ones are what clouds serve credentials on.
fn unicast(address: IpAddr, remedy: &str) -> Result<IpAddr, String> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let wrong = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        _ if link_local => "a link-local address",
        _ => return Ok(address),
    };
    Err(format!("{address} is {wrong}, {remedy}"))
}

/// An address an endpoint can have.
pub(super) fn endpoint_address(text: &str) -> Result<IpAddr, String> {
    unicast(address(text)?, "which no endpoint can have: left out; use the pod's own address")
}

/// A port number, never 0.
pub(super) fn port(number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| format!("{number} is not a port: left out; use 1 to 65535"))
}

/// A protocol; absent means TCP.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("protocol {other:?} is unknown: left out; use TCP, UDP or SCTP")),
    }
}

/// A name no longer than a label.
pub(super) fn label(name: &str) -> Result<(), String> {
    if name.len() > MAX_LABEL {
        return Err(format!("{} characters are too many: left out; use at most {MAX_LABEL}", name.len()));
    }
    Ok(())
}

/// A name of a host: labels, which may have underscores, with dots between them and perhaps one at the end.
pub(super) fn host_name(name: &str) -> Result<&str, String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let is_good = |label: &str| is_label(&label.replace('_', "x"));
    if bare.len() > MAX_NAME || !bare.split('.').all(is_good) {
        return Err(format!("{name:?} is not a DNS name: no records; write it like www.example.com"));
    }
    Ok(bare)
}

/// A source range; the host part is cleared.
pub(super) fn source_range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is not a CIDR: left out; write it like 192.0.2.0/24 or 2001:db8::/32"))?;
    Ok(range.trunc())
}
