//! VIPS_V4/V6 and SERVICE_CIDRS_V4/V6: addresses that belong to Services as a whole, whatever the port.
//!
//! A port of theirs that nobody serves is refused and an echo request is answered by this node, as a host of that address
//! would do.

use crate::Address;

/// Clients inside (pods of this node, the node itself) are answered: the address is a `clusterIP`.
pub const VIP_INSIDE: u32 = 1 << 0;
/// Clients outside are answered: a `clusterIP`, or a load balancer's address that this node does not have itself.
pub const VIP_OUTSIDE: u32 = 1 << 1;

/// Elements of SERVICE_CIDRS of each family.
pub const SERVICE_CIDRS: u32 = 4;

/// Element of SERVICE_CIDRS: a prefix out of which `clusterIPs` are given. All zero: unused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr<A> {
    /// First address, *network order*.
    pub network: A,
    /// Ones where an address must agree with it, *network order*.
    pub mask: A,
}

impl<A: Address> Cidr<A> {
    /// True if the prefix is in use and the address lies within.
    #[inline(always)]
    pub fn contains(&self, address: &A) -> bool {
        let (network, mask, address) = (self.network.words(), self.mask.words(), address.words());
        let differs = |at: usize| (address[at] ^ network[at]) & mask[at];
        mask[0] != 0 && differs(0) | differs(1) | differs(2) | differs(3) == 0
    }
}

const _: () = assert!(size_of::<Cidr<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<Cidr<[u8; 16]>>() == 32);
