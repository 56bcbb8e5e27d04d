//! Values in packets, in words as large as there are. Packets are aligned to nothing: of what it may not assume LLVM makes single
//! bytes, or a call of memmove; a volatile access it leaves in one piece.

use core::mem::MaybeUninit;

use bytemuck::Pod;

/// A word that may be anywhere.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Word<W>(W);

/// Calls `copy` with the offsets of the words that `size` bytes are made of, and their type.
macro_rules! each_word {
    ($size:expr, $copy:ident) => {{
        let size = $size;
        let mut done = 0;
        while done + 8 <= size {
            $copy!(done, Word<u64>);
            done += 8;
        }
        if done + 4 <= size {
            $copy!(done, Word<u32>);
            done += 4;
        }
        if done + 2 <= size {
            $copy!(done, Word<u16>);
            done += 2;
        }
        if done < size {
            $copy!(done, Word<u8>);
        }
    }};
}

/// Reads a value of a packet.
///
/// # Safety
///
/// As many bytes are readable at `at`.
#[inline(always)]
pub(super) unsafe fn read<T: Pod>(at: usize) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let (from, into) = (at as *const u8, value.as_mut_ptr().cast::<u8>());
    // SAFETY: within both, and `Word` may be anywhere; all of the value is written, and any bytes are one of a Pod type.
    unsafe {
        macro_rules! copy {
            ($at:expr, $word:ty) => {
                into.add($at).cast::<$word>().write(from.add($at).cast::<$word>().read_volatile())
            };
        }
        each_word!(size_of::<T>(), copy);
        value.assume_init()
    }
}

/// Writes a value into a packet.
///
/// # Safety
///
/// As many bytes are writable at `at`.
#[inline(always)]
pub(super) unsafe fn write<T: Pod>(at: usize, value: &T) {
    let (from, into) = (bytemuck::bytes_of(value).as_ptr(), at as *mut u8);
    // SAFETY: as above.
    unsafe {
        macro_rules! copy {
            ($at:expr, $word:ty) => {
                into.add($at).cast::<$word>().write_volatile(from.add($at).cast::<$word>().read())
            };
        }
        each_word!(size_of::<T>(), copy);
    }
}
