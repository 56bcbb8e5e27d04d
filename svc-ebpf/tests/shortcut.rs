//! The shortcut: both rewrites at once, or nothing at all.

mod support;

use std::net::SocketAddr;

use bytemuck::Pod;
use svc_common::{
    Hook, Reason, Scope,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND},
    flow::{FLOW_MASQUERADED, FLOW_SHORTCUT},
    fragment::HELD_BYTES,
    masquerade::FIRST_PORT,
    protocol,
};
use svc_ebpf::{
    Verdict,
    cache::{Cached, Moment, known, macs},
    checksum::Change,
    frame::{Covered, Frame},
    host::{HostFrame, HostTables},
    packet::Packet,
    scratch::Scratch,
    shortcut::{Road, Way},
    tables::Tables,
};

use support::*;

const NODE: u8 = 50;
const UPLINK: u32 = 7;
const MACS: [[u8; 6]; 2] = [[2, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]];

/// Bytes of a packet that fits the link.
const MTU: u16 = 1000;

/// A frame, and whether there is a way out for it.
struct Uplink {
    frame: HostFrame,
    has_route: bool,
    came_by: u32,
}

impl Frame for Uplink {
    fn size(&self) -> u32 {
        self.frame.size()
    }

    fn require(&mut self, len: usize) -> bool {
        self.frame.require(len)
    }

    fn get<T: Pod>(&self, offset: usize) -> Option<T> {
        self.frame.get(offset)
    }

    fn put<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        self.frame.put(offset, value)
    }

    fn fix_checksum(&mut self, offset: usize, change: Change, covered: Covered, zero_is_none: bool) -> Option<()> {
        self.frame.fix_checksum(offset, change, covered, zero_is_none)
    }

    fn reshape(&mut self, _end: usize, _at: usize, _room: usize) -> Option<()> {
        None
    }

    fn copy_to(&mut self, _into: &mut [u8; HELD_BYTES]) -> Option<u32> {
        None
    }

    fn send_again(&mut self) -> bool {
        false
    }

    fn send_other(&mut self, _bytes: &[u8; HELD_BYTES], _len: u32, _interface: u32) -> bool {
        false
    }

    fn mark(&mut self, bits: u32) {
        self.frame.mark(bits);
    }

    fn take_mark(&mut self, bits: u32) -> bool {
        self.frame.take_mark(bits)
    }
}

impl<A: Plan> Road<A> for Uplink {
    fn route(&mut self, _packet: &Packet<A>) -> Option<u32> {
        self.has_route.then_some(UPLINK)
    }

    fn readdress(&mut self) -> Option<()> {
        self.frame.put(0, &MACS)
    }

    fn hop(&self, into: &mut Cached<A>) -> Option<()> {
        into.macs = macs(MACS[0], MACS[1]);
        into.mtu = MTU;
        into.leaves_by = UPLINK;
        Some(())
    }

    fn leave(&mut self, interface: u32, macs: &[u32; 3]) -> Option<()> {
        assert_eq!(interface, UPLINK);
        self.frame.put(0, macs)
    }

    fn came_by(&self) -> u32 {
        self.came_by
    }

    fn known<T: Tables<A>>(&mut self, tables: &mut T, incoming: &mut Scratch<A>) -> Option<Way> {
        let bytes = self.size();
        known(self, tables, incoming, bytes)
    }
}

/// An uplink, and a Service of an endpoint on another node.
fn uplink<A: Plan>() -> HostTables<A> {
    let mut tables = tables::<A>(1);
    tables.interface.scope = Scope::Outside as u8;
    tables.backends.values_mut().for_each(|backend| backend.flags = 0);
    tables.programs_masquerade = true;
    tables.masquerade_source = Some(A::nth(NODE));
    tables.is_filtered = true;
    for protocol in [protocol::TCP, protocol::UDP] {
        tables.know(&A::nth(VIP), VIP_PORT, protocol, KNOWN_FRONTEND);
        tables.know(&A::nth(BACKEND), BACKEND_PORT, protocol, KNOWN_ENDPOINT);
    }
    tables
}

