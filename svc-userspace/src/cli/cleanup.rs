//! `svc cleanup`: detaches and removes everything this project pinned. Established connections through Services end.

use std::{fmt::Write as _, path::Path};

use super::{Output, OutputArg, render};
use crate::kernel::{self, CleanupReport};

/// Arguments of `svc cleanup`.
#[derive(Debug, clap::Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    output: OutputArg,
}

/// Runs the command. That there was nothing to remove is no error.
pub fn run(bpffs: &Path, args: &CleanupArgs) -> anyhow::Result<()> {
    let report = kernel::cleanup(bpffs)?;
    match args.output.output {
        Output::Json => render::print(&render::json(&report)?),
        output => render::print(&text(bpffs, &report, output == Output::Wide)),
    }?;
    anyhow::ensure!(report.problems.is_empty(), "not everything is undone: {}", report.problems.join("; "));
    Ok(())
}

/// The report for people; everything by name with `wide`.
pub fn text(bpffs: &Path, report: &CleanupReport, wide: bool) -> String {
    if report.is_empty() {
        return format!("Nothing to remove: nothing is pinned below {} and nothing is attached.\n", bpffs.display());
    }
    let CleanupReport { detached, pins, masquerade, reserved_ports, problems: _ } = report;
    let (detachments, removals) = (render::number(detached.len(), "program"), render::number(pins.len(), "pin"));
    let mut text = format!("Detached {detachments}, removed {removals} below {}", bpffs.display());
    text.push_str(if *masquerade { " and the nftables table.\n" } else { ".\n" });
    if *reserved_ports {
        text.push_str("The ports for masquerading are not reserved any more.\n");
    }
    if wide {
        for line in detached.iter().chain(pins) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}
