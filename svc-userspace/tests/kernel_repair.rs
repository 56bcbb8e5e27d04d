//! What somebody else does to pins, attachments and maps of a running dataplane, and what the repair makes of it, on the running
//! kernel.

mod kernel_support;

use std::{fs, path::Path};

use kernel_support::{Place, in_place, object, run};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use svc_common::{
    BackendState, Frontend, Interface, Scope, ServiceName, SlotRange, frontend::FLAG_CLUSTER_IP, vip::VIP_INSIDE,
};
use svc_userspace::{
    kernel::{AttachMode, Dataplane, InterfaceSpec, KernelError, LinkLayer, Options, Repaired, Xdp, view::Pins},
    model::Protocol,
    tables::{BackendValue, Difference, FrontendAddress, Observed, Op, Sets, Walked},
};

fn start(options: &Options) -> Dataplane {
    Dataplane::start_with_object(options, &object()).expect("the dataplane starts").0
}

fn veth(name: &str) -> InterfaceSpec {
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
    run("ip", &["link", "set", name, "up"]);
    InterfaceSpec {
        index: nix::net::if_::if_nametoindex(name).expect("the interface exists"),
        name: name.to_owned(),
        link: LinkLayer::Ethernet,
        mac: None,
        entry: Interface { scope: Scope::Outside as u8, ..Interface::default() },
    }
}

fn kinds(repaired: &[Repaired]) -> Vec<&'static str> {
    repaired.iter().map(|repaired| repaired.what).collect()
}

/// What is attached to interfaces, as `program how interface`.
fn attached(place: &Place) -> Vec<String> {
    let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
    let of = snapshot.attachments.into_iter().filter(|attachment| attachment.how != "cgroup");
    of.map(|it| format!("{} {} {}", it.program, it.how, it.to)).collect()
}

fn hooks(place: &Place) -> usize {
    let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
    snapshot.attachments.into_iter().filter(|attachment| attachment.how == "cgroup").count()
}

fn pin(place: &Place, path: &str) -> String {
    place.bpffs.join("layout-2").join(path).display().to_string()
}

#[test]
fn programs_that_were_detached_are_attached_again_and_counted() {
    in_place(|place| {
        let options = Options { xdp: Xdp::Generic, programs_masquerade: true, ..place.options() };
        let mut dataplane = start(&options);
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        let whole = attached(place);
        assert_eq!(whole.len(), 3, "{whole:?}");
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);

        run("bpftool", &["link", "detach", "pinned", &pin(place, &format!("links/{}-ingress", eth.index))]);
        fs::remove_file(pin(place, &format!("links/{}-egress", eth.index))).expect("remove a pin");
        run("bpftool", &["link", "detach", "pinned", &pin(place, &format!("links/{}-xdp-generic", eth.index))]);
        assert_eq!(attached(place), [] as [String; 0]);
        let repaired = dataplane.repair_interface(&eth).expect("repair");
        assert_eq!(kinds(&repaired), ["tcx", "tcx", "xdp"]);
        assert!(repaired[0].message.contains("svc_ingress was not attached to eth7"), "{repaired:?}");
        assert_eq!(attached(place), whole);
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);

        fs::remove_file(pin(place, "links/svc_connect4")).expect("remove a pin");
        run("bpftool", &["link", "detach", "pinned", &pin(place, "links/svc_sendmsg6")]);
        assert_eq!(hooks(place), 6);
        assert_eq!(kinds(&dataplane.repair_cgroup().expect("repair")), ["cgroup"; 2]);
        assert_eq!(hooks(place), 8);
        assert_eq!(dataplane.repair_cgroup().expect("repair"), []);
    });
}

#[test]
fn filters_of_clsact_that_were_removed_are_there_again() {
    in_place(|place| {
        let mut dataplane = start(&Options { attach: AttachMode::Clsact, ..place.options() });
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);
        run("tc", &["qdisc", "del", "dev", "eth7", "clsact"]);
        assert_eq!(kinds(&dataplane.repair_interface(&eth).expect("repair")), ["clsact"; 2]);
        assert_eq!(attached(place).len(), 2);
    });
}

