//! Prints the story as a table: aligned, a heading for each kind of client.

use std::io::{self, Write};

use super::paths::Row;

const HEADERS: [&str; 4] = ["WHO", "ASKED", "ANSWERED BY", "CLIENT ADDRESS SEEN"];

/// Prints the rows; how many are not right, and how many there are.
pub(super) fn print(rows: &[Row]) -> io::Result<(usize, usize)> {
    write(&mut io::stdout().lock(), rows)?;
    Ok((rows.iter().filter(|row| !row.right).count(), rows.len()))
}

fn write(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let cells: Vec<[String; 4]> = rows
        .iter()
        .map(|row| {
            let mark = if row.right { "" } else { "  ← WRONG" };
            let asked = format!("{} {}", row.asked, row.protocols.join("+"));
            [row.who.clone(), asked, row.answered.clone(), format!("{}{mark}", row.seen)]
        })
        .collect();
    let mut widths = HEADERS.map(str::len);
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |out: &mut dyn Write, cells: [&str; 4]| -> io::Result<()> {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(out, HEADERS)?;
    let mut title = "";
    for (row, cells) in rows.iter().zip(&cells) {
        if row.title != title {
            title = row.title;
            writeln!(out, "\n{title} …")?;
        }
        line(out, cells.each_ref().map(String::as_str))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_wrong_rows_are_marked() {
        let row = |who: &str, right| Row {
            title: "A pod asks",
            who: who.into(),
            asked: "ClusterIP web at 10.96.0.10:80".into(),
            protocols: vec!["tcp", "udp"],
            answered: "web-1 on node1".into(),
            seen: "10.244.1.10 (its own)".into(),
            right,
        };
        let mut out = Vec::new();
        write(&mut out, &[row("client", true), row("a longer client", false)]).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "A pod asks …");
        assert_eq!(lines[3].find("web-1"), lines[4].find("web-1"));
        assert_eq!(lines[0].find("ANSWERED"), lines[3].find("web-1"));
        assert!(lines[3].contains("tcp+udp") && !lines[3].contains("WRONG") && lines[4].ends_with("← WRONG"));
    }
}
