//! A listener whose connections can be broken, and which can refuse new ones.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::Api;

pub(super) struct Breakable {
    listener: TcpListener,
    api: Api,
}

impl Breakable {
    pub(super) fn new(listener: TcpListener, api: Api) -> Self {
        Self { listener, api }
    }

    /// The connection, if it may live, with a second handle to break it by.
    fn admit(&self, stream: TcpStream) -> io::Result<Option<TcpStream>> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let faults = &mut self.api.state().faults;
        if faults.refuse {
            return Ok(None);
        }
        faults.connected(stream.try_clone()?);
        TcpStream::from_std(stream).map(Some)
    }
}

impl axum::serve::Listener for Breakable {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await.and_then(|(stream, address)| Ok((self.admit(stream)?, address))) {
                Ok((Some(stream), address)) => return (stream, address),
                Ok((None, _)) => {}
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    // Out of file descriptors, most likely: give the others time to close theirs.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
