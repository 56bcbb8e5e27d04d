//! The machine a table was measured on, and keeping this thread on one of its CPUs.

use std::fs;

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::utsname::uname,
    unistd::Pid,
};
use serde::Serialize;

/// What has to stand beside a figure.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// As `/proc/cpuinfo` calls it.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether the JIT compiler is on.
    pub jit: bool,
    /// Load average over a minute when the run began.
    pub load: f64,
    /// Memory in GiB.
    pub memory_gib: u64,
}

impl Machine {
    /// Looks.
    pub fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|it| it.trim() == name));
            line.and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_owned())
        };
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo")?, read("/proc/meminfo")?);
        let kib = field(&meminfo, "MemTotal").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        let load = read("/proc/loadavg")?;
        // Kernels that are built with BPF_JIT_ALWAYS_ON have no other setting.
        let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").map_or(true, |text| text.trim() != "0");
        Ok(Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cpus()?.len(),
            kernel: uname()?.release().to_string_lossy().into_owned(),
            jit,
            load: load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
        })
    }

    /// One line.
    pub fn line(&self) -> String {
        let jit = if self.jit { "JIT" } else { "no JIT: figures of the interpreter" };
        format!(
            "{}, {} cores, {} GiB, Linux {}, {jit}, load {:.2} at the start",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.load
        )
    }
}

/// The CPUs that this process may use.
pub fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs may be used")?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps this thread on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}
