//! The clients. Each kind of traffic first shows that it is answered, so that no figure is of packets that go nowhere.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, connect, send, socket};

use super::{
    Outcome, Send, Way,
    messages::{BURST, Burst, LEN},
    meter::Meter,
    server::{ASKING, REQUEST},
};

const PATIENCE: Duration = Duration::from_secs(10);
const QUESTIONS_AT_MOST: u32 = 50;
/// Connections open at a time.
const OPEN: u32 = 32;
/// New flows of a source address use these ports.
const PORTS: std::ops::Range<u32> = 1024..65_024;

pub(super) fn run(send: &Send) -> Result<Outcome> {
    match send.way {
        Way::Datagrams => measured(send, datagrams),
        Way::Answered => measured(send, answered),
        Way::Flows => measured(send, flows),
        Way::Sockets => measured(send, sockets),
        Way::Connections => connections(send),
        Way::Connect => connect_times(send),
    }
}

/// Datagrams that the server has seen up to now.
fn seen(to: SocketAddrV4) -> Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    ask(&socket)
}

/// Asks until there is an answer: after a long burst the server has no room for a question.
fn ask(socket: &UdpSocket) -> Result<u64> {
    socket.set_read_timeout(Some(PATIENCE / QUESTIONS_AT_MOST))?;
    for _ in 0..QUESTIONS_AT_MOST {
        socket.send(&[ASKING; LEN])?;
        let mut count = [0; 8];
        match socket.recv(&mut count) {
            Ok(read) => {
                ensure!(read == count.len(), "an answer of {read} bytes");
                return Ok(u64::from_be_bytes(count));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the server of {} does not answer", socket.peer_addr()?)
}

/// Looks without news after which what the server has not seen is lost.
const LOOKS: u32 = 50;
/// Questions that each kind of traffic asks before it begins.
const QUESTIONS: u64 = 1;

/// Runs something between two looks at the server, the clock and the meter.
fn measured(what: &Send, work: impl FnOnce(&Send, Begin<'_>) -> Result<()>) -> Result<Outcome> {
    let meter = Meter::new(what.server)?;
    let mut begun = None;
    let before = seen(what.to)?;
    work(what, &mut || {
        begun = Some((meter.read()?, Instant::now()));
        Ok(())
    })?;
    let (cpu, start) = begun.context("nothing was measured")?;
    let elapsed = start.elapsed();

    // The server may still have much to take in: its time counts until it has.
    let (mut delivered, mut looks, mut asked) = (0, 0, 0);
    while delivered < what.count && looks < LOOKS {
        asked += 1;
        let now = u32::try_from(seen(what.to)?.saturating_sub(before + QUESTIONS + asked))?;
        looks = if now > delivered { 0 } else { looks + 1 };
        delivered = now;
    }
    let cpu = meter.read()?.saturating_sub(cpu);
    Ok(Outcome {
        operations: what.count,
        delivered,
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        connect_seconds: 0.0,
    })
}

type Begin<'a> = &'a mut dyn FnMut() -> Result<()>;

fn connected(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    // Netfilter calls a flow established when it was answered.
    ask(&socket)?;
    Ok(socket)
}

fn datagrams(what: &Send, begin: Begin<'_>) -> Result<()> {
    let socket = connected(what.to)?;
    let mut burst = Burst::new();
    begin()?;
    let mut left = what.count as usize;
    while left > 0 {
        let count = left.min(BURST);
        burst.send(socket.as_fd(), count, None)?;
        left -= count;
    }
    Ok(())
}

fn answered(what: &Send, begin: Begin<'_>) -> Result<()> {
    let socket = connected(what.to)?;
    let (mut burst, mut answers) = (Burst::new(), Burst::new());
    for datagram in &mut burst.datagrams {
        datagram[0] = ASKING;
    }
    begin()?;
    let mut left = what.count as usize;
    while left > 0 {
        let count = left.min(BURST);
        burst.send(socket.as_fd(), count, None)?;
        let mut missing = count;
        while missing > 0 {
            match answers.receive(socket.as_fd()) {
                Ok(received) => missing = missing.saturating_sub(received),
                // Lost: the server's count says so.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        left -= count;
    }
    Ok(())
}

/// Address and port of a new flow.
fn source(what: &Send, number: u32) -> SocketAddrV4 {
    let ports = PORTS.end - PORTS.start;
    let address = u32::from(what.source).wrapping_add(number / ports);
    SocketAddrV4::new(address.into(), (PORTS.start + number % ports) as u16)
}

fn flows(what: &Send, begin: Begin<'_>) -> Result<()> {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, nix::sys::socket::SockProtocol::Raw)
        .context("cannot open a raw socket")?;
    let mut burst = Burst::new();
    for datagram in &mut burst.datagrams {
        *datagram = headers(what.to);
    }
    // The route's neighbour is asked for once, and not while it is measured.
    ask_once(what.to)?;
    begin()?;
    let mut done = 0;
    while done < what.count {
        let count = (what.count - done).min(BURST as u32);
        for (at, datagram) in (done..done + count).zip(&mut burst.datagrams) {
            let from = source(what, at);
            datagram[12..16].copy_from_slice(&from.ip().octets());
            datagram[20..22].copy_from_slice(&from.port().to_be_bytes());
        }
        burst.send(raw.as_fd(), count as usize, Some(what.to))?;
        done += count;
    }
    Ok(())
}

fn ask_once(to: SocketAddrV4) -> Result<()> {
    connected(to).map(drop)
}

/// An IPv4 header, whose checksum the kernel fills in, a UDP header without a checksum, and zeros.
fn headers(to: SocketAddrV4) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let len = LEN as u16;
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[8] = 64;
    bytes[9] = 17;
    bytes[16..20].copy_from_slice(&to.ip().octets());
    bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
    bytes[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    bytes
}

fn sockets(what: &Send, begin: Begin<'_>) -> Result<()> {
    ask_once(what.to)?;
    begin()?;
    let payload = [0; LEN - 28];
    for number in 0..what.count {
        let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        bind(fd, &SockaddrIn::from(source(what, number)))?;
        connect(fd, &SockaddrIn::from(what.to))?;
        send(fd, &payload, MsgFlags::empty())?;
    }
    Ok(())
}

/// Connects, asks, is answered, and waits for the server's end; how long connect took.
fn converse(to: SocketAddrV4) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let connected = start.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[7; REQUEST])?;
    let mut answer = Vec::with_capacity(REQUEST);
    stream.read_to_end(&mut answer)?;
    ensure!(answer == [7; REQUEST], "an answer of {} bytes", answer.len());
    Ok(connected)
}

fn connections(what: &Send) -> Result<Outcome> {
    converse(what.to)?;
    let meter = Meter::new(what.server)?;
    let (cpu, start) = (meter.read()?, Instant::now());
    let each = what.count / OPEN;
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..OPEN).map(|_| scope.spawn(|| (0..each).try_for_each(|_| converse(what.to).map(drop)))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a client panicked"),
        })
    })?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), meter.read()?.saturating_sub(cpu));
    let done = each * OPEN;
    Ok(Outcome { operations: done, delivered: done, seconds, cpu_seconds: cpu.as_secs_f64(), connect_seconds: 0.0 })
}

fn connect_times(what: &Send) -> Result<Outcome> {
    converse(what.to)?;
    let meter = Meter::new(what.server)?;
    let (cpu, start) = (meter.read()?, Instant::now());
    let mut times: Vec<Duration> = (0..what.count).map(|_| converse(what.to)).collect::<Result<_>>()?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), meter.read()?.saturating_sub(cpu));
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Outcome {
        operations: what.count,
        delivered: what.count,
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
        connect_seconds: median.as_secs_f64(),
    })
}
