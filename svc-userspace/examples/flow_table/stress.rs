//! Two CPUs, a table that is far too small, and few enough flows to meet all the time: every packet should be translated as
//! its own flow says. Which backend that is, is known: the flow's hash says so, with and without an entry.

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use svc_common::{flow_hash, protocol, slot_in_range};

use crate::{BACKENDS, load, nth, packet, pin};

/// Buckets of the table, or entries of the LRU.
const SIZE: u32 = 4;
const CLIENTS: u8 = 8;
const PORTS: u16 = 8;
const RUNS: u32 = 400_000;

pub(crate) fn run(objects: &[String]) -> Result<()> {
    for object in objects {
        let mask = SIZE - 1;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("FLOWS_V4", SIZE).override_global("FLOW_MASK_V4", &mask, false);
        let bench = load::<[u8; 4]>(loader, object, "V4")?;
        let program: &SchedClassifier = bench.ebpf.program("svc_ingress").context("no svc_ingress")?.try_into()?;
        let results: Vec<Result<[u32; 4]>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|cpu| scope.spawn(move || hammer(program, cpu))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        for (cpu, result) in results.into_iter().enumerate() {
            let [first, other, dropped, wrong] = result.with_context(|| object.clone())?;
            println!(
                "{object} CPU {cpu}: {first} to the flow's backend, {other} to its next ones or from another port, \
                 {dropped} dropped, {wrong} where another flow goes"
            );
        }
    }
    Ok(())
}

/// Sends packets of changing flows; counts those that went to the first backend the hash says, to another one that is tried
/// if its entry is taken, nowhere, and where another flow goes.
fn hammer(program: &SchedClassifier, cpu: usize) -> Result<[u32; 4]> {
    pin(cpu)?;
    let vip: [u8; 4] = nth(172, 2);
    let mut out = vec![0; 256];
    let mut counts = [0; 4];
    let mut state = 0x9e37_79b9_u32 + cpu as u32;
    for _ in 0..RUNS {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let client: [u8; 4] = nth(10, (state >> 8) as u8 % CLIENTS + 1);
        let port = 1000 + (state >> 16) as u16 % PORTS;
        let bytes = packet(client, port, vip)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&bytes);
        options.data_out = Some(&mut out);
        let result = program.test_run(options)?;
        if result.return_value == 2 {
            counts[2] += 1;
            continue;
        }
        let hash = flow_hash(&client, port, &vip, 80, protocol::UDP);
        // Where an entry of the reply stands in the way, two other backends are tried, then other ports to the first.
        let chosen = |number: u32| -> [u8; 4] {
            let hash = hash.wrapping_add(number.wrapping_mul(0x9e37_79b9));
            nth(192, slot_in_range(hash, BACKENDS) as u8 + 1)
        };
        let destination = [out[30], out[31], out[32], out[33]];
        let source_port = u16::from_be_bytes([out[34], out[35]]);
        let is_first = source_port == port && destination == chosen(0);
        let is_other = match source_port == port {
            true => (1..3).any(|number| chosen(number) == destination),
            false => destination == chosen(0),
        };
        ensure!(out[26..30] == client, "CPU {cpu}: the source changed");
        let kind = match (is_first, is_other) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 3,
        };
        counts[kind] += 1;
    }
    Ok(counts)
}
