//! From values to what is printed: numbers for people, JSON for machines, and a closed pipe is no error.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

use super::table::Table;

/// A count with at most four digits and a decimal suffix: `999`, `1.2k`, `34M`.
pub fn count(value: u64) -> String {
    scaled(value, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// A size in bytes with a binary suffix: `999B`, `1.2Ki`, `34Mi`.
pub fn bytes(value: u64) -> String {
    scaled(value, 1024, &["B", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

fn scaled(value: u64, base: u64, units: &[&str]) -> String {
    let mut whole = value;
    let mut tenths = 0;
    let mut unit = 0;
    while whole >= base && unit + 1 < units.len() {
        tenths = whole % base * 10 / base;
        whole /= base;
        unit += 1;
    }
    let suffix = units.get(unit).copied().unwrap_or_default();
    if unit > 0 && whole < 10 { format!("{whole}.{tenths}{suffix}") } else { format!("{whole}{suffix}") }
}

/// `1 pin`, `2 pins`.
pub fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How full something is, in whole per cent, rounded up so that what is used never reads 0%.
pub fn percent(used: u64, capacity: u64) -> String {
    if capacity == 0 {
        return "-".to_owned();
    }
    format!("{}%", (u128::from(used) * 100).div_ceil(u128::from(capacity)))
}

/// A value as an indented JSON document.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}

/// Prints a table, or on standard error that there is nothing of the kind.
pub fn table(table: &Table, what: &str) -> anyhow::Result<()> {
    if table.is_empty() {
        eprintln!("No {what} found.");
        return Ok(());
    }
    print(&table.to_string())
}

/// Writes to standard output. That the reader went away (`svc flows | head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_their_magnitude() {
        let cases = [(0, "0"), (999, "999"), (1000, "1.0k"), (1299, "1.2k"), (12_999, "12k"), (u64::MAX, "18E")];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
        assert_eq!(bytes(1536), "1.5Ki");
        assert_eq!(bytes(1023), "1023B");
    }

    #[test]
    fn a_used_entry_never_reads_as_nothing() {
        assert_eq!(percent(0, 100), "0%");
        assert_eq!(percent(1, 1_000_000), "1%");
        assert_eq!(percent(u64::MAX, u64::MAX), "100%");
        assert_eq!(percent(0, 0), "-");
    }
}
