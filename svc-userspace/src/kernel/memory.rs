//! Array maps as memory shared with the kernel.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The memory of an array map made with `BPF_F_MMAPABLE`, shared with the kernel.
#[derive(Debug)]
pub(super) struct Memory {
    address: std::ptr::NonNull<u32>,
    /// Length in bytes.
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access is by atomic operations.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes of an array map for reading and writing.
    pub(super) fn map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = std::ptr::NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { address, len })
    }

    /// The mapping as 32-bit words, which the kernel reads and writes concurrently.
    pub(super) fn words(&self) -> &[std::sync::atomic::AtomicU32] {
        // SAFETY: the mapping is page-aligned, `len` bytes long, lives as long as `self`, and is accessed by atomic
        // operations only.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), self.len / 4) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with exactly this address and length, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}
