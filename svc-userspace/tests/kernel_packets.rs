//! The loaded programs against the same source on the host: for random packets and tables, BPF_PROG_TEST_RUN must give
//! the same verdict, the same bytes and the same mark, packet after packet.
//!
//! Needs root, and the kernel object that `cargo xtask ebpf` builds.

use std::hash::Hash;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use etherparse::PacketBuilder;
use proptest::{
    prelude::*,
    test_runner::{Config as ProptestConfig, TestRunner},
};
use svc_common::{
    Affinity, AffinityKey, Backend, BackendState, Cidr, Config, Flow, FlowKey, FragmentKey, Frontend, FrontendKey,
    Hook, Interface, Ports, Scope, SlotLine, SlotRange, SourcePrefix,
    backend::BACKEND_LOCAL,
    config::INTERFACE_BRIDGE_PORT,
    frontend::{
        FLAG_CLUSTER_IP, FLAG_HOST_ONLY, FLAG_INSIDE_DROP, FLAG_NODE_PORT, FLAG_OUTSIDE_DROP, FLAG_SOURCE_RANGES,
    },
    protocol,
    source_range::SERVICE_BITS,
    target::target_bit,
};
use svc_ebpf::{
    Verdict,
    host::{HostFrame, HostTables},
    ip::Ip,
};

const MARK: u32 = 0x1000;
/// The interface that BPF_PROG_TEST_RUN's packets arrive on: lo.
const INTERFACE: u32 = 1;
const TCX_NEXT: u32 = u32::MAX;
const TCX_DROP: u32 = 2;
const TCX_REDIRECT: u32 = 7;
/// Offset of `mark` in `struct __sk_buff`, and the size of the whole (include/uapi/linux/bpf.h).
const SKB_MARK: usize = 8;
const SKB_LEN: usize = 192;

trait Plan: Ip + Hash + aya::Pod {
    const SUFFIX: &'static str;
    fn nth(n: u8) -> Self;
    fn packet(self, destination: Self, ports: (u16, u16), kind: Kind, payload: &[u8]) -> Vec<u8>;
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Syn,
    Ack,
    Fin,
    Rst,
}

macro_rules! plan {
    ($address:ty, $suffix:literal, $ip:ident, $prefix:expr) => {
        impl Plan for $address {
            const SUFFIX: &'static str = $suffix;

            fn nth(n: u8) -> Self {
                let mut address: $address = $prefix;
                *address.last_mut().unwrap() = n;
                address
            }

            fn packet(self, destination: Self, ports: (u16, u16), kind: Kind, payload: &[u8]) -> Vec<u8> {
                let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).$ip(self, destination, 64);
                let mut bytes = Vec::new();
                if let Kind::Udp = kind {
                    ip.udp(ports.0, ports.1).write(&mut bytes, payload).unwrap();
                    return bytes;
                }
                let tcp = ip.tcp(ports.0, ports.1, 1, 1000);
                let tcp = match kind {
                    Kind::Syn => tcp.syn(),
                    Kind::Fin => tcp.ack(1).fin(),
                    Kind::Rst => tcp.rst(),
                    Kind::Ack | Kind::Udp => tcp.ack(1),
                };
                tcp.write(&mut bytes, payload).unwrap();
                bytes
            }
        }
    };
}

