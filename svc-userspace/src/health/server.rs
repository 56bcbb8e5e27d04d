//! A listener that is kept: an address that cannot be bound now is tried again until it can.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::Router;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Time between two attempts to bind.
const RETRY: Duration = Duration::from_secs(1);

/// Serves for as long as the future is polled. `what` names the server in the log.
pub(crate) async fn keep(address: SocketAddr, what: &str, router: Router) -> Infallible {
    let mut said = false;
    loop {
        match bind(address) {
            Ok(listener) => {
                tracing::debug!(%address, "serving {what}");
                said = false;
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    tracing::warn!(%address, %error, "{what}: server stopped, starting it again");
                }
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(%address, %error, "{what}: cannot listen, will try again: is the port in use?");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Listens with `SO_REUSEADDR`, and on an IPv6 address for IPv6 alone unless it is the unspecified one.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    socket.bind(address)?;
    socket.listen(128)
}
