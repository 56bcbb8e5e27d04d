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

/// Gives back what is free, and the pages of the program that a start needed and nothing else does. Takes some milliseconds for
/// each hundred megabytes of heap.
pub fn give_back() {
    give_back_program();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: works on the allocator's own memory, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the pages of the program itself out of this process: those in use come back from the page cache one by one, and most are
/// of the start, of options and of a verifier's log that nobody reads.
fn give_back_program() {
    let (Ok(program), Ok(mappings)) =
        (std::fs::read_link("/proc/self/exe"), std::fs::read_to_string("/proc/self/smaps"))
    else {
        return;
    };
    for (start, len) in untouched(&mappings, &program.to_string_lossy()) {
        // SAFETY: pages of a private mapping of a file that were never written are read from the file again.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Address and length of the mappings of a file that are not writable and have no page of their own, in the form of smaps.
fn untouched(mappings: &str, file: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in mappings.lines() {
        if let Some(mapping) = head(line) {
            current = Some(mapping).filter(|(_, _, access, path)| ["r--p", "r-xp"].contains(access) && *path == file);
        } else if let Some(pages) = line.strip_prefix("Anonymous:")
            && let Some((start, end, ..)) = current.take()
            && pages.trim() == "0 kB"
        {
            found.push((start, end - start));
        }
    }
    found
}

/// Start, end, access and path of a mapping, from the line it begins with.
fn head(line: &str) -> Option<(usize, usize, &str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (access, rest) = rest.split_once(' ')?;
    // Offset, device, inode, and blanks up to the path.
    let path = rest.splitn(4, ' ').nth(3)?.trim_start();
    Some((number(start)?, number(end)?, access, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_given_back() {
        let smaps = "\
55e0a0000000-55e0a0010000 r--p 00000000 08:01 42                         /usr/bin/svc
Rss:                  64 kB
Anonymous:             0 kB
55e0a0010000-55e0a0400000 r-xp 00010000 08:01 42                         /usr/bin/svc
Anonymous:             0 kB
55e0a0400000-55e0a0410000 r--p 00400000 08:01 42                         /usr/bin/svc
Anonymous:            64 kB
55e0a0410000-55e0a0420000 rw-p 00410000 08:01 42                         /usr/bin/svc
Anonymous:             0 kB
7f0000000000-7f0000010000 r-xp 00000000 08:01 43                         /usr/lib/libc.so.6
Anonymous:             0 kB
7ffc00000000-7ffc00010000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            12 kB
";
        assert_eq!(untouched(smaps, "/usr/bin/svc"), [(0x55e0_a000_0000, 0x1_0000), (0x55e0_a001_0000, 0x3f_0000)]);
    }

    #[test]
    fn a_process_goes_on_after_it_gave_everything_back() {
        give_back();
        assert_eq!(std::hint::black_box(untouched)("", "x"), []);
    }
}
