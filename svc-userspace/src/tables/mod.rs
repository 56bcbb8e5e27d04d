//! Ids and slots, and the difference between what is programmed and what should be, as ordered operations.
//!
//! Pure: it computes [`Op`]s and never touches BPF. A reader in the kernel that sees the maps between any two operations
//! finds only complete Services: backends first, slots next, frontend last; removal the other way round.

use std::net::SocketAddr;

use svc_common::{Frontend, ServiceName};

use crate::model::Protocol;

/// A backend's entry in BACKENDS_V4/V6, the family being that of the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendValue {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// State.
    pub state: svc_common::BackendState,
    /// Runs on this node.
    pub local: bool,
    /// Generation of the id.
    pub generation: u32,
    /// Service id.
    pub service: u32,
}

/// A key of FRONTENDS_V4/V6, the family being that of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// One write to a map. Applying an operation twice is the same as applying it once.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// SERVICES: the name of a service id.
    SetService(u32, Box<ServiceName>),
    /// SERVICES: forget the name; the counters of the id are zeroed.
    RemoveService(u32),
    /// BACKENDS: write the entry.
    SetBackend(u32, BackendValue),
    /// SLOTS: backend ids from this slot on.
    WriteSlots(u32, Vec<u32>),
    /// FRONTENDS: write the entry.
    SetFrontend(FrontendAddress, Frontend),
    /// FRONTENDS: remove the entry.
    RemoveFrontend(FrontendAddress),
}

/// Everything found in the maps, by an agent that adopts them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// SERVICES.
    pub services: Vec<(u32, Box<ServiceName>)>,
    /// Non-zero entries of BACKENDS_V4 and BACKENDS_V6 (gone ones with a generation included). One id space serves both
    /// families: an id that is used in one array is zero in the other.
    pub backends: Vec<(u32, BackendValue)>,
    /// FRONTENDS_V4 and V6.
    pub frontends: Vec<(FrontendAddress, Frontend)>,
    /// SLOTS: contents of each distinct range that a frontend names, `(offset, backend ids)`.
    pub slots: Vec<(u32, Vec<u32>)>,
}

/// What the maps can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of SERVICES and STATS_SERVICE; one less can be used, since id 0 is never given.
    pub services: u32,
    /// Elements of BACKENDS_V4, BACKENDS_V6 and STATS_BACKEND; one less can be used, by both families together.
    pub backends: u32,
    /// Entries of FRONTENDS_V4.
    pub frontends_v4: u32,
    /// Entries of FRONTENDS_V6.
    pub frontends_v6: u32,
    /// Slots (not lines) of SLOTS.
    pub slots: u32,
}
