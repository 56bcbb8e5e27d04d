//! A listener whose connections can be broken, and which can refuse new ones.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

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
    fn admit(&self, stream: TcpStream) -> io::Result<Option<Connection>> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let faults = &mut self.api.state().faults;
        if faults.refuse {
            return Ok(None);
        }
        let second = stream.try_clone()?;
        faults.connected(stream.try_clone()?);
        Ok(Some(Connection { stream: TcpStream::from_std(stream)?, second }))
    }
}

impl axum::serve::Listener for Breakable {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
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

/// A connection that ends when the server drops it, whoever else has a handle on it.
pub(super) struct Connection {
    stream: TcpStream,
    second: std::net::TcpStream,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Err(error) = self.second.shutdown(Shutdown::Both) {
            tracing::debug!("connection was closed already: {error}");
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
