//! Addresses for Services of type LoadBalancer, out of pools that a file lists.
//!
//! [`pools`] reads and checks the file, [`plan`] says who gets which address (both pure), [`local`] gives the addresses to
//! the Services of a source that nobody else gives any: manifests. It writes nothing to any API, and announces nothing.

pub mod follow;
pub mod local;
pub mod plan;
pub mod pools;
