//! What the benchmark's wrapper does with each packet: the layout that userspace and the wrapper share.

use bytemuck::{Pod, Zeroable};

/// Bytes of every packet that is measured.
pub const PACKET_LEN: usize = 96;
/// Flows that differ only in the client's port.
pub const PORTS: u32 = 1 << 15;
/// First of the clients' ports.
pub const FIRST_PORT: u16 = 1024;

/// The only value of PLAN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Plan {
    /// The packet as it is before each run.
    pub packet: [u64; PACKET_LEN / 8],
    /// Number of the next packet.
    pub next: u32,
    /// Bits of it that tell one flow from another: 0 for a single flow.
    pub flows: u32,
    /// Where in the packet the last four bytes of the client's address are.
    pub address_at: u32,
    /// Where the client's port is; 0: it stays.
    pub port_at: u32,
    /// The address of flow 0, *host order*; each [`PORTS`] flows have the next one.
    pub address: u32,
    /// Index in PROGRAMS of the program to run.
    pub program: u32,
    /// Not 0: the limit of refusals is taken back before each packet.
    pub unlimited: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Plan>() == PACKET_LEN + 32);
