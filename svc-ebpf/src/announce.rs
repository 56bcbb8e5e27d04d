//! ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for addresses that this node announces: the frame becomes the
//! answer that a host of that address would give. What is malformed or asks for something else is left as it is.

use bytemuck::{Pod, Zeroable};
use network_types::eth::EthHdr;
use svc_common::Address;

use crate::{checksum::Change, frame::Frame};

/// Ethertype of ARP, *host order*.
pub const ARP: u16 = 0x0806;
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, lengths of their addresses, request or reply.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
const ICMPV6: u8 = 58;
/// Next header and hop limit of neighbour discovery: from farther away the hop limit would be less.
const NEIGHBOUR: [u8; 2] = [ICMPV6, 255];
const SOLICITATION: [u8; 2] = [135, 0];
const ADVERTISEMENT: [u8; 2] = [136, 0];
/// Flags of an advertisement: solicited, override. An address that is announced is no router's.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Option "target link-layer address", one unit of eight bytes long.
const TARGET_OPTION: [u8; 2] = [2, 1];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Options of a solicitation that are covered by its checksum, units of eight bytes; with more it is not answered.
const OPTIONS: usize = 4;
/// Offset of next header and hop limit, and of the ICMP type, behind an Ethernet header.
const NEXT_HEADER: usize = EthHdr::LEN + 6;
const ICMP: usize = EthHdr::LEN + 40;

/// What is announced where the frame came in.
pub trait Announcements {
    /// The hardware address that an IPv4 address is at; false if it is not announced.
    fn v4(&self, address: &[u8; 4], mac: &mut [u8; 6]) -> bool;
    /// The hardware address that an IPv6 address is at; false if it is not announced.
    fn v6(&self, address: &[u8; 16], mac: &mut [u8; 6]) -> bool;
}

/// A frame that can become another one.
pub trait Whole: Frame {
    /// Copies what there is at an offset; `None` if the frame ends before.
    fn load<T: Pod>(&self, offset: usize, into: &mut T) -> Option<()>;
    /// Makes it so many bytes long.
    fn resize(&mut self, len: usize) -> Option<()>;
}

