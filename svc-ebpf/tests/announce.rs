//! ARP requests and neighbour solicitations, answered or left alone, byte for byte.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::Zeroable;
use etherparse::{Icmpv6Slice, Ipv6HeaderSlice};
use svc_ebpf::{
    announce::{Announcements, Room, arp, neighbour, solicits},
    host::HostFrame,
};

const ASKS: [u8; 6] = [2, 0, 0, 0, 0, 9];
const MINE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ALL: [u8; 6] = [0xff; 6];
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const ASKS4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

struct Table(HashMap<IpAddr, [u8; 6]>);

impl Announcements for Table {
    fn v4(&self, address: &[u8; 4], mac: &mut [u8; 6]) -> bool {
        self.find((*address).into(), mac)
    }

    fn v6(&self, address: &[u8; 16], mac: &mut [u8; 6]) -> bool {
        self.find((*address).into(), mac)
    }
}

impl Table {
    fn find(&self, address: IpAddr, mac: &mut [u8; 6]) -> bool {
        let found = self.0.get(&address);
        found.inspect(|found| *mac = **found).is_some()
    }
}

fn vip6() -> Ipv6Addr {
    "2001:db8::ab:cdef".parse().expect("an address")
}

fn asks6() -> Ipv6Addr {
    "fe80::9".parse().expect("an address")
}

fn group() -> Ipv6Addr {
    "ff02::1:ffab:cdef".parse().expect("an address")
}

fn table() -> Table {
    Table(HashMap::from([(VIP4.into(), MINE), (vip6().into(), MINE)]))
}

fn request(destination: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let parts: [&[u8]; 8] = [
        &destination,
        &ASKS,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &ASKS,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
        // Padding to the least that Ethernet sends.
        &[0; 18],
    ];
    parts.concat()
}

fn answer_arp(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let before = bytes.clone();
    let mut frame = HostFrame::new(bytes);
    if arp(&mut frame, &table(), &mut Room::zeroed()) {
        return Some(frame.bytes);
    }
    assert_eq!(frame.bytes, before, "what is not answered is left alone");
    None
}

#[test]
fn an_arp_request_is_answered_by_the_address_that_is_announced() {
    for (sender, destination) in [(ASKS4, ALL), (Ipv4Addr::UNSPECIFIED, ALL), (ASKS4, MINE)] {
        let answer = answer_arp(request(destination, sender, VIP4)).expect("an answer");
        let parts: [&[u8]; 8] =
            [&ASKS, &MINE, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MINE, &VIP4.octets(), &ASKS, &sender.octets(), &[0; 18]];
        assert_eq!(answer, parts.concat());
    }
}

#[test]
fn other_arp_packets_are_left_alone() {
    let good = || request(ALL, ASKS4, VIP4);
    let with = |at: usize, byte: u8| {
        let mut bytes = good();
        bytes[at] = byte;
        bytes
    };
    for (what, bytes) in [
        ("another address", request(ALL, ASKS4, Ipv4Addr::new(192, 0, 2, 81))),
        ("somebody who says that it is his", request(ALL, VIP4, VIP4)),
        ("a frame for another host", request([2, 0, 0, 0, 0, 7], ASKS4, VIP4)),
        ("a reply", with(21, 2)),
        ("another kind of network", with(15, 6)),
        ("a sender that is a group", with(22, 3)),
        ("a short packet", good()[..41].to_vec()),
    ] {
        assert_eq!(answer_arp(bytes), None, "{what}");
    }
}