plan!([u8; 4], "V4", ipv4, [10, 0, 0, 0]);
plan!([u8; 16], "V6", ipv6, [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// One packet of a history: small pools of addresses and ports, so that packets meet each other's flows.
#[derive(Clone, Debug)]
struct Step {
    egress: bool,
    source: u8,
    destination: u8,
    ports: (u16, u16),
    kind: Kind,
    payload: Vec<u8>,
    /// Bytes overwritten after the packet was built: `(offset, value)`.
    damage: Vec<(usize, u8)>,
    /// The packet becomes the head that an ICMP error carries.
    in_error: bool,
    truncate: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let port = || prop_oneof![Just(80u16), Just(8080), Just(443), 1000u16..1003];
    let kind = prop_oneof![
        3 => Just(Kind::Udp), 3 => Just(Kind::Syn), 3 => Just(Kind::Ack), 1 => Just(Kind::Fin), 1 => Just(Kind::Rst)
    ];
    let ipv4_fragment = (0u8..2, 0u8..4).prop_map(|(more, low)| vec![(20, more << 5), (21, low)]);
    let damage = prop_oneof![
        4 => Just(Vec::new()),
        1 => proptest::collection::vec((12usize..80, any::<u8>()), 1..4),
        1 => ipv4_fragment,
    ];
    let client_port = || prop_oneof![1000u16..1003, Just(8080)];
    let request = (0u8..8, 4u8..6, client_port()).prop_map(|(client, vip, port)| (false, client, vip, (port, 80)));
    let reply = (any::<bool>(), 0u8..4, 0u8..8, client_port())
        .prop_map(|(egress, from, to, port)| (egress, from, to, (8080, port)));
    let anything = (any::<bool>(), 0u8..8, 0u8..8, (port(), port()));
    let tuple = (prop_oneof![3 => request, 3 => reply, 1 => anything], kind);
    let payload = proptest::collection::vec(any::<u8>(), 0..40);
    let (in_error, truncate) = (proptest::bool::weighted(0.2), proptest::option::weighted(0.1, 54usize..90));
    (tuple, payload, damage, in_error, truncate).prop_map(|(tuple, payload, damage, in_error, truncate)| {
        let ((egress, source, destination, ports), kind) = tuple;
        Step { egress, source, destination, ports, kind, payload, damage, in_error, truncate }
    })
}

/// Tables: addresses 4 and 5 are VIPs, backends are among addresses 0 to 3, so hairpins and clashes happen.
#[derive(Clone, Debug)]
struct Setting {
    scope: usize,
    bridge_port: bool,
    flags: u32,
    affinity: bool,
    /// `VIP_*` of the VIPs.
    vip: u32,
    /// Clients within the source ranges, if there are any: those with an even last byte.
    limited: bool,
    /// Whether direct connections are kept apart.
    targets: bool,
    /// Last byte of the address, state, local, generation.
    backends: Vec<(u8, usize, bool, u32)>,
    /// Some of them name no backend.
    slots: Vec<u32>,
    inside: (u32, u32),
    outside: (u32, u32),
}

fn setting() -> impl Strategy<Value = Setting> {
    let flags = prop_oneof![
        3 => Just(FLAG_CLUSTER_IP),
        3 => Just(FLAG_NODE_PORT),
        1 => Just(FLAG_CLUSTER_IP | FLAG_INSIDE_DROP | FLAG_OUTSIDE_DROP),
        1 => Just(FLAG_NODE_PORT | FLAG_HOST_ONLY)
    ];
    let backends = proptest::collection::vec((0u8..4, 0usize..3, any::<bool>(), 1u32..3), 4);
    let slots = proptest::collection::vec(1u32..6, 16);
    let range = || (0u32..4, 0u32..12);
    let interface = (0usize..3, any::<bool>(), proptest::bool::weighted(0.2));
    let answers = (0u32..4, proptest::bool::weighted(0.3), any::<bool>());
    (interface, answers, flags, backends, slots, range(), range()).prop_map(
        |((scope, bridge_port, affinity), (vip, limited, targets), flags, backends, slots, inside, outside)| Setting {
            scope,
            bridge_port,
            flags: if limited { flags | FLAG_SOURCE_RANGES } else { flags },
            affinity,
            vip,
            limited,
            targets,
            backends,
            slots,
            inside,
            outside,
        },
    )
}

fn host_tables<A: Plan>(setting: &Setting) -> HostTables<A> {
    let mut tables = HostTables { masquerade_mark: MARK, ..HostTables::default() };
    tables.interface = Interface {
        scope: [Scope::Outside, Scope::Inside, Scope::Overlay][setting.scope] as u8,
        flags: if setting.bridge_port { INTERFACE_BRIDGE_PORT } else { 0 },
        bridge_mac: [2, 9, 9, 9, 9, 9],
    };
    for (id, &(address, state, local, generation)) in (1u32..).zip(&setting.backends) {
        let backend = Backend {
            address: A::nth(address),
            port: 8080,
            state: [BackendState::Active, BackendState::Terminating, BackendState::Gone][state] as u8,
            flags: if local { BACKEND_LOCAL } else { 0 },
            generation,
            service: 3,
        };
        tables.backends.insert(id, backend);
    }
    tables.slots.clone_from(&setting.slots);
    let frontend = Frontend {
        service: 3,
        flags: setting.flags,
        affinity_seconds: if setting.affinity { 10800 } else { 0 },
        inside: SlotRange { offset: setting.inside.0, len: setting.inside.1 },
        outside: SlotRange { offset: setting.outside.0, len: setting.outside.1 },
    };
    for client in (0..8).step_by(2).filter(|_| setting.limited) {
        tables.sources.insert(SourcePrefix { service: 3, address: A::nth(client) });
    }
    let mut mask = A::zeroed();
    bytemuck::bytes_of_mut(&mut mask).fill(0xff);
    tables.service_cidrs = vec![Cidr { network: A::nth(7), mask }];
    for address in (0..4).filter(|_| setting.targets) {
        for protocol in [protocol::TCP, protocol::UDP] {
            tables.targets.insert(target_bit(&A::nth(address), 8080, protocol));
        }
    }
    for vip in [4, 5] {
        if setting.vip != 0 {
            tables.vips.insert(A::nth(vip), setting.vip);
        }
        for protocol in [protocol::TCP, protocol::UDP] {
            tables.frontends.insert(FrontendKey::new(A::nth(vip), 80, protocol), frontend);
        }
    }
    tables
}

fn packet<A: Plan>(step: &Step) -> Vec<u8> {
    let (source, destination) = (A::nth(step.source), A::nth(step.destination));
    let mut bytes = source.packet(destination, step.ports, step.kind, &step.payload);
    if step.in_error {
        // The packet's destination complains to its source.
        let head = bytes[14..].to_vec();
        bytes = destination.packet(source, (0, 0), Kind::Udp, &head);
        let icmp = 14 + A::HEADER_LEN;
        let (next_header, icmp_type) = if A::VERSION == 4 { (23, 3) } else { (20, 1) };
        bytes[next_header] = A::ICMP;
        bytes[icmp] = icmp_type;
        bytes[icmp + 1] = 3;
    }
    for &(offset, value) in &step.damage {
        if let Some(byte) = bytes.get_mut(offset) {
            *byte = value;
        }
    }
    if let Some(len) = step.truncate {
        bytes.truncate(len);
    }
    bytes
}

fn load() -> Ebpf {
    let path = std::env::var("SVC_EBPF_OBJECT").unwrap_or_else(|_| "../.build/ebpf/svc.o".to_owned());
    let mut loader = EbpfLoader::new();
    for map in ["FLOWS_V4", "FLOWS_V6"] {
        loader.map_max_entries(map, 65536);
    }
    let mut ebpf = loader.load_file(&path).unwrap_or_else(|error| {
        panic!("{path}: {error}; build it with `cargo xtask ebpf`, and run as root");
    });
    for name in ["svc_ingress", "svc_egress"] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
    }
    ebpf
}

fn map<'a, T: TryFrom<&'a mut Map>>(ebpf: &'a mut Ebpf, name: &str) -> T
where
    T::Error: std::fmt::Debug,
{
    ebpf.map_mut(name).unwrap().try_into().unwrap()
}

fn clear<K: aya::Pod, V: aya::Pod>(ebpf: &mut Ebpf, name: &str) {
    let mut map: HashMap<&mut MapData, K, V> = map(ebpf, name);
    let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

fn fill_kernel<A: Plan>(ebpf: &mut Ebpf, tables: &HostTables<A>)
where
    FrontendKey<A>: aya::Pod,
    Backend<A>: aya::Pod,
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
    AffinityKey<A>: aya::Pod,
    FragmentKey<A>: aya::Pod,
    SourcePrefix<A>: aya::Pod,
    Cidr<A>: aya::Pod,
{
    let name = |map: &str| format!("{map}_{}", A::SUFFIX);
    clear::<FlowKey<A>, Flow<A>>(ebpf, &name("FLOWS"));
    clear::<AffinityKey<A>, Affinity>(ebpf, &name("AFFINITY"));
    clear::<FragmentKey<A>, Ports>(ebpf, &name("FRAGMENTS"));
    let mut frontends: HashMap<_, FrontendKey<A>, Frontend> = map(ebpf, &name("FRONTENDS"));
    for (key, frontend) in &tables.frontends {
        frontends.insert(key, frontend, 0).unwrap();
    }
    let mut backends: Array<_, Backend<A>> = map(ebpf, &name("BACKENDS"));
    for (id, backend) in &tables.backends {
        backends.set(*id, backend, 0).unwrap();
    }
    clear::<A, u32>(ebpf, &name("VIPS"));
    let mut vips: HashMap<_, A, u32> = map(ebpf, &name("VIPS"));
    for (address, flags) in &tables.vips {
        vips.insert(address, flags, 0).unwrap();
    }
    let mut cidrs: Array<_, Cidr<A>> = map(ebpf, &name("SERVICE_CIDRS"));
    for (index, cidr) in (0..).zip(&tables.service_cidrs) {
        cidrs.set(index, *cidr, 0).unwrap();
    }
    let mut sources: LpmTrie<_, SourcePrefix<A>, u32> = map(ebpf, &name("SOURCE_RANGES"));
    let host_bits = SERVICE_BITS + 8 * size_of::<A>() as u32;
    for client in 0..8 {
        let prefix = SourcePrefix { service: 3, address: A::nth(client) };
        let key = Key::new(host_bits, prefix);
        if tables.sources.contains(&prefix) {
            sources.insert(&key, 1, 0).unwrap();
        } else {
            drop(sources.remove(&key));
        }
    }
    let mut targets: Array<_, u64> = map(ebpf, "TARGETS");
    for bit in (0..4).flat_map(|n| [protocol::TCP, protocol::UDP].map(|it| target_bit(&A::nth(n), 8080, it))) {
        let word = targets.get(&(bit / 64), 0).unwrap() & !(1 << (bit % 64));
        let set = u64::from(tables.targets.contains(&bit)) << (bit % 64);
        targets.set(bit / 64, word | set, 0).unwrap();
    }
    let mut slots: Array<_, SlotLine> = map(ebpf, "SLOTS");
    let mut line = SlotLine::default();
    line.backends[..tables.slots.len()].copy_from_slice(&tables.slots);
    slots.set(0, line, 0).unwrap();
    let mut config: Array<_, Config> = map(ebpf, "CONFIG");
    config.set(0, Config { masquerade_mark: MARK, ..Config::default() }, 0).unwrap();
    let mut interfaces: HashMap<_, u32, Interface> = map(ebpf, "INTERFACES");
    interfaces.insert(INTERFACE, tables.interface, 0).unwrap();
}

/// Verdict, bytes and mark after the loaded program has run; `None` where the kernel takes no such packet at all.
fn run_in_kernel(ebpf: &mut Ebpf, egress: bool, bytes: &[u8]) -> Option<(u32, Vec<u8>, u32)> {
    let name = if egress { "svc_egress" } else { "svc_ingress" };
    let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
    let (mut out, mut context) = (vec![0; 4096], vec![0; SKB_LEN]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(bytes);
    options.data_out = Some(&mut out);
    options.ctx_out = Some(&mut context);
    let result = program.test_run(options).ok()?;
    out.truncate(result.data_size_out as usize);
    let mark = u32::from_ne_bytes(context[SKB_MARK..SKB_MARK + 4].try_into().unwrap());
    Some((result.return_value, out, mark))
}

fn compare<A: Plan>()
where
    FrontendKey<A>: aya::Pod,
    Backend<A>: aya::Pod,
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
    AffinityKey<A>: aya::Pod,
    FragmentKey<A>: aya::Pod,
    SourcePrefix<A>: aya::Pod,
    Cidr<A>: aya::Pod,
{
    let ebpf = std::cell::RefCell::new(load());
    let counts = std::cell::Cell::new((0u32, 0u32, 0u32));
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&(setting(), proptest::collection::vec(step(), 1..60)), |(setting, steps)| {
            let mut ebpf = ebpf.borrow_mut();
            let mut tables = host_tables::<A>(&setting);
            fill_kernel(&mut ebpf, &tables);
            for step in &steps {
                let (translated, dropped, refused) = counts.get();
                let bytes = packet::<A>(step);
                let Some((verdict, after, mark)) = run_in_kernel(&mut ebpf, step.egress, &bytes) else {
                    counts.set((translated, dropped, refused + 1));
                    continue;
                };
                let mut frame = HostFrame::new(bytes.clone());
                let hook = if step.egress { Hook::Egress } else { Hook::Ingress };
                let expected = match tables.run(hook, &mut frame) {
                    Verdict::Pass => TCX_NEXT,
                    Verdict::Drop(_) => TCX_DROP,
                    Verdict::Refuse(_) | Verdict::Answer => TCX_REDIRECT,
                };
                prop_assert_eq!(verdict, expected, "verdict of {:?}", step);
                prop_assert_eq!(&after, &frame.bytes, "bytes of {:?}", step);
                prop_assert_eq!(mark, frame.mark, "mark of {:?}", step);
                counts.set((translated + u32::from(after != bytes), dropped + u32::from(verdict == TCX_DROP), refused));
            }
            Ok(())
        })
        .unwrap();
    // The comparison is worth something only if the packets exercise what is compared.
    let (translated, dropped, refused) = counts.get();
    println!("{translated} translated, {dropped} dropped, {refused} not taken by the kernel");
    assert!(translated > 500, "only {translated} packets were translated");
    assert!(dropped > 20, "only {dropped} packets were dropped");
}

#[test]
fn ipv4_programs_do_what_the_host_build_does() {
    compare::<[u8; 4]>();
}

#[test]
fn ipv6_programs_do_what_the_host_build_does() {
    compare::<[u8; 16]>();
}
