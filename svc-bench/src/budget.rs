//! What the verifier counts of each program, the record of it, and which program has outgrown its record.
//!
//! The figures depend on the kernel and on the compiler, but not on the machine or its load: a test can hold them.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::ProgramInfo;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::report::{Cell, Row, Section};

/// The command that writes the record anew.
pub const RENEW: &str = "cargo xtask bench --record";
/// How much a program may grow beyond its record.
const GROWTH: f64 = 1.10;
/// Growth that is no regression, however small the program: instructions, and bytes of stack.
const SLACK: (u32, u32) = (32, 16);

/// What the verifier counts of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Instructions after translation, which the JIT compiler turns into machine code.
    pub translated: u32,
    /// Bytes of stack of all of its functions together: no chain of calls takes more.
    pub stack: u32,
}

/// The sizes of all programs, and where they were counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Version of the kernel, e.g. `6.18`.
    pub kernel: String,
    /// By name.
    pub programs: BTreeMap<String, Size>,
}

impl Budget {
    /// Loads an object with bpftool and reads what the verifier says.
    pub fn count(object: &Path) -> Result<Self> {
        let directory = Pins::new()?;
        let mut child = Command::new(bpftool())
            .args(["--debug", "prog", "loadall"])
            .args([object, &directory.path])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start bpftool")?;
        let stderr = child.stderr.take().context("bpftool has no standard error")?;
        let mut log = Log::default();
        for line in BufReader::new(stderr).split(b'\n') {
            log.read(&String::from_utf8_lossy(&line?));
        }
        let status = child.wait()?;
        ensure!(status.success(), "bpftool cannot load {} ({status}): {}", object.display(), log.last);

        let mut programs = BTreeMap::new();
        for (name, stack) in log.stacks {
            let path = directory.path.join(&name);
            let info = ProgramInfo::from_pin(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            let verified = info.verified_instruction_count().context("the kernel does not count instructions")?;
            let translated = info.size_translated().context("the kernel does not show translated programs")? / 8;
            programs.insert(name, Size { verified, translated, stack });
        }
        ensure!(!programs.is_empty(), "bpftool showed no verifier log: {}", log.last);
        Ok(Self { kernel: kernel()?, programs })
    }

    /// Reads a record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record", path.display()))
    }

    /// What is not as this record has it, in sentences.
    pub fn exceeded_by(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, size) in &now.programs {
            let Some(record) = self.programs.get(name) else {
                found.push(format!("{name} has no record"));
                continue;
            };
            for (what, recorded, counted, slack) in [
                ("instructions verified", record.verified, size.verified, SLACK.0),
                ("instructions translated", record.translated, size.translated, SLACK.0),
                ("bytes of stack", record.stack, size.stack, SLACK.1),
            ] {
                let is_beyond = f64::from(counted) > f64::from(recorded) * GROWTH;
                if is_beyond && counted > recorded + slack {
                    found.push(format!("{name} has {counted} {what}, recorded are {recorded}"));
                }
            }
        }
        let gone = self.programs.keys().filter(|name| !now.programs.contains_key(*name));
        found.extend(gone.map(|name| format!("{name} has a record and is no program")));
        found
    }
}

/// The kernel's version, without patch level.
pub fn kernel() -> Result<String> {
    let release = uname()?.release().to_string_lossy().into_owned();
    Ok(release.split(['.', '-']).take(2).collect::<Vec<_>>().join("."))
}

/// Writes the record.
pub fn record(object: &Path, path: &Path) -> Result<()> {
    let budget = Budget::count(object)?;
    let text = serde_json::to_string_pretty(&budget)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("recorded {} programs in {}", budget.programs.len(), path.display());
    Ok(())
}

