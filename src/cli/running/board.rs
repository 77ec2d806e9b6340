//! What `portcullis running` shows, line by line: each backend with what runs there, then the queue.

use serde_json::Value;

use crate::report::{Cell, Sheet, grouped, printable};

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    text: String,
    weight: Weight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Bold,
    Plain,
    Faint,
}

impl Line {
    pub(super) fn head(text: impl Into<String>) -> Self {
        Self { text: text.into(), weight: Weight::Bold }
    }

    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), weight: Weight::Plain }
    }

    fn faint(text: impl Into<String>) -> Self {
        Self { text: text.into(), weight: Weight::Faint }
    }

    /// What of it fits.
    pub(super) fn painted(&self, is_coloured: bool, columns: usize) -> String {
        let text = match self.text.char_indices().nth(columns) {
            Some((end, _)) => self.text.get(..end).unwrap_or_default(),
            None => &self.text,
        };
        let colour = match self.weight {
            Weight::Bold => "1",
            Weight::Faint => "2",
            Weight::Plain => return text.to_owned(),
        };
        match is_coloured && !text.is_empty() {
            true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

/// All of it, from what the admin API says of `requests` and `backends`.
pub(super) fn lines(seen: &Value) -> Vec<Line> {
    if let Some(error) = text(seen, "error") {
        return vec![Line::plain(printable(error))];
    }
    let requests: Vec<_> = list(seen, "requests").collect();
    let mut lines = Vec::new();
    for backend in list(seen, "backends") {
        lines.extend(of_backend(backend, &requests));
        lines.push(Line::plain(""));
    }
    lines.extend(of_queue(seen, &requests));
    lines
}

fn of_backend(backend: &Value, requests: &[&Value]) -> Vec<Line> {
    let name = text(backend, "name").unwrap_or("-");
    let mut lines = vec![Line::head(format!(
        "{}  {}  {}",
        printable(name),
        printable(text(backend, "url").unwrap_or("-")),
        state(backend)
    ))];
    let models: Vec<_> = list(backend, "models").map(model).collect();
    match models.is_empty() {
        true => lines.push(Line::plain("  no model in memory, as far as is known")),
        false => lines.extend(models.into_iter().map(Line::plain)),
    }
    let here =
        |it: &&&Value| text(it, "state") == Some("running") && names(it).any(|it| it == name);
    let rows: Vec<_> = requests.iter().filter(here).map(|it| running(it)).collect();
    if !rows.is_empty() {
        lines.extend(table(RUNNING.to_vec(), rows));
    }
    lines
}

fn state(backend: &Value) -> &'static str {
    let is = |field: &str| backend.get(field).and_then(Value::as_bool);
    match (is("drained"), is("up")) {
        (Some(true), _) => "drained: it gets no new requests",
        (_, Some(false)) => "down",
        _ => "up",
    }
}

fn model(model: &Value) -> String {
    let number = |field: &str| model.get(field).and_then(Value::as_u64);
    let place = match model.get("in_memory").and_then(Value::as_bool) {
        Some(true) => "in memory",
        _ => "waited for",
    };
    let running = number("running").unwrap_or_default();
    let bound = match (number("parallel"), text(model, "parallel_is")) {
        (None, _) => "no bound".to_owned(),
        (Some(most), Some("learned")) => format!("{most} at once, as learned"),
        (Some(most), _) => format!("{most} at once, as set"),
    };
    let name = printable(text(model, "name").unwrap_or("-"));
    format!("  {name}: {place}, {running} running ({bound})")
}

const RUNNING: [&str; 8] =
    ["request", "name", "model", "operation", "waited", "runs", "tokens", "tokens/s"];

fn running(request: &Value) -> Vec<Cell> {
    let has_begun = request.get("first_byte").and_then(Value::as_bool) == Some(true);
    let tokens = number(request, "tokens").filter(|_| has_begun);
    let rate = request.get("tokens_per_second").and_then(Value::as_f64);
    let mut row = common(request).to_vec();
    row.extend([
        span(number(request, "waited_ms")),
        span(number(request, "runs_ms")),
        tokens.map_or(Cell::Nothing, Cell::Count),
        rate.map_or(Cell::Nothing, Cell::Number),
    ]);
    row
}

const WAITING: [&str; 9] =
    ["#", "request", "name", "model", "operation", "waited", "expected", "class", "for"];

fn waiting(request: &Value) -> Vec<Cell> {
    // It is no better than that.
    let expected = number(request, "expected_s").map(|seconds| match seconds {
        0..10 => Cell::Text(format!("{seconds} s")),
        _ => span(Some(seconds.saturating_mul(1000))),
    });
    let mut row = vec![number(request, "position").map_or(Cell::Nothing, Cell::Count)];
    row.extend(common(request));
    row.extend([
        span(number(request, "waited_ms")),
        expected.unwrap_or(Cell::Nothing),
        Cell::text(text(request, "class")),
        Cell::Text(names(request).collect::<Vec<_>>().join(", ")),
    ]);
    row
}

fn common(request: &Value) -> [Cell; 4] {
    ["id", "name", "model", "operation"].map(|field| Cell::text(text(request, field)))
}

fn of_queue(seen: &Value, requests: &[&Value]) -> Vec<Line> {
    let all = |field| number(seen, field).unwrap_or_default();
    let (runs, waits) = (all("running"), all("waiting"));
    let head = match waits {
        0 => "nobody waits".to_owned(),
        1 => "1 request waits".to_owned(),
        waits => format!("{waits} requests wait"),
    };
    let mut lines = vec![Line::head(head)];
    let rows: Vec<_> = requests.iter().filter(|it| text(it, "state") == Some("waiting")).collect();
    if !rows.is_empty() {
        lines.extend(table(WAITING.to_vec(), rows.iter().map(|it| waiting(it)).collect()));
    }
    let more = (runs + waits).saturating_sub(requests.len() as u64);
    if more > 0 {
        lines.push(Line::faint(format!("  and {} more", grouped(more))));
    }
    lines
}

fn table(columns: Vec<&'static str>, rows: Vec<Vec<Cell>>) -> Vec<Line> {
    let text = Sheet { columns, rows }.to_table(None);
    let mut lines = text.lines().map(|line| format!(" {line}"));
    let head = lines.next().map(Line::faint);
    head.into_iter().chain(lines.map(Line::plain)).collect()
}

/// As people say it.
fn span(millis: Option<u64>) -> Cell {
    let Some(millis) = millis else { return Cell::Nothing };
    let seconds = millis / 1000;
    Cell::Text(match seconds {
        0..10 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    })
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

fn number(value: &Value, field: &str) -> Option<u64> {
    value.get(field).and_then(Value::as_u64)
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn names(request: &Value) -> impl Iterator<Item = &str> {
    list(request, "backends").filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(id: &str, name: &str, more: Value) -> Value {
        let mut request = json!({
            "id": id, "name": name, "model": "gemma3:12b", "operation": "chat",
            "class": "interactive", "since": "2026-11-29T10:00:00Z", "backends": ["gpu-1"],
        });
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        request
    }

    fn seen() -> Value {
        let runs = json!({
            "state": "running", "waited_ms": 0, "runs_ms": 12_345, "first_byte": true,
            "tokens": 1_240, "tokens_per_second": 101.44,
        });
        let loads = json!({
            "state": "running", "waited_ms": 64_000, "runs_ms": 950, "first_byte": false,
            "tokens": 0, "tokens_per_second": null,
        });
        let waits = json!({
            "state": "waiting", "waited_ms": 3_720_000, "position": 1, "expected_s": 14,
            "class": "batch",
        });
        json!({
            "running": 2, "waiting": 3,
            "requests": [
                request("00000000000000aa", "anna", runs),
                request("00000000000000bb", "bert\u{7}", loads),
                request("00000000000000cc", "carla", waits),
            ],
            "backends": [
                {"name": "gpu-1", "url": "http://10.0.0.1:11434", "up": true, "drained": false, "models": [
                    {"name": "gemma3:12b", "in_memory": true, "running": 2, "parallel": 2, "parallel_is": "learned"},
                    {"name": "phi4:latest", "in_memory": false, "running": 0, "parallel": 1, "parallel_is": "learned"},
                ]},
                {"name": "cpp", "url": "http://10.0.0.2:8080", "up": false, "drained": false, "models": []},
                {"name": "old", "url": "unix:/run/o", "up": true, "drained": true, "models": [
                    {"name": "m", "in_memory": true, "running": 0, "parallel": null, "parallel_is": "set"},
                ]},
            ],
        })
    }

    #[test]
    fn backends_with_what_runs_there_stand_before_what_waits() {
        let text: Vec<_> = lines(&seen()).iter().map(|it| it.painted(false, usize::MAX)).collect();
        let expected = "\
gpu-1  http://10.0.0.1:11434  up
  gemma3:12b: in memory, 2 running (2 at once, as learned)
  phi4:latest: waited for, 0 running (1 at once, as learned)
  REQUEST           NAME       MODEL       OPERATION  WAITED      RUNS   TOKENS  TOKENS/S
  00000000000000aa  anna       gemma3:12b  chat       0.0 s       12 s    1,240     101.4
  00000000000000bb  bert\\u{7}  gemma3:12b  chat       1 min 04 s  0.9 s       -         -

cpp  http://10.0.0.2:8080  down
  no model in memory, as far as is known

old  unix:/run/o  drained: it gets no new requests
  m: in memory, 0 running (no bound)

3 requests wait
  #  REQUEST           NAME   MODEL       OPERATION  WAITED      EXPECTED  CLASS  FOR
  1  00000000000000cc  carla  gemma3:12b  chat       1 h 02 min  14 s      batch  gpu-1
  and 2 more";
        assert_eq!(text.join("\n"), expected);
    }

    #[test]
    fn a_line_is_cut_where_the_terminal_ends_and_colours_stand_round_it() {
        let line = Line::head("gpü-1  http://10.0.0.1");
        assert_eq!(line.painted(false, 5), "gpü-1");
        assert_eq!(line.painted(true, 3), "\u{1b}[1mgpü\u{1b}[0m");
        assert_eq!(Line::plain("x").painted(true, 80), "x");
    }

    #[test]
    fn a_gate_that_went_away_is_told_in_the_place_of_everything() {
        let told = lines(&json!({"error": "no gate can be asked at 127.0.0.1:8881"}));
        assert_eq!(told, [Line::plain("no gate can be asked at 127.0.0.1:8881")]);
    }
}