const MOMENT: Moment = Moment { now: 0, generation: 1, mask: 255 };

/// Tables in which a flow from the client's port 40000 is known: of TCP, or of UDP where `flags` are 0.
fn established<A: Plan>(flags: u8) -> HostTables<A> {
    let mut tables = HostTables { moment: MOMENT, ..uplink::<A>() };
    let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
    leaves(&mut tables, client, vip, if flags == 0 { 0 } else { SYN });
    assert!(tables.cache.is_empty(), "one packet is no flow yet");
    leaves(&mut tables, client, vip, flags);
    assert_eq!(tables.cache.len(), 1);
    tables
}

/// Flags of the TCP header; 0 for UDP.
fn flags_of(frame: &HostFrame) -> u8 {
    let (protocol, payload) = if frame.bytes[14] >> 4 == 4 { (14 + 9, 34) } else { (14 + 6, 54) };
    if frame.bytes[protocol] == protocol::TCP { frame.bytes[payload + 13] } else { 0 }
}

/// Runs the shortcut; the frame afterwards.
fn run<A: Plan>(tables: &mut HostTables<A>, frame: &HostFrame, has_route: bool) -> (Way, HostFrame) {
    run_from(tables, frame, has_route, UPLINK)
}

/// The same by an interface.
fn run_from<A: Plan>(tables: &mut HostTables<A>, frame: &HostFrame, has_route: bool, came_by: u32) -> (Way, HostFrame) {
    let mut uplink = Uplink { frame: frame.clone(), has_route, came_by };
    let way = tables.run_shortcut(&mut uplink);
    if way == Way::Stack {
        assert_eq!(uplink.frame.bytes, frame.bytes, "what goes up the stack is as it came");
    }
    (way, uplink.frame)
}

/// A packet that must leave; where it comes from and goes to then.
fn leaves<A: Plan>(
    tables: &mut HostTables<A>,
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
) -> (SocketAddr, SocketAddr) {
    let before = frame(from, to, flags, b"some payload of odd length!");
    let (way, after) = run(tables, &before, true);
    assert_eq!(way, Way::Leave);
    assert_eq!(after.bytes[..12], MACS.concat());
    let hops = if from.is_ipv4() { 14 + 8 } else { 14 + 7 };
    assert_eq!(after.bytes[hops], before.bytes[hops] - 1);
    addresses(&after)
}

