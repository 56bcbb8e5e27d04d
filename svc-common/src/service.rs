//! SERVICES: the names behind service ids. Kernel programs never read it; people, the command line and an agent that
//! adopts the maps of its predecessor do.

use bytemuck::{Pod, Zeroable};

/// Longest Kubernetes name stored (RFC 1123 label, 63 characters), zero-padded to this.
pub const NAME_LEN: usize = 64;

/// Value of SERVICES; the key is the service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceName {
    /// `metadata.namespace`, UTF-8, zero-padded.
    pub namespace: [u8; NAME_LEN],
    /// `metadata.name`, UTF-8, zero-padded.
    pub name: [u8; NAME_LEN],
    /// `spec.ports[].name`, UTF-8, zero-padded; empty for the only, unnamed port.
    pub port_name: [u8; NAME_LEN],
    /// `spec.ports[].port`, *host order*.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// IP version of the entry, 4 or 6: the two families of one Service port have ids of their own.
    pub version: u8,
}

const _: () = assert!(size_of::<ServiceName>() == 196);
