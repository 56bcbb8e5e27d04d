//! What an update of a Service costs, counted in ports judged and elements moved, never in time.

use std::cell::Cell;

use super::*;

thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
}

/// So much was done in this thread.
pub(crate) fn note(work: usize) {
    DONE.set(DONE.get() + work);
}

/// Most work for each port of a Service: sixteen single refusals, and then some rounds.
const EACH: usize = 24;
const PORTS: u16 = 4_000;

/// Ports of a Service, each with its own number as its address's port, `shift` further.
fn ports(service: u8, numbers: impl Iterator<Item = u16>, vip: u8, shift: u16) -> Vec<PortTable> {
    let port = |number: u16| {
        let mut table = simple(service, &[1], &[]);
        (table.key.port, table.key.name) = (number, format!("port-{number:05}").into());
        table.frontends[0].address = SocketAddr::from(([10, 96, 1, vip], number + shift));
        table
    };
    numbers.map(port).collect()
}

fn update(tables: &mut Tables, service: u8, ports: Vec<PortTable>) -> usize {
    let (count, before) = (ports.len().max(1), DONE.get());
    let (_, refused) = tables.update(&name(service), ports, 0);
    let done = DONE.get() - before;
    assert!(done <= EACH * count, "{done} for {count} ports");
    refused.len()
}

fn roomy() -> Tables {
    let many = u32::from(PORTS) * 8;
    Tables::new(Capacity { services: many, backends: many, frontends_v4: many, slots: many * 16, ..ROOMY })
}

#[test]
fn thousands_of_ports_cost_work_in_proportion_to_their_number() {
    let mut tables = roomy();
    assert_eq!(update(&mut tables, 0, ports(0, (1..=PORTS).filter(|port| port % 2 == 0), 0, 0)), 0);
    assert_eq!(update(&mut tables, 0, ports(0, 1..=PORTS, 0, 0)), 0, "new ones between the old ones");
    assert_eq!(
        update(&mut tables, 0, ports(0, (1..=PORTS).filter(|port| port % 3 > 0), 0, 0)),
        0,
        "every third one goes"
    );
    assert_eq!(update(&mut tables, 0, ports(0, (1..=PORTS).rev(), 0, 0)), 0);
    assert_eq!(update(&mut tables, 0, vec![]), 0);
    assert_eq!(tables.fill().services.used, 0);
}

#[test]
fn thousands_of_refusals_cost_work_in_proportion_to_their_number() {
    let all = usize::from(PORTS);
    let mut tables = roomy();
    assert_eq!(update(&mut tables, 0, ports(0, 1..=PORTS, 0, 0)), 0);
    assert_eq!(update(&mut tables, 1, ports(1, 1..=PORTS, 0, 0)), all, "another Service has all of these addresses");
    assert_eq!(update(&mut tables, 1, ports(1, 1..=PORTS, 1, 0)), 0);
    // Each port of Service 1 takes the address of the next one, and the last one an address of Service 0: nobody moves.
    let mut chain = ports(1, 1..=PORTS, 1, 1);
    chain[all - 1].frontends[0].address = SocketAddr::from(([10, 96, 1, 0], 1));
    assert_eq!(update(&mut tables, 1, chain), all);
    assert_eq!(tables.fill().services.used, 2 * u32::from(PORTS), "all of them keep what they had");

    let few = Tables::new(Capacity { services: 11, ..ROOMY });
    for mut tables in [few, Tables::new(Capacity { frontends_v4: 10, ..roomy().capacity })] {
        assert_eq!(update(&mut tables, 0, ports(0, 1..=PORTS, 0, 0)), all - 10, "there is room for ten");
    }
    let mut tables = Tables::new(Capacity { slots: 160, ..roomy().capacity });
    assert_eq!(update(&mut tables, 0, ports(0, 1..=PORTS, 0, 0)), all - 10, "a line of slots each");
}
