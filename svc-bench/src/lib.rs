//! Measures what packets cost, in the loaded programs and in clusters of network namespaces beside kube-proxy's way, and what
//! the agent costs.
//!
//! Each section is a module with a `run` that returns a [`report::Section`]; `main.rs` lists them. Nothing here asserts a
//! time: figures are for people, who compare them within one run.

pub mod budget;
pub mod control;
pub mod kernel;
pub mod lab;
pub mod load;
pub mod machine;
pub mod report;
pub mod stats;
