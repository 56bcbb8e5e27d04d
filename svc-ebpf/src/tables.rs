//! The maps, as the packet path uses them.

use svc_common::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, FragmentKey, Frontend, FrontendKey, Interface, Ports, Reason,
    SocketBackend, SocketKey, SocketPeer,
};

use crate::{
    Verdict,
    cache::{Cache, Moment},
    decide::Decision,
    frame::Frame,
    masquerade::{Outcome, Task},
    open::Attempt,
    scratch::Scratch,
};
#[cfg(doc)]
use crate::{
    cache::remember,
    decide::decide,
    held::{hold, lead},
    masquerade::{masquerade, try_port},
    open::{attempt, claim_entry},
    recover::{recover, recover_one},
};

/// What became of an entry that was to be made only if absent.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// It was made.
    Done = 0,
    /// There is one already.
    Taken = 1,
    /// The table did not take it.
    Full = 2,
}

/// Frontends, slots and backends: what a new flow is decided by.
pub trait Decisions<A> {
    /// FRONTENDS.
    fn frontend(&mut self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// SLOTS: the backend id in a slot.
    fn slot(&mut self, index: u32) -> Option<u32>;
    /// BACKENDS.
    fn backend(&mut self, id: u32) -> Option<Backend<A>>;
    /// AFFINITY.
    fn affinity(&mut self, key: &AffinityKey<A>) -> Option<Affinity>;
    /// Writes AFFINITY.
    fn set_affinity(&mut self, key: &AffinityKey<A>, affinity: Affinity);
    /// VIPS: which clients may expect an answer from the address as a whole, `VIP_*`; 0 for an address that is no VIP.
    fn vip(&mut self, address: &A) -> u32;
    /// SERVICE_CIDRS: true if the address is one that Services are given.
    fn in_service_cidr(&mut self, address: &A) -> bool;
    /// FILTER: `KNOWN_*` of `svc_common::filter` for an address and port (*host order*), both where there is no filter.
    fn known(&mut self, address: &A, port: u16, protocol: u8) -> u32;
    /// The monotonic clock in units of 2^30 ns (1.07 s).
    fn now(&mut self) -> u32;
}

/// Everything the packet hooks read and write.
pub trait Tables<A>: Decisions<A> + Cache<A> {
    /// FLOWS: finds an entry, touches it and copies it; `closes` says that the packet ends its direction of the flow.
    /// Returns true if the packet is the entry's first in this unit of time, which is the moment for what need not be
    /// done for every packet.
    fn flow(&mut self, key: &FlowKey<A>, closes: bool, into: &mut Flow<A>) -> Option<bool>;
    /// FLOWS: finds an entry and copies it without touching it; false if there is none.
    fn peek_flow(&mut self, key: &FlowKey<A>, into: &mut Flow<A>) -> bool;
    /// FLOWS: makes an entry if there is none.
    fn insert_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Insert;
    /// FLOWS: makes or overwrites an entry; false if the table did not take it.
    fn replace_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// FLOWS: removes an entry.
    fn remove_flow(&mut self, key: &FlowKey<A>);
    /// SOURCE_RANGES: true if a client is within the ranges of a service.
    fn source_allowed(&mut self, service: u32, client: &A) -> bool;
    /// FILTER: false if the address and port (*host order*) are no endpoint's, filter or not.
    fn is_target(&mut self, address: &A, port: u16, protocol: u8) -> bool;
    /// UNUSUAL: false if no packet from one address to the other finds an entry of FLOWS at ingress but that of a client of
    /// a frontend.
    fn is_unusual(&mut self, source: &A, destination: &A) -> bool;
    /// Writes UNUSUAL, before such an entry is made.
    fn set_unusual(&mut self, source: &A, destination: &A);
    /// CONFIG: some interface is a port of a bridge.
    fn has_bridges(&mut self) -> bool;
    /// True if one more packet may be refused now; takes it from what is allowed.
    fn may_refuse(&mut self) -> bool;
    /// FRAGMENTS.
    fn fragment(&mut self, key: &FragmentKey<A>) -> Option<Ports>;
    /// FRAGMENTS: makes or overwrites an entry.
    fn remember_fragment(&mut self, key: &FragmentKey<A>, ports: Ports);
    /// FRAGMENTS: makes an entry if there is none.
    fn insert_fragment(&mut self, key: &FragmentKey<A>, ports: Ports) -> Insert;
    /// HELD: copies the packet, at this position of the datagram that `tag` marks, to one of its places; false if it does
    /// not fit, or if others have them.
    fn hold<F: Frame>(&mut self, frame: &mut F, tag: u32, position: u32) -> bool;
    /// HELD: sends in again what waits at the places of a position for this datagram, unless it has waited for too long, and
    /// frees them. The frame is another packet afterwards.
    fn release<F: Frame>(&mut self, frame: &mut F, tag: u32, position: u32);
    /// INTERFACES: the interface the packet arrived on; an unknown one is outside.
    fn interface(&mut self) -> Interface;
    /// FLOWS: removes an entry if its time is still `last_seen`; true for one alone of those who ask at the same time.
    fn release_flow(&mut self, key: &FlowKey<A>, last_seen: u32) -> bool;
    /// MASQUERADE: the address of this node that packets get which leave by the interface.
    fn masquerade_source(&mut self) -> Option<A>;
    /// CONFIG: true if the programs masquerade new flows.
    fn programs_masquerade(&mut self) -> bool;
    /// CONFIG: flows may be there whose source ports the programs chose.
    fn owns_ports(&mut self) -> bool;
    /// Calls [`masquerade()`] with these tables; a function of its own, as below.
    fn masquerade(&mut self, scratch: &mut Scratch<A>, task: Task) -> Outcome;
    /// Calls [`try_port()`] with these tables; likewise.
    fn try_port(&mut self, scratch: &mut Scratch<A>, number: u32) -> Outcome;
    /// CONFIG: the mark of packets that nftables masquerades.
    fn masquerade_mark(&mut self) -> u32;
    /// Calls [`attempt()`] with these tables. The kernel makes it a function that the verifier walks once by itself,
    /// instead of once for every way that leads there.
    fn attempt(&mut self, scratch: &mut Scratch<A>, number: u32) -> Attempt;
    /// Calls [`claim_entry()`] with these tables; a function of its own for the same reason.
    fn claim_entry(&mut self, scratch: &mut Scratch<A>) -> Insert;
    /// Calls [`recover()`] with these tables; a function of its own for the same reason.
    fn recover(&mut self, scratch: &mut Scratch<A>) -> bool;
    /// Calls [`recover_one()`] with these tables; a function of its own for the same reason.
    fn recover_one(&mut self, scratch: &mut Scratch<A>, number: u32) -> bool;
    /// Calls [`decide()`] with these tables; a function of its own for the same reason.
    fn decide(&mut self, scratch: &mut Scratch<A>) -> Decision;
    /// Calls [`remember()`] with these tables; a function of its own for the same reason.
    fn remember(&mut self, incoming: &mut Scratch<A>, outgoing: &mut Scratch<A>, came_by: u32, moment: Moment);
    /// STATS_*: a new flow, whose packets are counted elsewhere.
    fn count_new(&mut self, flow: &Flow<A>);
    /// From now on, the packet is one that leaves by this interface.
    fn leave_by(&mut self, interface: u32);
    /// Calls [`hold()`] with these tables; a function of its own for the same reason.
    fn hold_early<F: Frame>(&mut self, frame: &mut F, scratch: &mut Scratch<A>) -> Verdict;
    /// Calls [`lead()`] with these tables; a function of its own for the same reason.
    fn lead<F: Frame>(&mut self, frame: &mut F, scratch: &mut Scratch<A>) -> bool;
    /// DROPS: a packet is lost that is not the one at hand.
    fn count_loss(&mut self, reason: Reason, bytes: u32);
    /// STATS_*: one packet of a flow.
    fn count(&mut self, flow: &Flow<A>, bytes: u32, is_new: bool);
}

/// DROPS.
pub trait Drops {
    /// Counts a dropped packet.
    fn count_drop(&mut self, reason: Reason, bytes: u32);
}

/// What the socket hooks remember.
pub trait Sockets<A>: Decisions<A> {
    /// SOCKETS: the backend this socket uses for a VIP.
    fn socket(&mut self, key: &SocketKey<A>) -> Option<SocketBackend>;
    /// Writes SOCKETS.
    fn set_socket(&mut self, key: &SocketKey<A>, backend: SocketBackend);
    /// PEERS: the VIP behind a backend, for this socket.
    fn peer(&mut self, key: &SocketKey<A>) -> Option<SocketPeer<A>>;
    /// Writes PEERS; false if the table did not take it.
    fn set_peer(&mut self, key: &SocketKey<A>, peer: SocketPeer<A>) -> bool;
    /// A random number, for choosing a slot.
    fn random(&mut self) -> u32;
    /// STATS_*: a new connection or, for datagram sockets, a new choice.
    fn count_connection(&mut self, service: u32, backend: u32);
}
