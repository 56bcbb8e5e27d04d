//! The address family as a type parameter: everything that depends on it is generic over [`Address`].

use bytemuck::Pod;

/// An IP address as it stands in a packet: bytes in *network order*. `[u8; 4]` is IPv4, `[u8; 16]` is IPv6; the type of
/// the address is what makes a key, a map or a program v4 or v6.
pub trait Address: Pod + Eq + core::fmt::Debug + Send + Sync + 'static {
    /// 4 or 6.
    const VERSION: u8;
    /// A copy that passes through registers. LLVM makes a plain copy of 16 bytes, of which it does not know how they are
    /// aligned, one of single bytes or a call of memmove, which the verifier walks byte by byte.
    #[must_use]
    fn copy(&self) -> Self;
    /// The address as 32-bit words in *host order*, most significant first; words a family does not have are 0.
    fn words(&self) -> [u32; 4];
    /// True for 127.0.0.0/8 (RFC 1122 section 3.2.1.3) and ::1 (RFC 4291 section 2.5.3).
    fn is_loopback(&self) -> bool;
    /// True for an address that one host can have as its own, and that may therefore be answered (RFC 1122 section
    /// 3.2.2): not unspecified, loopback, multicast, reserved or broadcast.
    fn is_host(&self) -> bool;
}

impl Address for [u8; 4] {
    const VERSION: u8 = 4;

    #[inline(always)]
    fn copy(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [u32::from_be_bytes(*self), 0, 0, 0]
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self[0] == 127
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        // 224.0.0.0/4 and all above: multicast, reserved, the limited broadcast.
        self[0] != 0 && self[0] != 127 && self[0] < 224
    }
}

impl Address for [u8; 16] {
    const VERSION: u8 = 6;

    #[inline(always)]
    #[expect(unsafe_code, reason = "a volatile read is what LLVM does not turn into a copy of bytes")]
    fn copy(&self) -> Self {
        #[repr(C, packed)]
        struct Word(u64);
        let words = self.as_ptr().cast::<Word>();
        // SAFETY: both words lie within the 16 bytes, and `Word` may be anywhere.
        let [low, high] = unsafe { [words.read_volatile().0, words.add(1).read_volatile().0] };
        (u128::from(low.to_le()) | u128::from(high.to_le()) << 64).to_le_bytes()
    }

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        let word = |at: usize| u32::from_be_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]]);
        [word(0), word(4), word(8), word(12)]
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.words() == [0, 0, 0, 1]
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        let [a, b, c, d] = self.words();
        self[0] != 0xff && (a | b | c != 0 || d > 1)
    }
}
