//! [`Sockets`] on the maps: what the socket hooks remember of a socket, and count.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_prandom_u32};
use svc_common::{SocketBackend, SocketKey, SocketPeer};
use svc_ebpf::tables::Sockets;

use super::{
    A4, A6, Maps,
    count::add,
    statics::{PEERS_V4, PEERS_V6, SOCKETS_V4, SOCKETS_V6, STATS_BACKEND, STATS_SERVICE},
};

macro_rules! family {
    ($address:ty, $sockets:ident, $peers:ident) => {
        impl Sockets<$address> for Maps {
            #[inline(always)]
            fn socket(&mut self, key: &SocketKey<$address>) -> Option<SocketBackend> {
                // SAFETY: copied at once.
                unsafe { $sockets.get(key) }.copied()
            }

            #[inline(always)]
            fn set_socket(&mut self, key: &SocketKey<$address>, backend: SocketBackend) {
                // Without the entry the next datagram chooses again.
                let _ = $sockets.insert(key, &backend, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn peer(&mut self, key: &SocketKey<$address>) -> Option<SocketPeer<$address>> {
                // SAFETY: copied at once.
                unsafe { $peers.get(key) }.copied()
            }

            #[inline(always)]
            fn set_peer(&mut self, key: &SocketKey<$address>, peer: SocketPeer<$address>) -> bool {
                $peers.insert(key, &peer, u64::from(BPF_ANY)).is_ok()
            }

            #[inline(always)]
            fn random(&mut self) -> u32 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn count_connection(&mut self, service: u32, backend: u32) {
                add(STATS_SERVICE.get_ptr_mut(service), 0, 0, 1);
                add(STATS_BACKEND.get_ptr_mut(backend), 0, 0, 1);
            }
        }
    };
}

family!(A4, SOCKETS_V4, PEERS_V4);
family!(A6, SOCKETS_V6, PEERS_V6);
