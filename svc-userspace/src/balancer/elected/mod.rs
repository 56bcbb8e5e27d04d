//! Addresses for the Services of the Kubernetes API: one of all agents, elected by a Lease, writes them into their status.
//!
//! [`writer`] decides what to ask of the API server and when, [`view`] is what it knows of the Services, [`ledger`] what the
//! Lease says. These are pure, so that a simulation can run any number of writers against an API server that does its worst
//! (`simulation.rs`). [`drive`] is the only place that speaks to the real one.
//!
//! Why no address is given twice, whatever is lost, late or stale: the one who holds the Lease writes into it *which* Service
//! is about to get *which* address at *which* version (an intent), by an update that fails if anybody else has changed the
//! Lease. Only then it patches the Service, which fails unless the Service has that very version. An intent is struck out
//! only when the Service is known to have another version: then no late patch can succeed any more, and what it
//! has got is visible. Who takes the Lease over finds the intents in it, and lists all Services after that: what has been
//! given is in the one or in the other.

mod case;
pub mod counters;
pub mod drive;
mod lease;
pub mod ledger;
mod report;
pub mod requests;
pub mod view;
pub mod writer;

#[cfg(test)]
mod simulation;
