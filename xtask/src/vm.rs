//! Another kernel than this machine's: boots it in a virtual machine and runs the agent there.
//!
//! The processor is emulated, so that it works where no virtual machine may use the real one. What is checked is in
//! `vm/init.sh`; here it is only counted.

mod initramfs;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use self::{initramfs::Initramfs, kernel::Kernel};
use crate::{
    build::{self, Binaries},
    process::{check, find_program, step, watch},
    setup, workspace,
};

/// What to boot.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// A kernel's Debian package to boot in place of Debian's current one
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Also walk every path of the demo, which takes another minute
    #[arg(long)]
    demo: bool,
}

/// What the agent and the lab need; what is built into a kernel is left out there.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
];

/// Programs of this machine that the script calls, and the packages that have them.
const PROGRAMS: &[(&str, &str)] =
    &[("ip", "iproute2"), ("tc", "iproute2"), ("bridge", "iproute2"), ("nft", "nftables"), ("bpftool", "bpftool")];

/// Seconds after which the machine is stopped, on a loaded host.
const TIME_LIMIT: &str = "600";

/// Builds what is to run, and boots.
pub(crate) fn run(options: &Options) -> Result<()> {
    boot(&build::run(&build::Options::default())?, options)
}

/// Boots with these binaries; an error unless everything passed.
pub(crate) fn boot(binaries: &Binaries, options: &Options) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machine has the processor of this machine, and only x86_64 is known");
    }
    setup::ensure_programs(&[("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")])?;
    setup::ensure_programs(PROGRAMS)?;
    let kernel = Kernel::ensure(options.kernel.as_deref())?;

    let directory = workspace::build_directory().join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let root = directory.join("initramfs.cpio");
    fs::write(&root, root_file_system(binaries, &kernel, options)?)
        .with_context(|| format!("cannot write {}", root.display()))?;

    step(format!("booting {}", kernel.image.display()));
    let console = directory.join("console.log");
    let start = Instant::now();
    let mut machine = Command::new("timeout");
    machine
        .args(["--foreground", TIME_LIMIT, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&root)
        .stdin(std::process::Stdio::null());
    let mut outcome = Outcome::default();
    let status = watch(&mut machine, |line| outcome.add(line))?;
    step(format!("{} passed, {} failed in {} s", outcome.passed, outcome.failed, start.elapsed().as_secs()));
    check(&machine, status).context("the machine did not end by itself")?;
    outcome.verdict().with_context(|| format!("the machine's console is in {}", console.display()))
}

fn root_file_system(binaries: &Binaries, kernel: &Kernel, options: &Options) -> Result<Vec<u8>> {
    let mut root = Initramfs::default();
    root.device("/dev/console", 5, 1);
    for directory in ["/proc", "/sys", "/tmp", "/run", "/etc"] {
        root.directory(directory);
    }
    root.file("/init", true, include_bytes!("vm/init.sh"));
    root.file("/manifests/services.yaml", false, include_bytes!("vm/manifests/services.yaml"));

    let busybox = program("busybox")?;
    root.program("/bin/busybox", &busybox)?;
    for applet in
        ["sh", "mount", "mkdir", "cat", "sed", "cut", "grep", "tail", "usleep", "insmod", "reboot", "rm", "uname"]
    {
        root.link(format!("/bin/{applet}"), "busybox");
    }
    let object = workspace::kernel_object();
    root.file("/svc.o", false, &fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?);
    root.program("/bin/svc", &binaries.svc)?;
    root.program("/bin/svc-lab", &binaries.lab)?;
    for (name, _) in PROGRAMS {
        root.program(&format!("/bin/{name}"), &program(name)?)?;
    }

    let modules = kernel.modules(MODULES)?;
    let order: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
    root.file("/modules/order", false, order.join("\n").as_bytes());
    for (name, content) in &modules {
        root.file(format!("/modules/{name}.ko"), false, content);
    }
    if options.demo {
        let examples = workspace::root().join("deploy").join("examples");
        for entry in fs::read_dir(&examples).with_context(|| format!("cannot read {}", examples.display()))? {
            let path = entry?.path();
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            root.file(Path::new("/examples").join(path.file_name().unwrap_or_default()), false, &content);
        }
    }
    Ok(root.finish())
}

fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("{name} is not on this machine"))
}

/// What the machine reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: u64,
    failed: u64,
    ended: bool,
}

impl Outcome {
    fn add(&mut self, line: &str) {
        self.passed += u64::from(line.starts_with("PASS "));
        self.failed += u64::from(line.starts_with("FAIL "));
        self.ended |= line == "END";
    }

    fn verdict(&self) -> Result<()> {
        match self {
            Self { ended: false, .. } => bail!("the machine ended before its script did"),
            Self { failed: 0, passed: 0, .. } => bail!("nothing was checked"),
            Self { failed: 0, .. } => Ok(()),
            Self { failed, .. } => bail!("{failed} checks failed on this kernel"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.add(line);
        }
        outcome
    }

    #[test]
    fn only_a_machine_that_reached_its_end_and_passed_all_counts() {
        assert!(outcome(&["PASS one", "PASS two", "END"]).verdict().is_ok());
        for bad in [&["PASS one"][..], &["END"], &["PASS one", "FAIL two", "     why", "END"], &[]] {
            assert!(outcome(bad).verdict().is_err(), "{bad:?}");
        }
        assert_eq!(outcome(&["PASS a", "FAIL b", "     PASS is in what b said"]).passed, 1);
    }
}
