//! BACKENDS_V4/V6: where packets go. An array indexed by backend id, so the kernel inlines the lookup.

/// Value of BACKENDS; the key is the backend id. Ids are given per Service port and endpoint. Id 0 is never given.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backend<A> {
    /// Endpoint address, *network order*.
    pub address: A,
    /// Endpoint port, *host order*.
    pub port: u16,
    /// [`BackendState`] as a number.
    pub state: u8,
    /// `BACKEND_*` flags below.
    pub flags: u8,
    /// Raised each time the id is given to another endpoint: a flow that names an older generation has lost its backend.
    pub generation: u32,
    /// Service port the backend belongs to.
    pub service: u32,
}

/// The endpoint runs on this node: traffic from outside needs no masquerade, its reply passes here anyway.
pub const BACKEND_LOCAL: u8 = 1 << 0;

/// The endpoint is in its port's set of policy Cluster, as hints and fallbacks have left it.
pub const BACKEND_IN_CLUSTER: u8 = 1 << 1;
/// The endpoint is in its port's set of policy Local, fallbacks included.
pub const BACKEND_IN_LOCAL: u8 = 1 << 2;

/// What a backend may be used for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// Nobody: the id is free or resting. All-zero array entries are gone.
    Gone = 0,
    /// New and existing flows.
    Active = 1,
    /// Existing flows only, unless it is all there is (then slots still name it).
    Terminating = 2,
}

impl BackendState {
    /// The state a map's byte stands for; unknown values mean [`BackendState::Gone`].
    pub fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Active,
            2 => Self::Terminating,
            _ => Self::Gone,
        }
    }
}

const _: () = assert!(size_of::<Backend<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<Backend<[u8; 16]>>() == 28);
