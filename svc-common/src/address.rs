//! The address family as a type parameter: everything that depends on it is generic over [`Address`].

use bytemuck::Pod;

/// An IP address as it stands in a packet: bytes in *network order*. `[u8; 4]` is IPv4, `[u8; 16]` is IPv6; the type of
/// the address is what makes a key, a map or a program v4 or v6.
pub trait Address: Pod + Eq + core::fmt::Debug + Send + Sync + 'static {
    /// 4 or 6.
    const VERSION: u8;
    /// The address as 32-bit words in *host order*, most significant first; words a family does not have are 0.
    fn words(&self) -> [u32; 4];
    /// True for 127.0.0.0/8 (RFC 1122 section 3.2.1.3) and ::1 (RFC 4291 section 2.5.3).
    fn is_loopback(&self) -> bool;
}

impl Address for [u8; 4] {
    const VERSION: u8 = 4;

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [u32::from_be_bytes(*self), 0, 0, 0]
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self[0] == 127
    }
}

impl Address for [u8; 16] {
    const VERSION: u8 = 6;

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        let word = |at: usize| u32::from_be_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]]);
        [word(0), word(4), word(8), word(12)]
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.words() == [0, 0, 0, 1]
    }
}
