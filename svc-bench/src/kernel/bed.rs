//! The programs that are measured and the benchmark's own, loaded, with one wrapper in front of all of them.
//!
//! Nothing here knows what kind of map the flow table is: flows come to be by packets that run through the programs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, PerCpuArray, ProgramArray},
    programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use svc_common::Counters;
use svc_ebpf::bench::{PACKET_LEN, Plan};

/// Programs in the order of their index in PROGRAMS; the first does nothing.
const OWN: [&str; 14] = [
    "floor_empty",
    "floor_array",
    "floor_ktime",
    "floor_coarse",
    "floor_prandom",
    "floor_reshape",
    "floor_hash_v4",
    "floor_hash_v6",
    "floor_hash_set4",
    "floor_hash_set6",
    "floor_lru_v4",
    "floor_lru_v6",
    "floor_lru_set4",
    "floor_lru_set6",
];
const MEASURED: [&str; 2] = ["svc_ingress", "svc_egress"];
/// The same for XDP, in XDP_PROGRAMS.
const OWN_XDP: [&str; 1] = ["floor_pass"];
const MEASURED_XDP: [&str; 1] = ["svc_xdp"];
/// The map by which the wrapper takes back the limit of refusals.
const SHARED: &str = "REFUSALS";
const BPFFS: &str = "/sys/fs/bpf";

/// How large the flow tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    /// As in the object.
    Default,
    /// So large that no row fills the one of this family (`V4`, `V6`); the others are small.
    Roomy(&'static str),
}

/// Places of the flow cache, as the agent makes it.
pub(super) const CACHE: [(&str, u32); 2] = [("CACHE_V4", 1 << 18), ("CACHE_V6", 1 << 17)];
/// Entries of a roomy table.
const ROOMY: u32 = 1 << 21;

/// Everything loaded.
pub(super) struct Bed {
    measured: Ebpf,
    own: Ebpf,
}

impl Bed {
    pub(super) fn load(object: &Path, own: &Path, flows: Flows) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (object, own) = (read(object)?, read(own)?);
        let pins = Pins::new()?;
        let mut loader = EbpfLoader::new();
        loader.map_pin_path(SHARED, pins.path.join(SHARED));
        if let Flows::Roomy(family) = flows {
            for (name, of) in [("FLOWS_V4", "V4"), ("FLOWS_V6", "V6")] {
                loader.map_max_entries(name, if of == family { ROOMY } else { 1 << 12 });
            }
        }
        for (name, places) in CACHE {
            loader.map_max_entries(name, places);
        }
        let mut measured = loader.load(&object).context("the kernel object cannot be loaded")?;
        let mut loader = EbpfLoader::new();
        loader.map_pin_path(SHARED, pins.path.join(SHARED));
        let mut own = loader.load(&own).context("the benchmark's programs cannot be loaded")?;
        drop(pins);

