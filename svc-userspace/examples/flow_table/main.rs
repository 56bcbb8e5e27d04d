//! The flow table beside the LRU hash maps, in one run, by BPF_PROG_TEST_RUN; needs root.
//!
//!     cargo xtask ebpf --features wrapper --output lru.o
//!     cargo xtask ebpf --features wrapper,array-flows --output array.o
//!     cargo run -p svc-userspace --example flow_table -- costs array.o lru.o
//!     cargo run -p svc-userspace --example flow_table -- evictions array.o lru.o
//!     cargo run -p svc-userspace --example flow_table -- stress array.o lru.o
//!
//! `costs`: a wrapper (`svc_bench`) writes each packet anew and varies its source; its own cost, measured alone, is
//! subtracted. Batches of the objects take turns; figures are medians in ns for each packet, with the lowest and highest.
//! ROWS and FAMILIES pick some. `evictions` and `stress` are explained where they are.

mod evictions;
mod stress;

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, ProgramArray},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use etherparse::PacketBuilder;
use nix::sched::{CpuSet, sched_setaffinity};
use svc_common::{
    Backend, BackendState, Frontend, FrontendKey, Interface, Scope, SlotLine, SlotRange, backend::BACKEND_LOCAL,
    frontend::FLAG_CLUSTER_IP, protocol,
};
use svc_ebpf::ip::Ip;

const BATCHES: usize = 7;
const ANY: u32 = 0xff_ffff;

/// `Plan` of svc-ebpf/src/bpf/wrapper.rs.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    bytes: [u8; 64],
    len: u32,
    at: u32,
    next: u32,
    mask: u32,
}

// SAFETY: integers without padding.
unsafe impl Pod for Plan {}

/// What is measured.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    /// Sources are the numbers up to this one.
    mask: u32,
    /// New flows before all others, in a table that was empty.
    fill: u32,
    /// Packets of these sources before.
    warm: u32,
    repeat: u32,
}

const ROWS: [Row; 7] = [
    Row { name: "established, one flow", mask: 0, fill: 0, warm: 10, repeat: 1_000_000 },
    Row { name: "established, 1,024 flows", mask: 0x3ff, fill: 0, warm: 0x400, repeat: 1_000_000 },
    Row { name: "established, 32,768 flows", mask: 0x7fff, fill: 0, warm: 0x8000, repeat: 1_000_000 },
    Row { name: "established, 32,768 of a full table", mask: 0x7fff, fill: 1_000_000, warm: 0x8000, repeat: 1_000_000 },
    Row { name: "established, 131,072 flows", mask: 0x1_ffff, fill: 0, warm: 0x2_0000, repeat: 1_000_000 },
    Row { name: "every packet new, not full", mask: ANY, fill: 0, warm: 0, repeat: 32_768 },
    Row { name: "every packet new, full", mask: ANY, fill: 1_000_000, warm: 0, repeat: 500_000 },
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let objects: Vec<String> = arguments.collect();
    match command.as_deref() {
        Some("costs") => costs(&objects),
        Some("evictions") => evictions::run(&objects),
        Some("stress") => stress::run(&objects),
        _ => anyhow::bail!("say costs, evictions or stress, and object files"),
    }
}

/// Keeps this thread on a CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

fn costs(objects: &[String]) -> Result<()> {
    pin(0)?;
    let rows = std::env::var("ROWS").ok();
    let families = std::env::var("FAMILIES").unwrap_or_else(|_| "V4 V6".to_owned());
    for family in families.split(' ') {
        println!("{:<40}{}", format!("IP{}, NS NET", family.to_lowercase()), objects.join("    "));
        for row in ROWS.iter().filter(|row| rows.as_ref().is_none_or(|rows| row.name.contains(rows))) {
            let mut figures = vec![Vec::new(); objects.len()];
            for _ in 0..BATCHES {
                for (object, figures) in objects.iter().zip(&mut figures) {
                    figures.push(if family == "V4" {
                        batch::<[u8; 4]>(object, family, *row)?
                    } else {
                        batch::<[u8; 16]>(object, family, *row)?
                    });
                }
            }
            print!("{:<40}", row.name);
            for mut figures in figures {
                figures.sort_unstable();
                print!("{:>6} ({}–{})", figures[BATCHES / 2], figures[0], figures[BATCHES - 1]);
            }
            println!();
        }
    }
    Ok(())
}

/// A loaded object with one Service, and a packet to it.
struct Bench {
    ebpf: Ebpf,
    packet: Vec<u8>,
    plan: Plan,
}

