//! Probes: processes that send requests to a destination and report, as lines of JSON, who answered or what went wrong.
//!
//! They are processes so that the socket hooks of the place they run in see them. They decide nothing about success.

mod batch;
mod steady;
mod tcp;
mod udp;

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub(crate) use batch::Outcomes;
pub use batch::{BatchOptions, run_batch};
pub(crate) use steady::ASK;
pub use steady::Report;

use crate::echo::Answer;

/// Command line of `svc-lab probe`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Protocol
    #[arg(value_enum)]
    pub protocol: Protocol,
    /// Destination, as ADDRESS:PORT
    pub destination: SocketAddr,
    /// Source port; by default the kernel chooses
    #[arg(long, default_value_t = 0)]
    pub source_port: u16,
    /// Source address; by default the kernel chooses
    #[arg(long)]
    pub source: Option<std::net::IpAddr>,
    /// Length of each request in bytes, its tag included; at least the tag's
    #[arg(long, default_value_t = 0)]
    pub payload: usize,
    /// Length of padding to ask for in each answer, in bytes
    #[arg(long, default_value_t = 0)]
    pub pad: usize,
    /// Number of requests, each from a socket of its own
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// Send all requests from one connection or socket
    #[arg(long)]
    pub kept: bool,
    /// Send nothing more after a request that was not answered
    #[arg(long)]
    pub stop_at_failure: bool,
    /// UDP: connect the socket
    #[arg(long)]
    pub connected: bool,
    /// UDP: routers after which the datagram is returned as undeliverable
    #[arg(long)]
    pub hops: Option<u8>,
    /// UDP: after a failure other than a time-out, go on with a new socket
    #[arg(long)]
    pub reopen: bool,
    /// TCP: close the connection by a reset
    #[arg(long)]
    pub reset: bool,
    /// Milliseconds to wait for a connection and for each answer
    #[arg(long, default_value_t = 2000)]
    pub timeout: u64,
    /// TCP: download so many bytes in place of requests
    #[arg(long, value_name = "BYTES")]
    pub download: Option<u64>,
    /// TCP: upload so many bytes in place of requests
    #[arg(long, value_name = "BYTES")]
    pub upload: Option<u64>,
    /// Keep one connection or socket open and send a request every so many milliseconds until standard input ends; 0: only
    /// when a line of it says `ask`
    #[arg(long, value_name = "MILLISECONDS")]
    pub steady: Option<u64>,
}

/// Transport protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// What the server said.
    pub answer: Answer,
    /// The socket's own address, as `getsockname` gives it.
    pub source: SocketAddr,
    /// The peer as the client sees it: `getpeername`, or the sender of the answer for a socket that is not connected.
    pub peer: SocketAddr,
    /// Time from the request (TCP: from the connect, if it had one of its own) to the answer, in microseconds.
    pub micros: u64,
}

/// A request that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?}: {message}")]
pub struct Failure {
    /// What happened, as the application sees it.
    pub kind: FailureKind,
    /// The system's words for it.
    pub message: String,
}

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// ECONNREFUSED.
    Refused,
    /// No answer in time.
    Timeout,
    /// ECONNRESET or EPIPE.
    Reset,
    /// ECONNABORTED, EDESTADDRREQ: somebody on this machine ended the socket.
    Aborted,
    /// EHOSTUNREACH, ENETUNREACH.
    Unreachable,
    /// EPERM, EACCES: a firewall or a hook said no.
    Denied,
    /// The server closed the connection.
    Closed,
    /// EMSGSIZE: the path's MTU is smaller than the datagram.
    TooBig,
    /// The answer is not for this request, or its payload is not what was sent.
    Corrupt,
    /// Anything else, the lab's own failures included.
    Other,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::ConnectionRefused => FailureKind::Refused,
            Kind::TimedOut | Kind::WouldBlock => FailureKind::Timeout,
            Kind::ConnectionReset | Kind::BrokenPipe => FailureKind::Reset,
            Kind::ConnectionAborted => FailureKind::Aborted,
            Kind::HostUnreachable | Kind::NetworkUnreachable => FailureKind::Unreachable,
            Kind::PermissionDenied => FailureKind::Denied,
            Kind::UnexpectedEof => FailureKind::Closed,
            Kind::InvalidData => FailureKind::Corrupt,
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => FailureKind::TooBig,
            _ if error.raw_os_error() == Some(libc::EDESTADDRREQ) => FailureKind::Aborted,
            _ => FailureKind::Other,
        };
        // The system's own words for a read that took too long are about the socket's timer.
        let message = if error.kind() == Kind::WouldBlock { "no answer in time".into() } else { error.to_string() };
        Self { kind, message }
    }
}

