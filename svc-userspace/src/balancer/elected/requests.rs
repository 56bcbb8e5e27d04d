//! What a writer asks for and is told, and how long it waits for things.

use std::net::IpAddr;

use super::ledger::Ledger;
#[cfg(doc)]
use super::writer::Writer;
use crate::{
    balancer::owners::Refusal,
    model::{Asking, ObjectName},
};

/// How long things take, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A Lease that has not changed for so long may be taken.
    pub lease: u64,
    /// A writer that has not renewed it for so long stops.
    pub deadline: u64,
    /// Time between two renewals.
    pub renew: u64,
    /// Time between two looks of those who do not have it.
    pub look: u64,
    /// Changes that come together are decided about together.
    pub gather: u64,
    /// What is in no pool any more is left alone for so long after the Lease was taken: another node may have had a newer file.
    pub lenient: u64,
    /// First and longest pause before a Service that could not be written is tried again.
    pub again: (u64, u64),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: 15_000,
            deadline: 10_000,
            renew: 2_000,
            look: 5_000,
            gather: 50,
            lenient: 120_000,
            again: (500, 30_000),
        }
    }
}

/// Something to be asked of the API server, or told to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read the Lease: [`Writer::lease_read`].
    ReadLease,
    /// Write the Lease over this version of it, or create it: [`Writer::lease_written`].
    WriteLease {
        /// The version it must have.
        over: Option<String>,
        /// What it shall say.
        ledger: Ledger,
    },
    /// List and watch all Services from now on, with what is said now: [`Writer::seen`].
    Watch(u64),
    /// Stop that.
    Unwatch,
    /// Write the status of a Service if it has this version: [`Writer::patched`].
    Patch {
        /// The term of office this belongs to.
        term: u64,
        /// The Service.
        name: ObjectName,
        /// As it was.
        object: Box<Asking>,
        /// The version it must have.
        version: u64,
        /// What it shall have; nothing: what was given is taken back.
        addresses: Vec<IpAddr>,
    },
    /// Tell people what a Service got, or why it does not get what it asks for.
    Report {
        /// The Service.
        name: ObjectName,
        /// Its uid.
        uid: String,
        /// The news.
        news: News,
    },
}

/// What people are told about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It has got these.
    Given(Vec<IpAddr>),
    /// These were taken back.
    TakenBack(Vec<IpAddr>),
    /// It does not get what it asks for.
    Refused(Refusal),
}

/// Why a request was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object has another version.
    Conflict,
    /// There is no such object.
    Missing,
    /// Anything else: it may have been granted nevertheless, now or later.
    Unknown,
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It is the writer.
    pub leads: bool,
    /// Services that have addresses of it.
    pub given: usize,
    /// Services that do not have what they ask for.
    pub refused: usize,
}
