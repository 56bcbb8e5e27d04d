//! Why a port is not programmed as asked.

use crate::{
    compile::PortKey,
    model::{Family, ObjectName},
};

use super::FrontendAddress;

/// A port that is refused whole: whatever of it was programmed before stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Service {} port {}: {reason}", .key.service, describe(.key))]
pub struct Refused {
    /// The port.
    pub key: PortKey,
    /// What stands in the way.
    pub reason: Reason,
}

/// What stands in the way of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// An address belongs to another port.
    #[error(
        "{}/{} already belongs to Service {} port {}: remove it from one of the two",
        .address.address, .address.protocol, .owner.service, describe(.owner)
    )]
    Conflict {
        /// The address that both want.
        address: FrontendAddress,
        /// Who has it.
        owner: Box<PortKey>,
    },
    /// An address is still to be taken from another Service, which a write to the maps that failed holds up.
    #[error(
        "{}/{} has not been taken from Service {owner} yet, because a write to the maps failed: it will be tried again",
        .address.address, .address.protocol
    )]
    Held {
        /// The address.
        address: FrontendAddress,
        /// Who had it.
        owner: Box<ObjectName>,
    },
    /// A map is full.
    #[error(
        "needs {needed} {what}, but only {available} of {capacity} are free ({resting} more soon): raise {}, or remove \
         Services; it is tried again when there is room",
        .what.flag()
    )]
    Full {
        /// What there is not enough of.
        what: Resource,
        /// How much more the port needs.
        needed: u64,
        /// How much there is (for slots perhaps not in one piece).
        available: u64,
        /// How much of it rests and will be available later.
        resting: u64,
        /// How much the map holds.
        capacity: u64,
    },
    /// A name is longer than the 63 bytes Kubernetes allows, or holds a zero byte.
    #[error("a name does not fit into SERVICES: use names of at most 63 characters")]
    Name,
}

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Service ids.
    Services,
    /// Backend ids.
    Backends,
    /// Entries of FRONTENDS of a family.
    Frontends(Family),
    /// Slots, in one piece.
    Slots,
    /// Entries of SOURCE_RANGES of a family.
    SourceRanges(Family),
}

impl Resource {
    /// The agent's option for how much of it there is.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Services => "--services",
            Self::Backends => "--backends",
            Self::Frontends(_) => "--frontends",
            Self::Slots => "--slots",
            Self::SourceRanges(_) => "--source-ranges",
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Services => "ids of SERVICES",
            Self::Backends => "ids of BACKENDS",
            Self::Frontends(Family::V4) => "entries of FRONTENDS_V4",
            Self::Frontends(Family::V6) => "entries of FRONTENDS_V6",
            Self::Slots => "slots of SLOTS in one piece",
            Self::SourceRanges(Family::V4) => "entries of SOURCE_RANGES_V4",
            Self::SourceRanges(Family::V6) => "entries of SOURCE_RANGES_V6",
        })
    }
}

fn describe(key: &PortKey) -> String {
    let family = match key.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let space = if key.name.is_empty() { "" } else { " " };
    format!("{}{space}{}/{} {family}", key.name, key.port, key.protocol)
}
