//! What a packet costs in the loaded programs, by BPF_PROG_TEST_RUN: `cargo run --release --example packet_cost`.
//!
//! The kernel does not restore the packet between repeats, so the established rows use an entry that rewrites the packet
//! to what it already is: everything is looked up, written and checksummed each time. New flows cannot be repeated; they
//! run one by one, with the cost of a single run of a packet that is nobody's subtracted.
//!
//! Figures are medians of seven batches, in ns for each packet, the kernel's own loop included; compare them within one
//! run only. Needs root and the kernel object (`cargo xtask ebpf`).

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use etherparse::PacketBuilder;
use svc_common::{
    Backend, BackendState, Flow, FlowKey, Frontend, FrontendKey, Hook, Interface, Scope, SlotLine, SlotRange,
    backend::BACKEND_LOCAL, frontend::FLAG_CLUSTER_IP, protocol,
};
use svc_ebpf::ip::Ip;

const REPEATS: u32 = 1_000_000;
const BATCHES: usize = 7;
const NEW_FLOWS: u16 = 30_000;

fn main() -> Result<()> {
    let path = std::env::var("SVC_EBPF_OBJECT").unwrap_or_else(|_| ".build/ebpf/svc.o".to_owned());
    let mut ebpf = EbpfLoader::new().load_file(&path).with_context(|| format!("{path}: run `cargo xtask ebpf`"))?;
    for name in ["svc_ingress", "svc_egress"] {
        program(&mut ebpf, name)?.load()?;
    }
    println!("{:<34} {:>8} {:>8}", "NS FOR EACH PACKET", "IPv4", "IPv6");
    let v4 = measure::<[u8; 4]>(&mut ebpf, "V4", |from, to| {
        udp(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from.0, to.0, 64), from.1, to.1)
    })?;
    let v6 = measure::<[u8; 16]>(&mut ebpf, "V6", |from, to| {
        udp(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(from.0, to.0, 64), from.1, to.1)
    })?;
    for ((row, v4), (_, v6)) in v4.into_iter().zip(v6) {
        println!("{row:<34} {v4:>8} {v6:>8}");
    }
    Ok(())
}

fn udp(step: etherparse::PacketBuilderStep<etherparse::IpHeaders>, from: u16, to: u16) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    step.udp(from, to).write(&mut bytes, &[0; 32])?;
    Ok(bytes)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// An address and a port, *host order*.
type End<A> = (A, u16);

fn measure<A: Ip>(
    ebpf: &mut Ebpf,
    family: &str,
    packet: impl Fn(End<A>, End<A>) -> Result<Vec<u8>>,
) -> Result<Vec<(&'static str, u64)>>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let nth = |n: u8| {
        let mut address = A::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut address);
        bytes[0] = 10;
        bytes[bytes.len() - 1] = n;
        address
    };
    let (client, vip, backend, stranger) = (nth(1), nth(2), nth(3), nth(4));
    let range = SlotRange { offset: 0, len: 1 };
    let frontend = Frontend { service: 1, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: range, outside: range };
    HashMap::<_, FrontendKey<A>, Frontend>::try_from(map(ebpf, &format!("FRONTENDS_{family}"))?)?.insert(
        FrontendKey::new(vip, 80, protocol::UDP),
        frontend,
        0,
    )?;
    let entry = Backend {
        address: backend,
        port: 8080,
        state: BackendState::Active as u8,
        flags: BACKEND_LOCAL,
        generation: 1,
        service: 1,
    };
    Array::<_, Backend<A>>::try_from(map(ebpf, &format!("BACKENDS_{family}"))?)?.set(1, entry, 0)?;
    let mut line = SlotLine::default();
    line.backends[0] = 1;
    Array::<_, SlotLine>::try_from(map(ebpf, "SLOTS")?)?.set(0, line, 0)?;
    let inside = Interface { scope: Scope::Inside as u8, ..Interface::default() };
    HashMap::<_, u32, Interface>::try_from(map(ebpf, "INTERFACES")?)?.insert(1, inside, 0)?;

    let identity = |hook: Hook, source: End<A>, destination: End<A>, new: End<A>| {
        let key = FlowKey {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol: protocol::UDP,
            hook: hook as u8,
            pad: [0; 2],
        };
        (key, Flow { address: new.0, port: new.1, backend: 1, generation: 1, service: 1, ..Flow::empty() })
    };
    let mut flows = HashMap::<_, FlowKey<A>, Flow<A>>::try_from(map(ebpf, &format!("FLOWS_{family}"))?)?;
    // Addressed to the VIP and rewritten to the VIP: the frontend exists, as for any flow that lives.
    let (key, flow) = identity(Hook::Ingress, (client, 999), (vip, 80), (vip, 80));
    flows.insert(key, flow, 0)?;
    let (key, flow) = identity(Hook::Egress, (vip, 80), (client, 999), (vip, 80));
    flows.insert(key, flow, 0)?;

    let nobodys = packet((client, 1), (stranger, 2))?;
    let single = median((0..1000).map(|_| run(ebpf, "svc_ingress", &nobodys, 1)).collect::<Result<_>>()?);
    let mut new = Vec::new();
    for port in 1000..1000 + NEW_FLOWS {
        new.push(run(ebpf, "svc_ingress", &packet((client, port), (vip, 80))?, 1)?);
    }
    let established = packet((client, 999), (vip, 80))?;
    let reply = packet((vip, 80), (client, 999))?;
    Ok(vec![
        ("ingress, not a Service", batches(ebpf, "svc_ingress", &nobodys)?),
        ("ingress, established, one flow", batches(ebpf, "svc_ingress", &established)?),
        ("ingress, new flow (net)", median(new).saturating_sub(single)),
        ("egress, not a Service", batches(ebpf, "svc_egress", &nobodys)?),
        ("egress, established, one flow", batches(ebpf, "svc_egress", &reply)?),
    ])
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("no map {name}"))
}

fn batches(ebpf: &mut Ebpf, name: &str, bytes: &[u8]) -> Result<u64> {
    Ok(median((0..BATCHES).map(|_| run(ebpf, name, bytes, REPEATS)).collect::<Result<_>>()?))
}

/// Mean duration of one run, in ns.
fn run(ebpf: &mut Ebpf, name: &str, bytes: &[u8], repeat: u32) -> Result<u64> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(bytes);
    options.repeat = repeat;
    Ok(u64::try_from(program(ebpf, name)?.test_run(options)?.duration.as_nanos())?)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}
