//! Runs cases through the packet path on the host and judges every packet.
//!
//! Beside what `judge` says of single packets: a packet that opens a flow changes no other flow's translation, and the
//! answer to it comes from the address that the client had asked for.

use std::net::{IpAddr, SocketAddr};

use svc_common::{Flow, FlowKey, Hook, masquerade::PROGRAM_MARK};
use svc_ebpf::{Verdict, host::HostTables};

use crate::{
    case::{Case, Event, Last},
    craft::{ACK, answer},
    judge::{Circumstances, answered, passed, refused},
    wire::{Position, SCTP, TCP, UDP, dissect, network, word},
    world::{BRIDGE, MARK, Outcome, Packet, Plan, World},
};

/// How much of a case met something: what a generator of cases is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Packets whose bytes changed.
    pub translated: u32,
    /// Packets dropped.
    pub dropped: u32,
    /// Packets refused.
    pub refused: u32,
    /// Echo requests answered.
    pub answered: u32,
    /// Flows opened.
    pub opened: u32,
    /// Fragments that came before the first one.
    pub held: u32,
    /// First fragments that others had waited for.
    pub again: u32,
}

/// Runs a case and panics where the packet path does what it must not.
pub fn run(case: &Case) -> Met {
    let mut world = World::new(&case.setting);
    let mut last = Last::default();
    let mut met = Met::default();
    let mut waiting: Vec<Packet> = Vec::new();
    for event in &case.events {
        if let Event::Change(change) = event {
            world.apply(*change);
            continue;
        }
        let Some(packet) = last.packet(event).filter(|packet| world.can_carry(packet)) else { continue };
        let outcome = step(&mut world, &packet, &mut last, &mut met);
        match outcome.verdict {
            Verdict::Held => waiting.push(packet),
            Verdict::Again => {
                comes_again(&packet, &outcome, &mut waiting);
                for packet in outcome.again {
                    let outcome = step(&mut world, &packet, &mut last, &mut met);
                    let is_over = !matches!(outcome.verdict, Verdict::Held | Verdict::Again);
                    assert!(is_over, "{:?}: it came in again with its first fragment", outcome.verdict);
                }
            }
            _ => {}
        }
    }
    met
}

/// One packet.
fn step(world: &mut World, packet: &Packet, last: &mut Last, met: &mut Met) -> Outcome {
    let before = world.clone();
    let outcome = world.run(packet);
    judge(packet, &outcome, &before, world);
    match outcome.verdict {
        Verdict::Pass => met.translated += u32::from(outcome.bytes != packet.bytes),
        Verdict::Drop(_) => met.dropped += 1,
        Verdict::Refuse(_) => met.refused += 1,
        Verdict::Answer => met.answered += 1,
        Verdict::Held => met.held += 1,
        Verdict::Again => met.again += 1,
    }
    met.opened += u32::from(opened(packet, &outcome, &before, world));
    last.remember(packet, &outcome);
    outcome
}

/// What comes in again is the first fragment itself, and then packets that were held, each once.
fn comes_again(packet: &Packet, outcome: &Outcome, waiting: &mut Vec<Packet>) {
    let Some((first, others)) = outcome.again.split_first() else { panic!("nothing came in again") };
    assert_eq!(first.bytes, packet.bytes, "the first fragment comes in as it was");
    for other in others {
        let at = waiting.iter().position(|held| held.bytes == other.bytes);
        assert!(at.map(|at| waiting.swap_remove(at)).is_some(), "{other:02x?} was not held");
    }
}

fn judge(packet: &Packet, outcome: &Outcome, before: &World, after: &World) {
    match outcome.verdict {
        Verdict::Pass => {
            let interface = before.v4.interface;
            let bridge = (interface.flags != 0).then_some(BRIDGE);
            let circumstances = Circumstances { egress: packet.egress, has_link: !packet.bare, bridge };
            passed(&packet.bytes, &outcome.bytes, circumstances);
        }
        // What is dropped may be half rewritten.
        Verdict::Drop(_) => {}
        Verdict::Refuse(_) => refused(&packet.bytes, &outcome.bytes, !packet.bare),
        Verdict::Answer => answered(&packet.bytes, &outcome.bytes, !packet.bare),
        Verdict::Held => {
            assert!(is_fragment(packet, Position::Later) && !packet.egress, "{packet:02x?} was held");
        }
        Verdict::Again => assert!(is_fragment(packet, Position::First) && !packet.egress, "{packet:02x?} came again"),
    }
    // Bits that somebody else had set stay.
    let marked = !packet.egress && [MARK, PROGRAM_MARK].contains(&(outcome.mark & !packet.mark));
    assert!([0, packet.mark].contains(&outcome.mark) || marked, "mark {:#x}", outcome.mark);
    if opened(packet, outcome, before, after) {
        keeps_others(&before.v4, &after.v4, packet, outcome);
        keeps_others(&before.v6, &after.v6, packet, outcome);
        is_answered(packet, outcome, after);
    }
}

