//! Cases of arbitrary bytes: mostly a few connections that meet each other and what networks do to them, sometimes junk.
//!
//! It only makes cases. The same bytes always make the same one.

use std::net::SocketAddr;

use arbitrary::{Result, Unstructured};
use svc_common::frontend::{
    FLAG_CLUSTER_IP, FLAG_EXTERNAL_IP, FLAG_HOST_ONLY, FLAG_INSIDE_DROP, FLAG_INSIDE_LOCAL, FLAG_LOAD_BALANCER,
    FLAG_NODE_PORT, FLAG_OUTSIDE_DROP, FLAG_OUTSIDE_LOCAL, FLAG_SOURCE_RANGES,
};
use svc_common::vip::{VIP_INSIDE, VIP_OUTSIDE};

use crate::{
    case::{Case, Event},
    craft::{ACK, Checksum, FIN, Fragment, Frame, RST, SYN, Transport, error},
    world::{
        BACKEND_PORT, BACKENDS, BackendPlan, Change, FRONTENDS, FrontendPlan, InterfacePlan, OTHER_PORT, Packet, SLOTS,
        Setting, UNOWNED, address,
    },
};

/// At most this many events: a case has to be short enough for somebody to read.
const MOST_EVENTS: usize = 64;

/// A client that talks to a frontend.
#[derive(Clone, Copy, Debug)]
struct Conversation {
    is_v4: bool,
    client: u8,
    client_port: u16,
    frontend: usize,
    backend: u8,
}

/// The case that these bytes stand for. Bytes that end early make a short one.
pub fn case(bytes: &[u8]) -> Case {
    let mut u = Unstructured::new(bytes);
    let mut case = Case { setting: setting(&mut u).unwrap_or_default(), events: Vec::new() };
    let conversations = conversations(&mut u).unwrap_or_default();
    while !u.is_empty() && case.events.len() < MOST_EVENTS {
        match event(&mut u, &conversations) {
            Ok(event) => case.events.push(event),
            Err(_) => break,
        }
    }
    case
}

fn setting(u: &mut Unstructured<'_>) -> Result<Setting> {
    let interface = interface(u)?;
    let backends: Vec<_> = (0..BACKENDS).map(|_| backend(u)).collect::<Result<_>>()?;
    // Mostly slots of the right Service; some that name no backend, or one of the other Service.
    let slots = (0..SLOTS)
        .map(|n| match u.ratio(1, 12)? {
            true => u.int_in_range(0..=BACKENDS + 1),
            false if n < 12 => u.int_in_range(1..=4),
            false => u.int_in_range(5..=6),
        })
        .collect::<Result<_>>()?;
    let frontends = (0..FRONTENDS.len()).map(|n| frontend(u, n)).collect::<Result<_>>()?;
    // Of no byte of its own: those that were ever found keep their meaning.
    let programs = backends.first().is_some_and(|backend: &BackendPlan| backend.generation == 2);
    Ok(Setting { interface, backends, slots, frontends, vips: vips(u)?, targets: u.arbitrary()?, programs })
}

fn vips(u: &mut Unstructured<'_>) -> Result<u32> {
    if u.arbitrary()? { Ok(VIP_INSIDE | VIP_OUTSIDE) } else { Ok(*u.choose(&[VIP_INSIDE, VIP_OUTSIDE, 0])?) }
}

fn interface(u: &mut Unstructured<'_>) -> Result<InterfacePlan> {
    Ok(InterfacePlan { scope: u.int_in_range(0..=2)?, bridge_port: u.ratio(1, 3)? })
}

fn backend(u: &mut Unstructured<'_>) -> Result<BackendPlan> {
    let state = if u.ratio(2, 3)? { 1 } else { u.int_in_range(0..=2)? };
    Ok(BackendPlan { host: u.int_in_range(1..=5)?, state, local: u.arbitrary()?, generation: u.int_in_range(1..=2)? })
}

