//! A setting and what happens in it: packets, answers to what came of them, changes of the tables. Every source of cases
//! ends here (`generate` makes them of arbitrary bytes, `trace` reads real packets), and everything that runs cases begins
//! here: the fuzz targets, and the comparison with the kernel.
//!
//! It never judges a packet.

use svc_ebpf::Verdict;

use crate::{
    craft,
    wire::{dissect, network},
    world::{Change, Outcome, Packet, Setting},
};

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A packet meets a hook.
    Packet(Packet),
    /// The last packet that passed is answered, at the other hook, with these flags if it is TCP.
    Answer {
        /// TCP flags of the answer.
        tcp_flags: u8,
        /// The answer comes in where it would be routed out, as at the port of a bridge.
        same_hook: bool,
    },
    /// The last packet that passed where it came in leaves, as it was forwarded.
    Leave,
    /// Somebody complains by ICMP about the last packet that passed, and the complaint meets the other hook.
    Complain {
        /// Last byte of the complainer's address; 0: the packet's destination.
        from: u8,
        /// ICMP type, see [`craft::error`].
        kind: u8,
        /// Bytes of the packet that the complaint carries.
        head: usize,
    },
    /// The first fragment of the datagram that was last held comes, with these ports.
    Lead {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
    },
    /// The tables change.
    Change(Change),
}

/// A setting and what happens in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// The tables at the beginning.
    pub setting: Setting,
    /// What happens then.
    pub events: Vec<Event>,
}

/// The packets that others depend on: the last one that passed, and the last one that was held.
#[derive(Debug, Default)]
pub struct Last(Option<(Packet, Outcome)>, Option<Packet>);

impl Last {
    /// Remembers what became of a packet.
    pub fn remember(&mut self, packet: &Packet, outcome: &Outcome) {
        match outcome.verdict {
            Verdict::Pass => self.0 = Some((packet.clone(), outcome.clone())),
            Verdict::Held => self.1 = Some(packet.clone()),
            _ => {}
        }
    }

    /// The packet that an event stands for, if it is one.
    pub fn packet(&self, event: &Event) -> Option<Packet> {
        match event {
            Event::Packet(packet) => Some(packet.clone()),
            Event::Answer { tcp_flags, same_hook } => {
                let (packet, link, ip) = self.ip()?;
                let answer = craft::answer(ip, *tcp_flags)?;
                let egress = packet.egress == *same_hook;
                Some(Packet { egress, bare: packet.bare, bytes: [link, &answer].concat(), mark: 0 })
            }
            Event::Leave => {
                let (packet, outcome) = self.0.as_ref()?;
                let leaves =
                    Packet { egress: true, bytes: outcome.bytes.clone(), mark: outcome.mark, ..packet.clone() };
                (!packet.egress).then_some(leaves)
            }
            Event::Complain { from, kind, head } => {
                let (packet, _, ip) = self.ip()?;
                let layout = dissect(ip, 0)?;
                let is_v4 = layout.version == 4;
                let address = |range: std::ops::Range<usize>| -> Option<std::net::IpAddr> {
                    let bytes = &ip[range];
                    match is_v4 {
                        true => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
                        false => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
                    }
                };
                let source =
                    if *from == 0 { address(layout.destination)? } else { crate::world::address(is_v4, *from) };
                let bytes = craft::error(ip, source, address(layout.source)?, *kind, *head);
                Some(Packet { egress: !packet.egress, bare: false, bytes, mark: 0 })
            }
            Event::Lead { source_port, destination_port } => {
                let held = self.1.as_ref()?;
                let bytes = craft::first_fragment(&held.bytes, !held.bare, *source_port, *destination_port)?;
                Some(Packet { bytes, ..*held })
            }
            Event::Change(_) => None,
        }
    }

    /// The last packet, its link header and its IP packet, as they were after the hook.
    fn ip(&self) -> Option<(&Packet, &[u8], &[u8])> {
        let (packet, outcome) = self.0.as_ref()?;
        let at = network(&outcome.bytes, !packet.bare)?;
        let (link, ip) = outcome.bytes.split_at_checked(at)?;
        dissect(ip, 0)?;
        Some((packet, link, ip))
    }
}