        classifier(&mut own, "bench_tc")?.load()?;
        xdp(&mut own, "bench_xdp")?.load()?;
        let map = own.take_map("PROGRAMS").context("the benchmark's programs have no map PROGRAMS")?;
        let mut programs = ProgramArray::try_from(map)?;
        let mut index = 0;
        for (ebpf, names) in [(&mut own, &OWN[..]), (&mut measured, &MEASURED[..])] {
            for name in names {
                let program = classifier(ebpf, name)?;
                program.load().with_context(|| format!("{name} cannot be loaded"))?;
                programs.set(index, program.fd()?, 0).with_context(|| format!("{name} cannot be called"))?;
                index += 1;
            }
        }
        // The map empties itself when the last descriptor of userspace is closed, whoever else uses it.
        std::mem::forget(programs);
        let map = own.take_map("XDP_PROGRAMS").context("the benchmark's programs have no map XDP_PROGRAMS")?;
        let mut programs = ProgramArray::try_from(map)?;
        let mut index = 0;
        for (ebpf, names) in [(&mut own, &OWN_XDP[..]), (&mut measured, &MEASURED_XDP[..])] {
            for name in names {
                let program = xdp(ebpf, name)?;
                program.load().with_context(|| format!("{name} cannot be loaded"))?;
                programs.set(index, program.fd()?, 0).with_context(|| format!("{name} cannot be called"))?;
                index += 1;
            }
        }
        std::mem::forget(programs);
        Ok(Self { measured, own })
    }

    /// A map of the measured object.
    pub(super) fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.measured.map_mut(name).with_context(|| format!("the kernel object has no map {name}"))
    }

    /// Flows that the programs have opened for a service.
    pub(super) fn opened(&mut self, service: u32) -> Result<u64> {
        let counters = PerCpuArray::<_, Counters>::try_from(self.map("STATS_SERVICE")?)?.get(&service, 0)?;
        Ok(counters.iter().map(|cpu| cpu.connections).sum())
    }

    /// Runs `packets` packets of a plan through a program; CPU time in ns for each. The plan goes on where it was.
    pub(super) fn run(&mut self, plan: &mut Plan, program: &str, packets: u32) -> Result<f64> {
        self.set(plan, program)?;
        let mut options = TestRunOptions::new();
        // The kernel takes the protocol from it.
        options.data_in = Some(bytemuck::bytes_of(&plan.packet));
        options.repeat = packets;
        // Time of this thread: what else runs on the CPU is not counted.
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        self.test_run(program, options)?;
        let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
        plan.next = plan.next.wrapping_add(packets);
        Ok(Duration::from(spent).as_secs_f64() * 1e9 / f64::from(packets))
    }

    /// Runs one packet; verdict and bytes.
    pub(super) fn once(&mut self, plan: &mut Plan, program: &str) -> Result<(u32, Vec<u8>)> {
        self.set(plan, program)?;
        let mut options = TestRunOptions::new();
        let mut out = vec![0; 2 * PACKET_LEN];
        options.data_in = Some(bytemuck::bytes_of(&plan.packet));
        options.data_out = Some(&mut out);
        let result = self.test_run(program, options)?;
        out.truncate(result.data_size_out as usize);
        plan.next = plan.next.wrapping_add(1);
        Ok((result.return_value, out))
    }

    fn test_run(&mut self, program: &str, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        Ok(if is_xdp(program) {
            xdp(&mut self.own, "bench_xdp")?.test_run(options)?
        } else {
            classifier(&mut self.own, "bench_tc")?.test_run(options)?
        })
    }

    fn set(&mut self, plan: &mut Plan, program: &str) -> Result<()> {
        let names: [&[&str]; 2] = if is_xdp(program) { [&OWN_XDP, &MEASURED_XDP] } else { [&OWN, &MEASURED] };
        let Some(index) = names.concat().iter().position(|name| *name == program) else {
            bail!("there is no program {program}");
        };
        plan.program = u32::try_from(index)?;
        let map = self.own.map_mut("PLAN").context("the benchmark's programs have no map PLAN")?;
        let bytes: [u8; size_of::<Plan>()] = bytemuck::cast(*plan);
        Array::<_, [u8; size_of::<Plan>()]>::try_from(map)?.set(0, bytes, 0)?;
        Ok(())
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("there is no program {name}"))?.try_into()?)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("there is no program {name}"))?.try_into()?)
}

/// True for a program of XDP.
pub(super) fn is_xdp(program: &str) -> bool {
    OWN_XDP.iter().chain(&MEASURED_XDP).any(|name| *name == program)
}

/// The program that does nothing, for the hook of another one.
pub(super) fn nothing(program: &str) -> &'static str {
    if is_xdp(program) { OWN_XDP[0] } else { OWN[0] }
}

/// A directory in which two objects meet over a pinned map; gone when dropped.
struct Pins {
    path: PathBuf,
}

impl Pins {
    fn new() -> Result<Self> {
        let path = Path::new(BPFFS).join(format!("svc-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}: is bpffs mounted?", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
