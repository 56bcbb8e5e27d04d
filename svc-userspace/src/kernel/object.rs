//! The kernel object inside this binary. Only the bytes: loading them is the business of the modules around.

/// The BPF object that this binary was built with, aligned as its ELF headers need it.
///
/// Empty if there was none at build time (`cargo xtask ebpf` makes it): the caller has to say so.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/svc.o"))
}

/// Lets the kernel take the object's pages out of this process: it is read once, and has some megabytes. They come back
/// from the file if somebody reads it again.
pub fn release() {
    const PAGE: usize = 64 * 1024; // the largest there is, so that no neighbour shares a page with it
    let object = object();
    let start = object.as_ptr().addr().next_multiple_of(PAGE);
    let end = (object.as_ptr().addr() + object.len()) / PAGE * PAGE;
    if start < end {
        // SAFETY: whole pages within a constant, which are private, never written, and read again from the file.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_a_bpf_elf_file_or_absent_and_its_headers_are_aligned() {
        let object = object();
        assert_eq!(object.as_ptr().align_offset(8), 0);
        assert!(object.is_empty() || object.starts_with(b"\x7fELF"), "{:?}", object.get(..4));
    }
}
