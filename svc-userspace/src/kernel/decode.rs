//! Between the types of the maps and those of the agent, for both families.

use std::net::{IpAddr, SocketAddr};

use svc_common::{Address, Backend, BackendState, FrontendKey};

use crate::{
    model::Protocol,
    tables::{BackendValue, FrontendAddress},
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
        local: value.flags & svc_common::backend::BACKEND_LOCAL != 0,
        generation: value.generation,
        service: value.service,
    })
}

/// The value of BACKENDS for a backend with an address of this family.
pub(super) fn backend_value<A: Address>(address: A, backend: &BackendValue) -> Backend<A> {
    Backend {
        address,
        port: backend.address.port(),
        state: backend.state as u8,
        flags: if backend.local { svc_common::backend::BACKEND_LOCAL } else { 0 },
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
