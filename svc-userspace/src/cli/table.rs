//! Tables as kubectl prints them: upper-case headers, aligned columns, no borders.

use std::fmt;

/// Columns and rows of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headers: impl Into<Vec<&'static str>>) -> Self {
        Self { headers: headers.into(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each header. An empty cell prints as `<none>`; missing cells as well.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> =
            cells.into_iter().map(|cell| if cell.is_empty() { "<none>".to_owned() } else { cell }).collect();
        row.resize(self.headers.len(), "<none>".to_owned());
        self.rows.push(row);
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain(self.headers.get(column).map(|header| header.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (cell, width) in cells.zip(&widths) {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
            }
            writeln!(f, "{}", text.trim_end())
        };
        line(&mut self.headers.iter().copied())?;
        self.rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let mut table = Table::new(["NAME", "PORT", "X"]);
        table.row(["a-long-name".into(), "80/TCP".into(), String::new()]);
        table.row(["b".into(), "443/TCP".into(), "é".into()]);
        assert_eq!(
            table.to_string(),
            "NAME          PORT      X\na-long-name   80/TCP    <none>\nb             443/TCP   é\n"
        );
    }

    #[test]
    fn a_table_without_rows_is_its_header() {
        assert_eq!(Table::new(["NAME", "PORT"]).to_string(), "NAME   PORT\n");
    }
}
