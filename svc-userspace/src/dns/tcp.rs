//! Connections: one question after another, each with its length before it (RFC 7766). Bounded in number, size and time.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    answer::{QUERY_MOST, Transport},
    server::{Server, Todo, kept},
    share::Shares,
    up::Doors,
};
use crate::health::server::bind;

/// Longest time without a question, and longest time that one or an answer may take.
const IDLE: Duration = Duration::from_secs(10);
/// Connections, in all and of a client.
const SHARES: (usize, usize) = (512, 64);
/// Pause after a failure to accept: there are too many open files, as a rule.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections of all listeners share.
pub(super) fn shares() -> Rc<Shares> {
    Shares::new(SHARES.0, SHARES.1)
}

/// Accepts connections for ever.
pub(super) async fn serve(server: Rc<Server>, address: SocketAddr, shares: Rc<Shares>, doors: Rc<Doors>) {
    let listener = kept(address, "tcp", || bind(address)).await;
    let _open = doors.open();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "dns: cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !server.admits(client) {
            continue;
        }
        let Some(share) = shares.take(client.ip()) else {
            server.counters.drop_for("connections");
            continue;
        };
        server.counters.set_connections(shares.taken());
        let (server, shares) = (server.clone(), shares.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = converse(&server, stream, client).await {
                tracing::trace!(%client, %error, "dns: a connection broke off");
            }
            drop(share);
            server.counters.set_connections(shares.taken());
        });
    }
}

async fn converse(server: &Server, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    // Answers are written whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let length = usize::from(length?);
        if length > QUERY_MOST {
            server.counters.drop_for("oversized");
            return Ok(());
        }
        request.resize(length, 0);
        timeout(IDLE, stream.read_exact(&mut request)).await??;
        let answer = match server.handle(&request, Transport::Tcp) {
            // Whoever sends nonsense on a connection is not going to make sense.
            Todo::Nothing => return Ok(()),
            Todo::Send(answer, _) => answer,
            Todo::Wait(forward) => server.wait(forward, client).await,
        };
        let Some(length) = u16::try_from(answer.len()).ok().filter(|&length| length > 0) else {
            server.counters.drop_for("unencodable");
            return Ok(());
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
