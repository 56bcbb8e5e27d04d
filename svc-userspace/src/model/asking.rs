//! A Service as the writer of load-balancer addresses sees it: what it asks for, and what its status says it has.

use std::net::IpAddr;

use super::Claim;

/// Type of the condition in `status.conditions` that says which addresses a writer of this project gave: what it did not
/// write, it never changes.
pub const GIVEN_CONDITION: &str = "svc/AddressesGiven";

/// A Service, with what it takes to write its status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asking {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`, which grows with every change.
    pub version: u64,
    /// `metadata.deletionTimestamp` is set.
    pub leaving: bool,
    /// What it asks for.
    pub asks: Asks,
    /// What its status says.
    pub has: Has,
    /// Conditions of others in its status, as JSON.
    pub conditions: Vec<String>,
}

/// What a Service asks of the pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asks {
    /// Nothing: it is no load balancer, or of another class.
    Nothing,
    /// Addresses.
    Claim(Box<Claim>),
    /// Something that makes no sense: why.
    Nonsense(String),
}

/// What `status.loadBalancer` of a Service says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Has {
    /// No ingress.
    Nothing,
    /// Exactly what a writer of this project wrote.
    Given {
        /// In the order of the status.
        addresses: Vec<IpAddr>,
        /// When, seconds since 1970.
        since: i64,
    },
    /// What somebody else wrote; addresses only, as far as there are any.
    Others(Vec<IpAddr>),
}

impl Has {
    /// Every address that it names.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Nothing => &[],
            Self::Given { addresses, .. } | Self::Others(addresses) => addresses,
        }
    }
}
