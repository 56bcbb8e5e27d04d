//! The maps, as the packet path uses them.

use svc_common::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, FragmentKey, Frontend, FrontendKey, Interface, Ports, Reason,
    SocketBackend, SocketKey, SocketPeer,
};

#[cfg(doc)]
use crate::open::attempt;
use crate::{open::Attempt, scratch::Scratch};

/// What became of an entry that was to be made only if absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// It was made.
    Done,
    /// There is one already.
    Taken,
    /// The table did not take it.
    Full,
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
    /// The monotonic clock in units of 2^30 ns (1.07 s).
    fn now(&mut self) -> u32;
}

/// Everything the packet hooks read and write.
pub trait Tables<A>: Decisions<A> {
    /// FLOWS: finds an entry, touches it and copies it; `closes` says that the packet ends its direction of the flow.
    /// Returns true if the packet is the entry's first in this unit of time, which is the moment for what need not be
    /// done for every packet.
    fn flow(&mut self, key: &FlowKey<A>, closes: bool, into: &mut Flow<A>) -> Option<bool>;
    /// FLOWS: finds an entry without touching it.
    fn peek_flow(&mut self, key: &FlowKey<A>) -> Option<Flow<A>>;
    /// FLOWS: makes an entry if there is none.
    fn insert_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Insert;
    /// FLOWS: makes or overwrites an entry; false if the table did not take it.
    fn replace_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// FLOWS: removes an entry.
    fn remove_flow(&mut self, key: &FlowKey<A>);
    /// FRAGMENTS.
    fn fragment(&mut self, key: &FragmentKey<A>) -> Option<Ports>;
    /// Writes FRAGMENTS.
    fn remember_fragment(&mut self, key: &FragmentKey<A>, ports: Ports);
    /// INTERFACES: the interface the packet arrived on; an unknown one is outside.
    fn interface(&mut self) -> Interface;
    /// CONFIG: the mark of packets to be masqueraded.
    fn masquerade_mark(&mut self) -> u32;
    /// Calls [`attempt()`] with these tables. The kernel makes it a function that the verifier walks once by itself,
    /// instead of once for every way that leads there.
    fn attempt(&mut self, scratch: &mut Scratch<A>, number: u32) -> Attempt;
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
