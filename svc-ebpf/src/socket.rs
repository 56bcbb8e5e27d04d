//! What sockets are told: the backend at connect and sendmsg, the VIP at recvmsg and getpeername.
//!
//! After connect, packets of the socket carry the backend's address and cost nothing more.

use svc_common::{
    Address, BackendState, Frontend, FrontendKey, Reason, SocketBackend, SocketKey, SocketPeer,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
    frontend::FLAG_HOST_ONLY,
    frontend::FLAG_INSIDE_DROP,
    protocol,
    vip::VIP_INSIDE,
};

use crate::{
    filter::may_be_vip,
    nowhere::reason,
    select::{by_affinity, by_hash, remember_affinity},
    tables::Sockets,
};

/// A socket's request for a destination.
#[derive(Clone, Copy, Debug)]
pub struct Request<A> {
    /// Socket cookie.
    pub cookie: u64,
    /// Where the application wants to go, *network order*.
    pub address: A,
    /// Port, *host order*.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The socket is one of the host's own processes; pods see less.
    pub is_host: bool,
}

/// Where a socket is sent. Aligned, because the verifier lets nobody read eight bytes of the stack at an odd place
/// ("misaligned stack access").
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<A> {
    /// Backend address, *network order*.
    pub address: A,
    /// Backend port, *host order*.
    pub port: u16,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<A> {
    /// Not a Service, or not for sockets to decide.
    Unchanged,
    /// Go there instead.
    Redirect(Target<A>),
    /// Nobody serves it, for this reason: `ECONNREFUSED`.
    Refused(Reason),
    /// What a silent drop for this reason is for packets, `EHOSTUNREACH` is for sockets.
    Unreachable(Reason),
}

impl<A: Copy> Request<A> {
    #[inline(always)]
    fn key(&self, address: A, port: u16) -> SocketKey<A> {
        SocketKey {
            cookie: [self.cookie as u32, (self.cookie >> 32) as u32],
            address,
            port,
            protocol: self.protocol,
            pad: 0,
        }
    }
}

/// True if an address and port may concern Services: a frontend, a VIP, or an address that they are given.
#[inline(always)]
pub fn concerns<A: Address, T: Sockets<A>>(tables: &mut T, address: &A, port: u16, protocol: u8) -> bool {
    tables.known(address, port, protocol) & KNOWN_FRONTEND != 0
        || may_be_vip(tables, address)
        || tables.in_service_cidr(address)
}

/// True if an address and port may be a backend's.
#[inline(always)]
pub fn may_be_backend<A: Address, T: Sockets<A>>(tables: &mut T, address: &A, port: u16, protocol: u8) -> bool {
    tables.known(address, port, protocol) & KNOWN_ENDPOINT != 0
}

/// connect(2): one choice for the life of the socket. Datagram sockets remember it for sendto(2) to the same address.
#[inline(always)]
pub fn connect<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>) -> Answer<A> {
    let Some(frontend) = frontend(tables, request) else { return no_frontend(tables, request) };
    if is_for_packets(request, &frontend) {
        return Answer::Unchanged;
    }
    if frontend.inside.len == 0 {
        return nobody(&frontend);
    }
    match choose(tables, &frontend) {
        Some(id) => redirect(tables, request, id, true),
        None => Answer::Refused(Reason::Inconsistent),
    }
}

/// sendmsg(2) or sendto(2) with an address: the socket's last choice for this destination, while it serves, and when there is
/// nobody else: its backend may come back.
#[inline(always)]
pub fn send<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>) -> Answer<A> {
    let Some(frontend) = frontend(tables, request) else { return no_frontend(tables, request) };
    if is_for_packets(request, &frontend) {
        return Answer::Unchanged;
    }
    let last = last_choice(tables, request, &frontend);
    if last != NO_BACKEND {
        return redirect(tables, request, last, false);
    }
    if frontend.inside.len == 0 {
        return nobody(&frontend);
    }
    match choose(tables, &frontend) {
        Some(id) => redirect(tables, request, id, true),
        None => Answer::Refused(Reason::Inconsistent),
    }
}

/// Id 0 is never given to a backend.
const NO_BACKEND: u32 = 0;

