//! Datagrams, and what both transports share. Everything here runs on one thread and never waits for anybody.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use super::{
    answer::{self, Forward, QUERY_MOST, Question, Request, Step, Transport},
    client::Clients,
    forward::Forwarder,
    limit::Limit,
    metrics::Counters,
    up::Doors,
    zone::Zone,
};

/// Datagrams answered before others get their turn.
const DATAGRAMS_A_TURN: usize = 32;
/// Bytes of datagrams that the kernel holds for us.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Time between two attempts to bind: whoever takes over from an earlier agent is not long in coming.
const RETRY: Duration = Duration::from_millis(100);

/// What answers are made of.
pub(super) struct Server {
    pub(super) zone: RefCell<Zone>,
    pub(super) forwarder: Forwarder,
    pub(super) counters: Arc<Counters>,
    clients: Clients,
    limit: RefCell<Limit>,
    turn: Cell<usize>,
    started: Instant,
}

/// What to do with a request.
pub(super) enum Todo {
    /// Nothing.
    Nothing,
    /// Send this.
    Send(Vec<u8>, Option<Box<Question>>),
    /// Wait for a resolver.
    Wait(Box<Forward>),
}

impl Server {
    pub(super) fn new(zone: Zone, clients: Clients, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            zone: RefCell::new(zone),
            forwarder: Forwarder::new(counters.clone()),
            counters,
            clients,
            limit: RefCell::default(),
            turn: Cell::new(0),
            started: Instant::now(),
        })
    }

    /// Whether this client may ask; if not, what it sent is counted, and nothing else is to be done with it.
    pub(super) fn admits(&self, client: SocketAddr) -> bool {
        let admitted = self.clients.allows(client.ip());
        if !admitted {
            self.counters.drop_for("client");
        }
        admitted
    }

    /// What a request leads to at once. A fault in reading or writing messages costs that request only.
    pub(super) fn handle(&self, bytes: &[u8], transport: Transport) -> Todo {
        self.counters.query(transport);
        let todo = catch_unwind(AssertUnwindSafe(|| self.consider(bytes, transport)));
        todo.unwrap_or_else(|_| {
            self.counters.drop_for("fault");
            Todo::Nothing
        })
    }

    fn consider(&self, bytes: &[u8], transport: Transport) -> Todo {
        match answer::read(bytes, transport) {
            Request::Drop(reason) => {
                self.counters.dropped(reason);
                Todo::Nothing
            }
            Request::Refuse(bytes, code) => {
                self.counters.answer(code);
                Todo::Send(bytes, None)
            }
            Request::Ask(question) => {
                self.turn.set(self.turn.get().wrapping_add(1));
                let again = Some(Box::new(question.clone()));
                match answer::answer(&self.zone.borrow(), question, self.turn.get()) {
                    Step::Done(bytes, code) => self.done(bytes, code, again),
                    Step::Forward(forward) => match self.forwarder.remembered(&forward.query, &forward.question) {
                        Some((message, age)) => match answer::forwarded(*forward, Ok(&message), age) {
                            Step::Done(bytes, code) => self.done(bytes, code, again),
                            Step::Forward(_) => Todo::Nothing,
                        },
                        None => Todo::Wait(forward),
                    },
                }
            }
        }
    }

    fn done(&self, bytes: Vec<u8>, code: ResponseCode, question: Option<Box<Question>>) -> Todo {
        self.counters.answer(code);
        Todo::Send(bytes, question)
    }

    /// The answer to a question that a resolver has to be asked.
    pub(super) async fn wait(&self, forward: Box<Forward>, client: SocketAddr) -> Vec<u8> {
        let answer = self.forwarder.ask(&forward.query, &forward.question, client.ip()).await;
        if answer.is_ok() {
            self.counters.forward_answered();
        }
        match answer::forwarded(*forward, answer.as_deref().map_err(|&code| code), 0) {
            Step::Done(bytes, code) => {
                self.counters.answer(code);
                bytes
            }
            Step::Forward(_) => Vec::new(),
        }
    }

    /// The answer as it may go over UDP: an empty one if the client has had much more than twice what it sent.
    fn fit(&self, answer: Vec<u8>, question: Option<&Question>, asked: usize, client: SocketAddr) -> Vec<u8> {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // An answer of twice the size is no weapon: small ones are never counted.
        let more = answer.len().saturating_sub(2 * asked);
        let Some(question) = question else { return answer };
        if self.limit.borrow_mut().allows(client.ip(), more, now) {
            // Fourth byte of the flags: the second-lowest bit of the first one says that it is not whole.
            if answer.get(2).is_some_and(|flags| flags & 2 != 0) {
                self.counters.truncated_for("size");
            }
            return answer;
        }
        self.counters.truncated_for("limit");
        question.truncated().unwrap_or_default()
    }

    /// Answers datagrams for ever.
    pub(super) async fn serve_udp(self: Rc<Self>, address: SocketAddr, doors: Rc<Doors>) {
        let socket = Rc::new(kept(address, "udp", || bind(address)).await);
        let _open = doors.open();
        // One byte more than a query may have, so that longer ones are seen to be.
        let mut buffer = [0; QUERY_MOST + 1];
        loop {
            if let Err(error) = socket.readable().await {
                tracing::warn!(%address, %error, "dns: cannot receive");
                tokio::time::sleep(RETRY).await;
            }
            for _ in 0..DATAGRAMS_A_TURN {
                let (length, client) = match socket.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // What an earlier answer met, such as a port that is closed meanwhile.
                    Err(_) => continue,
                };
                if !self.admits(client) {
                    continue;
                }
                let request = buffer.get(..length).unwrap_or_default();
                match self.handle(request, Transport::Udp) {
                    Todo::Nothing => {}
                    Todo::Send(answer, question) => {
                        let answer = self.fit(answer, question.as_deref(), length, client);
                        self.send(&socket, &answer, client);
                    }
                    Todo::Wait(forward) => {
                        let (server, socket) = (self.clone(), socket.clone());
                        tokio::task::spawn_local(async move {
                            let question = forward.question.clone();
                            let answer = server.wait(forward, client).await;
                            let answer = server.fit(answer, Some(&question), length, client);
                            server.send(&socket, &answer, client);
                        });
                    }
                }
            }
            // Changes of the zone come before more datagrams.
            tokio::task::yield_now().await;
        }
    }

    fn send(&self, socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
        if answer.is_empty() {
            self.counters.drop_for("unencodable");
        } else if socket.try_send_to(answer, client).is_err() {
            // A full buffer, or nobody to send to: the client asks again.
            self.counters.drop_for("unsent");
        }
    }
}

/// Makes a socket, again and again until it can be made.
pub(super) async fn kept<T>(address: SocketAddr, what: &str, make: impl Fn() -> io::Result<T>) -> T {
    let mut said = false;
    loop {
        match make() {
            Ok(socket) => {
                tracing::info!(%address, "dns: serving {what}");
                return socket;
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(%address, %error, "dns: cannot serve {what}, will try again: is the address this node's, and the port free?");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    UdpSocket::from_std(socket)
}
