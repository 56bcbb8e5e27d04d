//! Who may ask, and which addresses count as one client: pure.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Who may ask unless told otherwise: addresses that are not those of the internet at large.
pub const DEFAULT_CLIENTS: &str = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,127.0.0.0/8,169.254.0.0/16,\
                                   fc00::/7,fe80::/10,::1/128";

/// Who may ask.
#[derive(Debug)]
pub(super) struct Clients {
    within: Vec<IpNet>,
    own: Vec<IpAddr>,
}

impl Clients {
    /// Addresses in these prefixes, and the server's own: a process of this node may have no other.
    pub(super) fn new(within: Vec<IpNet>, own: &[IpAddr]) -> Self {
        Self { within, own: own.iter().map(IpAddr::to_canonical).collect() }
    }

    /// Whether this address may ask. One that is IPv4 in IPv6's clothes is IPv4.
    pub(super) fn allows(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.within.iter().any(|prefix| prefix.contains(&client)) || self.own.contains(&client)
    }
}

/// What stands for a client where clients have limits: an IPv6 one has a /64, and any address in it as it likes.
pub(super) fn key(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn clients_are_those_of_the_prefixes_and_this_node() {
        let prefixes = || DEFAULT_CLIENTS.split(',').map(|it| it.parse().expect("a prefix")).collect();
        let clients = Clients::new(prefixes(), &[ip("203.0.113.5"), ip("::ffff:203.0.113.6")]);
        for inside in [
            "10.244.1.10",
            "172.31.0.1",
            "192.168.50.11",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.20.10",
            "fd00:50::11",
            "fe80::1",
            "::1",
            "::ffff:10.0.0.1",
            "203.0.113.5",
            "203.0.113.6",
        ] {
            assert!(clients.allows(ip(inside)), "{inside}");
        }
        for outside in ["198.51.100.10", "172.32.0.1", "2001:db8::1", "::ffff:198.51.100.10", "::", "0.0.0.0", "::2"] {
            assert!(!clients.allows(ip(outside)), "{outside}");
        }
        let everybody = Clients::new(vec![ip("198.51.100.10").into()], &[]);
        assert!(everybody.allows(ip("198.51.100.10")) && !everybody.allows(ip("10.0.0.1")));
    }

    #[test]
    fn a_subnet_of_ipv6_is_one_client_and_an_ipv4_address_is_one() {
        assert_eq!(key(ip("fd00:0:0:1::1")), key(ip("fd00:0:0:1:ffff::2")));
        assert_ne!(key(ip("fd00:0:0:1::1")), key(ip("fd00:0:0:2::1")));
        assert_ne!(key(ip("10.0.0.1")), key(ip("10.0.0.2")));
        assert_eq!(key(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}