both_families! {
    fn a_flow_and_its_replies_leave_at_once<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = uplink::<A>();
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let (node, backend) = leaves(&mut tables, client, vip, flags);
            assert_eq!((node.ip(), backend), (A::nth(NODE).ip(), at::<A>(BACKEND, BACKEND_PORT)));
            assert!(node.port() >= FIRST_PORT);
            let reply = leaves(&mut tables, backend, node, if flags == 0 { 0 } else { SYN | ACK });
            assert_eq!(reply, (vip, client));
            assert_eq!(leaves(&mut tables, client, vip, if flags == 0 { 0 } else { ACK }), (node, backend));
            assert_eq!(tables.counted[&7], 3, "each packet once");
        }
    }

    fn the_stack_goes_on_with_a_flow_of_the_shortcut<A: Plan>() {
        let mut tables = uplink::<A>();
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (node, backend) = leaves(&mut tables, client, vip, SYN);
        let mut request = frame(client, vip, ACK, b"x");
        assert_eq!(run(&mut tables, &request, false).0, Way::Stack);
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(tables.run(hook, &mut request), Verdict::Pass);
        }
        assert_eq!(addresses(&request), (node, backend));
        assert_eq!(leaves(&mut tables, backend, node, ACK), (vip, client), "and it comes back");
    }

    fn a_flow_that_began_in_the_stack_stays_there<A: Plan>() {
        let mut tables = uplink::<A>();
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut request = frame(client, vip, SYN, b"");
        assert_eq!(run(&mut tables, &request, false).0, Way::Stack, "no neighbour yet");
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(tables.run(hook, &mut request), Verdict::Pass);
        }
        assert!(tables.flows.values().all(|flow| flow.flags & FLOW_SHORTCUT == 0));
        let (node, backend) = addresses(&request);
        assert_eq!(run(&mut tables, &frame(backend, node, SYN | ACK, b""), true).0, Way::Stack);
        assert_eq!(run(&mut tables, &frame(client, vip, ACK, b""), true).0, Way::Stack);
    }

    fn what_is_not_for_the_shortcut_goes_up_as_it_came<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        // An endpoint of this node.
        let mut tables = uplink::<A>();
        tables.backends.values_mut().for_each(|backend| backend.flags = svc_common::backend::BACKEND_LOCAL);
        assert_eq!(run(&mut tables, &frame(client, vip, SYN, b""), true).0, Way::Stack);
        assert!(tables.flows.values().all(|flow| flow.flags & (FLOW_SHORTCUT | FLOW_MASQUERADED) == 0));
        // None of ours; in mid-stream; the last hop; a checksum that a device is to fill in.
        let mut tables = uplink::<A>();
        let last_hop = |mut frame: HostFrame| {
            let hops = if client.is_ipv4() { 14 + 8 } else { 14 + 7 };
            frame.bytes[hops] = 1;
            frame
        };
        let left = |mut frame: HostFrame| {
            let (payload, len) = if client.is_ipv4() { (34, frame.bytes.len() - 34) } else { (54, frame.bytes.len() - 54) };
            let sum = svc_ebpf::ip::pseudo_header(&A::nth(CLIENT), &A::nth(VIP), 6, len);
            frame.bytes[payload + 16..payload + 18].copy_from_slice(&sum.folded());
            frame
        };
        for frame in [
            frame(client, at::<A>(ROUTER, 80), SYN, b""),
            frame(client, vip, ACK, b""),
            last_hop(frame(client, vip, SYN, b"")),
            left(frame(client, vip, SYN, b"")),
        ] {
            assert_eq!(run(&mut tables, &frame, true).0, Way::Stack);
        }
        assert!(tables.flows.is_empty());
    }

    fn a_policy_drops_before_the_stack<A: Plan>() {
        let mut tables = uplink::<A>();
        tables.frontends.values_mut().for_each(|frontend| {
            frontend.outside.len = 0;
            frontend.flags |= svc_common::frontend::FLAG_OUTSIDE_DROP;
        });
        let request = frame(at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT), SYN, b"");
        assert_eq!(run(&mut tables, &request, true).0, Way::Drop(Reason::PolicyEmpty));
    }

    fn errors_about_its_flows_take_the_shortcut<A: Plan>() {
        let mut tables = uplink::<A>();
        let (client, vip, router) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT), at::<A>(ROUTER, 0));
        let (node, backend) = leaves(&mut tables, client, vip, SYN);
        let about_request = icmp_error::<A>(router, node, &frame(node, backend, SYN, b"hello"));
        let (way, after) = run(&mut tables, &about_request, true);
        assert_eq!(way, Way::Leave);
        assert_eq!(icmp_addresses(&after), (router.ip(), client.ip(), client, vip));
        let about_reply = icmp_error::<A>(router, vip, &frame(vip, client, SYN | ACK, b"hello"));
        let (way, after) = run(&mut tables, &about_reply, true);
        assert_eq!(way, Way::Leave);
        assert_eq!(icmp_addresses(&after), (node.ip(), backend.ip(), backend, node));
        let nobodys = icmp_error::<A>(router, vip, &frame(vip, at::<A>(CLIENT, 40001), ACK, b"hello"));
        assert_eq!(run(&mut tables, &nobodys, true).0, Way::Stack);
    }

    fn a_flow_that_is_known_leaves_as_before_without_its_entries<A: Plan>() {
        for flags in [ACK, 0] {
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let mut tables = established::<A>(flags);
            for before in [frame(client, vip, flags, b"odd"), frame(client, vip, flags, b"and of another length")] {
                let mut without = HostTables { moment: Moment { generation: 0, ..MOMENT }, ..tables.clone() };
                let expected = run(&mut without, &before, true);
                let mut with = HostTables { flows: std::collections::HashMap::new(), ..tables.clone() };
                assert_eq!(run(&mut with, &before, false), expected, "without entries, without a route");
                assert_eq!(with.counted, without.counted);
            }
            // The reply as well, once it has been seen.
            let (node, backend) = leaves(&mut tables, client, vip, flags);
            let reply = frame(backend, node, flags, b"reply");
            let expected = run(&mut tables, &reply, true);
            tables.flows.clear();
            assert_eq!(run(&mut tables, &reply, false), expected);
        }
    }

    fn what_is_known_holds_only_for_what_it_was_found_of<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let known = |change: &dyn Fn(&mut HostTables<A>), request: &HostFrame, came_by: u32| {
            let mut tables = established::<A>(if flags_of(request) == 0 { 0 } else { ACK });
            tables.flows.clear();
            // Whoever is not known goes up the stack: there is no entry and no route.
            tables.frontends.clear();
            change(&mut tables);
            run_from(&mut tables, request, false, came_by).0 == Way::Leave
        };
        let (tcp, udp) = (frame(client, vip, ACK, b"x"), frame(client, vip, 0, b"and as long as it takes"));
        assert!(known(&|_| {}, &tcp, UPLINK) && known(&|_| {}, &udp, UPLINK));
        assert!(!known(&|tables| tables.moment.now += 1, &tcp, UPLINK), "the clock has moved on");
        assert!(!known(&|tables| tables.moment.generation += 1, &tcp, UPLINK), "routes have changed");
        assert!(!known(&|tables| tables.moment.generation = 0, &tcp, UPLINK), "it is off");
        assert!(!known(&|_| {}, &tcp, UPLINK + 1), "another interface");
        for flags in [SYN, SYN | ACK, FIN | ACK, FIN] {
            assert!(!known(&|_| {}, &frame(client, vip, flags, b"x"), UPLINK), "it begins or ends something");
        }
        let long = vec![b'x'; usize::from(MTU)];
        assert!(!known(&|_| {}, &frame(client, vip, ACK, &long), UPLINK), "longer than the link takes");
        assert!(!known(&|_| {}, &frame(at::<A>(CLIENT, 40001), vip, ACK, b"x"), UPLINK), "another flow");
        let gone = |tables: &mut HostTables<A>| {
            tables.backends.values_mut().for_each(|backend| backend.state = svc_common::BackendState::Gone as u8);
        };
        assert!(!known(&gone, &udp, UPLINK), "datagrams leave a backend that is gone");
        assert!(known(&gone, &tcp, UPLINK), "connections stay");
        let removed = |tables: &mut HostTables<A>| tables.removal = Some(tables.now);
        assert!(!known(&removed, &udp, UPLINK), "datagrams end with their frontend, and one was removed");
        assert!(known(&removed, &tcp, UPLINK), "connections stay");
        let moved = |tables: &mut HostTables<A>| tables.backends.values_mut().for_each(|backend| backend.port += 1);
        assert!(!known(&moved, &udp, UPLINK), "the backend's id is another's");
        let mut left = tcp.clone();
        let (payload, len) = if client.is_ipv4() { (34, left.bytes.len() - 34) } else { (54, left.bytes.len() - 54) };
        let sum = svc_ebpf::ip::pseudo_header(&A::nth(CLIENT), &A::nth(VIP), 6, len);
        left.bytes[payload + 16..payload + 18].copy_from_slice(&sum.folded());
        assert!(!known(&|_| {}, &left, UPLINK), "its checksum is still to be filled in");
    }

    fn whoever_opens_a_flow_anew_takes_away_what_was_known<A: Plan>() {
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let mut tables = established::<A>(ACK);
        assert_eq!(tables.cache.len(), 1);
        // In the stack, where the cache is never asked.
        tables.flows.retain(|key, _| key.hook != Hook::Ingress as u8);
        assert_eq!(tables.run(Hook::Ingress, &mut frame(client, vip, SYN, b"")), Verdict::Pass);
        assert!(tables.cache.is_empty());
    }
}
