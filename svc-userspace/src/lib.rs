//! The agent and the command line of `svc`.
//!
//! `source → model → compile → tables → kernel`: each module knows only its left neighbour's output type.

pub mod compile;
pub mod interfaces;
pub mod kernel;
pub mod masquerade;
pub mod model;
pub(crate) mod netlink;
pub mod source;
pub mod tables;
pub mod world;