impl Bench {
    fn run(&mut self, repeat: u32) -> Result<u64> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.packet);
        options.repeat = repeat;
        Ok(u64::try_from(program(&mut self.ebpf, "svc_bench")?.test_run(options)?.duration.as_nanos())?)
    }

    /// Packets of sources from a number on; the sources are the numbers up to `mask`.
    fn packets(&mut self, next: u32, mask: u32, repeat: u32) -> Result<u64> {
        let plan = Plan { next, mask, ..self.plan };
        Array::<_, Plan>::try_from(map(&mut self.ebpf, "BENCH_PLAN")?)?.set(0, plan, 0)?;
        self.run(repeat)
    }

    /// From now on the wrapper goes on with the program.
    fn connect(&mut self) -> Result<()> {
        let ingress = program(&mut self.ebpf, "svc_ingress")?.fd()?.try_clone()?;
        Ok(ProgramArray::try_from(map(&mut self.ebpf, "BENCH_PROGRAM")?)?.set(0, &ingress, 0)?)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}: built with `wrapper`?"))?.try_into()?)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("no map {name}"))
}

/// One row once, with fresh maps.
fn batch<A: Ip>(object: &str, family: &str, row: Row) -> Result<u64>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    let mut bench = load::<A>(EbpfLoader::new(), object, family)?;
    let wrapper = bench.packets(0, ANY, 1_000_000)?;
    bench.connect()?;
    if row.fill != 0 {
        bench.packets(0x10_0000, ANY, row.fill)?;
    }
    let mut cost = 0;
    for repeat in [row.warm, row.repeat].into_iter().filter(|repeat| *repeat != 0) {
        cost = bench.packets(0, row.mask, repeat)?;
    }
    Ok(cost.saturating_sub(wrapper))
}

/// The nth address of a network.
fn nth<A: Ip>(network: u8, n: u8) -> A {
    let mut address = A::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut address);
    bytes[0] = network;
    bytes[bytes.len() - 1] = n;
    address
}

/// Backends of the Service; as many slots.
const BACKENDS: u32 = 16;

/// Loads an object.
fn load<A: Ip>(mut loader: EbpfLoader<'_>, object: &str, family: &str) -> Result<Bench>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    let mut ebpf = loader.load_file(object).with_context(|| object.to_owned())?;
    let (client, vip) = (nth::<A>(10, 1), nth::<A>(172, 2));
    let range = SlotRange { offset: 0, len: BACKENDS };
    let frontend = Frontend { service: 1, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
    HashMap::<_, FrontendKey<A>, Frontend>::try_from(map(&mut ebpf, &format!("FRONTENDS_{family}"))?)?.insert(
        FrontendKey::new(vip, 80, protocol::UDP),
        frontend,
        0,
    )?;
    let mut line = SlotLine::default();
    for id in 1..=BACKENDS {
        let entry = Backend {
            address: nth::<A>(192, id as u8),
            port: 8080,
            state: BackendState::Active as u8,
            flags: BACKEND_LOCAL,
            generation: 1,
            service: 1,
        };
        Array::<_, Backend<A>>::try_from(map(&mut ebpf, &format!("BACKENDS_{family}"))?)?.set(id, entry, 0)?;
        line.backends[id as usize - 1] = id;
    }
    Array::<_, SlotLine>::try_from(map(&mut ebpf, "SLOTS")?)?.set(0, line, 0)?;
    let inside = Interface { scope: Scope::Inside as u8, ..Interface::default() };
    HashMap::<_, u32, Interface>::try_from(map(&mut ebpf, "INTERFACES")?)?.insert(1, inside, 0)?;
    for name in ["svc_bench", "svc_ingress"] {
        program(&mut ebpf, name)?.load()?;
    }
    let packet = packet(client, 1000, vip)?;
    // The last three bytes of the source address vary.
    let (len, at) = if A::VERSION == 4 { (42, 27) } else { (62, 35) };
    let mut plan = Plan { bytes: [0; 64], len, at, next: 0, mask: 0 };
    plan.bytes[..len as usize].copy_from_slice(&packet[..len as usize]);
    Ok(Bench { ebpf, packet, plan })
}

/// A datagram to port 80 of an address.
fn packet<A: Ip>(source: A, port: u16, destination: A) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ends = [source, destination];
    if A::VERSION == 4 {
        let [source, destination] = bytemuck::cast_slice::<A, [u8; 4]>(&ends) else { unreachable!("two addresses") };
        ethernet.ipv4(*source, *destination, 64).udp(port, 80).write(&mut packet, &[0; 32])?;
    } else {
        let [source, destination] = bytemuck::cast_slice::<A, [u8; 16]>(&ends) else { unreachable!("two addresses") };
        ethernet.ipv6(*source, *destination, 64).udp(port, 80).write(&mut packet, &[0; 32])?;
    }
    Ok(packet)
}
