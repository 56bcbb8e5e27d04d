//! Datagrams in fragments, in every order: all of them take the way of the first one.

mod support;

use svc_common::{
    Hook, Ports, Reason,
    fragment::{HELD_BYTES, HELD_LINE, HELD_TICKS},
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
};

use support::{BACKEND, BACKEND_PORT, CLIENT, Plan, VIP, VIP_PORT, at, both_families, frame, tables};

/// Length of an Ethernet header.
const LINK: usize = 14;

/// Beyond the UDP header of a first fragment, in both families.
const TRANSPORT: usize = 70;

/// The fragments of a UDP datagram with so many bytes of payload, `step` bytes each.
fn fragments<A: Plan>(destination: u8, id: u16, payload: usize, step: usize) -> Vec<HostFrame> {
    let payload: Vec<u8> = (0..payload).map(|at| (at / 7) as u8).collect();
    let whole = frame(at::<A>(CLIENT, 40000), at::<A>(destination, VIP_PORT), 0, &payload);
    let (header, datagram) = whole.bytes.split_at(LINK + A::HEADER_LEN);
    let count = datagram.len().div_ceil(step);
    let piece = |(number, piece): (usize, &[u8])| {
        let (offset, more) = ((number * step) as u16, number + 1 < count);
        let mut bytes = header.to_vec();
        if A::VERSION == 4 {
            let total = (20 + piece.len()) as u16;
            let position = (offset / 8) | if more { 0x2000 } else { 0 };
            bytes[16..18].copy_from_slice(&total.to_be_bytes());
            bytes[18..20].copy_from_slice(&id.to_be_bytes());
            bytes[20..22].copy_from_slice(&position.to_be_bytes());
            let (mut header, _) = etherparse::Ipv4Header::from_slice(&bytes[LINK..]).unwrap();
            header.header_checksum = header.calc_header_checksum();
            bytes[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
        } else {
            bytes[18..20].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            bytes[20] = 44;
            bytes.extend([17, 0]);
            bytes.extend((offset | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(id).to_be_bytes());
        }
        HostFrame::new([bytes, piece.to_vec()].concat())
    };
    datagram.chunks(step).enumerate().map(piece).collect()
}

/// Lets fragments come in one after the other, and again where that is the verdict; the frames that passed, as they were then.
fn arrive<A: Plan>(tables: &mut HostTables<A>, fragments: impl IntoIterator<Item = HostFrame>) -> Vec<HostFrame> {
    let mut passed = Vec::new();
    for mut fragment in fragments {
        match tables.run(Hook::Ingress, &mut fragment) {
            Verdict::Pass => passed.push(fragment),
            Verdict::Held => assert!(fragment.again.is_empty()),
            Verdict::Again => {
                let again = std::mem::take(&mut fragment.again).into_iter().map(HostFrame::new);
                passed.extend(arrive(tables, again.collect::<Vec<_>>()));
            }
            other => panic!("{other:?}"),
        }
    }
    passed
}

fn destination<A: Plan>(frame: &HostFrame) -> &[u8] {
    let at = LINK + A::DESTINATION;
    &frame.bytes[at..at + size_of::<A>()]
}

fn losses<A: Plan>(tables: &HostTables<A>) -> Vec<(Reason, u64)> {
    let mut losses: Vec<_> = tables.losses.iter().map(|(reason, packets)| (*reason, *packets)).collect();
    losses.sort_by_key(|(reason, _)| *reason as u8);
    losses
}

both_families! {
    fn every_order_brings_all_fragments_to_one_backend<A: Plan>() {
        for length in [2_000, 60_000] {
            let orders: [fn(&mut Vec<HostFrame>); 4] =
                [|_| {}, |all| all.reverse(), |all| all.rotate_right(1), |all| all.swap(0, 1)];
            for order in orders {
                let mut tables = tables::<A>(1);
                let mut all = fragments::<A>(VIP, 77, length, 1448);
                let count = all.len();
                order(&mut all);
                let payloads: Vec<Vec<u8>> = all.iter().map(|fragment| fragment.bytes[TRANSPORT..].to_vec()).collect();
                let passed = arrive(&mut tables, all);
                assert_eq!(passed.len(), count);
                assert!(passed.iter().all(|fragment| destination::<A>(fragment) == bytemuck::bytes_of(&A::nth(BACKEND))));
                let port = LINK + A::HEADER_LEN + if A::VERSION == 4 { 2 } else { 10 };
                let first = passed.iter().position(|fragment| fragment.bytes[port..port + 2] == BACKEND_PORT.to_be_bytes());
                assert!(first.is_some(), "the first fragment has the backend's port");
                let mut got: Vec<Vec<u8>> =
                    passed.into_iter().map(|fragment| fragment.bytes[TRANSPORT..].to_vec()).collect();
                let mut expected = payloads;
                got.sort();
                expected.sort();
                assert_eq!(got, expected, "nothing behind the UDP header changes");
                assert!(tables.held.is_empty() && tables.losses.is_empty());
            }
        }
    }

    fn fragments_that_are_nobodys_pass_as_they_were<A: Plan>() {
        let mut tables = tables::<A>(1);
        let mut all = fragments::<A>(BACKEND + 50, 5, 5_000, 1448);
        let mut expected: Vec<Vec<u8>> = all.iter().map(|fragment| fragment.bytes.clone()).collect();
        all.reverse();
        let mut got: Vec<Vec<u8>> = arrive(&mut tables, all).into_iter().map(|fragment| fragment.bytes).collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected);
        assert!(tables.held.is_empty() && tables.losses.is_empty());
    }

    fn two_fragments_of_one_kib_have_room_and_a_third_has_not<A: Plan>() {
        let mut tables = tables::<A>(1);
        // 512 bytes each: two a KiB of the datagram.
        let all = fragments::<A>(VIP, 9, 6_000, 512);
        let early = all[1..].to_vec();
        assert!(arrive(&mut tables, early).is_empty());
        assert_eq!(tables.held.len(), all.len() - 1);
        let small = fragments::<A>(VIP, 10, 6_000, 256);
        let passed = arrive(&mut tables, small[4..8].to_vec());
        assert!(!passed.is_empty(), "they are passed on as they were");
        assert_eq!(losses(&tables), [(Reason::FragmentNotHeld, passed.len() as u64)]);
        assert_eq!(arrive(&mut tables, all[..1].to_vec()).len(), all.len());
    }

    fn a_fragment_that_is_too_long_passes_and_is_counted<A: Plan>() {
        let mut tables = tables::<A>(1);
        let all = fragments::<A>(VIP, 9, 4_000, HELD_BYTES);
        assert!(all[1].bytes.len() > HELD_BYTES);
        assert_eq!(arrive(&mut tables, all[1..2].to_vec())[0].bytes, all[1].bytes);
        assert_eq!(losses(&tables), [(Reason::FragmentNotHeld, 1)]);
    }

    fn a_fragment_waits_for_seconds_and_then_makes_room<A: Plan>() {
        let mut tables = tables::<A>(1);
        let late = fragments::<A>(VIP, 9, 3_000, 1448);
        assert!(arrive(&mut tables, late[1..2].to_vec()).is_empty());
        tables.now += HELD_TICKS - 1;
        // Nobody takes its place yet, nor the first one of another datagram with the same number.
        assert_eq!(tables.held.values().filter(|held| held.is_free(tables.now)).count(), 0);
        tables.now += 1;
        assert_eq!(arrive(&mut tables, late[..1].to_vec()).len(), 1, "only the first one is left");
        assert_eq!(losses(&tables), [(Reason::FragmentLost, 1)]);
        assert!(tables.held.is_empty());
    }

    fn a_place_whose_fragment_is_over_is_taken_and_the_loss_counted<A: Plan>() {
        let mut tables = tables::<A>(1);
        for id in 1..200 {
            arrive(&mut tables, fragments::<A>(VIP, id, 3_000, 1448)[1..2].to_vec());
        }
        let (full, not_held) = (tables.held.len(), losses(&tables));
        assert_eq!((full, not_held.len()), (4, 1), "a place in each line");
        tables.now += HELD_TICKS;
        let all = fragments::<A>(VIP, 500, 3_000, 1448);
        assert!(arrive(&mut tables, all[1..].to_vec()).is_empty());
        assert_eq!(tables.losses[&Reason::FragmentLost], 1);
        assert_eq!(arrive(&mut tables, all[..1].to_vec()).len(), 3);
    }

    fn a_fragment_whose_entry_was_evicted_is_held_and_not_passed_on<A: Plan>() {
        let mut tables = tables::<A>(1);
        let all = fragments::<A>(VIP, 9, 3_000, 1448);
        assert_eq!(arrive(&mut tables, all[..1].to_vec()).len(), 1);
        tables.fragments.clear();
        assert!(arrive(&mut tables, all[1..].to_vec()).is_empty());
        assert_eq!(tables.fragments.values().filter(|ports| **ports == Ports::AWAITED).count(), 1);
    }
}

#[test]
fn a_line_has_a_place_for_every_kib_of_the_longest_datagram() {
    assert!(HELD_LINE * 1024 > u32::from(u16::MAX));
}
