//! The loaded programs against the same source on the host: for the same tables and packets, BPF_PROG_TEST_RUN must give
//! the same verdict, bytes and mark, packet after packet, and leave the same flows, bindings and counters.
//!
//! The cases are those of the fuzz targets (`svc-fuzz`): their seeds, what they found, and random ones. Needs root, and the
//! kernel object that `cargo xtask ebpf` builds.

mod kernel_support;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
    fs,
    hash::Hash,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use kernel_support::in_place;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};
use svc_common::{
    AffinityKey, Backend, Cidr, Config, Counters, Flow, FlowKey, FragmentKey, FrontendKey, Held, Interface, Reason,
    SlotLine, SourcePrefix,
    config::{CONFIG_BRIDGES, CONFIG_FILTER, CONFIG_MASQUERADE, CONFIG_SERVICE_CIDRS, INTERFACE_BRIDGE_PORT},
    flow::FLOW_MASQUERADED,
    fragment::{HELD_PLACES, bpf_spin_lock},
    source_range::SERVICE_BITS,
};
use svc_ebpf::{Verdict, host::HostTables};
use svc_fuzz::{
    case::{Case, Event, Last},
    generate, random, trace,
    world::{FRONTENDS, MARK, Outcome, Packet, Plan, World},
};

/// The interface that BPF_PROG_TEST_RUN's packets arrive on: lo.
const INTERFACE: u32 = 1;
const TCX_NEXT: u32 = u32::MAX;
const TCX_DROP: u32 = 2;
const TCX_REDIRECT: u32 = 7;
/// Offset of `mark` in `struct __sk_buff`, and the size of the whole (include/uapi/linux/bpf.h).
const SKB_MARK: usize = 8;
const SKB_LEN: usize = 192;

/// The loaded programs and their maps.
struct Kernel {
    ebpf: Ebpf,
    /// The words of FILTER that were ever written.
    filter: BTreeMap<u32, u64>,
    /// The elements of UNUSUAL that are set.
    unusual: BTreeSet<u32>,
    /// HELD may be different from the host's.
    held: bool,
    /// Everything that comes in by lo.
    tap: OwnedFd,
}

/// What was met, in both the kernel and the host build.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    packets: u32,
    translated: u32,
    dropped: u32,
    /// Refused, or echo requests answered.
    turned: u32,
    /// Packets that the kernel does not take at all.
    refused: u32,
    /// Entries of flows that the programs masquerade.
    masqueraded: usize,
    /// Fragments held, and first fragments that came in again with these.
    held: u32,
    again: u32,
    /// Cases cut short because the clock moved on while a packet was under way.
    cut: u32,
}

/// The maps' names of a family.
trait Family: Plan + Pod {
    const SUFFIX: &'static str;
}

impl Family for [u8; 4] {
    const SUFFIX: &'static str = "V4";
}

impl Family for [u8; 16] {
    const SUFFIX: &'static str = "V6";
}

/// Entries of a map in an order of their own.
type Entries<K, V> = Vec<(K, V)>;

