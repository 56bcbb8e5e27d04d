//! Start, adoption, operations and cleanup of the dataplane, on the running kernel.

mod kernel_support;

use std::fs;

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
};
use kernel_support::{Place, in_place, object, run};
use svc_common::{
    BackendState, Frontend, Interface, Scope, ServiceName, SlotRange,
    frontend::{FLAG_CLUSTER_IP, FLAG_NODE_PORT},
};
use svc_userspace::{
    kernel::{AttachMode, Dataplane, InterfaceSpec, KernelError, LinkLayer, Options, cleanup, view::Pins},
    model::Protocol,
    tables::{BackendValue, FrontendAddress, Observed, Op, Sets},
};

fn start(options: &Options) -> (Dataplane, Observed) {
    Dataplane::start_with_object(options, &object()).expect("the dataplane starts")
}

fn refused(options: &Options) -> KernelError {
    Dataplane::start_with_object(options, &object()).expect_err("the start is refused")
}

fn service(name: &str, version: u8) -> Box<ServiceName> {
    let mut value =
        ServiceName { namespace: [0; 64], name: [0; 64], port_name: [0; 64], port: 80, protocol: 6, version };
    value.namespace[..7].copy_from_slice(b"default");
    value.name[..name.len()].copy_from_slice(name.as_bytes());
    Box::new(value)
}

fn backend(address: &str, generation: u32, service: u32) -> BackendValue {
    BackendValue {
        address: address.parse().expect("an address"),
        state: BackendState::Active,
        local: generation % 2 == 1,
        sets: Sets { cluster: generation % 3 != 1, local: generation % 3 != 2 },
        generation,
        service,
    }
}

fn frontend(address: &str) -> FrontendAddress {
    FrontendAddress { address: address.parse().expect("an address"), protocol: Protocol::Tcp }
}

/// Two Services, one of each family.
fn operations() -> Vec<Op> {
    let v4 = Frontend {
        service: 1,
        flags: FLAG_CLUSTER_IP,
        affinity_seconds: 0,
        inside: SlotRange { offset: 10, len: 7 },
        outside: SlotRange { offset: 17, len: 20 },
    };
    let v6 = Frontend { service: 2, flags: FLAG_NODE_PORT, inside: SlotRange { offset: 100, len: 3 }, ..v4 };
    vec![
        Op::SetService(1, service("web", 4)),
        Op::SetService(2, service("web", 6)),
        Op::SetBackend(1, backend("10.0.0.1:8080", 3, 1)),
        Op::SetBackend(2, backend("10.0.0.2:8080", 4, 1)),
        Op::SetBackend(3, backend("[fd00::3]:8080", 5, 2)),
        Op::WriteSlots(10, vec![1, 2, 1, 2, 1, 2, 1]),
        Op::WriteSlots(17, vec![2; 20]),
        Op::WriteSlots(100, vec![3; 3]),
        Op::SetFrontend(frontend("10.96.0.1:80"), v4),
        Op::SetFrontend(frontend("[fd00:96::1]:80"), v6),
    ]
}

fn veth(name: &str) -> InterfaceSpec {
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
    run("ip", &["link", "set", name, "up"]);
    spec(name)
}

fn spec(name: &str) -> InterfaceSpec {
    InterfaceSpec {
        index: nix::net::if_::if_nametoindex(name).expect("the interface exists"),
        name: name.to_owned(),
        link: LinkLayer::Ethernet,
        mac: None,
        entry: Interface { scope: Scope::Inside as u8, ..Interface::default() },
    }
}

fn attachments(place: &Place) -> Vec<(String, &'static str, String)> {
    let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
    let of = snapshot.attachments.into_iter().filter(|attachment| attachment.how != "cgroup");
    of.map(|attachment| (attachment.program, attachment.how, attachment.to)).collect()
}

