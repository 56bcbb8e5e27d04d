//! ANNOUNCED: addresses of load balancers that this node answers ARP requests and neighbour solicitations for.

use bytemuck::{Pod, Zeroable};

/// Key of ANNOUNCED: an address, and the interface that it is asked for on.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct AnnouncedKey {
    /// Address, *network order*; an IPv4 address as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// Index of the interface.
    pub interface: u32,
    /// Zero.
    pub pad: u32,
}

impl AnnouncedKey {
    /// The key of an IPv4 address.
    #[inline(always)]
    pub fn v4([a, b, c, d]: [u8; 4], interface: u32) -> Self {
        Self::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d], interface)
    }

    /// The key of an IPv6 address.
    #[inline(always)]
    pub fn v6(address: [u8; 16], interface: u32) -> Self {
        Self { address, interface, pad: 0 }
    }
}

/// Value of ANNOUNCED: what is answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Announced {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<AnnouncedKey>() == 24);
const _: () = assert!(size_of::<Announced>() == 8);