#[test]
fn an_interface_that_went_away_is_an_error_by_its_name_and_nothing_else_is_touched() {
    in_place(|place| {
        let mut dataplane = start(&place.options());
        let (gone, stays) = (veth("eth7"), veth("eth8"));
        dataplane.set_interface(&gone).expect("attach");
        dataplane.set_interface(&stays).expect("attach");
        run("ip", &["link", "del", "eth7"]);
        let error = dataplane.repair_interface(&gone).expect_err("there is nothing to attach to");
        assert!(error.to_string().contains("eth7") && error.to_string().contains("the interface is gone"), "{error}");
        let error = dataplane.set_interface(&gone).expect_err("there is nothing to attach to");
        assert!(error.to_string().contains("eth7"), "{error}");
        assert_eq!(dataplane.repair_interface(&stays).expect("repair"), []);
    });
}

#[test]
fn an_uplink_that_another_xdp_program_holds_gets_ours_when_that_one_is_gone() {
    in_place(|place| {
        let options = Options { xdp: Xdp::Generic, programs_masquerade: true, ..place.options() };
        let mut dataplane = start(&options);
        let (other, eth) = (veth("eth6"), veth("eth7"));
        dataplane.set_interface(&other).expect("attach");
        let program = pin(place, "programs/svc_xdp_skb");
        run("ip", &["link", "set", "dev", "eth7", "xdpgeneric", "pinned", &program]);
        dataplane.set_interface(&eth).expect("the classifiers are attached");
        assert_eq!(dataplane.xdp_missing(), 1);
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);
        assert_eq!(dataplane.xdp_missing(), 1, "it is still there");
        run("ip", &["link", "set", "dev", "eth7", "xdpgeneric", "off"]);
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);
        assert_eq!(dataplane.xdp_missing(), 0);
        assert!(attached(place).contains(&"svc_xdp_skb xdp eth7".to_owned()), "{:?}", attached(place));
    });
}

#[test]
fn pins_that_are_gone_or_lead_elsewhere_lead_to_the_same_objects_again() {
    in_place(|place| {
        let mut dataplane = start(&place.options());
        assert_eq!(dataplane.repair_pins().expect("repair"), []);
        let id = |path: &str| -> serde_json::Value {
            let kind = if path.starts_with("maps") { "map" } else { "prog" };
            let text = run("bpftool", &["-j", kind, "show", "pinned", &pin(place, path)]);
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["id"].clone()
        };
        let ids = ["maps/FRONTENDS_V4", "maps/FLOWS_V6", "programs/svc_egress"].map(id);
        fs::remove_file(pin(place, "maps/FRONTENDS_V4")).expect("remove");
        fs::remove_file(pin(place, "maps/FLOWS_V6")).expect("remove");
        let flows = pin(place, "maps/FLOWS_V6");
        run(
            "bpftool",
            &["map", "create", &flows, "type", "array", "key", "4", "value", "4", "entries", "1", "name", "x"],
        );
        fs::remove_dir_all(pin(place, "programs")).expect("remove");
        let repaired = dataplane.repair_pins().expect("repair");
        assert!(repaired.iter().all(|it| it.what == "pin") && repaired.len() == 14, "{repaired:?}");
        assert_eq!(["maps/FRONTENDS_V4", "maps/FLOWS_V6", "programs/svc_egress"].map(id), ids);
        assert_eq!(dataplane.repair_pins().expect("repair"), []);
    });
}

