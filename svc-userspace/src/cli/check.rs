//! `svc check`: what this kernel and this machine offer, and what will be used.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{Output, OutputArg, preflight, render, table::Table};
use crate::kernel::check::{self, Finding, Verdict};

/// Arguments of `svc check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// cgroup v2 directory that the agent will be given [default: the cgroup2 mount of /proc/self/mounts]
    #[arg(long, env = "SVC_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArg,
}

/// Runs the command; fails if something is missing that nothing can stand in for.
pub fn run(bpffs: &Path, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    let cgroup = preflight::cgroup(args.cgroup.as_deref());
    findings.extend(check::run(bpffs, cgroup.as_deref().ok()));
    if let Err(error) = &cgroup {
        findings.push(Finding {
            what: "cgroup v2".to_owned(),
            verdict: Verdict::Missing,
            consequence: error.to_string(),
            remedy: error.hint().to_owned(),
        });
    }
    match args.output.output {
        Output::Json => render::print(&render::json(&findings)?)?,
        Output::Table | Output::Wide => render::print(&table(&findings).to_string())?,
    }
    let missing = findings.iter().any(|finding| finding.verdict == Verdict::Missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The findings as a table.
pub fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["FOUND", "VERDICT", "CONSEQUENCE", "REMEDY"]);
    for Finding { what, verdict, consequence, remedy } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Degraded => "degraded",
            Verdict::Missing => "missing",
        };
        let remedy = if remedy.is_empty() { "-" } else { remedy };
        table.row([what, verdict, consequence, remedy].map(str::to_owned));
    }
    table
}
