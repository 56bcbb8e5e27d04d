//! Working memory of one packet, outside of the stack.
//!
//! A BPF program has 512 bytes of stack; the keys and values of an IPv6 flow take most of it. In the kernel this is a
//! value of a per-CPU array.

use svc_common::{Flow, FlowKey, FragmentKey, Frontend, Interface, SlotRange};

use crate::{cache::Cached, flow::Entry, ip::Header, packet::Packet};

/// What deciding on one packet needs at the same time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<A> {
    /// The packet.
    pub packet: Packet<A>,
    /// Header of the packet that an ICMP error is about.
    pub head: Header<A>,
    /// Key of the datagram that a fragment is of.
    pub fragment: FragmentKey<A>,
    /// Key of the packet's forward entry.
    pub key: FlowKey<A>,
    /// Its flow: found, or being opened.
    pub flow: Flow<A>,
    /// Another entry of the flow, while it is looked at or made.
    pub entry: Entry<A>,
    /// The value of another flow's entry, while it is looked at.
    pub found: Flow<A>,
    /// The other entry of that flow.
    pub other: Entry<A>,
    /// The frontend a new flow is addressed to.
    pub frontend: Frontend,
    /// The slots that policy grants its client; not empty.
    pub range: SlotRange,
    /// What the flow cache knows of the flow, or shall know.
    pub cached: Cached<A>,
    /// The interface the packet came in by; read when it is needed.
    pub interface: Interface,
    /// The client is a pod of this node.
    pub inside: bool,
    /// A flow that opens takes the shortcut, if its endpoint is on another node.
    pub shortcut: bool,
}
