//! bpf(2) and a few other system calls, where aya has no call for them: links by interface index, link updates for every
//! program type, link information, batched reads, mmap of arrays.
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
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TCX: u32 = 11;
/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
/// `BPF_F_BEFORE`.
const F_BEFORE: u32 = 1 << 3;
/// `BPF_F_AFTER`.
const F_AFTER: u32 = 1 << 4;

/// Calls bpf(2) with one of the attribute structures below.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a repr(C) prefix of union bpf_attr, `size` is its size, and the kernel writes nowhere else;
    // pointers in it are kept alive by the callers in this file.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
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
        ObjectAttributes { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, ..Default::default() };
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
fn object_info(object: BorrowedFd<'_>, info: &mut [u64]) -> io::Result<usize> {
    let mut attributes =
        InfoAttributes { fd: object.as_raw_fd() as u32, len: size_of_val(info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(attributes.len as usize)
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// TCX, of an interface index (0: the interface is gone).
    Tcx { index: u32, attach_type: u32 },
    /// A cgroup, of its id (0: the cgroup is gone).
    Cgroup { id: u64, attach_type: u32 },
    /// Something this project never attaches to.
    Other,
}

/// `struct bpf_link_info`, as much of it as is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    /// Id of the attached program.
    pub(super) program: u32,
    /// Where it is attached.
    pub(super) target: LinkTarget,
}

/// What a link is, and what it is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = [0_u64; 8];
    object_info(link, &mut info)?;
    let word =
        |at: usize| (info[at / 2] >> if cfg!(target_endian = "little") == (at % 2 == 1) { 32 } else { 0 }) as u32;
    let target = match word(0) {
        LINK_TCX => LinkTarget::Tcx { index: word(4), attach_type: word(5) },
        LINK_CGROUP => LinkTarget::Cgroup { id: info[2], attach_type: word(6) },
        _ => LinkTarget::Other,
    };
    Ok(LinkInfo { program: word(2), target })
}

/// Id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0_u64; 10];
    object_info(program, &mut info)?;
    Ok((info[0] >> if cfg!(target_endian = "little") { 32 } else { 0 }) as u32)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttributes {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a classifier to an interface by index: at ingress before all other programs, at egress after them, so that
/// between the two everybody sees one flow, client ↔ backend.
pub(super) fn link_create_tcx(program: BorrowedFd<'_>, index: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let flags = if attach_type == TCX_INGRESS { F_BEFORE } else { F_AFTER };
    let mut attributes = LinkCreateAttributes {
        program: program.as_raw_fd() as u32,
        target: index,
        attach_type,
        flags,
        ..Default::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Attaches a program to a cgroup, beside what others attached there.
pub(super) fn link_create_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreateAttributes {
        program: program.as_raw_fd() as u32,
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        ..Default::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces the program of a link atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdateAttributes {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        ..Default::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches a link at once. The end of its last pin and descriptor would detach it too, but some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut (link.as_raw_fd() as u32)).map(drop)
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
    let mut capacity: usize = 4096;
    let mut keys = vec![0_u8; capacity * key_size];
    let mut values = vec![0_u8; capacity * value_size];
    // The cursor is as large as a key, and at least four bytes.
    let mut cursor = vec![0_u64; key_size.div_ceil(8).max(1)];
    let mut next = cursor.clone();
    let mut started = false;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if started { cursor.as_mut_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: capacity as u32,
            map: map.as_raw_fd() as u32,
            ..Default::default()
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let finished = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than fits: nothing was returned, the cursor stays.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 24 => {
                capacity *= 2;
                keys.resize(capacity * key_size, 0);
                values.resize(capacity * value_size, 0);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attributes.count as usize).min(capacity);
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count) {
            each(key, value);
        }
        if finished {
            return Ok(());
        }
        std::mem::swap(&mut cursor, &mut next);
        started = true;
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
