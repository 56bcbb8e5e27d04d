//! Runs every test of the workspace, with what the tests need: the kernel object, the built agent, limits, root.
//!
//! A run in which no test ran is a failure, so that a filter with a typing error or an empty list cannot pass.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::{
    build, ebpf,
    process::{check, host_cargo, is_root, note, run as run_command, step, watch},
    setup, vm, workspace,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only tests whose path contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Only this package
    #[arg(long, short, value_name = "NAME")]
    package: Option<String>,
    /// Arguments for the test programs (`--nocapture`, `--test-threads=1`)
    #[arg(last = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

/// What the test programs said, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Reads a line like `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = result.split_once(". ") else { return };
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs the tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!(
            "the tests make network namespaces and load BPF programs: run this as root; \
             `cargo test -p svc-common -p svc-ebpf` is what runs without"
        );
    }
    let start = Instant::now();
    setup::run_tools()?;
    let with_log = ebpf::run(&ebpf::Options { log: true })?;
    let object = ebpf::run(&ebpf::Options::default())?;
    raise_limits()?;

    let svc = match &options.package {
        // Tests of any package may start the agent.
        Some(_) => build::host(&build::Options::default())?.svc,
        // Built with the tests: building it apart would compile what they share twice, with other features.
        None => workspace::target_directory().join("debug").join("svc"),
    };
    let environment = TestEnvironment { object, with_log, svc };
    let mut tally = Tally::default();
    let result = cargo_test(options, &environment, &mut tally);

    step(format!(
        "{} passed, {} failed, {} ignored in {} s",
        tally.passed,
        tally.failed,
        tally.ignored,
        start.elapsed().as_secs()
    ));
    result?;
    if tally.passed == 0 {
        bail!("no test ran: check --filter and --package");
    }
    if options.package.is_none() && options.filter.is_none() {
        let lab = environment.svc.with_file_name("svc-lab");
        vm::boot(&build::Binaries { svc: environment.svc, lab }, &vm::Options::default())?;
    }
    Ok(())
}

/// What a test program finds in its environment.
struct TestEnvironment {
    object: PathBuf,
    with_log: PathBuf,
    svc: PathBuf,
}

/// Runs `cargo test`: first builds, so that a compile error is told from a failed test.
fn cargo_test(options: &Options, environment: &TestEnvironment, tally: &mut Tally) -> Result<()> {
    let cargo_test = || {
        let mut command = host_cargo();
        command.current_dir(workspace::root()).arg("test");
        match &options.package {
            Some(package) => command.args(["--package", package]),
            None => command.arg("--workspace"),
        };
        command
    };
    step("building the tests (some minutes the first time)");
    run_command(cargo_test().arg("--no-run")).context("the tests do not compile")?;
    if !environment.svc.is_file() {
        bail!("the tests were built, and {} was not", environment.svc.display());
    }

    step("testing");
    let mut command = cargo_test();
    command.arg("--no-fail-fast").arg("--config").arg(runner(environment)?);
    command.env("SVC_BIN", &environment.svc);
    command.arg("--").args(&options.filter).args(&options.rest);
    let status = watch(&mut command, |line| tally.add(line))?;
    check(&command, status).with_context(|| match tally.failed {
        0 => "a test program ended early".to_owned(),
        failed => format!("{failed} tests failed"),
    })
}

/// Cargo's setting that starts test programs with SVC_EBPF_OBJECT and SVC_EBPF_LOG_OBJECT set.
///
/// Set for cargo itself, the first would reach the agent's build script and have the agent rebuilt whenever this
/// command and a plain `cargo build` take turns.
fn runner(environment: &TestEnvironment) -> Result<String> {
    let host = host_triple()?;
    let variable = |name: &str, path: &Path| Ok::<_, anyhow::Error>(toml_string(&format!("{name}={}", display(path)?)));
    let object = variable("SVC_EBPF_OBJECT", &environment.object)?;
    let with_log = variable("SVC_EBPF_LOG_OBJECT", &environment.with_log)?;
    Ok(format!("target.{host}.runner=[\"env\",{object},{with_log}]"))
}

fn display(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A basic string of TOML.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The target that the tests are built for.
pub(crate) fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = crate::process::output(Command::new(rustc).arg("-vV"))?;
    let host =
        text.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` does not say its host")?;
    Ok(host.to_owned())
}

/// Many labs side by side need many file descriptors; kernels before 5.11 charge maps to the locked memory.
fn raise_limits() -> Result<()> {
    const DESCRIPTORS: u64 = 65_536;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < DESCRIPTORS && setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard.max(DESCRIPTORS)).is_err() {
        // Without CAP_SYS_RESOURCE the hard limit is as far as it goes.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files (`ulimit -n`)")?;
        note(format!("the limit of open files is {hard}, not {DESCRIPTORS} (CAP_SYS_RESOURCE is missing)"));
    }
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        note("the limit of locked memory stays as it is (CAP_SYS_RESOURCE is missing); kernels before 5.11 need more");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.02s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
            "test result: none of ours",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 13, failed: 2, ignored: 1 });
    }

    #[test]
    fn paths_with_quotes_and_backslashes_survive_in_the_configuration() {
        assert_eq!(toml_string(r#"A=/x y/"z"\w"#), r#""A=/x y/\"z\"\\w""#);
    }
}
