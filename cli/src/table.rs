//! Text tables: columns as wide as they need to be.

/// A table under construction.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a head.
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing under the head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

/// Cells that start with a digit are numbers, and stand to the right, as do their heads.
impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let number = |column: usize| {
            cells(column).skip(1).all(|cell| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        };
        let shape: Vec<(usize, bool)> =
            (0..columns).map(|c| (cells(c).map(|cell| cell.chars().count()).max().unwrap_or(0), number(c))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, &(width, number)) in row.iter().zip(&shape) {
                let pad = " ".repeat(width - cell.chars().count());
                line += &if number { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A time in the unit that suits it.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// A ratio of an error to its bound: small ones keep their order of magnitude.
pub(crate) fn ratio(ratio: f64) -> String {
    if ratio == 0.0 || ratio >= 0.001 { format!("{ratio:.3}") } else { format!("{ratio:.0e}") }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(count: f64) -> String {
    match count {
        c if c < 1e3 => format!("{c} bytes"),
        c if c < 1e6 => format!("{:.1} kB", c / 1e3),
        c if c < 1e9 => format!("{:.1} MB", c / 1e6),
        c => format!("{:.2} GB", c / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec!["a".into(), "1".into()]);
        table.row(vec!["longer".into(), "200".into()]);
        assert_eq!(table.to_string(), "name      n\na         1\nlonger  200\n");
    }

    #[test]
    fn units() {
        assert_eq!(time(0.0000012), "1.2 us");
        assert_eq!(time(0.5), "500.00 ms");
        assert_eq!(bytes(1.5e9), "1.50 GB");
        assert_eq!((ratio(0.0), ratio(0.25), ratio(3e-5)), ("0.000".into(), "0.250".into(), "3e-5".into()));
    }
}