/// Ids of the programs that the kernel says are attached to an interface by TCX.
fn tcx_programs(interface: &str) -> Vec<u32> {
    let query = |direction| SchedClassifier::query_tcx(interface, direction).expect("query").1;
    [TcAttachType::Ingress, TcAttachType::Egress].into_iter().flat_map(query).map(|info| info.id()).collect()
}

/// Ids of the pinned links of an interface.
fn link_ids(place: &Place, interface: &InterfaceSpec) -> Vec<u32> {
    let links = place.bpffs.join("layout-2/links");
    let of = |direction| PinnedLink::from_pin(links.join(format!("{}-{direction}", interface.index))).expect("a link");
    ["ingress", "egress"].map(of).into_iter().map(|link| FdLink::from(link).info().expect("info").id()).collect()
}

#[test]
fn adopted_maps_keep_their_sizes_and_say_so() {
    in_place(|place| {
        let small = place.options();
        drop(start(&small));
        let mut large = place.options();
        large.capacity.slots *= 4;
        large.capacity.backends *= 2;
        let (mut dataplane, _) = start(&large);
        let capacity = dataplane.capacity().expect("sizes");
        // Lines of slots are whole.
        assert_eq!((capacity.slots, capacity.backends), (1008, small.capacity.backends), "not as configured now");
        assert_eq!(capacity.services, small.capacity.services);
        dataplane.apply(&[Op::WriteSlots(capacity.slots - 16, vec![1; 16])]).expect("the last line");
        assert!(dataplane.apply(&[Op::WriteSlots(capacity.slots, vec![1; 16])]).is_err());
    });
}

#[test]
fn what_is_applied_is_seen_by_readers_and_by_a_successor() {
    in_place(|place| {
        let options = place.options();
        let (mut dataplane, observed) = start(&options);
        assert_eq!(observed, Observed::default(), "a new dataplane knows nothing");
        dataplane.apply(&operations()).expect("apply");
        dataplane.apply(&operations()).expect("apply again");

        let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
        assert_eq!(snapshot.services.len(), 2);
        assert_eq!(snapshot.backends[&1], backend("10.0.0.1:8080", 3, 1));
        assert_eq!(snapshot.backends[&3], backend("[fd00::3]:8080", 5, 2));
        assert_eq!(snapshot.frontends[&frontend("10.96.0.1:80")].outside, SlotRange { offset: 17, len: 20 });
        assert_eq!(snapshot.maps["FRONTENDS_V4"].entries, Some(1));
        assert_eq!(snapshot.maps["FRONTENDS_V4"].capacity, 32);
        assert_eq!(snapshot.maps["SLOTS"].capacity, 63, "1000 slots in lines of 16");
        assert_eq!(snapshot.maps["FLOWS_V4"].entries, Some(0));
        assert!(snapshot.maps["FLOWS_V4"].bytes > 0);
        assert_eq!(snapshot.config.masquerade_mark, 0x1000);
        assert_ne!(snapshot.config.host_netns_cookie, 0);
        assert_eq!(snapshot.drops.len(), svc_common::Reason::ALL.len());
        drop(dataplane);

        let (mut dataplane, observed) = start(&options);
        assert_eq!(observed.services.len(), 2);
        assert_eq!(observed.backends.len(), 3);
        assert_eq!(observed.backends[1], (2, backend("10.0.0.2:8080", 4, 1)));
        assert_eq!(observed.frontends.len(), 2);
        assert_eq!(observed.slots, [(10, vec![1, 2, 1, 2, 1, 2, 1]), (17, vec![2; 20]), (100, vec![3; 3])]);

        let gone = BackendValue { state: BackendState::Gone, ..backend("10.0.0.1:8080", 3, 1) };
        let removal =
            [Op::RemoveFrontend(frontend("10.96.0.1:80")), Op::SetBackend(1, gone.clone()), Op::RemoveService(1)];
        dataplane.apply(&removal).expect("remove");
        dataplane.apply(&removal).expect("remove what is gone");
        drop(dataplane);
        let (_, observed) = start(&options);
        assert_eq!(observed.services.len(), 1);
        assert_eq!(observed.frontends.len(), 1);
        assert_eq!(observed.backends[0], (1, gone), "a gone backend keeps its generation");
    });
}

