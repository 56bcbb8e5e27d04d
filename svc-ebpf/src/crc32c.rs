//! CRC32c by difference: what SCTP's checksum (RFC 9260 appendix A) becomes when four bytes at the head of a packet change.
//!
//! A CRC is linear: those of two packets of one length differ by the CRC of their difference, started from zero. Here the
//! difference is four bytes followed by zeros, and a zero byte multiplies the register by x^8 modulo the polynomial. So the
//! work does not depend on the length: one multiplication for each of its four hexadecimal digits, and a multiplication by
//! a constant is eight lookups, one for each hexadecimal digit of the register. (Multiplying bit by bit is out: the verifier
//! of Linux 6.18 follows both outcomes of `-(bit) & value`, 2^32 ways in all.)

/// Castagnoli's polynomial, the lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 0x8000_0000;
/// Hexadecimal digits of a length.
const DIGITS: usize = 4;
/// Hexadecimal digits of the register.
const NIBBLES: usize = 8;

/// Multiplication by a constant: what each digit of the register contributes to the product, by its place and value.
type Multiplication = [[u32; 16]; NIBBLES];

/// Multiplication by `x^(8 · n · 16^digit)`: what `n · 16^digit` zero bytes do.
static ZEROS: [[Multiplication; 16]; DIGITS] = zeros();

/// How the CRC changes when the first four bytes of `len` covered ones change by `difference` (exclusive or). Bytes and CRC
/// as numbers are little-endian, as the checksum stands in the packet. `len` is below 65,536.
#[inline(always)]
pub fn change(difference: [u8; 4], len: u32) -> [u8; 4] {
    let mut register = u32::from_le_bytes(difference);
    for (digit, zeros) in ZEROS.iter().enumerate() {
        let multiplication = &zeros[(len >> (4 * digit)) as usize & 15];
        let mut product = 0;
        for (place, contribution) in multiplication.iter().enumerate() {
            product ^= contribution[(register >> (4 * place)) as usize & 15];
        }
        register = product;
    }
    register.to_le_bytes()
}

/// The product of two polynomials, modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

#[expect(clippy::large_stack_arrays, reason = "it is computed by the compiler")]
const fn zeros() -> [[Multiplication; 16]; DIGITS] {
    let mut zeros = [[[[0; 16]; NIBBLES]; 16]; DIGITS];
    let mut step = ONE >> 8; // x^8
    let mut digit = 0;
    while digit < DIGITS {
        let mut power = ONE;
        let mut n = 0;
        while n < 16 {
            zeros[digit][n] = multiplication(power);
            power = multiply(power, step);
            n += 1;
        }
        step = power;
        digit += 1;
    }
    zeros
}

const fn multiplication(by: u32) -> Multiplication {
    let mut table = [[0; 16]; NIBBLES];
    let mut place = 0;
    while place < NIBBLES {
        let mut bit = 0;
        while bit < 4 {
            let one = multiply(1 << (4 * place + bit), by);
            let mut value = 0;
            while value < 16 {
                if value >> bit & 1 == 1 {
                    table[place][value] ^= one;
                }
                value += 1;
            }
            bit += 1;
        }
        place += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit, as the RFC describes it.
    fn crc32c(bytes: &[u8]) -> [u8; 4] {
        let mut register = u32::MAX;
        for byte in bytes {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                register = register >> 1 ^ if register & 1 == 1 { POLYNOMIAL } else { 0 };
            }
        }
        (!register).to_le_bytes()
    }

    #[test]
    fn the_plain_computation_is_right() {
        // RFC 3720 section B.4: 32 bytes of zeros.
        assert_eq!(crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    }

    proptest! {
        #[test]
        fn a_change_gives_what_a_full_computation_gives(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..9000), new in any::<[u8; 4]>(),
        ) {
            let before = crc32c(&bytes);
            let difference: [u8; 4] = std::array::from_fn(|at| bytes[at] ^ new[at]);
            bytes[..4].copy_from_slice(&new);
            let change = change(difference, bytes.len() as u32);
            prop_assert_eq!(std::array::from_fn::<u8, 4, _>(|at| before[at] ^ change[at]), crc32c(&bytes));
        }
    }
}
