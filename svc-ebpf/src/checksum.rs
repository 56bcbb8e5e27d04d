//! Internet checksums by difference.
//!
//! The checksum is the complement of the one's-complement sum of the 16-bit words it covers (RFC 1071). When some of
//! these words change, the new checksum follows from the old one and the words alone (RFC 1624, equation 3):
//! `HC' = ~(~HC + ~m + m')`. One's-complement sums do not care about word size or byte order as long as they are used
//! consistently, so this module adds 32-bit words in the byte order of the machine and folds at the end, as the kernel
//! does (`csum_partial`, lib/checksum.c).

/// The difference between old and new words, `Σ ~m + Σ m'`, as a 32-bit one's-complement sum: what
/// `bpf_l4_csum_replace` takes as its `to` when its size is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    /// Nothing changed.
    #[inline(always)]
    pub const fn none() -> Self {
        Self(0)
    }

    /// Bytes at an even offset of the covered data went from `old` to `new`. `N` is even.
    #[inline(always)]
    #[must_use]
    pub fn replace<const N: usize>(mut self, old: &[u8; N], new: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(2) && N <= 16) };
        let mut at = 0;
        while at + 4 <= N {
            self.0 += u64::from(!word32(old, at)) + u64::from(word32(new, at));
            at += 4;
        }
        if at < N {
            self.0 += u64::from(!word16(old, at)) + u64::from(word16(new, at));
        }
        self
    }

    /// Bytes at an even offset come to be covered that were zero, or not covered, before. `N` is even.
    #[inline(always)]
    #[must_use]
    pub fn cover<const N: usize>(self, new: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(2) && N <= 24) };
        let mut sum = self.0;
        let mut at = 0;
        while at + 4 <= N {
            sum += u64::from(word32(new, at));
            at += 4;
        }
        if at < N {
            sum += u64::from(word16(new, at));
        }
        Self(sum)
    }

    /// Both changes together.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// What has been added up, folded to the 16 bits of a checksum field and not complemented.
    #[inline(always)]
    pub fn folded(self) -> [u8; 2] {
        let [a, b] = self.apply([0xff, 0xff]);
        [!a, !b]
    }

    /// A 16-bit field, in *host order*, went from `old` to `new`.
    #[inline(always)]
    #[must_use]
    pub fn replace_u16(self, old: u16, new: u16) -> Self {
        self.replace(&old.to_be_bytes(), &new.to_be_bytes())
    }

    /// The change as a 32-bit one's-complement sum, in the byte order of the machine.
    #[inline(always)]
    pub fn sum(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The checksum after the change; both as the bytes of the header.
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let old = u64::from(!u16::from_ne_bytes(checksum));
        let sum = old + u64::from(self.sum());
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (!(sum as u16)).to_ne_bytes()
    }
}

#[inline(always)]
fn word32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn word16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word, in network order: as plain as can be.
    fn checksum(bytes: &[u8]) -> [u8; 2] {
        let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn a_change_gives_what_a_full_computation_gives(
            mut data in any::<[u8; 40]>(), new in any::<[u8; 16]>(), port in any::<u16>(), at in 0usize..12,
        ) {
            let before = checksum(&data);
            let old: [u8; 16] = data[at * 2..at * 2 + 16].try_into().unwrap();
            data[at * 2..at * 2 + 16].copy_from_slice(&new);
            let old_port = u16::from_be_bytes([data[0], data[1]]);
            let mut change = Change::none().replace(&old, &new);
            if at > 0 {
                data[..2].copy_from_slice(&port.to_be_bytes());
                change = change.replace_u16(old_port, port);
            }
            let after = change.apply(before);
            let full = checksum(&data);
            // Zero has two representations in one's complement.
            prop_assert!(after == full || (after == [0xff, 0xff] && full == [0, 0]) || (after == [0, 0] && full == [0xff, 0xff]));
        }
    }
}
