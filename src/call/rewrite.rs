//! A body with a few values changed, and all else byte for byte as it was.

use bytes::{Bytes, BytesMut};

use super::reading::Span;

/// A change to a body that was read. Spans are those of its [`Reading`](super::reading::Reading).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Another value at `value`, as JSON.
    Replace { value: Span, with: String },
    /// Takes out a member: its `whole`.
    Remove { whole: Span },
    /// Puts a member at the beginning of the object; `value` is JSON, and the key may not be there
    /// yet.
    Insert { object: Span, key: String, value: String },
}

/// The body with these changes. What is taken out together with what stands around it cannot be
/// changed as well: the removal counts.
#[must_use]
pub fn rewrite(body: &[u8], edits: &[Edit]) -> Bytes {
    let mut cuts: Vec<_> = removed(body, edits).into_iter().map(|cut| (cut, None)).collect();
    for edit in edits {
        if let Edit::Replace { value, with } = edit {
            let (start, end) = (value.range().start, value.range().end);
            if !cuts.iter().any(|(cut, with)| with.is_none() && cut.0 <= start && end <= cut.1) {
                cuts.push(((start, end), Some(with.as_str())));
            }
        }
    }
    cuts.sort_by_key(|(cut, _)| *cut);
    let added: usize = edits.iter().map(Edit::added).sum();
    let mut new = BytesMut::with_capacity(body.len() + added);
    let mut pieces = Pieces { body, edits, at: 0 };
    for ((start, end), with) in &cuts {
        pieces.copy(&mut new, *start, &cuts);
        new.extend_from_slice(with.unwrap_or_default().as_bytes());
        pieces.at = pieces.at.max(*end);
    }
    pieces.copy(&mut new, body.len(), &cuts);
    new.freeze()
}

impl Edit {
    fn added(&self) -> usize {
        match self {
            Self::Replace { with, .. } => with.len(),
            Self::Remove { .. } => 0,
            Self::Insert { key, value, .. } => key.len() + value.len() + 4,
        }
    }
}

type Cut<'a> = ((usize, usize), Option<&'a str>);

struct Pieces<'a> {
    body: &'a [u8],
    edits: &'a [Edit],
    at: usize,
}

impl Pieces<'_> {
    /// Copies up to there, with what is inserted on the way.
    fn copy(&mut self, new: &mut BytesMut, end: usize, cuts: &[Cut<'_>]) {
        let mut objects: Vec<_> = self.edits.iter().filter_map(Edit::object).collect();
        objects.sort_unstable();
        objects.dedup();
        let from = self.at;
        for object in objects.into_iter().filter(|it| (from..end).contains(it)) {
            new.extend_from_slice(self.body.get(self.at..=object).unwrap_or_default());
            self.at = object + 1;
            let mut comma = "";
            for edit in self.edits.iter().filter(|edit| edit.object() == Some(object)) {
                if let Edit::Insert { key, value, .. } = edit {
                    new.extend_from_slice(format!("{comma}\"{key}\":{value}").as_bytes());
                    comma = ",";
                }
            }
            if !is_empty_behind(self.body, self.at, cuts) {
                new.extend_from_slice(b",");
            }
        }
        if let Some(piece) = self.body.get(self.at..end) {
            new.extend_from_slice(piece);
            self.at = end;
        }
    }
}

impl Edit {
    /// Where the object begins into which this inserts.
    fn object(&self) -> Option<usize> {
        match self {
            Self::Insert { object, .. } => Some(object.range().start),
            Self::Replace { .. } | Self::Remove { .. } => None,
        }
    }
}

/// Whether an object whose brace stands before `at` has no members, or none that are left.
fn is_empty_behind(body: &[u8], mut at: usize, cuts: &[Cut<'_>]) -> bool {
    loop {
        at += blanks(body.get(at..).unwrap_or_default().iter());
        let removed =
            cuts.iter().find(|((start, end), with)| with.is_none() && *start <= at && at < *end);
        match removed {
            Some(((_, end), _)) => at = *end,
            None => return body.get(at) == Some(&b'}'),
        }
    }
}

/// What goes with the removed members: for a run of neighbours one comma, the one before it or, at
/// the beginning of the object, the one behind it.
fn removed(body: &[u8], edits: &[Edit]) -> Vec<(usize, usize)> {
    let mut members: Vec<_> = edits
        .iter()
        .filter_map(|edit| match edit {
            Edit::Remove { whole } => Some((whole.range().start, whole.range().end)),
            Edit::Replace { .. } | Edit::Insert { .. } => None,
        })
        .collect();
    members.sort_unstable();
    members.dedup();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (start, end) in members {
        match runs.last_mut() {
            // It stands within one that goes anyway.
            Some(run) if end <= run.1 => {}
            Some(run) if comma_behind(body, run.1).is_some_and(|next| next == start) => run.1 = end,
            _ => runs.push((start, end)),
        }
    }
    for run in &mut runs {
        let before = body.get(..run.0).unwrap_or_default();
        let kept = before.len() - blanks(before.iter().rev());
        if kept.checked_sub(1).and_then(|comma| body.get(comma)) == Some(&b',') {
            run.0 = kept - 1;
        } else if let Some(next) = comma_behind(body, run.1) {
            run.1 = next;
        }
    }
    runs
}

/// Where the next member begins, if there is one.
fn comma_behind(body: &[u8], at: usize) -> Option<usize> {
    let comma = at + blanks(body.get(at..)?.iter());
    let behind = body.get(comma..)?.strip_prefix(b",")?;
    Some(comma + 1 + blanks(behind.iter()))
}

fn blanks<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes.take_while(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')).count()
}

#[cfg(test)]
mod tests;
