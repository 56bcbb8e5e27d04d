//! The flow cache in the loaded XDP program: that it is used, that it does what the long way does, and what ends it.

mod kernel_support;

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{RawTracePoint, TestRun as _, TestRunOptions, Xdp},
};
use kernel_support::{in_place, object, run};
use nix::{
    net::if_::if_nametoindex,
    time::{ClockId, clock_gettime},
};
use svc_common::{
    Backend, BackendState, CacheState, Config, Counters, Flow, FlowKey, Frontend, FrontendKey, Interface, Scope,
    SlotLine, SlotRange,
    config::{CONFIG_MASQUERADE, CONFIG_PORTS_RESERVED, INTERFACE_XDP},
    protocol,
};
use svc_fuzz::{
    craft::{ACK, Frame, SYN, Transport},
    judge::assert_valid,
};

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const ETHERNET: usize = 14;
const SERVICE: u32 = 3;
const BACKEND: u32 = 5;
const TARGET: u16 = 8080;
/// The interface that BPF_PROG_TEST_RUN's frames arrive on: lo.
const LOOPBACK: u32 = 1;
const GATEWAYS: [&str; 2] = ["10.99.0.2", "fd99::2"];

/// The loaded program, on a node whose only way out is an uplink with a gateway behind it.
struct Node {
    ebpf: Ebpf,
    uplink: u32,
}

impl Node {
    fn new() -> Self {
        for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap();
        }
        run("ip", &["link", "add", "uplink", "type", "veth", "peer", "name", "other"]);
        for device in ["uplink", "other"] {
            run("ip", &["link", "set", device, "up"]);
        }
        run("ip", &["address", "add", "10.99.0.1/30", "dev", "uplink"]);
        run("ip", &["address", "add", "fd99::1/126", "dev", "uplink", "nodad"]);
        for gateway in GATEWAYS {
            neighbour(gateway, "02:00:00:00:00:01");
            run("ip", &["route", "add", "default", "via", gateway, "dev", "uplink"]);
        }
        let mut loader = EbpfLoader::new();
        for name in ["CACHE_V4", "CACHE_V6"] {
            loader.map_max_entries(name, 64);
        }
        let mut ebpf = loader.load(&object()).unwrap();
        let program: &mut Xdp = ebpf.program_mut("svc_xdp").unwrap().try_into().unwrap();
        program.load().unwrap();
        Self { ebpf, uplink: if_nametoindex("uplink").unwrap() }
    }

    fn array<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        Array::<_, V>::try_from(self.ebpf.map_mut(name).unwrap()).unwrap().set(index, value, 0).unwrap();
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.ebpf.map_mut(name).unwrap()).unwrap()
    }

    fn set_generation(&mut self, generation: u32) {
        self.array("CACHE_STATE", 0, CacheState { generation, mask_v4: 63, mask_v6: 63, pad: 0 });
    }

    fn neighbours(&mut self) -> Array<&mut MapData, u64> {
        Array::try_from(self.ebpf.map_mut("NEIGHBOURS").unwrap()).unwrap()
    }

    /// Packets that the Service has had.
    fn counted(&mut self) -> u64 {
        let map = self.ebpf.map_mut("STATS_SERVICE").unwrap();
        let counters = PerCpuArray::<_, Counters>::try_from(map).unwrap().get(&SERVICE, 0).unwrap();
        counters.iter().map(|cpu| cpu.packets).sum()
    }

    fn send(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &mut Xdp = self.ebpf.program_mut("svc_xdp").unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }
}

fn neighbour(gateway: &str, mac: &str) {
    run("ip", &["neighbour", "replace", gateway, "lladdr", mac, "dev", "uplink", "nud", "permanent"]);
}

/// The clock of the cache.
fn tick() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    (now.tv_sec() * 1_000_000_000 + now.tv_nsec()) >> 30
}

/// Runs something within one unit of the clock: again, if that was over too soon.
fn within_a_tick<T>(mut work: impl FnMut() -> T) -> T {
    loop {
        let before = tick();
        let result = work();
        if tick() == before {
            return result;
        }
    }
}

