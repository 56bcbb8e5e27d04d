//! Array maps as memory shared with the kernel.
//!
//! Only a window of the map is mapped at a time: pages of a map count as this process's resident memory while they are
//! mapped, and the largest maps have tens of megabytes.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError, atomic::AtomicU32},
};

/// Least length of a window in bytes: neighbours of what is asked for are likely to be next.
const WINDOW: usize = 64 * 1024;

/// A map that is no longer than this is mapped whole. FILTER is, and is written all over: another window for each bit, with a
/// flush of every processor's TLB, would be most of what a start costs.
const WHOLE: usize = 512 * 1024;

/// An array map made with `BPF_F_MMAPABLE`, shared with the kernel.
#[derive(Debug)]
pub(super) struct Memory {
    map: OwnedFd,
    /// Length of the map in bytes.
    len: usize,
    page: usize,
    window: Mutex<Option<Window>>,
}

impl Memory {
    /// An array map of `len` bytes, for reading and writing; fails if the kernel does not share it.
    pub(super) fn map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|page| usize::try_from(page).ok()).unwrap_or(4096);
        let memory = Self { map: map.try_clone_to_owned()?, len, page, window: Mutex::default() };
        memory.with(0, 1, |_| ())?;
        Ok(memory)
    }

    /// Does something with `count` 32-bit words from `first` on, which the kernel reads and writes concurrently.
    pub(super) fn with<R>(&self, first: usize, count: usize, work: impl FnOnce(&[AtomicU32]) -> R) -> io::Result<R> {
        let (from, to) = (first * 4, (first + count) * 4);
        if to > self.len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match window.take().filter(|window| window.from <= from && to <= window.from + window.len) {
            Some(current) => current,
            None => self.open(from, to)?,
        };
        let current = window.insert(current);
        let at = (from - current.from) / 4;
        Ok(work(&current.words()[at..at + count]))
    }

    fn open(&self, from: usize, to: usize) -> io::Result<Window> {
        let from = if self.len <= WHOLE { 0 } else { from - from % self.page };
        let least = if self.len <= WHOLE { self.len } else { WINDOW };
        let len = (to - from).max(least).min(self.len - from);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.map.as_raw_fd(),
                libc::off_t::try_from(from).map_err(io::Error::other)?,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = std::ptr::NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Window { address, from, len })
    }
}

/// The part of the map that is mapped.
#[derive(Debug)]
struct Window {
    address: std::ptr::NonNull<u32>,
    /// Where it begins in the map, bytes.
    from: usize,
    /// Its length in bytes.
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access is by atomic operations.
unsafe impl Send for Window {}

impl Window {
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, `len` bytes long, lives as long as `self`, and is accessed by atomic
        // operations only.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), self.len / 4) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with exactly this address and length, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}