#[test]
fn a_bpffs_that_was_unmounted_is_reported_and_everything_is_pinned_anew_without_a_gap_once_there_is_one() {
    in_place(|place| {
        // Mounts of this thread alone.
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let own = std::env::temp_dir().join(format!("svc-bpffs-{}", std::process::id()));
        fs::create_dir_all(&own).expect("a directory");
        let mounted = |at: &Path| mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mount");
        mounted(&own);
        let here = Place { bpffs: own.join("svc"), cgroup: place.cgroup.clone() };
        fs::create_dir(&here.bpffs).expect("a directory");
        let mut dataplane = start(&here.options());
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        let link = || {
            let text =
                run("bpftool", &["-j", "link", "show", "pinned", &pin(&here, &format!("links/{}-ingress", eth.index))]);
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["id"].clone()
        };
        let (link_before, hooks_before) = (link(), hooks(&here));

        umount2(&own, MntFlags::MNT_DETACH).expect("unmount");
        let error = dataplane.repair_pins().expect_err("there is no bpffs");
        assert!(matches!(error, KernelError::NoBpffs(_)), "{error}");
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
        mounted(&own);
        let repaired = dataplane.repair_pins().expect("repair");
        assert!(repaired[0].message.contains("10 links are pinned here now"), "{repaired:?}");
        assert_eq!(link(), link_before, "the very link: it was attached all the time");
        assert_eq!(hooks(&here), hooks_before);
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);
        assert_eq!(dataplane.repair_pins().expect("repair"), []);
        assert!(matches!(Dataplane::start_with_object(&here.options(), &object()), Err(KernelError::Locked(_))));
        drop(dataplane);
        start(&here.options());
        assert_eq!(link(), link_before);
        umount2(&own, MntFlags::MNT_DETACH).expect("unmount");
        fs::remove_dir(&own).expect("remove the directory");
        std::mem::forget(here);
    });
}