macro_rules! family {
    ($name:ident, $address:ty, $suffix:literal, $nth:expr) => {
        #[test]
        fn $name() {
            type A = $address;
            let nth: fn(u8) -> A = $nth;
            let map = move |name: &str| format!("{name}_{}", $suffix);
            let set_backend = move |node: &mut Node, state: BackendState| {
                let address = nth(120);
                let value =
                    Backend { address, port: TARGET, state: state as u8, flags: 0, generation: 1, service: SERVICE };
                node.array::<Backend<A>>(&map("BACKENDS"), BACKEND, value);
            };
            let publish = move |node: &mut Node| {
                let range = SlotRange { offset: 0, len: 1 };
                let frontend = Frontend { service: SERVICE, inside: range, outside: range, ..Frontend::default() };
                for protocol in [protocol::TCP, protocol::UDP] {
                    let key = FrontendKey::new(nth(110), 80, protocol);
                    node.hash::<FrontendKey<A>, Frontend>(&map("FRONTENDS")).insert(key, frontend, 0).unwrap();
                }
            };
            // Whatever is not known goes up the stack from here on.
            let forget_all = move |node: &mut Node| {
                let mut flows = node.hash::<FlowKey<A>, Flow<A>>(&map("FLOWS"));
                for key in flows.keys().collect::<Result<Vec<_>, _>>().unwrap() {
                    flows.remove(&key).unwrap();
                }
                for protocol in [protocol::TCP, protocol::UDP] {
                    let key = FrontendKey::new(nth(110), 80, protocol);
                    node.hash::<FrontendKey<A>, Frontend>(&map("FRONTENDS")).remove(&key).unwrap();
                }
            };
            let frame = move |transport: Transport, payload: &[u8]| {
                let (from, to) = (IpAddr::from(nth(100)), IpAddr::from(nth(110)));
                let frame = Frame::new((from, 40_000).into(), (to, 80).into(), transport);
                Frame { payload: payload.to_vec(), ..frame }.bytes()
            };
            in_place(move |_| {
                let mut node = Node::new();
                let mut line = SlotLine::default();
                line.backends[0] = BACKEND;
                node.array("SLOTS", 0, line);
                let uplink = node.uplink;
                let interface = Interface { scope: Scope::Outside as u8, flags: INTERFACE_XDP, ..Interface::default() };
                for index in [LOOPBACK, uplink] {
                    node.hash::<u32, Interface>("INTERFACES").insert(index, interface, 0).unwrap();
                }
                node.hash::<u32, A>(&map("MASQUERADE")).insert(uplink, nth(1), 0).unwrap();
                let flags = CONFIG_MASQUERADE | CONFIG_PORTS_RESERVED;
                node.array("CONFIG", 0, Config { flags, ..Config::default() });

                for (opening, transport, is_connection) in
                    [(Transport::Udp, Transport::Udp, false), (Transport::Tcp(SYN), Transport::Tcp(ACK), true)]
                {
                    let opening = frame(opening, b"");
                    let [request, longer] = [&b"odd"[..], b"and of another length"].map(|it| frame(transport, it));
                    let mut generation = 0;
                    // A flow that is known, and has neither entries nor a frontend any more: what a change makes of its packet.
                    let mut after = |node: &mut Node, change: &dyn Fn(&mut Node), packet: &[u8]| {
                        within_a_tick(|| {
                            generation += 1;
                            node.set_generation(generation);
                            set_backend(node, BackendState::Active);
                            publish(node);
                            assert_eq!(node.send(&opening).0, XDP_REDIRECT, "it opens a flow");
                            let long_way = node.send(packet);
                            assert_eq!(long_way.0, XDP_REDIRECT, "it goes the long way");
                            assert_valid(&long_way.1[ETHERNET..]);
                            forget_all(node);
                            let before = node.counted();
                            change(node);
                            let (verdict, bytes) = node.send(packet);
                            let is_known = verdict == XDP_REDIRECT;
                            assert_eq!(bytes, if is_known { long_way.1 } else { packet.to_vec() }, "{verdict}");
                            assert_eq!(node.counted(), before + u64::from(is_known));
                            assert!(is_known || verdict == XDP_PASS, "{verdict}");
                            is_known
                        })
                    };
                    for packet in [&request, &longer] {
                        assert!(after(&mut node, &|_| {}, packet), "it is known");
                    }
                    let off = |node: &mut Node| node.set_generation(0);
                    assert!(!after(&mut node, &off, &request), "the cache is off");
                    let changed = |node: &mut Node| node.set_generation(1 << 20);
                    assert!(!after(&mut node, &changed, &request), "routes have changed");
                    let moved = |node: &mut Node| {
                        let updates = node.neighbours().get(&0, 0).unwrap();
                        node.neighbours().set(0, updates + 1, 0).unwrap();
                    };
                    assert!(!after(&mut node, &moved, &request), "a neighbour has changed");
                    let gone = |node: &mut Node| set_backend(node, BackendState::Gone);
                    let stays = after(&mut node, &gone, &request);
                    assert_eq!(stays, is_connection, "only connections stay");
                }
            });
        }
    };
}

family!(known_flows_of_ipv4_go_the_short_way, [u8; 4], "V4", |number| [10, 99, 0, number]);
family!(known_flows_of_ipv6_go_the_short_way, [u8; 16], "V6", |number| {
    [0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]
});

#[test]
fn the_kernel_counts_updates_of_neighbours() {
    in_place(|_| {
        let mut node = Node::new();
        let program: &mut RawTracePoint = node.ebpf.program_mut("svc_neighbour").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach("neigh_update_done").unwrap();
        for (gateway, mac) in GATEWAYS.into_iter().zip(["02:00:00:00:00:07", "02:00:00:00:00:08"]) {
            let before = node.neighbours().get(&0, 0).unwrap();
            neighbour(gateway, mac);
            assert!(node.neighbours().get(&0, 0).unwrap() > before, "{gateway}");
        }
    });
}