impl Kernel {
    fn load() -> Self {
        let path = std::env::var("SVC_EBPF_OBJECT").unwrap_or_else(|_| "../.build/ebpf/svc.o".to_owned());
        let mut loader = EbpfLoader::new();
        for map in ["FLOWS_V4", "FLOWS_V6"] {
            loader.map_max_entries(map, 65536);
        }
        let mut ebpf = loader.load_file(&path).unwrap_or_else(|error| {
            panic!("{path}: {error}; build it with `cargo xtask ebpf`, and run as root");
        });
        for name in ["svc_ingress", "svc_egress", "svc_ingress_l3", "svc_egress_l3"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap();
        Self { ebpf, filter: BTreeMap::new(), unusual: BTreeSet::new(), held: false, tap }
    }

    fn map<'a, T: TryFrom<&'a mut Map>>(&'a mut self, name: &str) -> T
    where
        T::Error: Debug,
    {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    fn read<K: Pod, V: Pod>(&mut self, name: &str) -> Entries<K, V> {
        let map: HashMap<&mut MapData, K, V> = self.map(name);
        map.iter().map(Result::unwrap).collect()
    }

    /// Makes a hash map hold these entries and no other.
    fn write<K: Pod + Eq + Hash, V: Pod>(&mut self, name: &str, entries: &std::collections::HashMap<K, V>) {
        for (key, _) in self.read::<K, V>(name) {
            if !entries.contains_key(&key) {
                self.map::<HashMap<&mut MapData, K, V>>(name).remove(&key).unwrap();
            }
        }
        let mut map: HashMap<&mut MapData, K, V> = self.map(name);
        for (key, value) in entries {
            map.insert(key, value, 0).unwrap();
        }
    }

    /// Writes every map.
    fn fill(&mut self, world: &World) {
        self.fill_family(&world.v4);
        self.fill_family(&world.v6);
        self.held = !(world.v4.held.is_empty() && world.v6.held.is_empty());
        let mut words: BTreeMap<u32, u64> = self.filter.keys().map(|word| (*word, 0)).collect();
        for bit in world.v4.filter.iter().chain(&world.v6.filter) {
            *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
        }
        if words != self.filter {
            let mut filter: Array<_, u64> = self.map("FILTER");
            for (word, bits) in &words {
                filter.set(*word, *bits, 0).unwrap();
            }
            self.filter = words;
        }
        let mut line = SlotLine::default();
        line.backends[..world.v4.slots.len()].copy_from_slice(&world.v4.slots);
        self.map::<Array<_, SlotLine>>("SLOTS").set(0, line, 0).unwrap();
        let masquerade = if world.v4.programs_masquerade { CONFIG_MASQUERADE } else { 0 };
        let unusual: BTreeSet<u32> = world.v4.unusual.union(&world.v6.unusual).copied().collect();
        let before = std::mem::replace(&mut self.unusual, unusual.clone());
        let mut marks: Array<_, u64> = self.map("UNUSUAL");
        for place in before.symmetric_difference(&unusual) {
            marks.set(*place, u64::from(unusual.contains(place)), 0).unwrap();
        }
        let bridges = if world.v4.interface.flags & INTERFACE_BRIDGE_PORT != 0 { CONFIG_BRIDGES } else { 0 };
        let filter = if world.v4.is_filtered { CONFIG_FILTER } else { 0 };
        let mut config = Config {
            masquerade_mark: MARK,
            flags: bridges | filter | masquerade | CONFIG_SERVICE_CIDRS,
            ..Config::default()
        };
        config.set_removal(world.v4.removal.unwrap_or(world.v4.now.wrapping_add(128)));
        self.map::<Array<_, Config>>("CONFIG").set(0, config, 0).unwrap();
        self.map::<HashMap<_, u32, Interface>>("INTERFACES").insert(INTERFACE, world.v4.interface, 0).unwrap();
    }

    fn fill_family<A: Family>(&mut self, tables: &HostTables<A>)
    where
        FrontendKey<A>: Pod,
        Backend<A>: Pod,
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        AffinityKey<A>: Pod,
        FragmentKey<A>: Pod,
        SourcePrefix<A>: Pod,
        Cidr<A>: Pod,
    {
        let name = |map: &str| format!("{map}_{}", A::SUFFIX);
        self.write(&name("FRONTENDS"), &tables.frontends);
        self.write(&name("FLOWS"), &tables.flows);
        self.write(&name("AFFINITY"), &tables.affinity);
        self.write(&name("FRAGMENTS"), &tables.fragments);
        if self.held {
            let mut held: Array<_, Held> = self.map(&name("HELD"));
            for place in 0..HELD_PLACES {
                held.set(place, tables.held.get(&place).copied().unwrap_or(bytemuck::Zeroable::zeroed()), 0).unwrap();
            }
        }
        let mut backends: Array<_, Backend<A>> = self.map(&name("BACKENDS"));
        for (id, backend) in &tables.backends {
            backends.set(*id, backend, 0).unwrap();
        }
        self.write(&name("VIPS"), &tables.vips);
        let source = tables.masquerade_source.map(|source| (INTERFACE, source));
        self.write(&name("MASQUERADE"), &source.into_iter().collect());
        let mut cidrs: Array<_, Cidr<A>> = self.map(&name("SERVICE_CIDRS"));
        for (index, cidr) in (0..).zip(&tables.service_cidrs) {
            cidrs.set(index, *cidr, 0).unwrap();
        }
        let mut sources: LpmTrie<_, SourcePrefix<A>, u32> = self.map(&name("SOURCE_RANGES"));
        let before: Vec<Key<SourcePrefix<A>>> = sources.keys().map(Result::unwrap).collect();
        for key in before {
            sources.remove(&key).unwrap();
        }
        for prefix in &tables.sources {
            sources.insert(&Key::new(SERVICE_BITS + 8 * size_of::<A>() as u32, *prefix), 1, 0).unwrap();
        }
    }

    /// Compares the maps that the programs write.
    fn assert_same<A: Family>(&mut self, tables: &HostTables<A>)
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        AffinityKey<A>: Pod,
        FragmentKey<A>: Pod,
    {
        let name = |map: &str| format!("{map}_{}", A::SUFFIX);
        assert_entries(self.read(&name("FLOWS")), &tables.flows);
        assert_entries(self.read(&name("AFFINITY")), &tables.affinity);
        assert_entries(self.read(&name("FRAGMENTS")), &tables.fragments);
        if !self.held {
            return;
        }
        let held: Array<_, Held> = self.map(&name("HELD"));
        let places = (0..HELD_PLACES).map(|place| (place, comparable(&held.get(&place, 0).unwrap())));
        let host = tables.held.iter().map(|(place, held)| (*place, comparable(held))).collect();
        assert_entries(places.filter(|(_, held)| held.tag != 0).collect(), &host);
    }

    /// Packets counted in a per-CPU map.
    fn packets(&mut self, map: &str, index: u32) -> u64 {
        let map: PerCpuArray<_, Counters> = self.map(map);
        map.get(&index, 0).unwrap().iter().map(|counters| counters.packets).sum()
    }

    /// Packets dropped by reason, and packets of each service.
    fn counters(&mut self) -> Vec<u64> {
        let mut counters: Vec<u64> = Reason::ALL.iter().map(|reason| self.packets("DROPS", *reason as u32)).collect();
        counters.extend(SERVICES.map(|service| self.packets("STATS_SERVICE", service)));
        counters
    }

    /// The packets that came in by lo since this was last asked.
    fn came_in(&self) -> Vec<Vec<u8>> {
        /// `PACKET_OUTGOING` (include/uapi/linux/if_packet.h).
        const OUTGOING: u8 = 4;
        let mut packets = Vec::new();
        let mut buffer = vec![0; 4096];
        while let Ok((len, Some(from))) = recvfrom::<LinkAddr>(self.tap.as_raw_fd(), &mut buffer) {
            if from.pkttype() != OUTGOING {
                packets.push(buffer[..len].to_vec());
            }
        }
        packets
    }

    /// What became of a packet; `None` where the kernel takes no such packet at all.
    fn run(&mut self, packet: &Packet) -> Option<(u32, Vec<u8>, u32)> {
        let name = match (packet.egress, packet.bare) {
            (false, false) => "svc_ingress",
            (true, false) => "svc_egress",
            (false, true) => "svc_ingress_l3",
            (true, true) => "svc_egress_l3",
        };
        // The host build refuses without a limit.
        let cpus = aya::util::nr_cpus().unwrap();
        let none = PerCpuValues::try_from(vec![0_u64; cpus]).unwrap();
        self.map::<PerCpuArray<_, u64>>("REFUSALS").set(0, none, 0).unwrap();
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).unwrap().try_into().unwrap();
        let (mut out, mut context) = (vec![0; 4096], vec![0; SKB_LEN]);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet.bytes);
        let mut sent = vec![0; SKB_LEN];
        sent[SKB_MARK..SKB_MARK + 4].copy_from_slice(&packet.mark.to_ne_bytes());
        options.ctx_in = Some(&sent);
        options.data_out = Some(&mut out);
        options.ctx_out = Some(&mut context);
        let result = program.test_run(options).ok()?;
        out.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes(context[SKB_MARK..SKB_MARK + 4].try_into().unwrap());
        Some((result.return_value, out, mark))
    }
}

/// What is the same in the kernel and on the host: the bytes of a place beyond a fragment are what was there before.
fn comparable(held: &Held) -> Held {
    let mut same = Held { lock: bpf_spin_lock::default(), ..*held };
    same.bytes[held.len as usize..].fill(0);
    same
}

/// The services that frontends lead to.
const SERVICES: [u32; 2] = [FRONTENDS[0].3, FRONTENDS[6].3];

fn assert_entries<K: Debug + Eq + Hash + Copy, V: Debug + PartialEq + Copy>(
    kernel: Entries<K, V>,
    host: &std::collections::HashMap<K, V>,
) {
    let kernel: std::collections::HashMap<K, V> = kernel.into_iter().collect();
    for (key, value) in &kernel {
        assert_eq!(Some(value), host.get(key), "left: the kernel's value of {key:?}, right: the host's");
    }
    for key in host.keys() {
        assert!(kernel.contains_key(key), "the kernel has no {key:?}");
    }
}

/// The clock of the programs, in units of 2^30 ns.
fn now() -> u32 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    (std::time::Duration::from(time).as_nanos() >> 30) as u32
}

