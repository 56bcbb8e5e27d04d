//! Clusters of network namespaces on one machine: nodes, pods, clients, agents, and a double of the API server.
//!
//! Everything runs in namespaces, cgroups and pin directories of its own, so several labs live side by side with equal
//! addresses, and dropping a [`Lab`] removes all of it. It needs root, cgroup v2, `ip` and `nft`.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use svc_lab::{Cni, Lab, Spec};
//!
//! let lab = Lab::build(Spec { cni: Cni::Bridge, rp_filter: 1, ..Spec::default() })?;
//! let web = lab.pod(1, "web")?;
//! let client = lab.pod(2, "client")?;
//! lab.serve(&web, 8080)?;
//! let answered = client.tcp((web.addresses.v4, 8080))?;
//! assert_eq!(answered.answer.server, "web");
//! assert_eq!(answered.answer.client.ip(), client.addresses.v4);
//! # Ok(())
//! # }
//! ```

mod agent;
pub mod api;
mod binary;
mod client;
mod cni;
pub mod demo;
pub mod echo;
mod error;
mod lab;
pub mod manifests;
pub mod model;
mod place;
pub mod plan;
pub mod probe;
mod process;
mod spec;
mod tap;
mod teardown;
mod topology;
mod wait;
pub mod xdp;

pub use agent::{Agent, HEALTHZ, METRICS, Source, http_get, says_synced};
pub use binary::svc as svc_program;
pub use client::{Request, Steady};
pub use echo::Answer;
pub use error::LabError;
pub use lab::{Lab, Node, Pod};
pub use manifests::{Endpoint, Manifests, Service};
pub use place::Place;
pub use plan::Addresses;
pub use probe::{Failure, FailureKind, Protocol, Report, Success};
pub use spec::{Cni, Mtu, Spec};
pub use tap::Tap;
pub use teardown::{clean, remove_own};
pub use wait::until;