/// One line of a probe's output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered.
    Answered(Success),
    /// Not answered.
    Failed(Failure),
    /// A steady probe has had its first answer.
    Started(Success),
    /// A steady probe has ended, or was asked how it is doing.
    Report(Report),
}

/// Runs the probe; prints an [`Outcome`] a line.
pub fn run(options: &Options) -> io::Result<()> {
    if let Some(interval) = options.steady {
        return steady::run(options, Some(Duration::from_millis(interval)).filter(|interval| !interval.is_zero()));
    }
    each(options, |outcome| print(&outcome))
}

/// Sends the requests and gives away each one's outcome.
fn each(options: &Options, mut tell: impl FnMut(Outcome) -> io::Result<()>) -> io::Result<()> {
    let outcome =
        |result: io::Result<Success>| result.map_or_else(|error| Outcome::Failed(error.into()), Outcome::Answered);
    if options.download.is_some() || options.upload.is_some() {
        return tell(outcome(tcp::transfer(options)));
    }
    let mut kept = None;
    for number in 0..options.count {
        let started = Instant::now();
        let channel = kept.take().map_or_else(|| Channel::open(options), Ok);
        let result = channel.and_then(|mut channel| {
            let success = channel.request(&request(options, number.into()), started)?;
            if options.kept {
                kept = Some(channel);
            }
            Ok(success)
        });
        let failed = result.is_err();
        tell(outcome(result))?;
        if failed && options.stop_at_failure {
            break;
        }
    }
    Ok(())
}

fn print(outcome: &Outcome) -> io::Result<()> {
    let mut text = serde_json::to_vec(outcome)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}

/// One socket to the destination: what requests are sent on.
enum Channel {
    Tcp(tcp::Connection),
    Udp(udp::Socket),
}

impl Channel {
    fn open(options: &Options) -> io::Result<Self> {
        Ok(match options.protocol {
            Protocol::Tcp => Self::Tcp(tcp::Connection::open(options)?),
            Protocol::Udp => Self::Udp(udp::Socket::open(options)?),
        })
    }

    fn request(&mut self, request: &[u8], started: Instant) -> io::Result<Success> {
        match self {
            Self::Tcp(connection) => connection.request(request, started),
            Self::Udp(socket) => socket.request(request, started),
        }
    }
}

/// The request with that number: a tag no other request of this probe has, filled up to the length asked for.
fn request(options: &Options, number: u64) -> Vec<u8> {
    let mut text = if options.pad > 0 { format!("PAD {} {number}", options.pad) } else { format!("request-{number}") };
    if text.len() < options.payload {
        text.push(' ');
        while text.len() < options.payload {
            text.push(char::from(b'a' + (text.len() % 23) as u8));
        }
    }
    text.into_bytes()
}

/// Whether the answer belongs to the request.
fn check(answer: &Answer, request: &[u8]) -> io::Result<()> {
    if answer.length == request.len() as u64 && answer.hash == crate::echo::hash(request) {
        return Ok(());
    }
    let text = format!("sent {} bytes, the server saw {} others", request.len(), answer.length);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")) } else { Ok(left) }
}

/// The address to bind to before sending to `destination`.
fn source(options: &Options) -> SocketAddr {
    let any = if options.destination.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)
    };
    SocketAddr::new(options.source.unwrap_or(any), options.source_port)
}
