//! The agent and the command line of `svc`.
//!
//! `source → model → compile → tables → kernel`: each module knows only its left neighbour's output type. `dns` reads the
//! model beside `compile`.

pub mod agent;
pub mod balancer;
pub mod cli;
pub mod compile;
pub mod dns;
pub mod health;
pub mod interfaces;
pub mod kernel;
pub mod masquerade;
pub mod metrics;
pub mod model;
pub(crate) mod netlink;
pub mod privileges;
pub mod reserved_ports;
pub mod sockets;
pub mod source;
pub mod tables;
pub mod world;
