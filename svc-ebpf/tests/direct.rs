//! One client port used through a VIP and directly to the endpoint behind it: both flows live, in both families.

mod support;

use svc_common::{
    Hook, Interface, Scope,
    config::{INTERFACE_BRIDGE_PORT, INTERFACE_UPPER},
    filter::KNOWN_ENDPOINT,
    protocol,
};
use svc_ebpf::{Verdict, host::HostTables};

use support::*;

/// A Service of one endpoint, which the filter of targets knows.
fn tables_with_target<A: Plan>() -> HostTables<A> {
    let mut tables = tables::<A>(1);
    for protocol in [protocol::TCP, protocol::UDP] {
        tables.know(&A::nth(BACKEND), BACKEND_PORT, protocol, KNOWN_ENDPOINT);
    }
    tables
}

both_families! {
    fn a_direct_flow_that_comes_second_gets_another_port<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables_with_target::<A>();
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, flags);
            let (remapped, same) = pass(&mut tables, Hook::Ingress, client, backend, flags);
            assert_eq!(same, backend);
            assert_eq!(remapped.ip(), client.ip());
            assert_ne!(remapped.port(), client.port());
            let later = if flags == SYN { ACK } else { 0 };
            for _ in 0..2 {
                assert_eq!(pass(&mut tables, Hook::Ingress, client, backend, later), (remapped, backend));
                assert_eq!(pass(&mut tables, Hook::Egress, backend, remapped, later), (backend, client));
                assert_eq!(pass(&mut tables, Hook::Ingress, client, vip, later), (client, backend));
                assert_eq!(pass(&mut tables, Hook::Egress, backend, client, later), (vip, client));
                tables.now += 1;
            }
            assert_eq!(tables.counted[&7], 5, "direct packets are no Service's");
        }
    }

    fn a_flow_of_a_service_that_comes_second_gets_another_port<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables_with_target::<A>();
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let backend = at::<A>(BACKEND, BACKEND_PORT);
            assert_eq!(pass(&mut tables, Hook::Ingress, client, backend, flags), (client, backend));
            let (remapped, same) = pass(&mut tables, Hook::Ingress, client, vip, flags);
            assert_eq!(same, backend);
            assert_ne!(remapped.port(), client.port());
            assert_eq!(pass(&mut tables, Hook::Egress, backend, remapped, flags), (vip, client));
            assert_eq!(pass(&mut tables, Hook::Egress, backend, client, flags), (backend, client));
            assert_eq!(pass(&mut tables, Hook::Ingress, client, backend, flags), (client, backend));
        }
    }

    fn a_direct_connection_from_the_port_of_an_ended_one_is_not_translated<A: Plan>() {
        let mut tables = tables_with_target::<A>();
        let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
        let (_, backend) = pass(&mut tables, Hook::Ingress, client, vip, SYN);
        pass(&mut tables, Hook::Egress, backend, client, FIN | ACK);
        pass(&mut tables, Hook::Ingress, client, vip, FIN | ACK);
        let (source, _) = pass(&mut tables, Hook::Ingress, client, backend, SYN);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, source, SYN | ACK), (backend, client));
        // The same again, on the tuple that the direct connection had.
        pass(&mut tables, Hook::Ingress, client, backend, FIN | ACK);
        let (source, _) = pass(&mut tables, Hook::Ingress, client, backend, SYN);
        assert_eq!(pass(&mut tables, Hook::Egress, backend, source, SYN | ACK), (backend, client));
    }

    fn what_a_port_of_a_bridge_has_translated_is_not_direct_on_the_bridge<A: Plan>() {
        for flags in [SYN, 0] {
            let mut tables = tables_with_target::<A>();
            let (client, vip) = (at::<A>(CLIENT, 40000), at::<A>(VIP, VIP_PORT));
            let translated = pass(&mut tables, Hook::Ingress, client, vip, flags);
            tables.interface.flags = INTERFACE_UPPER;
            assert_eq!(pass(&mut tables, Hook::Ingress, client, translated.1, flags), translated);
        }
    }

    fn the_reply_of_a_direct_flow_is_not_steered_on_a_bridge<A: Plan>() {
        let mut tables = tables_with_target::<A>();
        let (client, backend) = (at::<A>(CLIENT, 40000), at::<A>(BACKEND, BACKEND_PORT));
        tables.interface =
            Interface { scope: Scope::Inside as u8, flags: INTERFACE_BRIDGE_PORT, bridge_mac: [6, 5, 4, 3, 2, 1] };
        pass(&mut tables, Hook::Ingress, client, backend, SYN);
        assert_eq!(tables.flows.len(), 1, "one entry keeps the tuple");
        let mut reply = frame(backend, client, SYN | ACK, b"");
        let before = reply.bytes.clone();
        assert_eq!(tables.run(Hook::Ingress, &mut reply), Verdict::Pass);
        assert_eq!(reply.bytes, before);
    }
}