#[test]
fn a_full_map_is_an_error_that_names_map_and_object() {
    in_place(|place| {
        let (mut dataplane, _) = start(&place.options());
        let error = dataplane
            .apply(&[Op::SetBackend(1, backend("10.0.0.1:1", 1, 1)), Op::SetBackend(128, backend("10.0.0.1:1", 1, 1))])
            .expect_err("id 128 is beyond the map");
        assert_eq!((error.index, error.map), (1, "BACKENDS_V4"));
        assert!(error.to_string().contains("backend 128 (10.0.0.1:1)"), "{error}");
        let error = dataplane.apply(&[Op::WriteSlots(1000, vec![1; 9])]).expect_err("slot 1008 is beyond the map");
        assert_eq!(error.map, "SLOTS");
        let frontends: Vec<Op> =
            (1..=33).map(|port| Op::SetFrontend(frontend(&format!("10.96.0.1:{port}")), Frontend::default())).collect();
        let error = dataplane.apply(&frontends).expect_err("the 33rd does not fit");
        assert_eq!((error.index, error.map), (32, "FRONTENDS_V4"));
        assert!(error.to_string().contains("raise its capacity"), "{error}");
    });
}

#[test]
fn an_interface_keeps_one_link_across_restarts_and_gets_the_new_program() {
    in_place(|place| {
        let options = place.options();
        let interface = veth("pod0");
        let (mut dataplane, _) = start(&options);
        dataplane.set_interface(&interface).expect("attach");
        let expected =
            [("svc_egress".to_owned(), "tcx", "pod0".to_owned()), ("svc_ingress".to_owned(), "tcx", "pod0".to_owned())];
        assert_eq!(attachments(place), expected);
        let (links, programs) = (link_ids(place, &interface), tcx_programs("pod0"));
        assert_eq!(programs.len(), 2);
        drop(dataplane);
        assert_eq!(attachments(place), expected, "attached without an agent");

        let (mut dataplane, _) = start(&options);
        assert_eq!(dataplane.interfaces().expect("interfaces"), [interface.index]);
        dataplane.set_interface(&interface).expect("adopt");
        assert_eq!(attachments(place), expected);
        assert_eq!(link_ids(place, &interface), links, "the links are the same");
        assert_eq!(tcx_programs("pod0").len(), 2, "replaced, not added");
        assert_ne!(tcx_programs("pod0"), programs, "the programs are new");

        let l3 = InterfaceSpec { link: LinkLayer::None, ..interface.clone() };
        dataplane.set_interface(&l3).expect("change the link layer");
        assert_eq!(attachments(place)[0].0, "svc_egress_l3");

        dataplane.remove_interface(interface.index).expect("detach");
        dataplane.remove_interface(interface.index).expect("detach again");
        assert_eq!(attachments(place), []);
        assert_eq!(tcx_programs("pod0"), [] as [u32; 0]);
        assert_eq!(dataplane.interfaces().expect("interfaces"), [] as [u32; 0]);
    });
}

#[test]
fn links_of_an_interface_that_is_gone_are_unpinned_by_the_next_start() {
    in_place(|place| {
        let options = place.options();
        let interface = veth("pod0");
        let (mut dataplane, _) = start(&options);
        dataplane.set_interface(&interface).expect("attach");
        drop(dataplane);
        run("ip", &["link", "del", "pod0"]);
        let links = place.bpffs.join("layout-2/links");
        let count = |suffix: &str| {
            let names = fs::read_dir(&links).expect("links").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(suffix)).count()
        };
        assert_eq!(count("gress"), 2);
        let (mut dataplane, _) = start(&options);
        assert_eq!(count("gress"), 0);

        let error = dataplane.set_interface(&interface).expect_err("it is gone");
        assert!(error.to_string().contains("interface pod0"), "{error}");
        assert!(error.to_string().contains("the interface is gone"), "{error}");
        dataplane.remove_interface(interface.index).expect("forget it");
    });
}

