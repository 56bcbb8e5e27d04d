//! Classifiers as filters of the clsact qdisc, for kernels without TCX (before 6.6).
//!
//! Priority and handle are fixed, so that a restart replaces the filter atomically and cleanup finds exactly ours. The
//! qdisc itself stays: others may rely on it, and without filters it does nothing.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::{SockFlag, SockProtocol};

use super::attach::Direction;
use crate::netlink::{ACK, CREATE, DUMP, EXCL, Message, REQUEST, Socket, attributes, text, u32_at};

// uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h.
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;

/// Handle of our filters: "svc" in ASCII.
const HANDLE: u32 = 0x0073_7663;

impl Direction {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }

    /// Low numbers run first. The kernel numbers filters without a priority downwards from 49152 or from the lowest
    /// there is (`tcf_auto_prio`, net/sched/cls_api.c), so ingress leaves room below.
    fn priority(self) -> u32 {
        match self {
            Self::Ingress => 100,
            Self::Egress => 50_000,
        }
    }
}

fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    // struct tcmsg: family, padding, interface, handle, parent, info.
    [0, index, handle, parent, info].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn filter_header(index: u32, direction: Direction) -> Vec<u8> {
    header(index, HANDLE, direction.parent(), direction.priority() << 16 | u32::from(ETH_P_ALL.to_be()))
}

/// Adds our filter to an interface, or replaces the program of the one that is there.
pub(super) fn attach(index: u32, direction: Direction, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?;
    let qdisc = Message::new(NEW_QDISC, REQUEST | ACK | CREATE | EXCL, 1, &header(index, CLSACT_HANDLE, CLSACT, 0));
    match socket.request(&qdisc.text(TCA_KIND, "clsact").finish(), 1) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let filter = Message::new(NEW_FILTER, REQUEST | ACK | CREATE, 2, &filter_header(index, direction))
        .text(TCA_KIND, "bpf")
        .nested(TCA_OPTIONS, |options| {
            options
                .u32_host(TCA_BPF_FD, program.as_raw_fd().cast_unsigned())
                .text(TCA_BPF_NAME, name)
                .u32_host(TCA_BPF_FLAGS, DIRECT_ACTION)
        });
    socket.request(&filter.finish(), 2)
}

/// A filter of ours.
pub(super) struct Filter {
    /// Name of its program.
    pub(super) name: String,
    /// Id of its program.
    pub(super) program: u32,
}

/// Our filter on an interface; `None` if there is no such filter.
pub(super) fn find(index: u32, direction: Direction) -> io::Result<Option<Filter>> {
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?;
    let request = Message::new(GET_FILTER, REQUEST | DUMP, 1, &header(index, 0, direction.parent(), 0)).finish();
    let mut found = None;
    let result = socket.dump(&request, &mut |message| {
        let ours = u32_at(message.payload, 8) == Some(HANDLE)
            && u32_at(message.payload, 16).is_some_and(|info| info >> 16 == direction.priority());
        let options = attributes(message.payload.get(20..).unwrap_or_default()).find(|(kind, _)| *kind == TCA_OPTIONS);
        if let (true, Some((_, options))) = (ours, options) {
            let name = attributes(options).find(|(kind, _)| *kind == TCA_BPF_NAME).map(|(_, name)| text(name));
            let program = attributes(options).find(|(kind, _)| *kind == TCA_BPF_ID).and_then(|(_, id)| u32_at(id, 0));
            let name = name.filter(|name| name.starts_with("svc_"));
            found = name.map(|name| Filter { name, program: program.unwrap_or(0) }).or(found.take());
        }
    });
    match result {
        // No clsact qdisc, or no interface: no filter.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Removes our filter from an interface; its program's name if there was one.
pub(super) fn remove(index: u32, direction: Direction) -> io::Result<Option<String>> {
    let Some(Filter { name, program: _ }) = find(index, direction)? else { return Ok(None) };
    let socket = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?;
    let request =
        Message::new(DELETE_FILTER, REQUEST | ACK, 1, &filter_header(index, direction)).text(TCA_KIND, "bpf").finish();
    match socket.request(&request, 1) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(name)),
    }
}