/// The id of the backend this socket used last for the destination, if it still serves or the Service has lost everybody; else
/// [`NO_BACKEND`]. (Not an `Option`: LLVM would copy its undefined half, "R1 !read_ok".)
#[inline(always)]
fn last_choice<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>, frontend: &Frontend) -> u32 {
    let Some(last) = tables.socket(&request.key(request.address, request.port)) else { return NO_BACKEND };
    let Some(backend) = tables.backend(last.backend) else { return NO_BACKEND };
    let has_nobody = frontend.inside.len == 0 && frontend.flags & FLAG_INSIDE_DROP == 0;
    let is_kept = backend.generation == last.generation
        && backend.service == frontend.service
        && (backend.state != BackendState::Gone as u8 || has_nobody);
    if is_kept { last.backend } else { NO_BACKEND }
}

#[inline(always)]
fn nobody<A>(frontend: &Frontend) -> Answer<A> {
    if frontend.flags & FLAG_INSIDE_DROP != 0 {
        Answer::Unreachable(Reason::PolicyEmpty)
    } else {
        Answer::Refused(Reason::NoEndpoint)
    }
}

/// recvmsg(2), getpeername(2): the VIP behind the backend `address:port`, if this socket was redirected there.
#[inline(always)]
pub fn peer<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>) -> Option<SocketPeer<A>> {
    tables.peer(&request.key(request.address, request.port))
}

#[inline(always)]
fn frontend<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>) -> Option<Frontend> {
    tables.frontend(&FrontendKey::new(request.address, request.port, request.protocol))
}

/// A pod's own address, by which affinity goes, is not known here; the packet path knows it. And a pod's loopback address is
/// its own.
#[inline(always)]
fn is_for_packets<A>(request: &Request<A>, frontend: &Frontend) -> bool {
    !request.is_host && (frontend.affinity_seconds != 0 || frontend.flags & FLAG_HOST_ONLY != 0)
}

/// What the packet path would do with an address that is no frontend with this port. Port 0 is none: who connects to it
/// wants to learn what its own address would be (RFC 6724 section 2, as resolvers do it).
#[inline(always)]
fn no_frontend<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>) -> Answer<A> {
    if request.port == 0 {
        return Answer::Unchanged;
    }
    match reason(tables, &request.address, VIP_INSIDE) {
        None => Answer::Unchanged,
        Some(Reason::UnownedAddress) => Answer::Unreachable(Reason::UnownedAddress),
        Some(reason) => Answer::Refused(reason),
    }
}

/// The backend of a new choice; `inside` is not empty.
#[inline(always)]
fn choose<A: Address, T: Sockets<A>>(tables: &mut T, frontend: &Frontend) -> Option<u32> {
    let random = tables.random();
    if frontend.affinity_seconds == 0 {
        return by_hash(tables, frontend.inside, random);
    }
    // All processes of this host are one client: that of the unspecified address.
    let client = A::zeroed();
    let now = tables.now();
    let id = match by_affinity(tables, frontend, true, &client, now) {
        Some(id) => id,
        None => by_hash(tables, frontend.inside, random)?,
    };
    let generation = tables.backend(id)?.generation;
    remember_affinity(tables, frontend, &client, id, generation, now);
    Some(id)
}

/// A function of its own: with everything inlined, LLVM merges the ends of the two families' code and spills registers
/// that only one of them has set ("R1 !read_ok").
#[inline(never)]
fn redirect<A: Address, T: Sockets<A>>(tables: &mut T, request: &Request<A>, id: u32, is_new: bool) -> Answer<A> {
    let Some(backend) = tables.backend(id) else {
        return Answer::Refused(Reason::Inconsistent);
    };
    if is_new {
        if request.protocol != protocol::TCP {
            let key = request.key(request.address, request.port);
            tables.set_socket(&key, SocketBackend { backend: id, generation: backend.generation });
        }
        tables.count_connection(backend.service, id);
    }
    let key = request.key(backend.address, backend.port);
    let vip = SocketPeer { address: request.address, port: request.port, pad: [0; 2] };
    if (is_new || tables.peer(&key).is_none()) && !tables.set_peer(&key, vip) {
        return Answer::Unreachable(Reason::FlowTableFull);
    }
    Answer::Redirect(Target { address: backend.address, port: backend.port })
}
