//! What a picture shows, as CSV.

/// One value of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Empty,
    /// Words.
    Text(String),
    /// A number, written with as many digits as it takes to read the same one
    /// back; one that is none is left empty.
    Number(f64),
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Text(number.to_string())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Text(number.to_string())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

/// A table with a name and a unit at the head of each column.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// One without rows.
    pub fn new(columns: &[&str]) -> Self {
        Self {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Curves side by side, with a row for each x that any of them has.
    pub fn by_x(x: &str, curves: &[(String, &[(f64, f64)])]) -> Self {
        let mut all: Vec<f64> = curves
            .iter()
            .flat_map(|(_, points)| points.iter().map(|point| point.0))
            .collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        let names = curves.iter().map(|(name, _)| name.as_str());
        let mut table = Self::new(&std::iter::once(x).chain(names).collect::<Vec<_>>());
        table.rows = all.iter().map(|&x| vec![Cell::from(x)]).collect();
        for (_, points) in curves {
            let mut sorted: Vec<(f64, f64)> = points.to_vec();
            // Of two points at one place the later one counts, as in the picture's line it ends there.
            sorted.sort_by(|one, other| one.0.total_cmp(&other.0));
            let mut sorted = sorted.into_iter().peekable();
            for (x, row) in all.iter().zip(&mut table.rows) {
                let mut value = None;
                while let Some((_, y)) = sorted.next_if(|point| point.0 == *x) {
                    value = Some(y);
                }
                row.push(value.into());
            }
        }
        table
    }

    /// Adds a row, of as many values as there are columns.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// As RFC 4180 has it, but with plain line feeds: what holds a comma, a quotation mark or a line
    /// feed is quoted.
    pub fn csv(&self) -> String {
        let head = self.columns.iter().map(|name| quoted(name)).collect();
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(written).collect());
        let lines = std::iter::once(head).chain(rows);
        lines
            .map(|fields: Vec<String>| fields.join(",") + "\n")
            .collect()
    }
}

fn written(cell: &Cell) -> String {
    match cell {
        Cell::Empty => String::new(),
        Cell::Text(text) => quoted(text),
        Cell::Number(number) if number.is_nan() => String::new(),
        Cell::Number(number) => number.to_string(),
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_bit_for_bit() {
        let numbers = [0.1 + 0.2, 1.0 / 3.0, 1e-300, -0.0, f64::MAX, f64::INFINITY];
        let mut table = Table::new(&["loss (nats)"]);
        for number in numbers {
            table.push(vec![number.into()]);
        }
        let csv = table.csv();
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("loss (nats)"));
        let read: Vec<u64> = lines
            .map(|line| line.parse::<f64>().unwrap().to_bits())
            .collect();
        assert_eq!(read, numbers.map(f64::to_bits));
    }

    #[test]
    fn commas_and_quotation_marks_are_quoted() {
        let mut table = Table::new(&["loss, smoothed", "method"]);
        table.push(vec![Cell::Empty, "the \"new\" one".into()]);
        assert_eq!(
            table.csv(),
            "\"loss, smoothed\",method\n,\"the \"\"new\"\" one\"\n"
        );
    }

    #[test]
    fn curves_stand_side_by_side_by_x() {
        let (training, validation) = ([(1.0, 3.0), (2.0, 2.0)], [(0.0, 4.0), (2.0, 2.5)]);
        let table = Table::by_x(
            "step",
            &[
                ("training".to_owned(), &training),
                ("validation".to_owned(), &validation),
            ],
        );
        assert_eq!(
            table.csv(),
            "step,training,validation\n0,,4\n1,3,\n2,2,2.5\n"
        );
    }
}
