//! What the other end of a veth needs so that XDP works on this one as on hardware.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{LabError, Place};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;

/// Makes the interface `name` of a place a partner for native XDP at its other end, for as long as the result lives.
///
/// A veth hands frames on with the checksum left to a device, so this end computes them before it sends. And it takes frames
/// that XDP sends (`XDP_TX`) only if this end runs an XDP program itself (`veth_xdp_flush`, drivers/net/veth.c): one that lets
/// everything pass.
pub fn partner(place: &Place, name: &str) -> Result<OwnedFd, LabError> {
    place.exec("ethtool", &["-K", name, "tx", "off"])?;
    pass(place, name)
}

/// Attaches an XDP program that lets everything pass to an interface of a place, for as long as the result lives.
pub fn pass(place: &Place, name: &str) -> Result<OwnedFd, LabError> {
    let attached = place.enter(|| attach(name))?;
    attached.map_err(LabError::io(format!("attach XDP to {name} of {}", place.name())))
}

fn attach(name: &str) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(name)?;
    // r0 = XDP_PASS (2); exit
    let code: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let license = CString::from(c"GPL");
    let load: [u64; 3] =
        [u64::from(PROG_TYPE_XDP) | (code.len() as u64) << 32, code.as_ptr() as u64, license.as_ptr() as u64];
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let link = [program.as_raw_fd().cast_unsigned(), index, ATTACH_XDP, 0];
    bpf(BPF_LINK_CREATE, &link)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a prefix of union bpf_attr of its size; what it points to lives in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: both commands return a descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
