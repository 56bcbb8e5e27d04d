//! bpf(2) and a few other system calls, where aya has no call for them: pins of any object, trial programs, batched reads.
//! [`super::links`] and [`super::memory`] have the rest.
//!
//! Thin and without policy. Layouts are those of `union bpf_attr` and `struct bpf_*_info` in uapi/linux/bpf.h.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Calls bpf(2) with one of the attribute structures below.
pub(super) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a repr(C) prefix of union bpf_attr, `size` is its size, and the kernel writes nowhere else;
    // pointers in it are kept alive by the callers in this file.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: a successful command that returns a descriptor has just given it to us and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned map, program or link.
pub(super) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = ObjectAttributes { path: path.as_ptr() as u64, ..Default::default() };
    bpf(BPF_OBJ_GET, &mut attributes).map(owned)
}

/// Pins a map, program or link.
pub(super) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes =
        ObjectAttributes { path: path.as_ptr() as u64, fd: object.as_raw_fd().cast_unsigned(), ..Default::default() };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    fd: u32,
    len: u32,
    info: u64,
}

/// Fills `info` with what the kernel says of an object; returns how many bytes it wrote.
pub(super) fn object_info(object: BorrowedFd<'_>, info: &mut [u64]) -> io::Result<usize> {
    let mut attributes = InfoAttributes {
        fd: object.as_raw_fd().cast_unsigned(),
        len: size_of_val(info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(attributes.len as usize)
}

/// Id of a program or a map: both say it behind their type.
pub(super) fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0_u64; 10];
    object_info(object, &mut info)?;
    Ok((info[0] >> if cfg!(target_endian = "little") { 32 } else { 0 }) as u32)
}

/// Tag of a program: a hash of its instructions, without the maps they name (`bpf_prog_calc_tag`, kernel/bpf/core.c).
pub(super) fn program_tag(program: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = [0_u64; 10];
    object_info(program, &mut info)?;
    Ok(format!("{:016x}", u64::from_be_bytes(info[1].to_ne_bytes())))
}

#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Calls `each` with the bytes of every key and value of a hash or array map (not a per-CPU one). The kernel walks the
/// table bucket by bucket, so entries that come and go meanwhile cost nothing but themselves.
pub(super) fn each_entry(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    walk(map, key_size, value_size, each, u32::MAX).map(drop)
}

/// Buckets that a large hash map is counted by.
const SAMPLE: u32 = 8192;

/// How many entries a hash map has, exactly up to 8,192 elements; beyond that from a sample of its buckets, which is right to
/// some 2%: nobody keeps their number, and to walk a flow table with each scrape costs a processor milliseconds.
pub(super) fn count_entries(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
) -> io::Result<u64> {
    let mut count = 0_u64;
    let walked = walk(map, key_size, value_size, &mut |_, _| count += 1, SAMPLE)?;
    // `htab_map_alloc`, kernel/bpf/hashtab.c.
    let buckets = u64::from(max_entries).next_power_of_two();
    Ok(match walked {
        None => count,
        Some(walked) => (count * buckets / u64::from(walked.max(1))).min(u64::from(max_entries)),
    })
}

/// As [`each_entry`], up to about bucket `most` of a hash map. Returns how many buckets were walked; `None`: all.
fn walk(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    each: &mut dyn FnMut(&[u8], &[u8]),
    most: u32,
) -> io::Result<Option<u32>> {
    let mut walk = Walk::new(key_size, value_size, 4096);
    loop {
        if walk.next(map, each)? {
            return Ok(None);
        }
        // The cursor of a hash map is the number of the next bucket.
        let bucket = walk.cursor.first().map_or(0, |word| *word as u32);
        if most < u32::MAX && bucket >= most {
            return Ok(Some(bucket));
        }
    }
}

/// A walk through a hash or array map (not a per-CPU one), some entries at a time.
#[derive(Debug)]
pub(super) struct Walk {
    key_size: usize,
    value_size: usize,
    /// Most entries at a time.
    capacity: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    cursor: Vec<u64>,
    next: Vec<u64>,
    started: bool,
}

impl Walk {
    pub(super) fn new(key_size: usize, value_size: usize, capacity: usize) -> Self {
        // The cursor is as large as a key, and at least four bytes.
        let cursor = vec![0_u64; key_size.div_ceil(8).max(1)];
        Self {
            key_size,
            value_size,
            capacity,
            keys: vec![0; capacity * key_size],
            values: vec![0; capacity * value_size],
            next: cursor.clone(),
            cursor,
            started: false,
        }
    }

    /// Calls `each` with the bytes of the next entries; true once there are no more.
    pub(super) fn next(&mut self, map: BorrowedFd<'_>, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        loop {
            let mut attributes = BatchAttributes {
                in_batch: if self.started { self.cursor.as_mut_ptr() as u64 } else { 0 },
                out_batch: self.next.as_mut_ptr() as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.capacity as u32,
                map: map.as_raw_fd().cast_unsigned(),
                ..Default::default()
            };
            let finished = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than fits: nothing was returned, the cursor stays.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.capacity < 1 << 24 => {
                    self.capacity *= 2;
                    self.keys.resize(self.capacity * self.key_size, 0);
                    self.values.resize(self.capacity * self.value_size, 0);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (attributes.count as usize).min(self.capacity);
            for (key, value) in
                self.keys.chunks_exact(self.key_size).zip(self.values.chunks_exact(self.value_size)).take(count)
            {
                each(key, value);
            }
            std::mem::swap(&mut self.cursor, &mut self.next);
            self.started = true;
            return Ok(finished);
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u64; 2],
    interface: u32,
    expected_attach_type: u32,
}

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub(super) const PROGRAM_CLASSIFIER: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
pub(super) const PROGRAM_SOCK_ADDR: u32 = 18;

/// Loads a few instructions, to see whether the kernel takes them.
pub(super) fn program_load(kind: u32, expected_attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramAttributes {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type,
        ..Default::default()
    };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// Cookie of the network namespace of the calling thread (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is eight bytes, and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// asm-generic/socket.h; the architectures with other numbers (alpha, mips, parisc, sparc) are not supported.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Kernel memory of a map in bytes, as `memlock` in its fdinfo.
pub(super) fn memlock(map: impl AsFd) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| io::Error::other("fdinfo without memlock"))
}
