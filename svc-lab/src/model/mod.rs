//! What must become of a request to a Service: the rules of Services, written down once more, for tests to compare the
//! agent and the packets with.
//!
//! It shares no code with the agent and takes nothing from it, and it is worded like the rules, not like a program that
//! has to be fast. `sets` has the rules about endpoints, `objects` which addresses a Service has, `path` who sees whom in
//! a cluster of the lab.

mod objects;
mod path;
mod sets;

pub use objects::{Host, Key, Listed, Port, Row, Service, Slice, rows};
pub use path::{Asked, Backend, Cell, Client, Expected, Impossible, SocketLb, expected};
pub use sets::{Address, Endpoint, Node, Origin, Policies, Verdict, once, verdict};
