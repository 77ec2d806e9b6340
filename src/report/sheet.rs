//! Rows under named columns, as a table for people, CSV or JSON.

use std::fmt::Display;
use std::str::FromStr;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Number, Value};

/// A table shows no smaller cost.
const LEAST: f64 = 0.0001;

/// What is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Text(String),
    Count(u64),
    /// To the thousandth.
    Number(f64),
    Money(f64),
    Flag(bool),
    Nothing,
}

/// How it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    Json,
    Csv,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            _ => Err("expected table, json or csv".to_owned()),
        }
    }
}

impl Sheet {
    /// One object a row, its fields in the order of the columns.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Array(self.rows.iter().map(|row| self.object(row)).collect())
    }

    pub(super) fn object(&self, row: &[Cell]) -> Value {
        let fields = self.columns.iter().zip(row);
        Value::Object(
            fields.map(|(name, cell)| ((*name).to_owned(), cell.to_json())).collect::<Map<_, _>>(),
        )
    }

    /// A line of names, then a line a row (RFC 4180, with plain newlines).
    #[must_use]
    pub fn to_csv(&self) -> String {
        let rows = self.rows.iter().map(|row| csv_line(row));
        std::iter::once(self.csv_head()).chain(rows).collect()
    }

    #[must_use]
    pub fn csv_head(&self) -> String {
        self.columns.join(",") + "\n"
    }

    /// The same text in pieces of so many rows, as JSON or CSV.
    pub fn pieces(self, format: Format, rows: usize) -> impl FnMut() -> Option<String> + Send {
        let mut at = Some(0);
        move || {
            let from = at?;
            let to = self.rows.len().min(from + rows);
            let is_last = to == self.rows.len();
            at = (!is_last).then_some(to);
            let rows = self.rows.get(from..to).unwrap_or_default();
            let is_first = from == 0;
            Some(match format {
                Format::Csv => {
                    let head = if is_first { self.csv_head() } else { String::new() };
                    std::iter::once(head).chain(rows.iter().map(|row| csv_line(row))).collect()
                }
                Format::Json | Format::Table => {
                    let rows: Vec<_> =
                        rows.iter().map(|row| self.object(row).to_string()).collect();
                    let open = if is_first { "[" } else { "," };
                    format!("{open}{}{}", rows.join(","), if is_last { "]" } else { "" })
                }
            })
        }
    }

    /// In columns, numbers to the right. A last row that sums the others is set off by a line.
    #[must_use]
    pub fn to_table(&self, sum: Option<&[Cell]>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(self.columns.iter().map(|name| name.replace('_', " ").to_uppercase()));
        for row in self.rows.iter().map(Vec::as_slice).chain(sum) {
            table.add_row(row.iter().map(Cell::shown));
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            let mut cells = self.rows.iter().filter_map(|row| row.get(at));
            if cells.any(Cell::is_number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }
}

/// One line with its end.
#[must_use]
pub fn csv_line(cells: &[Cell]) -> String {
    let fields: Vec<_> = cells.iter().map(Cell::in_csv).collect();
    fields.join(",") + "\n"
}

impl Cell {
    #[must_use]
    pub fn text(text: Option<&str>) -> Self {
        text.map_or(Self::Nothing, |text| Self::Text(text.to_owned()))
    }

    fn is_number(&self) -> bool {
        match self {
            Self::Count(_) | Self::Number(_) | Self::Money(_) => true,
            Self::Text(_) | Self::Flag(_) | Self::Nothing => false,
        }
    }

    #[must_use]
    pub fn to_json(&self) -> Value {
        let rounded = |number, digits| {
            Number::from_f64(rounded(number, digits)).map_or(Value::Null, Value::Number)
        };
        match self {
            Self::Text(text) => Value::String(text.clone()),
            Self::Count(count) => Value::Number((*count).into()),
            Self::Number(number) => rounded(*number, 3),
            Self::Money(money) => rounded(*money, 6),
            Self::Flag(is) => Value::Bool(*is),
            Self::Nothing => Value::Null,
        }
    }

    fn in_csv(&self) -> String {
        match self {
            Self::Text(text) => csv_text(text),
            Self::Count(number) => number.to_string(),
            Self::Number(number) => format!("{:.3}", rounded(*number, 3)),
            Self::Money(money) => format!("{:.6}", rounded(*money, 6)),
            Self::Flag(is) => is.to_string(),
            Self::Nothing => String::new(),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) => printable(text),
            Self::Count(number) => grouped(*number),
            Self::Number(number) => grouped(format!("{number:.1}")),
            Self::Money(money) if *money > 0.0 && *money < LEAST => format!("<{LEAST}"),
            Self::Money(money) => grouped(format!("{money:.4}")),
            Self::Flag(true) => "yes".to_owned(),
            Self::Flag(false) | Self::Nothing => "-".to_owned(),
        }
    }
}

