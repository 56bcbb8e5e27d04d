//! Clusters of network namespaces on one machine.

pub mod api;
