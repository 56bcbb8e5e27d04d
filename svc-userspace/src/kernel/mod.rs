//! The only module that touches BPF: load, pin, attach, adopt, apply, and read back.
//!
//! `Dataplane` is the agent's handle (read and write); [`view::Snapshot`] is what every other command reads from the pins.

pub mod object;
pub mod view;
