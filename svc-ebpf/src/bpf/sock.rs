//! The cgroup programs: connect, sendmsg, recvmsg and getpeername of both families.
//!
//! An IPv6 socket may talk to an IPv4-mapped address (`::ffff:10.96.0.1`, RFC 4291 section 2.5.5.2); its Services are
//! those of IPv4.

use aya_ebpf::{
    Global,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use svc_common::{
    Address, Reason,
    config::{CONFIG_SOCKET_HOST, CONFIG_SOCKET_PODS_TCP, CONFIG_SOCKET_PODS_UDP},
    protocol,
};
use svc_ebpf::{
    socket::{self, Answer, Request},
    tables::{Drops as _, Sockets},
};

use super::maps::{Maps, config};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// 1 if the kernel has `bpf_set_retval` for these programs (Linux 5.18); set by the agent at load. Elsewhere the branch
/// is dead to the verifier, and a refused connect fails with EPERM.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u8> = Global::new(1);

/// An address of a socket call: where it stands in the context depends on the family.
trait SocketAddress: Address {
    fn read(context: *mut bpf_sock_addr) -> Self;
    fn write(context: *mut bpf_sock_addr, address: Self);
}

/// The address of an `AF_INET` socket.
impl SocketAddress for [u8; 4] {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> Self {
        // SAFETY: the kernel passes a valid context, and the verifier checks the access.
        unsafe { (*context).user_ip4 }.to_ne_bytes()
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: Self) {
        // SAFETY: as above; the field is writable.
        unsafe { (*context).user_ip4 = u32::from_ne_bytes(address) };
    }
}

impl SocketAddress for [u8; 16] {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> Self {
        let word = |at: usize| {
            // SAFETY: as above.
            unsafe { (*context).user_ip6[at] }.to_ne_bytes()
        };
        let (a, b, c, d) = (word(0), word(1), word(2), word(3));
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: Self) {
        let word = |at: usize| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
        // SAFETY: as above; the field is writable.
        unsafe {
            (*context).user_ip6[0] = word(0);
            (*context).user_ip6[1] = word(4);
            (*context).user_ip6[2] = word(8);
            (*context).user_ip6[3] = word(12);
        }
    }
}

/// The IPv4 address inside the address of an `AF_INET6` socket, if it is an IPv4-mapped one.
#[inline(always)]
fn mapped(context: *mut bpf_sock_addr) -> Option<[u8; 4]> {
    let address = <[u8; 16]>::read(context);
    let [a, b, c, _] = address.words();
    (a == 0 && b == 0 && c == 0xffff).then_some([address[12], address[13], address[14], address[15]])
}

#[inline(always)]
fn write_mapped(context: *mut bpf_sock_addr, address: [u8; 4]) {
    // SAFETY: as above; the other words already say that the address is IPv4-mapped.
    unsafe { (*context).user_ip6[3] = u32::from_ne_bytes(address) };
}

/// Port in *host order*.
#[inline(always)]
fn read_port(context: *mut bpf_sock_addr) -> u16 {
    // SAFETY: as above.
    u16::from_be(unsafe { (*context).user_port } as u16)
}

#[inline(always)]
fn write_port(context: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as above; the field is writable.
    unsafe { (*context).user_port = u32::from(port.to_be()) };
}

/// The request in the context; `None` if sockets like this one are not to be translated.
#[inline(always)]
fn request<A: Address>(context: *mut bpf_sock_addr, address: A) -> Option<Request<A>> {
    // SAFETY: as above.
    let protocol = unsafe { (*context).protocol } as u8;
    let config = config();
    // SAFETY: a helper call with a valid context.
    let is_host = unsafe { bpf_get_netns_cookie(context.cast()) } == config.host_netns_cookie;
    let wanted = match (is_host, protocol) {
        (true, protocol::TCP | protocol::UDP) => CONFIG_SOCKET_HOST,
        (false, protocol::TCP) => CONFIG_SOCKET_PODS_TCP,
        (false, protocol::UDP) => CONFIG_SOCKET_PODS_UDP,
        _ => return None,
    };
    if config.flags & wanted == 0 {
        return None;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(context.cast()) };
    Some(Request { cookie, address, port: read_port(context), protocol, is_host })
}

#[inline(always)]
fn answer<A: Address>(context: *mut bpf_sock_addr, answer: Answer<A>, write: impl Fn(*mut bpf_sock_addr, A)) -> i32 {
    match answer {
        Answer::Unchanged => ALLOW,
        Answer::Redirect(target) => {
            write(context, target.address);
            write_port(context, target.port);
            ALLOW
        }
        Answer::Refused(reason) => deny(ECONNREFUSED, reason),
        Answer::Unreachable(reason) => deny(EHOSTUNREACH, reason),
    }
}

/// Counts what would have been a packet, and has the system call fail.
#[inline(always)]
fn deny(errno: i32, reason: Reason) -> i32 {
    Maps::without_packet().count_drop(reason, 0);
    if HAS_SET_RETVAL.load() == 1 {
        // SAFETY: a helper call that sets what the system call returns.
        unsafe { bpf_set_retval(-errno) };
    }
    DENY
}

/// What is asked before anything else, because most sockets have nothing to do with Services: `is_ours` of the address and
/// port. The helpers that say whose socket it is cost more.
#[inline(always)]
fn filter<A: Address>(
    context: *mut bpf_sock_addr,
    address: &A,
    is_ours: impl Fn(&mut Maps, &A, u16, u8) -> bool,
) -> bool {
    // SAFETY: as above.
    let protocol = unsafe { (*context).protocol } as u8;
    is_ours(&mut Maps::without_packet(), address, read_port(context), protocol)
}

#[inline(always)]
fn connect<A: Address>(context: *mut bpf_sock_addr, address: A, write: impl Fn(*mut bpf_sock_addr, A)) -> i32
where
    Maps: Sockets<A>,
{
    if !filter(context, &address, socket::concerns) {
        return ALLOW;
    }
    let Some(request) = request(context, address) else { return ALLOW };
    answer(context, socket::connect(&mut Maps::without_packet(), &request), write)
}

#[inline(always)]
fn send<A: Address>(context: *mut bpf_sock_addr, address: A, write: impl Fn(*mut bpf_sock_addr, A)) -> i32
where
    Maps: Sockets<A>,
{
    if !filter(context, &address, socket::concerns) {
        return ALLOW;
    }
    let Some(request) = request(context, address) else { return ALLOW };
    answer(context, socket::send(&mut Maps::without_packet(), &request), write)
}

#[inline(always)]
fn peer<A: Address>(context: *mut bpf_sock_addr, address: A, write: impl Fn(*mut bpf_sock_addr, A)) -> i32
where
    Maps: Sockets<A>,
{
    if filter(context, &address, socket::may_be_backend)
        && let Some(request) = request(context, address)
        && let Some(vip) = socket::peer(&mut Maps::without_packet(), &request)
    {
        write(context, vip.address);
        write_port(context, vip.port);
    }
    ALLOW
}

macro_rules! hook {
    ($logic:ident, $v4:ident, $attach4:ident, $v6:ident, $attach6:ident) => {
        #[cgroup_sock_addr($attach4)]
        fn $v4(context: SockAddrContext) -> i32 {
            let context = context.sock_addr;
            $logic(context, <[u8; 4]>::read(context), <[u8; 4]>::write)
        }

        #[cgroup_sock_addr($attach6)]
        fn $v6(context: SockAddrContext) -> i32 {
            let context = context.sock_addr;
            match mapped(context) {
                Some(address) => $logic(context, address, write_mapped),
                None => $logic(context, <[u8; 16]>::read(context), <[u8; 16]>::write),
            }
        }
    };
}

hook!(connect, svc_connect4, connect4, svc_connect6, connect6);
hook!(send, svc_sendmsg4, sendmsg4, svc_sendmsg6, sendmsg6);
hook!(peer, svc_recvmsg4, recvmsg4, svc_recvmsg6, recvmsg6);
hook!(peer, svc_getpeer4, getpeername4, svc_getpeer6, getpeername6);
