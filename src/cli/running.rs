//! `portcullis running`: who runs and who waits at a running gate, as a table that may refresh.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::desk::Desk;
use super::key::Format;

mod board;

use board::Line;

const PAUSE: Duration = Duration::from_secs(1);
/// To the upper left corner, and from the end of what was drawn to the end of the screen.
const HOME: &str = "\u{1b}[H";
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";
const END_OF_LINE: &str = "\u{1b}[K";
const END_OF_SCREEN: &str = "\u{1b}[J";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Look again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How to print; with --watch JSON is an object a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    desk: Desk,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let screen = Screen::of_stdout();
    let mut seen = look(&options.desk)?;
    if !options.watch {
        let text = match options.format {
            Format::Json => format!("{seen:#}\n"),
            Format::Table => screen.text(&board::lines(&seen)),
        };
        return Ok(io::stdout().write_all(text.as_bytes())?);
    }
    let mut is_first = true;
    loop {
        let text = match options.format {
            Format::Json => format!("{seen}\n"),
            Format::Table => screen.frame(&board::lines(&seen), is_first),
        };
        let mut stdout = io::stdout();
        // Nobody is left to look.
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(());
        }
        is_first = false;
        std::thread::park_timeout(PAUSE);
        // A gate that starts anew is waited for.
        seen = look(&options.desk).unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
    }
}

/// Everything at one look: what the admin API says of requests, and of backends.
fn look(desk: &Desk) -> anyhow::Result<Value> {
    let mut all = ask(desk, "/api/v1/running?limit=999")?;
    let backends = ask(desk, "/api/v1/backends")?;
    if let (Value::Object(all), Value::Object(backends)) = (&mut all, backends) {
        all.extend(backends);
    }
    Ok(all)
}

fn ask(desk: &Desk, path: &str) -> anyhow::Result<Value> {
    let said = desk.ask("GET", path, None)?;
    if said.status != 200 {
        bail!("{}", said.error());
    }
    Ok(said.body)
}

/// Where it is shown.
struct Screen {
    is_terminal: bool,
    is_coloured: bool,
}

impl Screen {
    fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
        let is_terminal = io::stdout().is_terminal();
        Self { is_terminal, is_coloured: is_terminal && !refused }
    }

    fn text(&self, lines: &[Line]) -> String {
        lines.iter().map(|line| line.painted(self.is_coloured, usize::MAX) + "\n").collect()
    }

    /// In place of the frame before; where there is no screen to draw on, behind it.
    fn frame(&self, lines: &[Line], is_first: bool) -> String {
        if !self.is_terminal {
            return self.text(lines) + "\n";
        }
        let (rows, columns) = size();
        // The last row stays free, or the screen would roll.
        let fitting = lines.len().min(rows.saturating_sub(1).max(1));
        let drawn = lines
            .iter()
            .take(fitting)
            .map(|line| line.painted(self.is_coloured, columns) + END_OF_LINE + "\n");
        let begin = if is_first { CLEAR } else { HOME };
        format!("{begin}{}{END_OF_SCREEN}", drawn.collect::<String>())
    }
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            (usize::from(size.ws_row), usize::from(size.ws_col))
        }
        Ok(_) | Err(_) => (24, 80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_the_place_of_the_one_before_only_on_a_terminal() {
        let lines = [Line::head("gpu-1"), Line::plain("  nothing runs")];
        let plain = Screen { is_terminal: false, is_coloured: false };
        assert_eq!(plain.frame(&lines, true), "gpu-1\n  nothing runs\n\n");
        let screen = Screen { is_terminal: true, is_coloured: false };
        let first = screen.frame(&lines, true);
        assert!(first.starts_with(CLEAR) && first.ends_with(END_OF_SCREEN), "{first:?}");
        let next = screen.frame(&lines, false);
        assert!(next.starts_with(&format!("{HOME}gpu-1{END_OF_LINE}\n")), "{next:?}");
    }
}
