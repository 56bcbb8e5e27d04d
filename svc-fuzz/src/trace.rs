//! Real packets in a file: what the target `frames` reads, and its seeds are. Bytes are packets here, so that a fuzzer
//! mutates what the parser sees.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | the setting: bits 0–1 scope, 2 bridge port, 3 affinity, 4 remote backends, 5 the programs masquerade |
//! | then for each packet: 1 | bit 0 egress, 1 no link header, 2 a unit of time passes before it, 3 the first backend goes before it, 4 it is marked for the programs |
//! | 2 | length, *network order*; one that is too large means: all there is |
//! | length | the frame |

use svc_common::masquerade::PROGRAM_MARK;

use crate::{
    case::{Case, Event},
    world::{BackendPlan, Change, Packet, Setting},
};

/// At most this many packets are read.
const MOST_PACKETS: usize = 32;

/// The case in a file.
pub fn read(bytes: &[u8]) -> Case {
    let mut case = Case::default();
    let Some((&first, mut rest)) = bytes.split_first() else { return case };
    case.setting = setting(first);
    while let [flags, high, low, frames @ ..] = rest {
        if case.events.len() >= MOST_PACKETS {
            break;
        }
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(frames.len());
        let (frame, after) = frames.split_at(len);
        rest = after;
        if flags & 4 != 0 {
            case.events.push(Event::Change(Change::Age(1)));
        }
        if flags & 8 != 0 {
            let gone = BackendPlan { host: 1, state: 0, local: true, generation: 1 };
            case.events.push(Event::Change(Change::SetBackend(0, gone)));
        }
        let packet = Packet {
            egress: flags & 1 != 0,
            bare: flags & 2 != 0,
            bytes: frame.to_vec(),
            mark: if flags & 16 != 0 { PROGRAM_MARK } else { 0 },
        };
        case.events.push(Event::Packet(packet));
    }
    case
}

fn setting(bits: u8) -> Setting {
    let mut setting = Setting::default();
    setting.interface.scope = bits & 3;
    setting.interface.bridge_port = bits & 4 != 0;
    setting.frontends.iter_mut().for_each(|frontend| frontend.affinity = bits & 8 != 0);
    setting.backends.iter_mut().for_each(|backend| backend.local = bits & 16 == 0);
    setting.programs = bits & 32 != 0;
    setting
}

/// A file of these packets.
pub fn write(setting: u8, packets: &[Packet]) -> Vec<u8> {
    let mut bytes = vec![setting];
    for Packet { egress, bare, bytes: frame, mark } in packets {
        bytes.push(u8::from(*egress) | u8::from(*bare) << 1 | u8::from(*mark != 0) << 4);
        bytes.extend((frame.len() as u16).to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}
