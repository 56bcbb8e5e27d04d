//! bpf(2) for links: by interface index, updated whatever their program's type, and with what they are attached to.
//! aya 0.14 attaches by interface name, and updates links of XDP and tc only.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::sys::{bpf, object_get, object_id, object_info, owned};

const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_XDP`.
const LINK_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TCX: u32 = 11;
/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
/// `BPF_XDP`.
const XDP: u32 = 37;
/// `BPF_F_BEFORE`.
const F_BEFORE: u32 = 1 << 3;
/// `BPF_F_AFTER`.
const F_AFTER: u32 = 1 << 4;

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// TCX, of an interface index (0: the interface is gone).
    Tcx { index: u32, attach_type: u32 },
    /// XDP, of an interface index (0: the interface is gone).
    Xdp { index: u32 },
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
pub(super) fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = [0_u64; 8];
    object_info(link, &mut info)?;
    let word =
        |at: usize| (info[at / 2] >> if cfg!(target_endian = "little") == (at % 2 == 1) { 32 } else { 0 }) as u32;
    let target = match word(0) {
        LINK_XDP => LinkTarget::Xdp { index: word(4) },
        LINK_TCX => LinkTarget::Tcx { index: word(4), attach_type: word(5) },
        LINK_CGROUP => LinkTarget::Cgroup { id: info[2], attach_type: word(6) },
        _ => LinkTarget::Other,
    };
    Ok(LinkInfo { program: word(2), target })
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
pub(super) fn create_tcx(program: BorrowedFd<'_>, index: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let flags = if attach_type == TCX_INGRESS { F_BEFORE } else { F_AFTER };
    let mut attributes = LinkCreateAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        target: index,
        attach_type,
        flags,
        ..Default::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Attaches an XDP program to an interface by index; `flags` are `XDP_FLAGS_*`. Refused if there is another one.
pub(super) fn create_xdp(program: BorrowedFd<'_>, index: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreateAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        target: index,
        attach_type: XDP,
        flags,
        ..Default::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Attaches a program to a raw tracepoint.
pub(super) fn create_raw_tracepoint(program: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // `struct { __u64 name; __u32 prog_fd; }` of union bpf_attr.
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: u32,
        pad: u32,
    }
    let mut attributes =
        Attributes { name: name.as_ptr() as u64, program: program.as_raw_fd().cast_unsigned(), pad: 0 };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(owned)
}

/// Attaches a program to a cgroup, beside what others attached there.
pub(super) fn create_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreateAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        target: cgroup.as_raw_fd().cast_unsigned(),
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
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdateAttributes {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        ..Default::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches a link at once. The end of its last pin and descriptor would detach it too, but some time later.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut (link.as_raw_fd().cast_unsigned())).map(drop)
}

/// True if the link that is pinned there is attached to this, with this program.
pub(super) fn has(pin: &Path, target: LinkTarget, program: &OwnedFd) -> bool {
    let found = object_get(pin).and_then(|link| info(link.as_fd()));
    let wanted = object_id(program.as_fd());
    found.is_ok_and(|found| found.target == target && wanted.is_ok_and(|wanted| wanted == found.program))
}
