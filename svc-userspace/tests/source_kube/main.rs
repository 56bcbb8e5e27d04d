//! The Kubernetes source with the real client against the double of the API server, one fault at a time.
//!
//! In every case: nothing is reported gone because of the fault, and in the end what was reported is what exists.

mod changes;
mod fixture;
mod input;
mod server;
mod watches;