/// The sizes as a table, beside the record.
pub fn section(object: &Path, path: &Path) -> Result<Section> {
    let (now, record) = (Budget::count(object)?, Budget::read(path)?);
    let cell = |counted: u32, recorded: Option<u32>| {
        let ratio = recorded.filter(|&recorded| recorded != 0).map(|it| f64::from(counted) / f64::from(it));
        Some(Cell { ratio, ..Cell::exact(counted.into()) })
    };
    let rows = now.programs.iter().map(|(name, size)| {
        let record = record.programs.get(name);
        let cells = vec![
            cell(size.verified, record.map(|it| it.verified)),
            cell(size.translated, record.map(|it| it.translated)),
            cell(size.stack, record.map(|it| it.stack)),
        ];
        Row { name: name.clone(), cells }
    });
    let mut notes = vec![format!("Recorded on Linux {}; renewed by `{RENEW}`.", record.kernel)];
    notes.extend(record.exceeded_by(&now));
    Ok(Section {
        name: "budget",
        title: "WHAT THE VERIFIER COUNTS, as multiples of the record".into(),
        columns: ["verified", "translated", "stack"].map(str::to_owned).into(),
        rows: rows.collect(),
        notes,
    })
}

/// What libbpf prints about each program it loads.
#[derive(Default)]
struct Log {
    program: String,
    stacks: Vec<(String, u32)>,
    last: String,
}

impl Log {
    fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("libbpf: prog '")
            && let Some((name, what)) = rest.split_once('\'')
            && what.contains("BEGIN PROG LOAD LOG")
        {
            name.clone_into(&mut self.program);
        }
        if let Some(depths) = line.strip_prefix("stack depth ") {
            // One for each function: `64+0+16`.
            let depths = depths.split('+').filter_map(|depth| depth.trim().parse::<u32>().ok());
            self.stacks.push((self.program.clone(), depths.sum()));
        }
        if !line.trim().is_empty() {
            line.clone_into(&mut self.last);
        }
    }
}

/// On PATH, or where an ordinary user's PATH does not look.
fn bpftool() -> PathBuf {
    let places = ["/usr/sbin/bpftool", "/usr/local/sbin/bpftool"].map(PathBuf::from);
    places.into_iter().find(|path| path.is_file()).unwrap_or_else(|| "bpftool".into())
}

/// A directory for pins; gone when dropped.
struct Pins {
    path: PathBuf,
}

impl Pins {
    fn new() -> Result<Self> {
        let path = Path::new("/sys/fs/bpf").join(format!("svc-budget-{}", std::process::id()));
        if path.exists() {
            bail!("{} is left over from a run that was killed: remove it", path.display());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(verified: u32, stack: u32) -> Budget {
        let size = Size { verified, translated: 1000, stack };
        Budget { kernel: "6.18".into(), programs: BTreeMap::from([("svc_ingress".to_owned(), size)]) }
    }

    #[test]
    fn a_program_outgrows_its_record_by_more_than_a_tenth() {
        let record = budget(20_000, 400);
        assert!(record.exceeded_by(&budget(22_000, 440)).is_empty());
        assert!(record.exceeded_by(&budget(1, 0)).is_empty());
        assert_eq!(
            record.exceeded_by(&budget(22_001, 441)),
            [
                "svc_ingress has 22001 instructions verified, recorded are 20000",
                "svc_ingress has 441 bytes of stack, recorded are 400"
            ]
        );
    }

    #[test]
    fn what_is_small_may_grow_a_little() {
        assert!(budget(68, 8).exceeded_by(&budget(100, 24)).is_empty());
        assert_eq!(budget(68, 8).exceeded_by(&budget(101, 25)).len(), 2);
    }

    #[test]
    fn programs_without_a_record_and_records_without_a_program_are_named() {
        let mut other = budget(1, 1);
        other.programs.insert("svc_xdp".into(), Size::default());
        assert_eq!(budget(1, 1).exceeded_by(&other), ["svc_xdp has no record"]);
        assert_eq!(other.exceeded_by(&budget(1, 1)), ["svc_xdp has a record and is no program"]);
    }

    #[test]
    fn the_log_of_libbpf_is_read_program_by_program() {
        let mut log = Log::default();
        for line in [
            "libbpf: prog 'svc_a': -- BEGIN PROG LOAD LOG --",
            "0: R1=ctx() R10=fp0",
            "stack depth 64+0+16",
            "libbpf: prog 'svc_b': -- BEGIN PROG LOAD LOG --",
            "stack depth 8",
            "",
        ] {
            log.read(line);
        }
        assert_eq!(log.stacks, [("svc_a".to_owned(), 80), ("svc_b".to_owned(), 8)]);
        assert_eq!(log.last, "stack depth 8");
    }
}
