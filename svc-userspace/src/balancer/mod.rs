//! Addresses for Services of type LoadBalancer, out of pools that a file lists.
//!
//! [`pools`] reads and checks the file, [`owners`] has the rules of giving. What is given is a pure function: [`plan`] makes
//! it of what Services ask for alone, and [`local`] gives it to the Services of manifests; [`renew`] makes it of what they
//! have as well, and [`elected`] writes it into the API. [`announce`] says which addresses this node answers for on its networks,
//! [`voice`] says it to them.

pub mod announce;
pub mod elected;
pub mod follow;
pub mod local;
pub mod owners;
pub mod plan;
pub mod pools;
pub mod renew;
pub mod voice;
