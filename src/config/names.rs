//! What somebody, or something, can be called.

const LONGEST_NAME: usize = 255;

/// Why nobody can be called so.
#[must_use]
pub fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("no name")
    } else if name.len() > LONGEST_NAME {
        Some("a name longer than 255 bytes")
    } else if name.chars().any(char::is_control) {
        Some("a control character in the name")
    } else if name.contains('/') {
        // NAME/ID is a front end that asks for somebody else.
        Some("a / in the name, which is kept for front ends that ask for others")
    } else {
        None
    }
}

/// Longest note of a key, in bytes.
const LONGEST_NOTE: usize = 1000;

/// Why a text cannot be what a key is remembered by.
#[must_use]
pub fn fault_of_note(note: &str) -> Option<&'static str> {
    let is_odd = note.len() > LONGEST_NOTE || note.chars().any(char::is_control);
    is_odd.then_some("a note is one line of at most 1000 bytes")
}