/// Working memory, outside of the stack: there the verifier wants every access to be aligned, and fields of a frame are not
/// ("misaligned stack access off 0+0+-74 size 4").
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Room {
    neighbour: Neighbour,
    answer: Advertisement,
    request: Arp,
    reply: Arp,
    option: [u8; 8],
    mac: [u8; 6],
    pad: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arp {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
    kind: [u8; 8],
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Neighbour {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: [u8; 2],
    version: [u8; 4],
    length: [u8; 2],
    next: [u8; 2],
    from: [u8; 16],
    to: [u8; 16],
    kind: [u8; 2],
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Advertisement {
    head: Neighbour,
    option: [u8; 2],
    mac: [u8; 6],
}

const _: () = assert!(size_of::<Arp>() == 42 && size_of::<Neighbour>() == 78 && size_of::<Advertisement>() == 86);

/// True if a frame with an IPv6 header behind an Ethernet header is a neighbour solicitation: Services never have to do with
/// those.
#[inline(always)]
pub fn solicits<F: Frame>(frame: &mut F) -> bool {
    frame.require(ICMP + 2) && frame.get(NEXT_HEADER) == Some(NEIGHBOUR) && frame.get(ICMP) == Some(SOLICITATION)
}

/// Answers an ARP request; true if the frame is the answer now.
#[inline(always)]
pub fn arp<F: Whole>(frame: &mut F, announced: &impl Announcements, room: &mut Room) -> bool {
    let Room { request: asked, reply, mac, .. } = room;
    if frame.load(0, asked).is_none() {
        return false;
    }
    // Who announces the address as his own asks nobody.
    if u64::from_ne_bytes(asked.kind) != u64::from_ne_bytes(ARP_REQUEST)
        || asked.sender == asked.target
        || asked.sender_mac[0] & 1 != 0
    {
        return false;
    }
    if !announced.v4(&asked.target, mac) || (asked.destination[0] & 1 == 0 && !is_same(&asked.destination, mac)) {
        return false;
    }
    reply.destination = asked.sender_mac;
    reply.source = *mac;
    reply.ethertype = asked.ethertype;
    reply.kind = ARP_REPLY;
    reply.sender_mac = *mac;
    reply.sender = asked.target;
    reply.target_mac = asked.sender_mac;
    reply.target = asked.sender;
    frame.put(0, reply).is_some()
}

/// Answers a neighbour solicitation; true if the frame is the answer now.
#[inline(always)]
pub fn neighbour<F: Whole>(frame: &mut F, announced: &impl Announcements, room: &mut Room) -> bool {
    let Room { neighbour: asked, answer, option, mac, .. } = room;
    if frame.load(0, asked).is_none() {
        return false;
    }
    if asked.ethertype != IPV6 || asked.next != NEIGHBOUR || asked.kind != SOLICITATION || asked.source[0] & 1 != 0 {
        return false;
    }
    if !announced.v6(&asked.target, mac) || (asked.destination[0] & 1 == 0 && !is_same(&asked.destination, mac)) {
        return false;
    }
    // Whoever finds out whether an address is free has none yet, and asks the solicited-node group only (RFC 4862).
    let probe = asked.from.words() == [0; 4];
    let to_group = is_group_of(&asked.to, &asked.target);
    if !to_group && (probe || asked.to.words() != asked.target.words()) {
        return false;
    }
    if !is_intact(frame, asked, option) {
        return false;
    }
    let head = &mut answer.head;
    head.ethertype = IPV6;
    head.version = [0x60, 0, 0, 0];
    head.length = [0, 32];
    head.next = NEIGHBOUR;
    head.kind = ADVERTISEMENT;
    head.checksum = [0; 2];
    head.source = *mac;
    head.from = asked.target;
    head.target = asked.target;
    if probe {
        head.destination = ALL_NODES_MAC;
        head.to = ALL_NODES;
        head.flags = [OVERRIDE, 0, 0, 0];
    } else {
        head.destination = asked.source;
        head.to = asked.from;
        head.flags = [SOLICITED | OVERRIDE, 0, 0, 0];
    }
    answer.option = TARGET_OPTION;
    answer.mac = *mac;
    let sum = covered(&answer.head).cover(&answer.option).cover(&answer.mac);
    let [a, b] = sum.folded();
    answer.head.checksum = [!a, !b];
    frame.resize(size_of::<Advertisement>()).and_then(|()| frame.put(0, answer)).is_some()
}

/// Compares without a call: a `memcmp` in the object is one function for all programs, and Linux 6.1 refuses packets and map
/// values as its arguments ("R1 type=scalar expected=fp").
#[inline(always)]
fn is_same(one: &[u8; 6], other: &[u8; 6]) -> bool {
    let word = |of: &[u8; 6]| u32::from_ne_bytes([of[0], of[1], of[2], of[3]]);
    let rest = |of: &[u8; 6]| u16::from_ne_bytes([of[4], of[5]]);
    word(one) == word(other) && rest(one) == rest(other)
}

/// True if a group is the solicited-node group of an address (RFC 4291, section 2.7.1): ff02::1:ffXX:XXXX.
#[inline(always)]
fn is_group_of(group: &[u8; 16], address: &[u8; 16]) -> bool {
    let [.., x, y, z] = *address;
    let words = [[0xff, 2, 0, 0], [0; 4], [0, 0, 0, 1], [0xff, x, y, z]];
    group.words() == words.map(u32::from_be_bytes)
}

/// What the checksum covers of a message without its options: the pseudo header and the message.
#[inline(always)]
fn covered(message: &Neighbour) -> Change {
    let Neighbour { length, from, to, kind, checksum, flags, target, .. } = message;
    let addresses = Change::none().cover(from).cover(to).cover(target);
    addresses.cover(length).cover(&[0, ICMPV6]).cover(kind).cover(checksum).cover(flags)
}

/// True if the checksum of a solicitation is right.
#[inline(always)]
fn is_intact<F: Whole>(frame: &F, asked: &Neighbour, option: &mut [u8; 8]) -> bool {
    let length = u16::from_be_bytes(asked.length);
    let Some(rest) = length.checked_sub(24).filter(|rest| rest.is_multiple_of(8)) else { return false };
    let options = usize::from(rest / 8);
    if options > OPTIONS {
        return false;
    }
    let mut sum = covered(asked);
    for at in 0..OPTIONS {
        if at >= options {
            break;
        }
        if frame.load(size_of::<Neighbour>() + 8 * at, option).is_none() {
            return false;
        }
        sum = sum.cover(option);
    }
    sum.folded() == [0xff, 0xff]
}
