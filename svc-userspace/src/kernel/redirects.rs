//! Where the socket hooks have sent a socket, and which Service a VIP belongs to now: single reads of pinned maps.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::maps::{HashMap, MapData, MapError};
use svc_common::{Frontend, FrontendKey, SocketKey, SocketPeer, protocol};

use super::{error::KernelError, maps::open, pins::Layout};

type V4 = [u8; 4];
type V6 = [u8; 16];

/// PEERS and FRONTENDS of both families.
pub struct Redirects {
    peers_v4: HashMap<MapData, SocketKey<V4>, SocketPeer<V4>>,
    peers_v6: HashMap<MapData, SocketKey<V6>, SocketPeer<V6>>,
    frontends_v4: HashMap<MapData, FrontendKey<V4>, Frontend>,
    frontends_v6: HashMap<MapData, FrontendKey<V6>, Frontend>,
}

impl Redirects {
    /// The maps below `bpffs` (the agent's `--bpffs`).
    pub fn open(bpffs: &Path) -> Result<Self, KernelError> {
        let layout = Layout::current(bpffs);
        Ok(Self {
            peers_v4: open(&layout, "PEERS_V4")?,
            peers_v6: open(&layout, "PEERS_V6")?,
            frontends_v4: open(&layout, "FRONTENDS_V4")?,
            frontends_v6: open(&layout, "FRONTENDS_V6")?,
        })
    }

    /// The VIP through which a UDP socket (its cookie, low half first) came to a backend; `None` if it went there itself.
    pub fn vip(&self, cookie: [u32; 2], backend: SocketAddr) -> Result<Option<SocketAddr>, KernelError> {
        let port = backend.port();
        let (protocol, pad) = (protocol::UDP, 0);
        Ok(match backend.ip() {
            IpAddr::V4(ip) => {
                let key = SocketKey { cookie, address: ip.octets(), port, protocol, pad };
                found("PEERS_V4", self.peers_v4.get(&key, 0))?.map(|vip| SocketAddr::new(vip.address.into(), vip.port))
            }
            IpAddr::V6(ip) => {
                let key = SocketKey { cookie, address: ip.octets(), port, protocol, pad };
                found("PEERS_V6", self.peers_v6.get(&key, 0))?.map(|vip| SocketAddr::new(vip.address.into(), vip.port))
            }
        })
    }

    /// Id of the Service port that a VIP leads to over UDP; `None` if it is no frontend.
    pub fn udp_service(&self, vip: SocketAddr) -> Result<Option<u32>, KernelError> {
        let frontend = match vip.ip() {
            IpAddr::V4(ip) => {
                let key = FrontendKey::new(ip.octets(), vip.port(), protocol::UDP);
                found("FRONTENDS_V4", self.frontends_v4.get(&key, 0))?
            }
            IpAddr::V6(ip) => {
                let key = FrontendKey::new(ip.octets(), vip.port(), protocol::UDP);
                found("FRONTENDS_V6", self.frontends_v6.get(&key, 0))?
            }
        };
        Ok(frontend.map(|frontend| frontend.service))
    }
}

fn found<T>(map: &str, result: Result<T, MapError>) -> Result<Option<T>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if super::is_absent(&error) => Ok(None),
        Err(error) => Err(KernelError::map(map, error)),
    }
}