#[test]
fn clsact_replaces_its_filter_and_tcx_takes_over_from_it() {
    in_place(|place| {
        let interface = veth("pod0");
        run("tc", &["qdisc", "add", "dev", "pod0", "clsact"]);
        drop(start(&place.options()));
        let program = place.bpffs.join("layout-2/programs/svc_egress_l3").display().to_string();
        let foreign = ["filter", "add", "dev", "pod0", "ingress", "prio", "7", "bpf", "da", "pinned", &program];
        run("tc", &foreign);
        let options = Options { attach: AttachMode::Clsact, ..place.options() };
        let filters = || run("tc", &["filter", "show", "dev", "pod0", "ingress"]);
        for _ in 0..2 {
            let (mut dataplane, _) = start(&options);
            assert!(!dataplane.uses_tcx());
            dataplane.set_interface(&interface).expect("attach");
            dataplane.set_interface(&interface).expect("replace");
            assert_eq!(filters().matches("direct-action").count(), 2, "{}", filters());
            let expected = [
                ("svc_egress".to_owned(), "clsact", "pod0".to_owned()),
                ("svc_ingress".to_owned(), "clsact", "pod0".to_owned()),
            ];
            assert_eq!(attachments(place), expected);
        }
        let (mut dataplane, _) = start(&place.options());
        assert!(dataplane.uses_tcx());
        dataplane.set_interface(&interface).expect("attach");
        assert_eq!(attachments(place).iter().map(|(_, how, _)| *how).collect::<Vec<_>>(), ["tcx", "tcx"]);
        drop(dataplane);
        let (mut dataplane, _) = start(&options);
        dataplane.set_interface(&interface).expect("attach");
        assert_eq!(attachments(place).iter().map(|(_, how, _)| *how).collect::<Vec<_>>(), ["clsact", "clsact"]);
        drop(dataplane);

        let report = cleanup(&place.bpffs).expect("cleanup");
        assert_eq!(report.detached.iter().filter(|what| what.starts_with("clsact")).count(), 2, "{report:?}");
        assert_eq!(filters().matches("direct-action").count(), 1, "{}", filters());
        assert!(filters().contains("pref 7"), "filters of others stay: {}", filters());
    });
}

#[test]
fn foreign_pins_are_replaced_and_sizes_are_kept() {
    in_place(|place| {
        let options = place.options();
        let (mut dataplane, _) = start(&options);
        dataplane.apply(&operations()).expect("apply");
        drop(dataplane);

        let maps = place.bpffs.join("layout-2/maps");
        let services = maps.join("SERVICES");
        fs::remove_file(&services).expect("unpin");
        let foreign = services.to_string_lossy().into_owned();
        let create = ["map", "create", &foreign, "type", "hash", "key", "4", "value", "8", "entries", "4", "name", "x"];
        run("bpftool", &create);
        fs::remove_file(maps.join("CONFIG")).expect("unpin");
        fs::rename(place.bpffs.join("layout-2/programs/svc_egress"), maps.join("CONFIG")).expect("move a program");

        let mut larger = options.clone();
        larger.capacity.backends = 4096;
        let (mut dataplane, observed) = start(&larger);
        assert_eq!(observed.services, [], "the map was built anew");
        assert_eq!(observed.backends.len(), 3, "the others were adopted");
        let error =
            dataplane.apply(&[Op::SetBackend(4000, backend("10.0.0.1:1", 1, 1))]).expect_err("the size is kept");
        assert_eq!(error.map, "BACKENDS_V4");
        dataplane.apply(&operations()).expect("apply");
    });
}