/// Half a digit up, in every format: `{:.6}` alone rounds by what the float is in binary.
fn rounded(number: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (number * factor).round() / factor
}

/// A caller chooses how a model is spelt that there is not: it is no formula of a spreadsheet, and a
/// terminal does not obey it.
fn csv_text(text: &str) -> String {
    let text = printable(text);
    let quote = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    match text.contains([',', '"']) {
        true => format!("\"{quote}{}\"", text.replace('"', "\"\"")),
        false => format!("{quote}{text}"),
    }
}

/// Without what a terminal would obey.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Thousands apart.
#[must_use]
pub fn grouped(number: impl Display) -> String {
    let digits = format!("{number}");
    let whole = digits.find('.').unwrap_or(digits.len());
    let mut grouped = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && at < whole && (whole - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        Sheet {
            columns: vec!["user", "requests", "backend_seconds", "cost", "estimated"],
            rows: vec![
                vec![
                    Cell::Text("anna, \"b\"".to_owned()),
                    Cell::Count(1_234_567),
                    Cell::Number(0.1234),
                    Cell::Money(0.1 + 0.2),
                    Cell::Flag(true),
                ],
                vec![
                    Cell::Nothing,
                    Cell::Count(7),
                    Cell::Number(2.0),
                    Cell::Nothing,
                    Cell::Flag(false),
                ],
            ],
        }
    }

    #[test]
    fn json_has_an_object_a_row_in_the_order_of_the_columns() {
        let told = sheet().to_json().to_string();
        let expected = r#"[{"user":"anna, \"b\"","requests":1234567,"backend_seconds":0.123,"cost":0.3,"estimated":true},{"user":null,"requests":7,"backend_seconds":2.0,"cost":null,"estimated":false}]"#;
        assert_eq!(told, expected);
    }

    #[test]
    fn json_and_csv_tell_the_same_number() {
        for cell in [Cell::Money(0.000_141_5), Cell::Money(1.000_000_5), Cell::Number(0.0005)] {
            let json: f64 = cell.to_json().to_string().parse().unwrap();
            let csv: f64 = cell.in_csv().parse().unwrap();
            assert_eq!(json.to_bits(), csv.to_bits(), "{cell:?}");
        }
    }

    #[test]
    fn a_cost_is_never_shown_as_none() {
        let shown = |money| Cell::Money(money).shown();
        assert_eq!(shown(0.0), "0.0000");
        assert_eq!(shown(0.000_01), "<0.0001");
        assert_eq!(shown(0.000_1), "0.0001");
    }

    #[test]
    fn pieces_are_the_whole() {
        for rows in 0..5 {
            let sheet = Sheet {
                columns: vec!["n"],
                rows: (0..rows).map(|number| vec![Cell::Count(number)]).collect(),
            };
            for size in 1..6 {
                let all = |format| {
                    let mut next = sheet.clone().pieces(format, size);
                    std::iter::from_fn(&mut next).collect::<String>()
                };
                assert_eq!(all(Format::Json), sheet.to_json().to_string());
                assert_eq!(all(Format::Csv), sheet.to_csv());
            }
        }
    }

    #[test]
    fn csv_quotes_what_has_to_be_quoted() {
        let expected = "user,requests,backend_seconds,cost,estimated\n\
                        \"anna, \"\"b\"\"\",1234567,0.123,0.300000,true\n,7,2.000,,false\n";
        assert_eq!(sheet().to_csv(), expected);
    }

    #[test]
    fn a_table_has_numbers_to_the_right_and_a_sum() {
        let sum = vec![Cell::Text("all".to_owned()), Cell::Count(1_234_574)];
        let told = sheet().to_table(Some(&sum));
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].contains("BACKEND SECONDS"), "{told}");
        assert!(lines[1].contains("1,234,567") && lines[2].contains("        7"), "{told}");
        assert!(
            lines[3].trim_start().starts_with("all") && lines[3].ends_with("1,234,574"),
            "{told}"
        );
    }

    #[test]
    fn no_name_is_a_formula_or_moves_a_cursor() {
        for (text, csv) in [
            ("=1+1", "'=1+1"),
            ("@SUM(A1,A2)", "\"'@SUM(A1,A2)\""),
            ("-x", "'-x"),
            ("+x", "'+x"),
            ("a-b", "a-b"),
            ("a\nb\u{1b}[2J", "a\\nb\\u{1b}[2J"),
            ("\t=1", "\\t=1"),
        ] {
            let cell = Cell::Text(text.to_owned());
            assert_eq!(cell.in_csv(), csv);
            assert!(!cell.shown().contains(char::is_control), "{text:?}");
            assert_eq!(cell.to_json(), Value::String(text.to_owned()), "whole for programs");
        }
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (40_120, "40,120")] {
            assert_eq!(grouped(number), shown);
        }
        assert_eq!(Cell::Number(1_234_567.89).shown(), "1,234,567.9");
        assert_eq!(Cell::Money(999.123_456).shown(), "999.1235");
    }
}
