//! The interfaces and addresses of this node, followed by rtnetlink.
//!
//! [`link`] reads messages, [`classify`] decides (pure), [`follow`] keeps up with changes and reports only what became
//! different. [`ways`] only says that something has changed. It attaches nothing: events go to the agent.

use std::{io, net::IpAddr};

use tokio::sync::mpsc;

use crate::kernel::InterfaceSpec;

pub mod classify;
mod follow;
pub mod link;
pub mod route;
pub(crate) mod ways;

/// Which interfaces carry what, as far as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// Names of the uplinks; empty: those that have a default route.
    pub uplinks: Vec<String>,
    /// Patterns (`*` and `?`) of the host ends of pod interfaces; empty: every veth and netkit whose peer is in another
    /// network namespace.
    pub pod_patterns: Vec<String>,
}

/// An address of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Index of the interface that has it.
    pub index: u32,
    /// Name of that interface.
    pub interface: String,
    /// The first of its family on an uplink.
    pub primary: bool,
}

/// Something that became different. After `Synced` the set of interfaces is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceEvent {
    /// The interface carries Service traffic, and this is how.
    Set(InterfaceSpec),
    /// The interface with this index is gone, or carries Service traffic no longer.
    Gone(u32),
    /// Global-scope unicast addresses of this node: all of them.
    Addresses(Vec<NodeAddress>),
    /// Every interface that exists has been reported. Sent once.
    Synced,
}

/// Why interfaces cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// rtnetlink does not work.
    #[error(
        "rtnetlink: cannot {action}: {error}: interfaces cannot be followed; restart the agent in the host's network namespace"
    )]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Reports the interfaces and addresses of the calling thread's network namespace, and from then on their changes.
/// Returns when the receiver is gone, or when rtnetlink fails.
pub async fn run(options: InterfaceOptions, events: mpsc::Sender<InterfaceEvent>) -> Result<(), InterfaceError> {
    follow::run(options, events).await
}
