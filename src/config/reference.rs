//! The reference page of the configuration, written from the table of keys.

use std::fmt::Write as _;

use super::keys::{Key, TABLES, reference};

const HEAD: &str = "\
# Configuration

Every key: where it can be set, its default, and what it does.

- A flag stands over a variable, a variable over the file, the file over the default.
- The file is the one that `--config` or `PORTCULLIS_CONFIG` names, otherwise `portcullis.toml` in the
  current folder if there is one. It is [TOML](https://toml.io); a key that is not known is an error.
- A path in the file starts at the file's folder, a path in a flag or a variable at the current folder.
- In flags and variables the items of a list are parted by commas.
- Durations are written `500ms`, `10s`, `2m`, `1h`, `400d`; sizes `64KiB`, `100MiB`, `1GiB`, or in bytes.
- `portcullis check` tells every mistake at once, each with its line.
";

/// The whole page.
#[must_use]
pub fn markdown_reference() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## At the top of the file\n\n");
    let keys = || reference().iter();
    let top = keys().filter(|key| key.in_table().0.is_none());
    page.push_str(&table(
        &["key", "variable", "flag", "default", "what it does"],
        &top.map(top_row).collect::<Vec<_>>(),
    ));
    for name in TABLES {
        let (heading, about) = about(name);
        // Writing into a String cannot fail.
        let _ = write!(page, "\n## `{heading}`\n\n{about}\n\n");
        let rows = keys().filter(|key| key.in_table().0 == Some(name));
        let rows: Vec<_> = rows
            .map(|key| vec![code(key.in_table().1), code(key.default), key.says.to_owned()])
            .collect();
        page.push_str(&table(&["key", "default", "what it does"], &rows));
    }
    page
}

fn about(table: &str) -> (String, &'static str) {
    let says = match table {
        "roles" => {
            "Who has which role. An exact name goes before a pattern; of two patterns the lesser role counts."
        }
        "tls" => "TLS for callers, beside `tls_cert` and `tls_key`.",
        "groups" => "Names of your own, each with its members: `students = [\"s01*\", \"anna\"]`.",
        "prices" => {
            "What models cost, in whatever currency, for the money column of `portcullis usage`: `\"gemma3*\" = { prompt = 0.10, completion = 0.40 }`."
        }
        "rule" => {
            "Who may do what; any number of these. The first one counts in which each of `names`, `roles`, `groups` and `keys` that is written matches; whom none matches may use all models but those in the cloud."
        }
        "key" => {
            "Keys by their digest, for who keeps the configuration in a repository; any number."
        }
        "limit" => {
            "How much somebody may have, beside what stands in a `[[rule]]` (for each caller it is about) and a `[[key]]` (for this key); any number of these, and all that match a request count at once. See [limits](../how-to/limits.md)."
        }
        "traces" => "Spans of requests for a collector of traces (OpenTelemetry).",
        "alias" => {
            "Other names for models, and fallbacks; any number of these. See [backends](../how-to/backends.md)."
        }
        "cors" => {
            "Cross-origin requests of browsers, answered at the gate; never with a browser's own credentials."
        }
        "timeouts" => "How long each step may take. There is no limit for a whole answer.",
        _ => {
            "The model servers, in place of `upstream`; any number of these. See [backends](../how-to/backends.md)."
        }
    };
    let heading = match table {
        "backend" | "alias" | "rule" | "key" | "limit" => format!("[[{table}]]"),
        table => format!("[{table}]"),
    };
    (heading, says)
}

fn top_row(key: &'static Key) -> Vec<String> {
    let or_none = |name: Option<String>| name.map(|name| code(&name)).unwrap_or_default();
    vec![
        code(key.name),
        or_none(key.variable()),
        or_none(key.flag_name()),
        code(key.default),
        key.says.to_owned(),
    ]
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Aligned for those who read the source.
fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let head = heads.get(column).map_or(0, |head| head.chars().count());
        cells.map(|cell| cell.chars().count()).fold(head, usize::max)
    };
    let last = heads.len().saturating_sub(1);
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = if column == last { 0 } else { width(column) };
            let _ = write!(line, "| {cell:<width$} ");
        }
        line + "|\n"
    };
    let dashes: Vec<_> = (0..heads.len())
        .map(|column| "-".repeat(if column == last { 3 } else { width(column) }))
        .collect();
    let heads: Vec<_> = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows = rows.iter().map(|row| line(row));
    [line(&heads), line(&dashes)].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_key_with_its_default_and_its_ways_in() {
        let page = markdown_reference();
        for key in reference() {
            let row = page
                .lines()
                .find(|line| {
                    line.starts_with(&format!("| `{}` ", key.in_table().1))
                        && line.contains(key.says)
                })
                .unwrap_or_else(|| panic!("{} is not on the page", key.name));
            assert!(row.contains(&code(key.default)), "{row}");
            assert!(key.variable().is_none_or(|variable| row.contains(&code(&variable))), "{row}");
            assert!(key.flag_name().is_none_or(|flag| row.contains(&code(&flag))), "{row}");
        }
    }

    #[test]
    fn the_columns_stand_below_each_other() {
        let rows =
            [vec!["a".to_owned(), "b".to_owned()], vec!["größer".to_owned(), "c".to_owned()]];
        let expected = "| x      | y |\n| ------ | --- |\n| a      | b |\n| größer | c |\n";
        assert_eq!(table(&["x", "y"], &rows), expected);
    }
}
