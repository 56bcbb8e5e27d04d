//! SCTP, in crafted packets: translated, with a valid CRC32c (computed by the `crc32c` crate, an independent implementation).

mod support;

use std::net::SocketAddr;

use svc_common::{Hook, Reason, protocol};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
};

use support::*;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;
const ABORT: u8 = 6;
/// Offset of the SCTP header in a frame of the family.
fn at_sctp<A: Plan>() -> usize {
    14 + A::HEADER_LEN
}

/// An SCTP packet with one chunk (RFC 9260 section 3).
fn sctp<A: Plan>(source: SocketAddr, destination: SocketAddr, chunk: u8, payload: &[u8]) -> HostFrame {
    let mut frame = frame(source, destination, 0, b"");
    let start = at_sctp::<A>();
    frame.bytes.truncate(start);
    frame.bytes.extend_from_slice(&source.port().to_be_bytes());
    frame.bytes.extend_from_slice(&destination.port().to_be_bytes());
    frame.bytes.extend_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0, chunk, 0]);
    frame.bytes.extend_from_slice(&(4 + payload.len() as u16).to_be_bytes());
    frame.bytes.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&frame.bytes[start..]);
    frame.bytes[start + 8..start + 12].copy_from_slice(&checksum.to_le_bytes());
    let len = (frame.bytes.len() - start) as u16;
    if A::VERSION == 4 {
        frame.bytes[23] = protocol::SCTP;
        frame.bytes[16..18].copy_from_slice(&(len + 20).to_be_bytes());
        set_ipv4_fragment(&mut frame, 0, 0);
    } else {
        frame.bytes[20] = protocol::SCTP;
        frame.bytes[18..20].copy_from_slice(&len.to_be_bytes());
    }
    frame
}

/// Ports of a frame whose CRC32c is valid.
#[track_caller]
fn ports<A: Plan>(frame: &HostFrame) -> (u16, u16) {
    let mut packet = frame.bytes[at_sctp::<A>()..].to_vec();
    let checksum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    assert_eq!(checksum, crc32c::crc32c(&packet), "CRC32c");
    (u16::from_be_bytes([packet[0], packet[1]]), u16::from_be_bytes([packet[2], packet[3]]))
}

#[track_caller]
fn pass_sctp<A: Plan>(
    tables: &mut HostTables<A>,
    hook: Hook,
    (source, destination): (SocketAddr, SocketAddr),
    chunk: u8,
) -> (u16, u16) {
    let mut frame = sctp::<A>(source, destination, chunk, b"the payload of a chunk");
    assert_eq!(tables.run(hook, &mut frame), Verdict::Pass);
    ports::<A>(&frame)
}

fn sctp_tables<A: Plan>(backends: u8) -> HostTables<A> {
    let mut tables = tables::<A>(backends);
    let frontends = tables.frontends.clone();
    for (key, frontend) in frontends {
        tables.frontends.insert(svc_common::FrontendKey { protocol: protocol::SCTP, ..key }, frontend);
    }
    tables
}

both_families! {
    fn an_association_is_translated_both_ways<A: Plan>() {
        let mut tables = sctp_tables::<A>(3);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut init = sctp::<A>(client, vip, INIT, b"init");
        assert_eq!(tables.run(Hook::Ingress, &mut init), Verdict::Pass);
        assert_eq!(ports::<A>(&init), (40000, BACKEND_PORT));
        let address = 14 + A::DESTINATION;
        let backend: A = bytemuck::pod_read_unaligned(&init.bytes[address..address + size_of::<A>()]);
        let backend = SocketAddr::new(backend.ip(), BACKEND_PORT);
        assert_eq!(pass_sctp(&mut tables, Hook::Egress, (backend, client), INIT_ACK), (VIP_PORT, 40000));
        tables.slots.rotate_left(1);
        assert_eq!(pass_sctp(&mut tables, Hook::Ingress, (client, vip), DATA), (40000, BACKEND_PORT));
        assert_eq!(tables.flows.len(), 2);
        assert_eq!(pass_sctp(&mut tables, Hook::Egress, (backend, client), ABORT), (VIP_PORT, 40000));
        let mut again = sctp::<A>(client, vip, INIT, b"init");
        assert_eq!(tables.run(Hook::Ingress, &mut again), Verdict::Pass);
        assert_ne!(again.bytes[address..address + size_of::<A>()], init.bytes[address..address + size_of::<A>()]);
    }

    fn a_chunk_of_an_unknown_association_passes_untouched<A: Plan>() {
        let mut tables = sctp_tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        assert_eq!(pass_sctp(&mut tables, Hook::Ingress, (client, vip), DATA), (40000, VIP_PORT));
    }

    fn a_checksum_left_to_the_device_stays_so<A: Plan>() {
        let mut tables = sctp_tables::<A>(1);
        let mut init = sctp::<A>(at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT), INIT, b"");
        let at = at_sctp::<A>() + 8;
        init.bytes[at..at + 4].fill(0);
        assert_eq!(tables.run(Hook::Ingress, &mut init), Verdict::Pass);
        assert_eq!(init.bytes[at..at + 4], [0; 4]);
    }

    fn an_association_is_refused_where_nobody_serves<A: Plan>() {
        let mut tables = sctp_tables::<A>(0);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut init = sctp::<A>(client, vip, INIT, b"init");
        assert_eq!(tables.run(Hook::Ingress, &mut init), Verdict::Refuse(Reason::NoEndpoint));
        assert_eq!(icmp_addresses(&init), (vip.ip(), client.ip(), client, vip));
    }

    fn errors_about_an_association_reach_its_ends<A: Plan>() {
        let mut tables = sctp_tables::<A>(1);
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        pass_sctp(&mut tables, Hook::Ingress, (client, vip), INIT);
        let backend = at::<A>(BACKEND, BACKEND_PORT);
        let complaint = sctp::<A>(client, backend, DATA, b"too long");
        let mut error = icmp_error::<A>(at::<A>(ROUTER, 0), client, &complaint);
        assert_eq!(tables.run(Hook::Egress, &mut error), Verdict::Pass);
        assert_eq!(icmp_addresses(&error), (at::<A>(ROUTER, 0).ip(), client.ip(), client, vip));
    }
}
