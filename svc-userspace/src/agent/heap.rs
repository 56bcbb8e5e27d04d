//! Gives memory that is free back to the kernel: the lists of a large cluster pass through the heap page by page, and glibc
//! keeps what they took.
//!
//! It never decides what is kept.

/// Blocks from this size on are mappings of their own and go back when they are freed; glibc would raise the limit with the
/// first large block that is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING: libc::c_int = 256 * 1024;

/// Free memory at the end of a heap that goes back at once; [`give_back`] returns the rest. glibc would take 128 KiB, which each
/// page of a list takes and gives, and the kernel fills with zeros anew each time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 4 * 1024 * 1024;

/// Has few heaps share what is free, instead of one for each thread. To be called before there are threads.
pub fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets parameters of the allocator, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Gives back what is free. Takes some milliseconds for each hundred megabytes of heap.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: works on the allocator's own memory, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
