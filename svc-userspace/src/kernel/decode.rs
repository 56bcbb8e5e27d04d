//! Between the types of the maps and those of the agent, for both families.

use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::Key;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use svc_common::{
    Address, Backend, BackendState, Cidr, FrontendKey, SourcePrefix,
    backend::{BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_LOCAL},
    source_range::SERVICE_BITS,
};

use crate::{
    model::Protocol,
    tables::{BackendValue, FrontendAddress, Sets},
};

/// The backend a value of BACKENDS stands for; `None` for an entry that was never used.
pub(super) fn backend<A: Address>(value: &Backend<A>) -> Option<BackendValue>
where
    Backend<A>: bytemuck::Pod,
    IpAddr: From<A>,
{
    if bytemuck::bytes_of(value).iter().all(|&byte| byte == 0) {
        return None;
    }
    Some(BackendValue {
        address: SocketAddr::new(value.address.into(), value.port),
        state: BackendState::from_u8(value.state),
        local: value.flags & BACKEND_LOCAL != 0,
        sets: Sets { cluster: value.flags & BACKEND_IN_CLUSTER != 0, local: value.flags & BACKEND_IN_LOCAL != 0 },
        generation: value.generation,
        service: value.service,
    })
}

/// The value of BACKENDS for a backend with an address of this family.
pub(super) fn backend_value<A: Address>(address: A, backend: &BackendValue) -> Backend<A> {
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let Sets { cluster, local } = backend.sets;
    Backend {
        address,
        port: backend.address.port(),
        state: backend.state as u8,
        flags: flag(backend.local, BACKEND_LOCAL) | flag(cluster, BACKEND_IN_CLUSTER) | flag(local, BACKEND_IN_LOCAL),
        generation: backend.generation,
        service: backend.service,
    }
}

/// The frontend a key of FRONTENDS stands for; `None` if its protocol is none that Services carry.
pub(super) fn frontend<A: Address>(key: &FrontendKey<A>) -> Option<FrontendAddress>
where
    IpAddr: From<A>,
{
    Some(FrontendAddress {
        address: SocketAddr::new(key.address.into(), key.port),
        protocol: Protocol::from_number(key.protocol)?,
    })
}

/// The key of SOURCE_RANGES_V4 for a range of a service.
pub(super) fn source_v4(service: u32, range: Ipv4Net) -> Key<SourcePrefix<[u8; 4]>> {
    let prefix = SourcePrefix { service, address: range.network().octets() };
    Key::new(SERVICE_BITS + u32::from(range.prefix_len()), prefix)
}

/// The key of SOURCE_RANGES_V6 for a range of a service.
pub(super) fn source_v6(service: u32, range: &Ipv6Net) -> Key<SourcePrefix<[u8; 16]>> {
    let prefix = SourcePrefix { service, address: range.network().octets() };
    Key::new(SERVICE_BITS + u32::from(range.prefix_len()), prefix)
}

/// The range and the service that a key of SOURCE_RANGES stands for; `None` for a prefix length that is none.
pub(super) fn source<A: Address>(prefix_len: u32, prefix: &SourcePrefix<A>) -> Option<(u32, IpNet)>
where
    IpAddr: From<A>,
{
    let len = u8::try_from(prefix_len.checked_sub(SERVICE_BITS)?).ok()?;
    Some((prefix.service, IpNet::new(prefix.address.into(), len).ok()?))
}

/// The element of SERVICE_CIDRS_V4 for a prefix.
pub(super) fn cidr_v4(range: Ipv4Net) -> Cidr<[u8; 4]> {
    Cidr { network: range.network().octets(), mask: range.netmask().octets() }
}

/// The element of SERVICE_CIDRS_V6 for a prefix.
pub(super) fn cidr_v6(range: &Ipv6Net) -> Cidr<[u8; 16]> {
    Cidr { network: range.network().octets(), mask: range.netmask().octets() }
}
