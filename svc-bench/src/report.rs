//! Tables: printed for people, written as JSON for machines. A section says what its figures are; nothing here measures.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine::Machine;

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Fewer packets and rounds than a figure that is quoted needs.
    pub quick: bool,
    /// The tables.
    pub sections: Vec<Section>,
}

/// One table.
#[derive(Debug, Serialize)]
pub struct Section {
    /// For `--only` and for JSON.
    pub name: &'static str,
    /// What the figures are.
    pub title: String,
    /// Headers of the figures' columns.
    pub columns: Vec<String>,
    /// Rows in the order in which they are printed.
    pub rows: Vec<Row>,
    /// What has to be known to read them.
    pub notes: Vec<String>,
}

/// A line of a table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// One for each column; none where there is nothing to measure.
    pub cells: Vec<Option<Cell>>,
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The figure.
    pub value: f64,
    /// Digits behind its point, in print.
    #[serde(skip)]
    pub digits: usize,
    /// How far batches or rounds were from their median, as a part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// The figure as a multiple of the one it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Cell {
    /// A figure with nothing beside it.
    pub fn exact(value: f64) -> Self {
        Self { value, digits: 0, spread: None, ratio: None }
    }

    fn text(&self) -> String {
        let mut text = format!("{:.*}", self.digits, self.value);
        if let Some(ratio) = self.ratio {
            let _ = write!(text, " {ratio:.2}×");
        }
        if let Some(spread) = self.spread {
            let _ = write!(text, " ±{:.0}%", spread * 100.0);
        }
        text
    }
}

impl Section {
    /// The table as text.
    pub fn text(&self) -> String {
        let cells = |row: &Row| -> Vec<String> {
            row.cells.iter().map(|cell| cell.as_ref().map_or_else(|| "–".to_owned(), Cell::text)).collect()
        };
        let lines: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        let width = |text: &str| text.chars().count();
        let first = self.rows.iter().map(|row| width(&row.name)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let cells = lines.iter().filter_map(|line| line.get(at)).map(|cell| width(cell));
                cells.chain([width(&self.columns[at])]).max().unwrap_or(0)
            })
            .collect();
        let mut text = format!("{}\n", self.title);
        let mut line = |name: &str, cells: &[String]| {
            let _ = write!(text, "{name:<first$}");
            for (cell, width) in cells.iter().zip(&widths) {
                let _ = write!(text, "   {cell:>width$}");
            }
            text.push('\n');
        };
        let headers: Vec<String> = self.columns.iter().map(|column| column.to_uppercase()).collect();
        line("", &headers);
        for (row, cells) in self.rows.iter().zip(&lines) {
            line(&row.name, cells);
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }
}

impl Report {
    /// Machine and tables as text.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.machine.line());
        if self.quick {
            text.push_str("--quick: fewer packets and rounds than a figure that is quoted needs\n");
        }
        for section in &self.sections {
            let _ = write!(text, "\n{}", section.text());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_says_what_is_missing() {
        let cell = Cell { value: 12.34, digits: 1, spread: Some(0.031), ratio: Some(1.5) };
        let section = Section {
            name: "x",
            title: "ns for each packet".into(),
            columns: vec!["v4".into(), "v6".into()],
            rows: vec![
                Row { name: "not a Service".into(), cells: vec![Some(cell), None] },
                Row { name: "echo".into(), cells: vec![Some(Cell::exact(7.0)), Some(Cell::exact(1000.0))] },
            ],
            notes: vec!["a note".into()],
        };
        let expected = [
            "ns for each packet",
            "                            V4     V6",
            "not a Service   12.3 1.50× ±3%      –",
            "echo                         7   1000",
            "  a note",
        ];
        assert_eq!(section.text().lines().collect::<Vec<_>>(), expected);
    }
}