#[test]
fn a_second_agent_and_a_cleanup_are_refused_while_an_agent_runs() {
    in_place(|place| {
        let (dataplane, _) = start(&place.options());
        assert!(matches!(refused(&place.options()), KernelError::Locked(_)));
        assert!(matches!(cleanup(&place.bpffs), Err(KernelError::Locked(_))));
        drop(dataplane);
        start(&place.options());
    });
}

#[test]
fn a_newer_layout_is_refused_and_left_alone() {
    in_place(|place| {
        let version = svc_common::LAYOUT_VERSION + 1;
        let newer = place.bpffs.join(format!("layout-{version}"));
        fs::create_dir(&newer).expect("make it");
        let is_newer = |error| matches!(error, KernelError::NewerLayout { found, .. } if found == version);
        assert!(is_newer(refused(&place.options())));
        assert!(cleanup(&place.bpffs).is_err_and(is_newer));
        assert!(newer.exists());
    });
}

#[test]
fn wrong_directories_are_errors_that_name_the_remedy() {
    in_place(|place| {
        let directory = tempfile::tempdir().expect("a directory");
        let error = refused(&Options { bpffs: directory.path().join("svc"), ..place.options() }).to_string();
        assert!(error.contains("bpffs is not mounted at") && error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
        let error = refused(&Options { cgroup: Some(directory.path().to_owned()), ..place.options() }).to_string();
        assert!(error.contains("not on a cgroup v2 file system: use --cgroup /"), "{error}");
        let error = Dataplane::start_with_object(&place.options(), b"").expect_err("no object").to_string();
        assert!(error.contains("cargo xtask build"), "{error}");
        assert!(Pins::open(directory.path()).is_err());
    });
}

#[test]
fn socket_hooks_are_adopted_and_go_when_they_are_switched_off() {
    in_place(|place| {
        let hooks = || {
            let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
            let all = snapshot.attachments.into_iter().filter(|attachment| attachment.how == "cgroup");
            all.map(|attachment| (attachment.program, attachment.to)).collect::<Vec<_>>()
        };
        let attached = || run("bpftool", &["-j", "cgroup", "show", place.cgroup.to_str().expect("a path")]);
        drop(start(&place.options()));
        assert_eq!(hooks().len(), 8);
        assert_eq!(hooks()[0], ("svc_connect4".to_owned(), place.cgroup.display().to_string()));
        let before = attached();
        drop(start(&place.options()));
        assert_eq!(hooks().len(), 8);
        assert_eq!(attached().matches("attach_type").count(), 8, "replaced, not added: {}", attached());
        assert_ne!(before, attached(), "the programs are new");
        drop(start(&Options { cgroup: None, ..place.options() }));
        assert_eq!(hooks(), []);
        assert_eq!(attached().matches("attach_type").count(), 0);
    });
}

#[test]
fn cleanup_removes_everything_and_then_finds_nothing() {
    in_place(|place| {
        let interface = veth("pod0");
        let (mut dataplane, _) = start(&place.options());
        dataplane.set_interface(&interface).expect("attach");
        dataplane.apply(&operations()).expect("apply");
        svc_userspace::masquerade::install(0x1000).expect("masquerade");
        drop(dataplane);
        let report = cleanup(&place.bpffs).expect("cleanup");
        assert_eq!(report.detached.len(), 10, "{report:?}");
        assert!(report.masquerade);
        assert!(!place.bpffs.exists());
        assert_eq!(tcx_programs("pod0"), [] as [u32; 0]);
        assert!(cleanup(&place.bpffs).expect("again").is_empty());
    });
}

#[test]
fn pins_of_another_network_namespace_are_not_taken_for_ours() {
    in_place(|place| {
        let interface = veth("pod0");
        let (mut dataplane, _) = start(&place.options());
        dataplane.set_interface(&interface).expect("attach");
        drop(dataplane);
        let options = place.options();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
                let (dataplane, _) = start(&options);
                assert_eq!(dataplane.interfaces().expect("interfaces"), [] as [u32; 0]);
            });
        });
        assert_eq!(tcx_programs("pod0"), [] as [u32; 0]);
    });
}
