//! FRAGMENTS_V4/V6: later fragments carry no ports; the first one leaves them here.

use bytemuck::{Pod, Zeroable};

/// Key of FRAGMENTS: what all fragments of a datagram share (RFC 791 section 3.2, RFC 8200 section 4.5), as the hook sees
/// them *before* its rewrite. Aligned for the stack of a program: LLVM joins neighbouring fields into stores of 8 bytes,
/// which the verifier refuses where they are not aligned ("misaligned stack access").
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address, *network order*.
    pub source: A,
    /// Destination address, *network order*.
    pub destination: A,
    /// Identification, *host order*; 16 bits wide in IPv4.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::Hook`] as a number.
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of FRAGMENTS, both in *host order*.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<FragmentKey<[u8; 16]>>() == 40);
const _: () = assert!(size_of::<Ports>() == 4);