fn frontend(u: &mut Unstructured<'_>, n: usize) -> Result<FrontendPlan> {
    let kind = *u.choose(&[FLAG_CLUSTER_IP, FLAG_NODE_PORT, FLAG_LOAD_BALANCER, FLAG_EXTERNAL_IP])?;
    let extra = match u.int_in_range(0..=9)? {
        0 => FLAG_INSIDE_DROP | FLAG_OUTSIDE_DROP,
        1 => FLAG_HOST_ONLY,
        2 => FLAG_SOURCE_RANGES,
        3 => FLAG_INSIDE_LOCAL,
        4 => FLAG_OUTSIDE_LOCAL,
        _ => 0,
    };
    let mut range = || -> Result<(u32, u32)> {
        let len = if u.ratio(1, 6)? { 0 } else { u.int_in_range(1..=4)? };
        let first = if FRONTENDS[n].3 == 3 { u.int_in_range(0..=8)? } else { 12 };
        Ok((first, len))
    };
    let (inside, outside) = (range()?, range()?);
    Ok(FrontendPlan { flags: kind | extra, affinity: u.ratio(1, 5)?, inside, outside })
}

fn conversations(u: &mut Unstructured<'_>) -> Result<Vec<Conversation>> {
    let count = u.int_in_range(1..=4)?;
    (0..count)
        .map(|_| {
            Ok(Conversation {
                is_v4: u.arbitrary()?,
                // The first five are addresses of backends, too.
                client: *u.choose(&[1, 2, 3, 10, 11])?,
                client_port: *u.choose(&[1000, 50_001, 80, BACKEND_PORT, OTHER_PORT])?,
                frontend: u.choose_index(FRONTENDS.len())?,
                backend: u.int_in_range(1..=5)?,
            })
        })
        .collect()
}

fn event(u: &mut Unstructured<'_>, conversations: &[Conversation]) -> Result<Event> {
    Ok(match u.int_in_range(0..=19)? {
        0..=7 => Event::Packet(packet(u, conversations)?),
        8 => {
            let Conversation { client_port, frontend, .. } = *u.choose(conversations)?;
            Event::Lead { source_port: client_port, destination_port: FRONTENDS[frontend].1 }
        }
        12 | 13 => Event::Leave,
        9..=11 => Event::Answer { tcp_flags: tcp_flags(u)?, same_hook: u.ratio(1, 6)? },
        14..=16 => Event::Complain {
            from: *u.choose(&[0, 12, 1])?,
            kind: *u.choose(&[3, 11, 12, 3, 5, 2])?,
            head: *u.choose(&[28, 48, 100, 68, 27, 24, 20, 0])?,
        },
        _ => Event::Change(change(u)?),
    })
}

fn change(u: &mut Unstructured<'_>) -> Result<Change> {
    let n = u.choose_index(FRONTENDS.len())?;
    Ok(match u.int_in_range(0..=9)? {
        0 => Change::RemoveFrontend(n),
        1 | 2 => Change::SetFrontend(n, frontend(u, n)?),
        3 => Change::SetBackend(n, backend(u)?),
        4 => Change::RotateSlots(n),
        5 => Change::Interface(interface(u)?),
        6 => Change::Age(*u.choose(&[1, 93, 95, 1000, u32::MAX])?),
        7 => Change::Vips(vips(u)?),
        8 => Change::Targets(u.arbitrary()?),
        _ => Change::Evict(u.arbitrary::<u8>()?.into()),
    })
}

fn tcp_flags(u: &mut Unstructured<'_>) -> Result<u8> {
    match u.int_in_range(0..=7)? {
        0 | 1 => Ok(SYN),
        2 | 3 => Ok(SYN | ACK),
        4 => Ok(ACK),
        5 => Ok(FIN | ACK),
        6 => Ok(RST),
        _ => u.arbitrary(),
    }
}