fn masqueraded<A: Plan>(tables: &HostTables<A>) -> usize {
    tables.flows.values().filter(|flow| flow.flags & FLOW_MASQUERADED != 0).count()
}

/// What became of a packet.
enum Step {
    Compared(Outcome),
    /// The kernel does not take it.
    Refused,
    /// Which time the program has read cannot be told.
    Cut,
}

/// A frame as a packet socket gives it: the kernel takes the outermost VLAN tag off what comes in.
fn untagged(frame: &[u8]) -> Vec<u8> {
    match frame.get(12..14) {
        Some([0x81, 0] | [0x88, 0xa8]) => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

/// Runs a packet in the kernel and on the host, and compares what became of it.
fn step(kernel: &mut Kernel, world: &mut World, packet: &Packet, counters: &mut [u64], met: &mut Met) -> Step {
    let before = now();
    let Some((verdict, bytes, mark)) = kernel.run(packet) else { return Step::Refused };
    let came_in = kernel.came_in();
    if now() != before {
        return Step::Cut;
    }
    world.set_now(before);
    let outcome = world.run(packet);
    let Outcome { verdict: expected, bytes: expected_bytes, mark: expected_mark, again } = &outcome;
    let expected = match expected {
        Verdict::Pass => TCX_NEXT,
        Verdict::Drop(reason) => {
            counters[*reason as usize] += 1;
            TCX_DROP
        }
        Verdict::Refuse(reason) => {
            counters[*reason as usize] += 1;
            TCX_REDIRECT
        }
        Verdict::Answer => TCX_REDIRECT,
        Verdict::Held | Verdict::Again => {
            kernel.held = true;
            TCX_DROP
        }
    };
    assert_eq!(verdict, expected, "left: the kernel's verdict of {packet:02x?}, right: {:?}", outcome.verdict);
    let expected_again: Vec<Vec<u8>> = again.iter().map(|packet| untagged(&packet.bytes)).collect();
    assert_eq!(came_in, expected_again, "left: what came in again after {packet:02x?}, right: what should have");
    met.packets += 1;
    met.held += u32::from(outcome.verdict == Verdict::Held);
    met.again += u32::from(outcome.verdict == Verdict::Again);
    met.dropped += u32::from(matches!(outcome.verdict, Verdict::Drop(_)));
    met.turned += u32::from(verdict == TCX_REDIRECT);
    // BPF_PROG_TEST_RUN takes the first 14 bytes of any packet for a link header, so that room is opened behind them; and a
    // frame that has carried others is one of them afterwards.
    if matches!(outcome.verdict, Verdict::Refuse(_)) && packet.bare || outcome.verdict == Verdict::Again {
        return Step::Compared(outcome);
    }
    assert_eq!(&bytes, expected_bytes, "left: the kernel's bytes of {packet:02x?}, right: the host's");
    assert_eq!(mark, *expected_mark, "left: the kernel's mark of {packet:02x?}, right: the host's");
    met.translated += u32::from(bytes != packet.bytes);
    Step::Compared(outcome)
}

/// Runs a case in the kernel and on the host, and compares everything.
fn compare(kernel: &mut Kernel, case: &Case, met: &mut Met) {
    let mut world = World::new(&case.setting);
    kernel.fill(&world);
    run(kernel, &mut world, case, met);
    // What the programs have marked, as the next case must not find it.
    kernel.unusual.extend(world.v4.unusual.union(&world.v6.unusual));
}

fn run(kernel: &mut Kernel, world: &mut World, case: &Case, met: &mut Met) {
    let mut counters = kernel.counters();
    let mut last = Last::default();
    for event in &case.events {
        if let Event::Change(change) = event {
            world.apply(*change);
            kernel.fill(world);
            continue;
        }
        let Some(packet) = last.packet(event).filter(|packet| world.can_carry(packet)) else { continue };
        let mut queue = VecDeque::from([packet]);
        while let Some(packet) = queue.pop_front() {
            match step(kernel, world, &packet, &mut counters, met) {
                Step::Compared(outcome) => {
                    last.remember(&packet, &outcome);
                    queue.extend(outcome.again);
                }
                Step::Refused => met.refused += 1,
                Step::Cut => {
                    met.cut += 1;
                    // HELD has what the host's tables do not know of.
                    kernel.held = true;
                    return;
                }
            }
        }
    }
    met.masqueraded += masqueraded(&world.v4) + masqueraded(&world.v6);
    kernel.assert_same(&world.v4);
    kernel.assert_same(&world.v6);
    for (index, service) in SERVICES.iter().enumerate() {
        let counted = |tables: Option<&u64>| tables.copied().unwrap_or(0);
        counters[Reason::COUNT as usize + index] +=
            counted(world.v4.counted.get(service)) + counted(world.v6.counted.get(service));
    }
    for (reason, packets) in world.v4.losses.iter().chain(&world.v6.losses) {
        counters[*reason as usize] += packets;
    }
    assert_eq!(kernel.counters(), counters, "packets by drop reason, then by service");
}

#[test]
fn the_programs_do_what_the_host_build_does() {
    in_place(|_| compare_random_cases());
}

fn compare_random_cases() {
    let mut kernel = Kernel::load();
    let mut met = Met::default();
    random::run("sequences", 600, 2000, |bytes| compare(&mut kernel, &generate::case(bytes), &mut met));
    println!("{met:?}");
    // The comparison is worth something only if the packets exercise what is compared.
    assert!(
        met.translated > 1000
            && met.dropped > 200
            && met.turned > 100
            && met.cut < 60
            && met.held > 100
            && met.again > 20,
        "{met:?}"
    );
    assert!(met.masqueraded > 40, "{met:?}");
}

#[test]
fn the_programs_do_what_the_host_build_does_with_all_that_was_ever_fuzzed() {
    in_place(|_| compare_files());
}

fn compare_files() {
    let mut kernel = Kernel::load();
    let mut met = Met::default();
    for (target, read) in [("frames", trace::read as fn(&[u8]) -> Case), ("sequences", generate::case)] {
        for file in files(target) {
            println!("{}", file.display());
            compare(&mut kernel, &read(&fs::read(&file).unwrap()), &mut met);
        }
    }
    println!("{met:?}");
    assert!(met.translated > 100, "{met:?}");
}

/// Seeds and regressions of a fuzz target.
fn files(target: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let directories = ["seeds", "regressions"].map(|kind| fuzz.join(kind).join(target));
    directories
        .iter()
        // git keeps no empty directory: a target that has found nothing has no regressions.
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten())
        .map(|entry| entry.unwrap().path())
        .collect()
}
