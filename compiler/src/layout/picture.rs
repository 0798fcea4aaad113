//! A layout as a table that a person reads.

use super::{Dim, Layout};

/// The most rows, and the most columns, that a picture shows.
const MOST: usize = 64;

impl Layout {
    /// A table of which coordinates lie where: the low `across` address bits count columns and the others rows. The
    /// heading names the coordinates, a row starts with its first address, and a cell lists the coordinates' values.
    ///
    /// ```text
    ///    n,k    0    1
    ///      0  0,0  0,1
    ///      2  1,0  1,1
    /// ```
    ///
    /// Only the first 64 rows and columns are shown; `…` says that there are more.
    pub fn picture(&self, across: u32) -> String {
        let across = across.min(self.len());
        let (columns, rows) = (1u64 << across, 1u64 << (self.len() - across));
        let (shown_columns, shown_rows) = (columns.min(MOST as u64) as usize, rows.min(MOST as u64) as usize);
        let dims: Vec<Dim> = Dim::ALL.into_iter().filter(|&dim| self.count(dim) > 0).collect();
        let list = |values: Vec<String>| if values.is_empty() { "-".to_string() } else { values.join(",") };

        let mut heading = vec![list(dims.iter().map(Dim::to_string).collect())];
        heading.extend((0..shown_columns).map(|column| column.to_string()));
        let mut table = vec![heading];
        for row in 0..shown_rows {
            let start = row << across;
            let mut cells = vec![start.to_string()];
            cells.extend((0..shown_columns).map(|column| {
                let coords = self.coords(start + column);
                list(dims.iter().map(|&dim| coords.get(dim).to_string()).collect())
            }));
            table.push(cells);
        }

        let width_of = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=shown_columns).map(width_of).collect();
        let mut text = String::new();
        for row in &table {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
            text += &cells.join("  ");
            text += if columns > shown_columns as u64 { "  …\n" } else { "\n" };
        }
        if rows > shown_rows as u64 {
            text += "…\n";
        }
        text
    }
}