#[test]
fn settings_and_entries_of_interfaces_are_written_again() {
    in_place(|place| {
        let cidr = "10.96.0.0/16".parse().expect("a prefix");
        let mut dataplane = start(&Options { service_cidrs: vec![cidr], ..place.options() });
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        assert_eq!(dataplane.repair_settings().expect("repair"), []);
        let zeros = |map: &str, bytes: usize| {
            let path = pin(place, &format!("maps/{map}"));
            let mut words = vec!["map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
            words.extend(vec!["0"; bytes]);
            run("bpftool", &words);
        };
        zeros("CONFIG", 16);
        zeros("SERVICE_CIDRS_V4", 8);
        let index = eth.index.to_ne_bytes().map(|byte| byte.to_string());
        let interfaces = pin(place, "maps/INTERFACES");
        let words = ["map", "delete", "pinned", &interfaces, "key", &index[0], &index[1], &index[2], &index[3]];
        run("bpftool", &words);
        assert_eq!(kinds(&dataplane.repair_settings().expect("repair")), ["CONFIG", "SERVICE_CIDRS"]);
        assert_eq!(dataplane.repair_settings().expect("repair"), []);
        assert_eq!(kinds(&dataplane.repair_interface(&eth).expect("repair")), ["INTERFACES"]);
        assert_eq!(dataplane.repair_interface(&eth).expect("repair"), []);
    });
}

#[test]
fn entries_that_differ_are_told_from_those_that_do_not_and_what_nobody_wrote_is_found() {
    in_place(|place| {
        let mut dataplane = start(&place.options());
        let address = |text: &str| FrontendAddress { address: text.parse().expect("address"), protocol: Protocol::Tcp };
        let backend = |text: &str, generation| BackendValue {
            address: text.parse().expect("an address"),
            state: BackendState::Active,
            local: false,
            generation,
            service: 1,
            sets: Sets::default(),
        };
        let name = ServiceName {
            namespace: [b'a'; 64],
            name: [b'b'; 64],
            port_name: [0; 64],
            port: 80,
            protocol: 6,
            version: 4,
        };
        let range = SlotRange { offset: 16, len: 3 };
        let frontend =
            Frontend { service: 1, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
        let ops = vec![
            Op::SetService(1, Box::new(name)),
            Op::SetBackend(1, backend("10.0.0.1:80", 1)),
            Op::SetBackend(2, backend("[fd00::1]:80", 1)),
            Op::WriteSlots(16, vec![1, 2, 1]),
            Op::SetSource(1, "192.0.2.0/24".parse().expect("a prefix")),
            Op::SetSource(1, "192.0.2.128/25".parse().expect("a prefix")),
            Op::SetFrontend(address("10.96.0.1:80"), frontend),
            Op::SetFrontend(address("[fd00:96::1]:80"), frontend),
            Op::SetVip([10, 96, 0, 1].into(), VIP_INSIDE),
            Op::SetFilter(3, 0b101),
        ];
        dataplane.apply(&ops).expect("apply");
        assert_eq!(dataplane.differing(&ops).expect("compare"), []);
        assert_eq!(dataplane.slots(range).expect("read"), [1, 2, 1]);

        let others = [
            Op::SetBackend(1, backend("10.0.0.9:80", 1)),
            Op::WriteSlots(17, vec![7]),
            // A shorter prefix is still there, which a look-up would find.
            Op::RemoveSource(1, "192.0.2.128/25".parse().expect("a prefix")),
            Op::RemoveFrontend(address("10.96.0.1:80")),
            Op::SetVip([10, 96, 0, 1].into(), 0),
            Op::SetFrontend(address("10.96.0.7:80"), frontend),
            Op::SetVip([10, 96, 0, 7].into(), 0),
        ];
        dataplane.apply(&others).expect("apply");
        let differing = dataplane.differing(&ops).expect("compare");
        let changed = Difference::Changed;
        assert_eq!(
            differing,
            [(1, changed), (3, changed), (5, Difference::Missing), (6, Difference::Missing), (8, changed)]
        );
        let mut found = Observed::default();
        for map in Walked::ALL {
            let mut first = true;
            while !dataplane.next_entries(map, first, &mut found).expect("walk") {
                first = false;
            }
        }
        assert_eq!(found.frontends.len(), 2);
        assert!(found.frontends.iter().any(|(it, _)| *it == address("10.96.0.7:80")));
        assert_eq!((found.vips.len(), found.sources.len(), found.services.len()), (2, 1, 1));
        assert_eq!(found.backends.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
        for (index, _) in differing {
            dataplane.apply(&ops[index..=index]).expect("apply");
        }
        assert_eq!(dataplane.differing(&ops).expect("compare"), []);
    });
}

#[test]
fn a_program_that_the_verifier_refuses_is_named_and_what_is_attached_goes_on() {
    in_place(|place| {
        let options = place.options();
        let mut dataplane = start(&options);
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        drop(dataplane);
        let shown = |path: &str| run("bpftool", &["-j", "prog", "show", "pinned", &pin(place, path)]);
        let (before, programs) = (attached(place), ["programs/svc_egress", "programs/svc_ingress"].map(shown));
        // `r0 = r1` in place of every `exit`: the last instruction leads nowhere.
        let mut broken = object();
        let mut exits = 0;
        for at in (0..broken.len() - 8).step_by(8) {
            if broken[at..at + 8] == [0x95, 0, 0, 0, 0, 0, 0, 0] {
                broken[at..at + 8].copy_from_slice(&[0xbf, 0x10, 0, 0, 0, 0, 0, 0]);
                exits += 1;
            }
        }
        assert!(exits > 0);
        let Err(error) = Dataplane::start_with_object(&options, &broken) else { panic!("it is taken") };
        let text = error.to_string();
        assert!(matches!(error, KernelError::Load { .. }) && text.contains("program svc_"), "{text}");
        assert!(!text.contains('\n'), "one line: {text}");
        assert_eq!(attached(place), before);
        assert_eq!(["programs/svc_egress", "programs/svc_ingress"].map(shown), programs);
        let mut dataplane = start(&options);
        assert_eq!(dataplane.repair_pins().expect("repair"), []);
        dataplane.set_interface(&eth).expect("attach");
        assert_eq!(attached(place), before);
    });
}

#[test]
fn a_map_that_takes_no_writes_any_more_is_named_and_others_go_on() {
    in_place(|place| {
        let mut dataplane = start(&place.options());
        run("bpftool", &["map", "freeze", "pinned", &pin(place, "maps/FRONTENDS_V6")]);
        let address = |text: &str| FrontendAddress { address: text.parse().expect("address"), protocol: Protocol::Tcp };
        let ops = [
            Op::SetFrontend(address("10.96.0.1:80"), Frontend::default()),
            Op::SetFrontend(address("[fd00:96::1]:80"), Frontend::default()),
        ];
        let error = dataplane.apply(&ops).expect_err("the second one fails");
        assert_eq!((error.index, error.map), (1, "FRONTENDS_V6"), "{error}");
        assert!(error.to_string().contains("frontend [fd00:96::1]:80/TCP"), "{error}");
        assert!(error.to_string().contains("not permitted"), "{error}");
        assert_eq!(dataplane.differing(&ops).expect("compare"), [(1, Difference::Missing)]);
    });
}

/// Makes /proc/sys read-only, or (`false`) as it was, for this thread alone.
fn lock_settings(lock: bool) {
    let sys = "/proc/sys";
    if lock {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        mount(Some(sys), sys, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, sys, None::<&str>, read_only, None::<&str>).expect("read-only");
    } else {
        umount2(sys, MntFlags::MNT_DETACH).expect("unmount");
    }
}

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

#[test]
fn ports_that_could_not_be_reserved_are_not_given_up_and_are_tried_again() {
    in_place(|place| {
        let options = Options { programs_masquerade: true, ..place.options() };
        let mut dataplane = start(&options);
        fs::write(RESERVED, "50000\n").expect("write");
        lock_settings(true);
        let error = dataplane.reserve_ports().expect_err("it cannot be written");
        assert!(matches!(error, KernelError::ReservedPorts(_)) && error.to_string().contains("49152"), "{error}");
        // Somebody else reserves them meanwhile, as the message says: they are theirs then.
        lock_settings(false);
        fs::write(RESERVED, "49152-65535\n").expect("write");
        drop(dataplane);
        let report = svc_userspace::kernel::cleanup(&place.bpffs).expect("cleanup");
        assert_eq!((report.reserved_ports, report.problems.len()), (false, 0));
        assert_eq!(fs::read_to_string(RESERVED).expect("read"), "49152-65535\n");

        fs::create_dir_all(&place.bpffs).expect("a directory");
        fs::write(RESERVED, "50000\n").expect("write");
        let mut dataplane = start(&options);
        assert!(dataplane.reserve_ports().expect("reserve"), "they were not");
        assert!(!dataplane.reserve_ports().expect("reserve"), "they were");
        fs::write(RESERVED, "50000\n").expect("write");
        assert!(dataplane.reserve_ports().expect("reserve"), "somebody took them away");
        drop(dataplane);
        assert!(svc_userspace::kernel::cleanup(&place.bpffs).expect("cleanup").reserved_ports);
        assert_eq!(fs::read_to_string(RESERVED).expect("read"), "50000\n");
    });
}

#[test]
fn ports_that_cannot_be_given_up_keep_nothing_else_from_being_cleaned() {
    in_place(|place| {
        let mut dataplane = start(&Options { programs_masquerade: true, ..place.options() });
        dataplane.reserve_ports().expect("reserve");
        let eth = veth("eth7");
        dataplane.set_interface(&eth).expect("attach");
        drop(dataplane);
        lock_settings(true);
        let report = svc_userspace::kernel::cleanup(&place.bpffs).expect("cleanup");
        assert!(report.problems.iter().all(|it| it.contains("ip_local_reserved_ports")), "{report:?}");
        assert_eq!((report.problems.len(), report.reserved_ports), (1, false));
        assert!(!place.bpffs.join("layout-2").exists());
    });
}

#[test]
fn addresses_to_masquerade_with_that_cannot_be_written_are_an_error_and_others_are_counted() {
    in_place(|place| {
        let mut dataplane = start(&place.options());
        let sources = |last: u8| {
            let of = svc_userspace::kernel::Sources { v4: Some([192, 0, 2, last].into()), v6: None };
            std::collections::BTreeMap::from([(7, of)])
        };
        assert_eq!(dataplane.set_masquerade_sources(&sources(1)).expect("write"), 1);
        assert_eq!(dataplane.set_masquerade_sources(&sources(1)).expect("write"), 0);
        let map = pin(place, "maps/MASQUERADE_V4");
        run("bpftool", &["map", "update", "pinned", &map, "key", "9", "0", "0", "0", "value", "1", "2", "3", "4"]);
        assert_eq!(dataplane.set_masquerade_sources(&sources(1)).expect("write"), 1, "it is removed");
        run("bpftool", &["map", "freeze", "pinned", &map]);
        assert_eq!(dataplane.set_masquerade_sources(&sources(1)).expect("nothing to write"), 0);
        let error = dataplane.set_masquerade_sources(&sources(2)).expect_err("it cannot be written");
        assert!(error.to_string().contains("MASQUERADE_V4"), "{error}");
    });
}
