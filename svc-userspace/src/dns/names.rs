//! What a queried name means, and names written from addresses and back: pure. It never looks at an object.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{ProtoError, rr::Name};

use crate::model::Protocol;

/// What a name asks for. Labels are in small letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A name of somebody else's.
    Outside,
    /// The name of an address in `in-addr.arpa` or `ip6.arpa`.
    Reverse(IpAddr),
    /// The cluster domain itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`: this server.
    Server,
    /// `svc`, `pod` and `dns`: nothing of its own, but names below it.
    Branch,
    /// `NS.svc`.
    Namespace(&'a str),
    /// `NS.pod`.
    PodNamespace,
    /// `1-2-3-4.NS.pod`.
    Pod(IpAddr),
    /// `SERVICE.NS.svc`.
    Service(Place<'a>),
    /// `HOSTNAME.SERVICE.NS.svc`.
    Member(Place<'a>, &'a str),
    /// `_PROTOCOL.SERVICE.NS.svc`.
    Protocol(Place<'a>, Protocol),
    /// `_PORT._PROTOCOL.SERVICE.NS.svc`.
    Port(Place<'a>, Protocol, &'a str),
    /// A name of the cluster domain that cannot exist.
    Nothing,
}

/// The Service below which a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub service: &'a str,
}

/// The labels of a name in small letters, the last one first. Of labels with other bytes than names of hosts and ports have,
/// nothing is kept but that they are there.
#[derive(Debug, Default)]
pub struct Labels {
    text: String,
    ends: Vec<u8>,
}

impl Labels {
    /// The labels of a name.
    pub fn new(name: &Name) -> Self {
        let mut labels = Self { text: String::with_capacity(name.len()), ends: Vec::with_capacity(16) };
        for label in name.iter().rev() {
            let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if label.iter().all(is_good) {
                labels.text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            } else {
                labels.text.push('?');
            }
            // A name has 255 bytes at most.
            labels.ends.push(u8::try_from(labels.text.len()).unwrap_or(u8::MAX));
        }
        labels
    }

    fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(usize::from(start)..usize::from(end))
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    /// What they ask for, where these are the labels of the cluster domain.
    pub fn asked(&self, domain: &Self) -> Asked<'_> {
        let is_below = domain.len() <= self.len() && (0..domain.len()).all(|i| self.get(i) == domain.get(i));
        if !is_below {
            return self.reverse().map_or(Asked::Outside, Asked::Reverse);
        }
        let below = |i: usize| self.get(domain.len() + i);
        let count = self.len() - domain.len();
        let Some(first) = below(0) else { return Asked::Apex };
        match (first, count) {
            ("dns-version", 1) => Asked::Version,
            ("dns" | "svc" | "pod", 1) => Asked::Branch,
            ("dns", 2) if below(1) == Some("ns") => Asked::Server,
            ("pod", 2) => below(1).filter(|it| is_host(it)).map_or(Asked::Nothing, |_| Asked::PodNamespace),
            ("pod", 3) => match (below(1).filter(|it| is_host(it)), below(2).and_then(from_dashes)) {
                (Some(_), Some(address)) => Asked::Pod(address),
                _ => Asked::Nothing,
            },
            ("svc", 2) => below(1).map_or(Asked::Nothing, Asked::Namespace),
            ("svc", 3..=5) => self.service(domain.len() + 1),
            _ => Asked::Nothing,
        }
    }

    /// What labels from that of the namespace on ask for.
    fn service(&self, from: usize) -> Asked<'_> {
        let (Some(namespace), Some(service)) = (self.get(from), self.get(from + 1)) else { return Asked::Nothing };
        let place = Place { namespace, service };
        match (self.get(from + 2), self.get(from + 3)) {
            (None, _) => Asked::Service(place),
            (Some(label), None) => match label.strip_prefix('_') {
                Some(protocol) => self::protocol(protocol).map_or(Asked::Nothing, |it| Asked::Protocol(place, it)),
                None => Asked::Member(place, label),
            },
            (Some(protocol), Some(port)) => {
                let protocol = protocol.strip_prefix('_').and_then(self::protocol);
                match (protocol, port.strip_prefix('_')) {
                    (Some(protocol), Some(port)) => Asked::Port(place, protocol, port),
                    _ => Asked::Nothing,
                }
            }
        }
    }

    /// The address that this is the reverse name of; names of networks are of none.
    fn reverse(&self) -> Option<IpAddr> {
        if self.get(0) != Some("arpa") {
            return None;
        }
        match (self.get(1), self.len()) {
            (Some("in-addr"), 6) => {
                let mut octets = [0; 4];
                for (i, octet) in octets.iter_mut().enumerate() {
                    let text = self.get(2 + i)?;
                    *octet = text.parse().ok().filter(|octet: &u8| octet.to_string() == text)?;
                }
                Some(Ipv4Addr::from(octets).into())
            }
            (Some("ip6"), 34) => {
                let mut bits = 0_u128;
                for i in 0..32 {
                    let text = self.get(2 + i).filter(|text| text.len() == 1)?;
                    bits = bits << 4 | u128::from(u8::from_str_radix(text, 16).ok()?);
                }
                Some(Ipv6Addr::from_bits(bits).into())
            }
            _ => None,
        }
    }
}

