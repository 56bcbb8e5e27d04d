//! Endpoints that come and go at a high rate in ten thousand Services, in the kernel's own maps, below a reader that looks at
//! them as a program does: whatever moment it looks at, a frontend leads to backends of its Service.

mod kernel_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData};
use kernel_support::{in_place, object};
use svc_common::{
    Backend, BackendState, Frontend, FrontendKey, LAYOUT_VERSION, SlotLine, hash::SLOTS_PER_LINE, protocol,
};
use svc_userspace::{
    agent::engine::Engine,
    compile::NodeContext,
    kernel::{Dataplane, Options, view::Pins},
    metrics::Metrics,
    model::{Change, Endpoint, Family, NameList, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort},
    tables::{Capacity, Tables},
};

/// Seconds of a thousand changes each, in real time, in place of the short rounds: `SVC_CHURN_SECONDS=60`.
const LONG: &str = "SVC_CHURN_SECONDS";
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 2;
/// Changes of one round, and the longest a round takes: the test is about what is seen, not about speed.
const CHANGES: u32 = 2_500;
const LONGEST_ROUND: Duration = Duration::from_secs(3);
/// Milliseconds that the engine is told pass between two changes: rests end while the test runs.
const BETWEEN_CHANGES: u64 = 50;
const CAPACITY: Capacity = Capacity {
    services: 16_384,
    backends: 65_536,
    frontends_v4: 16_384,
    frontends_v6: 16,
    slots: 6_000_000,
    source_ranges: 16,
};

fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service)
}

/// Endpoints have the number of their Service in their address.
fn endpoint(service: u32, nth: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(20, 0, 0, 0)) + service * 64 + nth % 64).into()
}

fn owner(address: IpAddr) -> Option<u32> {
    let IpAddr::V4(address) = address else { return None };
    Some(u32::from(address).checked_sub(u32::from(Ipv4Addr::new(20, 0, 0, 0)))? / 64)
}

fn name(service: u32) -> ObjectName {
    ObjectName::new("default", format!("service-{service}"))
}

fn service(number: u32) -> Change {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let service = Service {
        name: name(number),
        cluster_ips: vec![vip(number).into()],
        external_ips: vec![],
        load_balancer_ips: vec![],
        claim: None,
        source_ranges: vec![],
        ports: vec![port],
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    };
    Change::Service(name(number), Some(Box::new(service)))
}

/// The slice in its nth version: one endpoint leaves and one comes with each, and there are two or three.
fn slice(number: u32, version: u32) -> Change {
    let endpoints = (version..version + ENDPOINTS + version % 2).map(|nth| Endpoint {
        address: endpoint(number, nth),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hint_nodes: NameList::default(),
        hint_zones: NameList::default(),
    });
    let slice = Slice {
        name: name(number),
        service: name(number),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.collect(),
        headless: false,
        hostnames: vec![],
        triggered_ms: None,
    };
    Change::Slice(name(number), Some(Box::new(slice)))
}

/// The maps as a program of the kernel uses them.
struct Reader {
    frontends: HashMap<MapData, FrontendKey<[u8; 4]>, Frontend>,
    slots: Array<MapData, SlotLine>,
    backends: Array<MapData, Backend<[u8; 4]>>,
}

impl Reader {
    fn open(bpffs: &Path) -> Self {
        let maps = bpffs.join(format!("layout-{LAYOUT_VERSION}")).join("maps");
        let open = |name: &str| Map::from_map_data(MapData::from_pin(maps.join(name)).expect("a pin")).expect("a map");
        Self {
            frontends: open("FRONTENDS_V4").try_into().expect("frontends"),
            slots: open("SLOTS").try_into().expect("slots"),
            backends: open("BACKENDS_V4").try_into().expect("backends"),
        }
    }

    fn frontend(&self, service: u32) -> Frontend {
        let key = FrontendKey::new(vip(service).octets(), 80, protocol::TCP);
        // The kernel overwrites an entry of a hash map by a new one in front of the bucket's list, then takes the old one out
        // (`htab_map_update_elem`, kernel/bpf/hashtab.c): who is between the two misses both, if a neighbour is in front of the
        // old one (docs/architecture.md). A gap that lasts still fails here.
        let found = self.frontends.get(&key, 0).or_else(|_| self.frontends.get(&key, 0));
        found.unwrap_or_else(|error| panic!("service {service} has no frontend: {error}"))
    }

    /// Follows one slot of a Service; false if the Service changed meanwhile, so that nothing can be said.
    fn look(&self, service: u32, random: u32) -> bool {
        let frontend = self.frontend(service);
        let range = frontend.inside;
        assert!(range.len > 0, "service {service} has endpoints and no slots");
        let slot = range.offset + random % range.len;
        let line = self.slots.get(&(slot / SLOTS_PER_LINE), 0).expect("a line of slots");
        let id = line.backends[(slot % SLOTS_PER_LINE) as usize];
        let backend = self.backends.get(&id, 0).unwrap_or_else(|error| panic!("backend {id}: {error}"));
        // What was read in between belongs together only if the frontend is still the same.
        if self.frontend(service) != frontend {
            return false;
        }
        let found = format!("service {service}, slot {slot}, backend {id}: {backend:?}, {frontend:?}");
        assert!(id != 0 && backend.state == BackendState::Active as u8, "dangling: {found}");
        assert_eq!(backend.service, frontend.service, "another Service's backend: {found}");
        assert_eq!(owner(backend.address.into()), Some(service), "another Service's endpoint: {found}");
        true
    }
}

