//! Maps that grow: what they hold, who uses them, and what is left of an attempt that fails.

mod kernel_support;

use std::fs;

use aya::{
    maps::{Map, MapData, MapInfo, PerCpuArray, PerCpuValues},
    programs::{SchedClassifier, TcAttachType},
};
use kernel_support::{Place, in_place, object, run};
use svc_common::{
    BackendState, Counters, Frontend, Interface, Scope, ServiceName, SlotRange, frontend::FLAG_CLUSTER_IP,
};
use svc_userspace::{
    kernel::{Dataplane, InterfaceSpec, LinkLayer, Options, cleanup},
    model::Protocol,
    tables::{BackendValue, Capacity, FrontendAddress, Observed, Op, Sets},
};

fn start(options: &Options) -> (Dataplane, Observed) {
    Dataplane::start_with_object(options, &object()).expect("the dataplane starts")
}

/// A Service with a backend, slots, a frontend, a source range and a VIP, of each family.
fn operations(number: u8) -> Vec<Op> {
    let mut name =
        ServiceName { namespace: [0; 64], name: [0; 64], port_name: [0; 64], port: 80, protocol: 6, version: 4 };
    (name.namespace[0], name.name[0]) = (b'n', b'a' + number);
    let id = u32::from(number) + 1;
    let of = |address: String, port: u16| format!("{address}:{port}").parse().expect("an address");
    let backend = |address| BackendValue {
        address,
        state: BackendState::Active,
        local: true,
        generation: id,
        service: id,
        sets: Sets::default(),
    };
    let frontend = |address| FrontendAddress { address, protocol: Protocol::Tcp };
    let range = SlotRange { offset: u32::from(number) * 48, len: 33 };
    let value = Frontend { service: id, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
    vec![
        Op::SetService(id, Box::new(name)),
        Op::SetBackend(id * 2, backend(of(format!("10.0.0.{number}"), 8080))),
        Op::SetBackend(id * 2 + 1, backend(of(format!("[fd00::{number}]"), 8080))),
        Op::WriteSlots(range.offset, (0..33).map(|nth| id * 2 + nth % 2).collect()),
        Op::SetFrontend(frontend(of(format!("10.96.0.{number}"), 80)), value),
        Op::SetFrontend(frontend(of(format!("[fd00:96::{number}]"), 80)), value),
        Op::SetSource(id, "192.0.2.0/24".parse().expect("a prefix")),
        Op::SetSource(id, "2001:db8::/32".parse().expect("a prefix")),
        Op::SetVip([10, 96, 0, number].into(), 3),
        Op::SetFilter(u32::from(number), 7),
    ]
}

fn sorted(mut observed: Observed) -> Observed {
    observed.services.sort_by_key(|(id, _)| *id);
    observed.backends.sort_by_key(|(id, _)| *id);
    observed.frontends.sort_by_key(|(address, _)| *address);
    observed.slots.sort();
    observed.sources.sort();
    observed.vips.sort();
    observed
}

fn map_id(place: &Place, name: &str) -> u32 {
    MapInfo::from_pin(place.bpffs.join("layout-2/maps").join(name)).expect("a map").id()
}

fn counters(place: &Place) -> PerCpuArray<MapData, Counters> {
    let data = MapData::from_pin(place.bpffs.join("layout-2/maps/STATS_SERVICE")).expect("a map");
    PerCpuArray::try_from(Map::from_map_data(data).expect("a map")).expect("an array")
}

/// Maps that the attached programs of an interface use.
fn maps_in_use(interface: &str) -> Vec<u32> {
    let query = |direction| SchedClassifier::query_tcx(interface, direction).expect("query").1;
    let programs = [TcAttachType::Ingress, TcAttachType::Egress].into_iter().flat_map(query);
    let mut maps: Vec<u32> =
        programs.flat_map(|program| program.map_ids().expect("ids").expect("the kernel tells them")).collect();
    maps.sort_unstable();
    maps.dedup();
    maps
}

fn veth(name: &str) -> InterfaceSpec {
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
    InterfaceSpec {
        index: nix::net::if_::if_nametoindex(name).expect("the interface exists"),
        name: name.to_owned(),
        link: LinkLayer::Ethernet,
        mac: None,
        entry: Interface { scope: Scope::Inside as u8, ..Interface::default() },
    }
}

const WANTED: Capacity =
    Capacity { services: 300, backends: 500, frontends_v4: 200, frontends_v6: 200, slots: 10_000, source_ranges: 100 };

#[test]
fn larger_maps_hold_what_the_smaller_ones_held_and_every_program_uses_them() {
    in_place(|place| {
        let (mut dataplane, _) = start(&place.options());
        dataplane.set_interface(&veth("v0")).expect("attached");
        let gone = veth("v1");
        dataplane.set_interface(&gone).expect("attached");
        for number in 0..12 {
            dataplane.apply(&operations(number)).expect("applied");
        }
        let count = |n| Counters { packets: n, ..Counters::default() };
        let cpus = aya::util::nr_cpus().expect("processors") as u64;
        let values = PerCpuValues::try_from((0..cpus).map(|cpu| count(cpu + 5)).collect::<Vec<_>>()).expect("values");
        counters(place).set(3, values, 0).expect("counted");
        let (flows, slots) = (map_id(place, "FLOWS_V4"), map_id(place, "SLOTS"));
        assert!(maps_in_use("v0").contains(&slots));
        run("ip", &["link", "del", "v1"]);

        let capacity = dataplane.grow(&WANTED, &object()).expect("they grow");
        assert_eq!(capacity, dataplane.capacity().expect("sizes"));
        // Lines of slots are whole.
        assert_eq!(capacity, Capacity { slots: 10_000, ..WANTED });
        assert_eq!(map_id(place, "FLOWS_V4"), flows, "flows stay");
        let (now, used) = (map_id(place, "SLOTS"), maps_in_use("v0"));
        assert!(now != slots && used.contains(&now) && used.contains(&flows) && !used.contains(&slots), "{used:?}");
        assert!(!place.bpffs.join("layout-2/growing").exists());
        let counted: Vec<u64> =
            counters(place).get(&3, 0).expect("counted").iter().map(|value| value.packets).collect();
        assert_eq!(counted, (0..cpus).map(|cpu| cpu + 5).collect::<Vec<_>>());

        // There is room for more, and the next agent finds all of it.
        let last = operations(150);
        dataplane.apply(&last).expect("applied");
        let again = Capacity { frontends_v4: 250, ..capacity };
        assert_eq!(dataplane.grow(&again, &object()).expect("they grow again").frontends_v4, 250);
        drop(dataplane);
        let (dataplane, observed) = start(&place.options());
        assert_eq!(dataplane.capacity().expect("sizes"), again);
        drop(dataplane);
        cleanup(&place.bpffs).expect("cleaned");
        fs::create_dir_all(&place.bpffs).expect("the directory");
        let (mut fresh, _) = start(&Options { capacity: again, ..place.options() });
        for number in (0..12).chain([150]) {
            fresh.apply(&operations(number)).expect("applied");
        }
        drop(fresh);
        let (_, expected) = start(&place.options());
        assert_eq!(sorted(observed), sorted(expected));
    });
}

#[test]
fn an_attempt_that_fails_leaves_everything_as_it_was() {
    in_place(|place| {
        let options = Options { growth_limit: 1 << 20, ..place.options() };
        let (mut dataplane, _) = start(&options);
        dataplane.set_interface(&veth("v0")).expect("attached");
        dataplane.apply(&operations(1)).expect("applied");
        let (before, used) = (dataplane.capacity().expect("sizes"), maps_in_use("v0"));
        let error = dataplane.grow(&WANTED, &object()).expect_err("too much").to_string();
        assert!(error.contains("raise --map-memory"), "{error}");
        drop(dataplane);

        let (mut dataplane, _) = start(&place.options());
        dataplane.set_interface(&veth("v2")).expect("attached");
        dataplane.grow(&WANTED, b"nonsense").expect_err("no object");
        assert_eq!((dataplane.capacity().expect("sizes"), maps_in_use("v0")), (before, used));
        assert!(!place.bpffs.join("layout-2/growing").exists());
        dataplane.apply(&operations(2)).expect("applied");
        // What an agent that was killed half-way would leave behind.
        fs::create_dir(place.bpffs.join("layout-2/growing")).expect("a directory");
        drop(dataplane);
        let (_, observed) = start(&place.options());
        assert!(!place.bpffs.join("layout-2/growing").exists());
        assert_eq!(observed.services.len(), 2);
        fs::create_dir(place.bpffs.join("layout-2/growing")).expect("a directory");
    });
}