fn is_host(label: &str) -> bool {
    crate::model::is_label(label)
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// An address as one label: `10-1-2-3`, `fd00--1`.
pub fn with_dashes(address: IpAddr) -> String {
    let mut text = address.to_string().replace(['.', ':'], "-");
    // A label neither begins nor ends with a hyphen: `::1` is `0--1`, `2001:db8::` is `2001-db8--0`.
    if text.starts_with('-') {
        text.insert(0, '0');
    }
    if text.ends_with('-') {
        text.push('0');
    }
    text
}

/// The address that a label stands for, in any notation of it.
pub fn from_dashes(label: &str) -> Option<IpAddr> {
    if let Ok(address) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(address.into());
    }
    // With a dot in it, the text would be taken for an IPv4 address in IPv6 notation.
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(Into::into)
}

/// The reverse name of an address.
#[cfg(test)]
pub(super) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(address) => {
            let nibble = |i: u32| char::from_digit((address.to_bits() >> (4 * i) & 15) as u32, 16).unwrap_or('?');
            let nibbles: String = (0..32).flat_map(|i| [nibble(i), '.']).collect();
            format!("{nibbles}ip6.arpa.")
        }
    }
}

/// A name below another one; the labels from left to right.
pub fn below(labels: &[&str], parent: &Name) -> Result<Name, ProtoError> {
    Name::from_labels(labels.iter().map(|label| label.as_bytes()))?.append_name(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> String {
        let domain = Labels::new(&Name::from_ascii("Cluster.local.").expect("a name"));
        format!("{:?}", Labels::new(&Name::from_ascii(name).expect("a name")).asked(&domain))
    }

    #[test]
    fn names_are_told_apart_whatever_their_case() {
        let place = "Place { namespace: \"ns\", service: \"web\" }";
        for (name, meaning) in [
            ("example.com.", "Outside".to_owned()),
            ("local.", "Outside".to_owned()),
            ("cluster.local.example.", "Outside".to_owned()),
            ("CLUSTER.LOCAL.", "Apex".to_owned()),
            ("dns-version.cluster.local.", "Version".to_owned()),
            ("ns.dns.cluster.local.", "Server".to_owned()),
            ("svc.cluster.local.", "Branch".to_owned()),
            ("ns.svc.cluster.local.", "Namespace(\"ns\")".to_owned()),
            ("WEB.ns.svc.cluster.local.", format!("Service({place})")),
            ("host.web.ns.svc.cluster.local.", format!("Member({place}, \"host\")")),
            ("_tcp.web.ns.svc.cluster.local.", format!("Protocol({place}, Tcp)")),
            ("_Http._TCP.web.ns.svc.cluster.local.", format!("Port({place}, Tcp, \"http\")")),
            ("_http._icmp.web.ns.svc.cluster.local.", "Nothing".to_owned()),
            ("http._tcp.web.ns.svc.cluster.local.", "Nothing".to_owned()),
            ("x._http._tcp.web.ns.svc.cluster.local.", "Nothing".to_owned()),
            ("www.example.com.ns.svc.cluster.local.", "Nothing".to_owned()),
            ("x.cluster.local.", "Nothing".to_owned()),
            ("10-1-2-3.ns.pod.cluster.local.", "Pod(10.1.2.3)".to_owned()),
            ("fd00--1.ns.pod.cluster.local.", "Pod(fd00::1)".to_owned()),
            ("10-1-2.ns.pod.cluster.local.", "Nothing".to_owned()),
            ("10-1-2-256.ns.pod.cluster.local.", "Nothing".to_owned()),
            ("3.2.1.10.in-addr.arpa.", "Reverse(10.1.2.3)".to_owned()),
            ("03.2.1.10.in-addr.arpa.", "Outside".to_owned()),
            ("2.1.10.in-addr.arpa.", "Outside".to_owned()),
        ] {
            assert_eq!(asked(name), meaning, "{name}");
        }
    }

    #[test]
    fn addresses_become_labels_and_come_back() {
        for text in ["10.0.0.1", "255.255.255.255", "::1", "fd00::1", "2001:db8::", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4"]
        {
            let address: IpAddr = text.parse().expect("an address");
            let label = with_dashes(address);
            assert!(crate::model::is_label(&label), "{label}");
            if text != "::ffff:1.2.3.4" {
                assert_eq!(from_dashes(&label), Some(address), "{label}");
            }
            let name = Name::from_ascii(reverse(address)).expect("a name");
            assert_eq!(Labels::new(&name).reverse(), Some(address));
        }
    }
}
