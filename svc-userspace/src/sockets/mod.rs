//! Sockets of the host that are connected to a vanished backend: ended, so that their owners choose anew.
//!
//! A connected UDP socket was translated once, at connect; its datagrams go to the backend's address for ever, and nothing
//! ever tells the application that nobody is there. So it is told: its next call fails (a send with EDESTADDRREQ, a
//! receive with ECONNABORTED), and the socket is connected no more. Sockets that are not connected choose at every sendmsg and are left alone, as is everything that
//! this project did not redirect. Pods are not looked at: their UDP is translated packet by packet, unless
//! `--socket-lb all` says otherwise.
//!
//! It works on a thread of its own, since the maps must never wait for a list of sockets. It writes no map.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use crate::{kernel::Redirects, metrics::Metrics, model::Family, privileges};

pub(crate) mod diag;

use diag::{Connected, Diag};

/// How long backends are gathered before the sockets are listed. A rollout costs ten lists a second at most, however many
/// backends it replaces; and a socket that was between its choice and its connection when the backend vanished (some
/// microseconds) is in the list.
const GATHERING: Duration = Duration::from_millis(100);

/// A backend that a Service port lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Where it was.
    pub address: SocketAddr,
    /// Id of the Service port. Others may still have the same endpoint.
    pub service: u32,
}

/// Why sockets may be connected to what is gone still.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("cannot list or destroy UDP sockets (sock_diag): {0}")]
    Diag(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] crate::kernel::KernelError),
}

/// Starts the thread, which ends when the sender is dropped. It works in the network namespace of the caller.
pub fn start(bpffs: PathBuf, metrics: Arc<Metrics>) -> io::Result<Sender<Vec<Gone>>> {
    let (sender, receiver) = mpsc::channel();
    privileges::spawn("sockets", move || run(&receiver, &bpffs, &metrics))?;
    Ok(sender)
}

fn run(news: &Receiver<Vec<Gone>>, bpffs: &std::path::Path, metrics: &Metrics) {
    while let Ok(first) = news.recv() {
        let gone = gather(first, news);
        match sweep(bpffs, &gone) {
            Ok(0) => {}
            Ok(destroyed) => {
                metrics.sockets_destroyed(destroyed);
                tracing::info!(sockets = destroyed, "told UDP sockets that their backend is gone");
            }
            Err(error) => {
                metrics.socket_sweep_failed();
                // That the kernel cannot do it was said at the start.
                if !matches!(&error, SweepError::Diag(error) if diag::is_unsupported(error)) {
                    let error = anyhow::Error::from(error);
                    tracing::error!("UDP sockets of the host may stick to a vanished backend: {error:#}");
                }
            }
        }
    }
}

/// The services that lost each address.
type Lost = HashMap<SocketAddr, BTreeSet<u32>>;

fn gather(first: Vec<Gone>, news: &Receiver<Vec<Gone>>) -> Lost {
    let deadline = Instant::now() + GATHERING;
    let mut lost = Lost::new();
    let mut batch = first;
    loop {
        for Gone { address, service } in batch {
            lost.entry(address).or_default().insert(service);
        }
        match news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(more) => batch = more,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return lost,
        }
    }
}

/// Destroys the sockets that were redirected to one of these backends; returns how many. One that cannot be destroyed does
/// not keep the others.
fn sweep(bpffs: &std::path::Path, lost: &Lost) -> Result<usize, SweepError> {
    let diag = Diag::open()?;
    let mut candidates = Vec::new();
    let has_v4 = lost.keys().any(SocketAddr::is_ipv4);
    for family in [Family::V4, Family::V6] {
        // A socket of IPv6 may talk to an IPv4 backend (RFC 4291 section 2.5.5.2), but not the other way round.
        if family == Family::V6 || has_v4 {
            diag.connected(family, &mut |socket| {
                if lost.contains_key(&socket.peer()) {
                    candidates.push(socket);
                }
            })?;
        }
    }
    if candidates.is_empty() {
        return Ok(0);
    }
    let redirects = Redirects::open(bpffs)?;
    let (mut destroyed, mut failure) = (0, None);
    for socket in candidates {
        let outcome = is_lost(&socket, lost, &redirects)
            .and_then(|is_lost| if is_lost { Ok(diag.destroy(&socket)?) } else { Ok(false) });
        match outcome {
            Ok(true) => destroyed += 1,
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(destroyed), Err)
}

/// Whether the socket came to its peer through a Service port that has lost it.
fn is_lost(socket: &Connected, lost: &Lost, redirects: &Redirects) -> Result<bool, SweepError> {
    let Some(services) = lost.get(&socket.peer()) else { return Ok(false) };
    let Some(vip) = redirects.vip(socket.cookie(), socket.peer())? else { return Ok(false) };
    // A VIP that is no frontend any more went away with the backend.
    Ok(redirects.udp_service(vip)?.is_none_or(|service| services.contains(&service)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_a_burst_is_one_batch_and_each_service_is_remembered() {
        let (sender, receiver) = mpsc::channel();
        let gone = |address: &str, service| Gone { address: address.parse().expect("an address"), service };
        sender.send(vec![gone("[fd00::1]:53", 7)]).expect("a receiver");
        sender.send(vec![gone("10.0.0.1:53", 8), gone("[fd00::1]:53", 9)]).expect("a receiver");
        drop(sender);
        let lost = gather(vec![gone("10.0.0.1:53", 7)], &receiver);
        let expected: Lost = [("10.0.0.1:53", [7, 8]), ("[fd00::1]:53", [7, 9])]
            .map(|(address, services)| (address.parse().expect("an address"), services.into()))
            .into();
        assert_eq!(lost, expected);
    }

    #[test]
    fn a_sweep_that_fails_is_counted_and_the_next_one_is_made() {
        let metrics = Arc::new(Metrics::new(|| Ok(crate::kernel::view::Snapshot::default())));
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = peer.local_addr().expect("an address");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client.connect(address).expect("connect");
        let sender = start(PathBuf::from("/nonexistent"), metrics.clone()).expect("a thread");
        for failures in 1..=2 {
            sender.send(vec![Gone { address, service: 1 }]).expect("the thread runs");
            let line = format!("svc_socket_sweep_failures_total {failures}");
            svc_lab::until("the failure", Duration::from_secs(30), || {
                let text = metrics.encode().map_err(|error| error.to_string())?;
                if text.lines().any(|found| found == line) { Ok(()) } else { Err(text) }
            })
            .expect("the metric");
        }
        assert!(client.peer_addr().is_ok(), "what cannot be told to be redirected is left alone");
    }
}