fn packet(u: &mut Unstructured<'_>, conversations: &[Conversation]) -> Result<Packet> {
    if u.ratio(1, 40)? {
        let bytes = u.arbitrary::<Vec<u8>>()?;
        return Ok(Packet { egress: u.arbitrary()?, bare: u.arbitrary()?, bytes, mark: 0 });
    }
    let Conversation { is_v4, client, client_port, frontend, backend } = *u.choose(conversations)?;
    let (vip_host, port, protocol, service) = FRONTENDS[frontend];
    let backend_port = if service == 3 { BACKEND_PORT } else { OTHER_PORT };
    let at = |host, port| SocketAddr::new(address(is_v4, host), port);
    let (client, vip, backend) = (at(client, client_port), at(vip_host, port), at(backend, backend_port));
    let (egress, source, destination) = match u.int_in_range(0..=12)? {
        0..=4 => (false, client, vip),
        5 => (u.ratio(1, 6)?, client, at(*u.choose(&[vip_host, UNOWNED, 99])?, *u.choose(&[81, port])?)),
        6 | 7 => (true, backend, client),
        8 => (false, backend, client),
        9 => (true, client, backend),
        10 | 11 => (false, client, backend),
        _ => (u.arbitrary()?, vip, client),
    };
    let transport = match u.int_in_range(0..=15)? {
        0 => Transport::Sctp(u.int_in_range(0..=14)?),
        1 => Transport::Echo { reply: u.ratio(1, 4)? },
        2 => Transport::Other(u.arbitrary()?),
        _ if protocol == crate::wire::SCTP => Transport::Sctp(*u.choose(&[0, 1, 1, 2, 3, 6, 10, 14])?),
        // The other protocol on the same port.
        3 if protocol == crate::wire::TCP => Transport::Udp,
        _ if protocol == crate::wire::TCP => Transport::Tcp(tcp_flags(u)?),
        _ => Transport::Udp,
    };
    let mut frame = Frame::new(source, destination, transport);
    let payload = u.int_in_range(0..=24)?;
    frame.payload = u.bytes(payload)?.to_vec();
    if u.ratio(1, 3)? {
        for _ in 0..u.int_in_range(1..=2)? {
            decorate(u, &mut frame)?;
        }
    }
    let mut bytes = frame.bytes();
    if u.ratio(1, 10)? {
        let about = Frame { bare: true, ..frame }.bytes();
        frame = Frame::new(source, destination, transport);
        let kind = *u.choose(&[3, 11, 12, 0, 4, 5])?;
        let head = about.len().saturating_sub(u.int_in_range(0..=8)?);
        bytes = error(&about, destination.ip(), source.ip(), kind, head);
    }
    if u.ratio(1, 12)? {
        for _ in 0..u.int_in_range(1..=3)? {
            let (at, value) = (u.int_in_range(0..=99)?, u.arbitrary()?);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
    }
    if u.ratio(1, 16)? {
        let len = u.int_in_range(0..=bytes.len())?;
        bytes.truncate(len);
    }
    Ok(Packet { egress, bare: frame.bare, bytes, mark: 0 })
}

/// What is not plain about a frame.
fn decorate(u: &mut Unstructured<'_>, frame: &mut Frame) -> Result<()> {
    match u.int_in_range(0..=7)? {
        0 | 1 => {
            let offset = *u.choose(&[0, 0, 0, 1, 185, 0x1fff])?;
            frame.fragment = Some(Fragment { id: u.int_in_range(1..=2)?, offset, more: u.arbitrary()? });
        }
        2 => frame.options = u.int_in_range(0..=10)?,
        3 => {
            for _ in 0..u.int_in_range(1..=6)? {
                frame.extensions.push(*u.choose(&[0, 43, 60, 44, 51])?);
            }
        }
        4 => frame.checksum = if u.arbitrary()? { Checksum::Zero } else { Checksum::Off(u.arbitrary()?) },
        5 => frame.tags = u.int_in_range(1..=3)?,
        6 => frame.bare = true,
        _ => frame.padding = u.int_in_range(0..=20)?,
    }
    Ok(())
}