fn is_fragment(packet: &Packet, position: Position) -> bool {
    let layout = network(&packet.bytes, !packet.bare).and_then(|at| dissect(&packet.bytes, at));
    layout.is_some_and(|layout| layout.position == position && matches!(layout.protocol, TCP | UDP | SCTP))
}

/// Whether the packet made a flow that was not there.
fn opened(packet: &Packet, outcome: &Outcome, before: &World, after: &World) -> bool {
    let grew = after.v4.flows.len() + after.v6.flows.len() > before.v4.flows.len() + before.v6.flows.len();
    !packet.egress && outcome.verdict == Verdict::Pass && outcome.bytes != packet.bytes && grew
}

/// Source and destination of a packet that has ports.
fn ends(bytes: &[u8], has_link: bool) -> Option<(SocketAddr, SocketAddr)> {
    let layout = dissect(bytes, network(bytes, has_link)?)?;
    if layout.position == Position::Later || !matches!(layout.protocol, TCP | UDP | SCTP) {
        return None;
    }
    let address = |range: std::ops::Range<usize>| -> Option<IpAddr> {
        let bytes = bytes.get(range)?;
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
    };
    let port = layout.payload.start;
    Some((
        SocketAddr::new(address(layout.source)?, word(bytes, port)?),
        SocketAddr::new(address(layout.destination)?, word(bytes, port + 2)?),
    ))
}

fn is_answered(packet: &Packet, outcome: &Outcome, world: &World) {
    let Some((client, asked)) = ends(&packet.bytes, !packet.bare) else { return };
    let at = network(&outcome.bytes, !packet.bare).unwrap_or_default();
    let (link, ip) = outcome.bytes.split_at(at);
    let Some(answer) = answer(ip, ACK) else { return };
    let answer = Packet { egress: true, bare: packet.bare, bytes: [link, &answer].concat(), mark: 0 };
    let answered = world.clone().run(&answer);
    let ends = ends(&answered.bytes, !packet.bare);
    assert_eq!(ends, Some((asked, client)), "the answer to a packet that opened a flow");
}

/// Flows other than the packet's own are translated as they were.
fn keeps_others<A: Plan>(before: &HostTables<A>, after: &HostTables<A>, packet: &Packet, outcome: &Outcome) {
    let Some(own) = ends(&packet.bytes, !packet.bare) else { return };
    for (key, flow) in &before.flows {
        let is_own = key.hook == Hook::Ingress as u8 && own == key_ends(key);
        if is_own || answers(key, flow) == own {
            continue;
        }
        let rewrite = |flow: &Flow<A>| (flow.address, flow.port, flow.peer_port);
        let now = after.flows.get(key).map(rewrite);
        assert_eq!(
            now,
            Some(rewrite(flow)),
            "{own:?} became {:?} and took {key:?}",
            ends(&outcome.bytes, !packet.bare)
        );
    }
}

fn key_ends<A: Plan>(key: &FlowKey<A>) -> (SocketAddr, SocketAddr) {
    (end(&key.source, key.source_port), end(&key.destination, key.destination_port))
}

/// The client of a reply's entry, and what the client had asked for. A flow may outlive its forward entry, and be opened once more.
fn answers<A: Plan>(key: &FlowKey<A>, flow: &Flow<A>) -> (SocketAddr, SocketAddr) {
    let client_port = if flow.peer_port == 0 { key.destination_port } else { flow.peer_port };
    (end(&key.destination, client_port), end(&flow.address, flow.port))
}

fn end<A: Plan>(address: &A, port: u16) -> SocketAddr {
    let bytes = bytemuck::bytes_of(address);
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).unwrap_or(IpAddr::from([0; 4]));
    SocketAddr::new(address, port)
}
