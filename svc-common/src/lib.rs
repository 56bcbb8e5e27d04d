//! Types shared by the kernel programs and the agent: the layout of every BPF map, and the few functions both sides must
//! compute alike (flow hashing, slot arithmetic).
//!
//! Conventions, everywhere in this crate:
//! * addresses are byte arrays in *network order*, so that `bpftool map dump` prints them as people write them;
//! * ports and all other integers are in *host order*;
//! * every type that lives in a map is `repr(C)`, has no implicit padding, and its size is asserted beside it.
//!
//! Nothing here knows Kubernetes, and nothing here touches BPF.
#![no_std]
#![deny(unsafe_code)]

pub mod address;
pub mod affinity;
pub mod announce;
pub mod backend;
pub mod cache;
pub mod config;
pub mod filter;
pub mod flow;
pub mod flow_table;
pub mod fragment;
pub mod frontend;
pub mod hash;
pub mod masquerade;
pub mod reason;
pub mod service;
pub mod socket;
pub mod source_range;
pub mod stats;
mod user;
pub mod vip;

pub use address::Address;
pub use affinity::{Affinity, AffinityKey};
pub use announce::{Announced, AnnouncedKey};
pub use backend::{Backend, BackendState};
pub use cache::CacheState;
pub use config::{Config, Interface, Scope};
pub use flow::{Flow, FlowKey, FlowState, Hook};
pub use flow_table::{FlowBucket, FlowControl, FlowSlotV4, FlowSlotV6, FlowWords};
pub use fragment::{FragmentKey, Held, Ports};
pub use frontend::{Frontend, FrontendKey, SlotRange};
pub use hash::{SlotLine, flow_hash, slot_in_range};
pub use reason::Reason;
pub use service::ServiceName;
pub use socket::{SocketBackend, SocketKey, SocketPeer};
pub use source_range::SourcePrefix;
pub use stats::Counters;
pub use vip::Cidr;

/// Version of the layout of all maps together. Pins live below a directory named after it (`<bpffs>/layout-2`), so an
/// agent never opens a map whose types it does not know. Raise it with every incompatible change to a type of this crate.
pub const LAYOUT_VERSION: u32 = 2;

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers") that Services may carry.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}