fn solicitation(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(24 + options.len()).expect("short").to_be_bytes();
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat();
    let header = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &from.octets(), &to.octets()].concat();
    let [.., x, y, z] = to.octets();
    let group = [0x33, 0x33, to.octets()[12], x, y, z];
    let mut bytes = [&group[..], &ASKS, &[0x86, 0xdd], &header, &message].concat();
    let sum = Icmpv6Slice::from_slice(&bytes[54..]).expect("ICMPv6").icmp_type();
    let payload = &bytes[62..];
    let sum = sum.calc_checksum(from.octets(), to.octets(), payload).expect("short");
    bytes[56..58].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn answer_neighbour(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let before = bytes.clone();
    let mut frame = HostFrame::new(bytes);
    if solicits(&mut frame) && neighbour(&mut frame, &table(), &mut Room::zeroed()) {
        return Some(frame.bytes);
    }
    assert_eq!(frame.bytes, before, "what is not answered is left alone");
    None
}

const SOURCE_OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 9];
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

/// Judges an advertisement: to whom, with which flags.
fn judge(answer: &[u8], to: Ipv6Addr, mac: [u8; 6], flags: u8) {
    assert_eq!(answer.len(), 86);
    assert_eq!((&answer[..6], &answer[6..12]), (&mac[..], &MINE[..]));
    let header = Ipv6HeaderSlice::from_slice(&answer[14..54]).expect("IPv6");
    assert_eq!((header.source_addr(), header.destination_addr()), (vip6(), to));
    assert_eq!((header.payload_length(), header.next_header().0, header.hop_limit()), (32, 58, 255));
    let message = Icmpv6Slice::from_slice(&answer[54..]).expect("ICMPv6");
    assert!(message.is_checksum_valid(header.source(), header.destination()), "checksum");
    assert_eq!(&answer[54..56], [136, 0]);
    assert_eq!(&answer[58..62], [flags, 0, 0, 0]);
    assert_eq!(answer[62..78], vip6().octets());
    assert_eq!(answer[78..], [&[2, 1][..], &MINE].concat());
}

#[test]
fn a_solicitation_is_answered_to_who_asks() {
    for (to, options) in [
        (group(), &SOURCE_OPTION[..]),
        (group(), &[]),
        (vip6(), &SOURCE_OPTION),
        (group(), &[SOURCE_OPTION, NONCE].concat()),
    ] {
        let mut asked = solicitation(asks6(), to, vip6(), options);
        if to == vip6() {
            asked[..6].copy_from_slice(&MINE);
        }
        judge(&answer_neighbour(asked).expect("an answer"), asks6(), ASKS, 0x60);
    }
}

#[test]
fn who_looks_whether_the_address_is_free_is_told_by_all_nodes_group() {
    let probe = solicitation(Ipv6Addr::UNSPECIFIED, group(), vip6(), &NONCE);
    let all = "ff02::1".parse().expect("an address");
    judge(&answer_neighbour(probe).expect("an answer"), all, [0x33, 0x33, 0, 0, 0, 1], 0x20);
}

#[test]
fn other_solicitations_are_left_alone() {
    let good = || solicitation(asks6(), group(), vip6(), &SOURCE_OPTION);
    let with = |at: usize, byte: u8| {
        let mut bytes = good();
        bytes[at] = byte;
        bytes
    };
    let other: Ipv6Addr = "2001:db8::cdee".parse().expect("an address");
    for (what, bytes) in [
        ("another address", solicitation(asks6(), group(), other, &SOURCE_OPTION)),
        ("a group that is not the address's", solicitation(asks6(), "ff02::1".parse().expect("one"), vip6(), &[])),
        ("a probe to the address itself", solicitation(Ipv6Addr::UNSPECIFIED, vip6(), vip6(), &[])),
        ("one from farther away", with(21, 254)),
        ("a wrong checksum", with(57, good()[57] ^ 1)),
        ("an advertisement", with(54, 136)),
        ("a frame for another host", with(0, 2)),
        ("more options than are looked at", solicitation(asks6(), group(), vip6(), &[0; 40])),
        ("a short packet", good()[..77].to_vec()),
        ("one shorter than it says", good()[..84].to_vec()),
    ] {
        assert_eq!(answer_neighbour(bytes), None, "{what}");
    }
}
