//! The lines of a credential file that may hold an entry, and what there is to say about the
//! others, bounded.

use std::fmt::Display;

pub(crate) use crate::config::fault_of_name;
use crate::live_file::Note;

/// No credential needs a longer line.
const LONGEST: usize = 4096;
/// A file with a million bad lines is one mistake, not a million.
const MOST_NOTES: usize = 20;

/// Each line that is neither blank nor a comment, with its number from 1; what cannot be a line at
/// all is noted.
pub(crate) fn entries<'a>(
    text: &'a str,
    notes: &mut Notes,
    mut each: impl FnMut(Line<'a>, &mut Notes),
) {
    for (number, text) in text.split('\n').enumerate() {
        let number = number + 1;
        let text = text.strip_suffix('\r').unwrap_or(text);
        // Before comments: a file of a classic Mac is one line, and that may begin with a `#`.
        if memchr::memchr(b'\r', text.as_bytes()).is_some() {
            notes.skip(number, "a lone carriage return; save the file with Unix line ends");
        } else if is_nothing(text) {
        } else if text.len() > LONGEST {
            notes.skip(number, "longer than 4096 bytes, which no credential is");
        } else {
            each(Line { number, text }, notes);
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) number: usize,
    pub(crate) text: &'a str,
}

fn is_nothing(line: &str) -> bool {
    let line = line.trim_ascii_start();
    line.is_empty() || line.starts_with('#')
}

/// Notes about a file: the first few, and how many more there were.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    skipped: Kept,
    told: Kept,
}

#[derive(Debug, Default)]
struct Kept {
    notes: Vec<Note>,
    more: usize,
    first_of_more: usize,
}

impl Notes {
    /// The line does not count.
    pub(crate) fn skip(&mut self, line: usize, says: impl Display) {
        self.skipped.note(line, true, says);
    }

    /// The line counts, but there is something to say about it.
    pub(crate) fn tell(&mut self, line: usize, says: impl Display) {
        self.told.note(line, false, says);
    }

    /// In the order of the lines; lines that do not count are told before those that do.
    pub(crate) fn finish(self) -> Vec<Note> {
        let mut told = self.told;
        told.shrink(MOST_NOTES.saturating_sub(self.skipped.notes.len()));
        let mut notes: Vec<Note> = self.skipped.notes;
        notes.append(&mut told.notes);
        notes.sort_by_key(|note| note.line);
        let more = self.skipped.more + told.more;
        if more > 0 {
            let first = [&self.skipped.first_of_more, &told.first_of_more];
            let says = match self.skipped.more {
                0 => format!("and {more} more lines like these"),
                skipped if skipped == more => format!("and {more} more lines that do not count"),
                skipped => format!("and {more} more lines, of which {skipped} do not count"),
            };
            notes.push(Note {
                line: first.into_iter().copied().filter(|line| *line > 0).min().unwrap_or_default(),
                skipped: self.skipped.more > 0,
                says,
            });
        }
        notes
    }
}

impl Kept {
    fn note(&mut self, line: usize, skipped: bool, says: impl Display) {
        if self.notes.len() < MOST_NOTES {
            self.notes.push(Note { line, skipped, says: says.to_string() });
        } else {
            self.leave_out(line);
        }
    }

    fn shrink(&mut self, most: usize) {
        while self.notes.len() > most {
            let Some(last) = self.notes.pop() else { break };
            self.leave_out(last.line);
        }
    }

    fn leave_out(&mut self, line: usize) {
        self.more += 1;
        if self.first_of_more == 0 || line < self.first_of_more {
            self.first_of_more = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<(usize, &str)>, Vec<Note>) {
        let (mut found, mut notes) = (Vec::new(), Notes::default());
        entries(text, &mut notes, |line, _| found.push((line.number, line.text)));
        (found, notes.finish())
    }

    #[test]
    fn blank_lines_and_comments_are_nothing() {
        let (found, notes) = read("# one\r\n\n  \t\n  # two\na\r\nb");
        assert_eq!(found, [(5, "a"), (6, "b")]);
        assert!(notes.is_empty());
    }

    #[test]
    fn a_lone_carriage_return_is_told_even_in_a_comment() {
        let (found, notes) = read("# old mac\ra\rb\nc\r\r\nd");
        assert_eq!(found, [(3, "d")]);
        assert_eq!(
            notes.iter().map(|n| (n.line, n.skipped)).collect::<Vec<_>>(),
            [(1, true), (2, true)]
        );
    }

    #[test]
    fn a_long_line_is_skipped_and_a_long_comment_is_none() {
        let (just, over) = ("x".repeat(4096), "x".repeat(4097));
        let text = format!("{just}\n{over}\n#{over}");
        let (found, notes) = read(&text);
        assert_eq!(found, [(1, just.as_str())]);
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].line, 2);
    }

    #[test]
    fn notes_are_bounded_and_the_grave_ones_are_kept() {
        let mut notes = Notes::default();
        for line in 1..=50 {
            notes.tell(line, "weak");
        }
        for line in 51..=55 {
            notes.skip(line, "bad");
        }
        let notes = notes.finish();
        assert_eq!(notes.len(), 21);
        assert_eq!(notes.iter().filter(|note| note.says == "bad").count(), 5);
        let last = &notes[20];
        assert_eq!((last.line, last.skipped), (16, false));
        assert_eq!(last.says, "and 35 more lines like these");
    }

    #[test]
    fn the_summary_tells_how_many_lines_do_not_count() {
        let mut notes = Notes::default();
        for line in 1..=30 {
            notes.skip(line, "bad");
        }
        notes.tell(31, "weak");
        let notes = notes.finish();
        assert_eq!(notes.len(), 21);
        assert_eq!(notes[20].says, "and 11 more lines, of which 10 do not count");
        assert!(notes[20].skipped);
        assert_eq!(notes[20].line, 21);
    }

    #[test]
    fn a_name_is_short_and_plain() {
        for good in ["alice", "älice", "a b", "alice@host", &"n".repeat(255)] {
            assert_eq!(fault_of_name(good), None, "{good}");
        }
        for bad in ["", "a/b", "a\tb", "a\u{85}b", &"n".repeat(256)] {
            assert!(fault_of_name(bad).is_some(), "{bad}");
        }
    }
}