/// Bytes that the allocator has given out.
fn heap() -> usize {
    // SAFETY: only reads the allocator's own counters.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

struct Agent {
    engine: Engine<Dataplane>,
    versions: Vec<u32>,
    now_ms: u64,
}

impl Agent {
    fn work(&mut self) {
        while self.engine.has_work() {
            self.engine.step(256, self.now_ms, 0);
        }
    }

    /// A thousand changes a second for so many seconds; how many there were.
    fn churn_for(&mut self, changing: &AtomicU32, seconds: u64) -> u32 {
        let (begin, start_ms) = (Instant::now(), self.now_ms);
        let mut nth = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            let elapsed = u64::try_from(begin.elapsed().as_millis()).expect("a time");
            self.now_ms = start_ms + elapsed;
            for _ in u64::from(nth)..elapsed {
                self.change_one(nth, changing);
                nth += 1;
            }
            self.engine.tick(self.now_ms);
            thread::park_timeout(Duration::from_micros(500));
        }
        nth
    }

    fn change_one(&mut self, nth: u32, changing: &AtomicU32) {
        let service = (u64::from(nth) * 7_919 % u64::from(SERVICES)) as u32;
        changing.store(service, Ordering::Relaxed);
        self.versions[service as usize] += 1;
        self.engine.change(slice(service, self.versions[service as usize]));
        self.work();
    }

    /// Changes Services all over, one after another, each seen by the maps before the next.
    fn churn(&mut self, changing: &AtomicU32) -> u32 {
        let begin = Instant::now();
        for nth in 0..CHANGES {
            if begin.elapsed() > LONGEST_ROUND {
                return nth;
            }
            self.now_ms += BETWEEN_CHANGES;
            self.change_one(nth, changing);
            self.engine.tick(self.now_ms);
        }
        CHANGES
    }
}

#[test]
fn no_reader_ever_finds_anything_dangling_and_memory_stays_flat() {
    in_place(|place| {
        let long: Option<u64> = std::env::var(LONG).ok().map(|seconds| seconds.parse().expect("a number of seconds"));
        let capacity = match long {
            // For what rests: ids a minute, slots five seconds.
            Some(_) => Capacity { backends: 262_144, slots: 12_000_000, ..CAPACITY },
            None => CAPACITY,
        };
        let options = Options { capacity, cgroup: None, ..place.options() };
        let (dataplane, _) = Dataplane::start_with_object(&options, &object()).expect("the dataplane starts");
        let metrics = Arc::new(Metrics::new(|| Ok(svc_userspace::kernel::view::Snapshot::default())));
        let mut engine = Engine::new(Tables::new(capacity), dataplane, metrics);
        engine.set_node(NodeContext::default());
        engine.interfaces_listed();
        for number in 0..SERVICES {
            engine.change(service(number));
            engine.change(slice(number, 0));
        }
        engine.change(Change::Synced);
        let mut agent = Agent { engine, versions: vec![0; SERVICES as usize], now_ms: 0 };
        agent.work();
        assert!(agent.engine.is_synced() && !agent.engine.has_refused());

        let (stop, changing) = (AtomicBool::new(false), AtomicU32::new(0));
        let (looks, sizes) = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let reader = Reader::open(&place.bpffs);
                let (mut looks, mut random) = (0_u32, 1_u32);
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Mostly the one that is being changed, else any.
                    let service =
                        if looks % 4 == 0 { (random >> 8) % SERVICES } else { changing.load(Ordering::Relaxed) };
                    looks += u32::from(reader.look(service, random >> 4));
                }
                looks
            });
            // The first round brings everything that grows once to its size: ids that rest, generations, free ranges.
            let sizes = [0; 3].map(|_| {
                let changes = match long {
                    Some(seconds) => agent.churn_for(&changing, seconds),
                    None => agent.churn(&changing),
                };
                (changes, heap())
            });
            stop.store(true, Ordering::Relaxed);
            (reader.join(), sizes)
        });
        let looks = looks.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        println!("{looks} looks; changes and bytes of heap: {sizes:?}");
        assert!(looks > 1_000, "{looks} looks are none");
        let (first, last) = (sizes[0].1, sizes[2].1);
        assert!(last < first + first / 20, "the heap grew from {first} to {last} bytes: {sizes:?}");

        let snapshot = Pins::open(&place.bpffs).expect("pins").snapshot().expect("a snapshot");
        let mut found: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for backend in snapshot.backends.values() {
            let service = owner(backend.address.ip()).expect("a Service of the test");
            found.entry(service).or_default().insert(backend.address.ip());
        }
        for (number, &version) in (0..).zip(&agent.versions) {
            let expected = (version..version + ENDPOINTS + version % 2).map(|nth| endpoint(number, nth)).collect();
            assert_eq!(found.get(&number), Some(&expected), "service {number} in the end");
        }
        assert!(!agent.engine.has_refused() && !agent.engine.is_behind());
    });
}
