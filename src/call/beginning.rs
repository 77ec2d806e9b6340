//! How a conversation begins: what stays the same in each of its requests.

use super::reading::Reading;
use crate::api::Field;

/// Messages at the most, and bytes of them: enough to tell conversations apart.
const MOST_MESSAGES: usize = 4;
const MOST_BYTES: usize = 16 * 1024;
/// Of a prompt that is one text, which may go on in the next request.
const MOST_TEXT: usize = 1024;

impl Reading {
    /// The messages up to the first of a person; empty where the body holds no conversation.
    #[must_use]
    pub fn beginning(&self) -> &[u8] {
        let field = self.field(Field::Messages).or_else(|| self.field(Field::Input));
        field.map_or(&[], |field| first_turn(self.written(field.value).as_bytes()))
    }
}

/// Of a list in JSON the first items, as they are written; of a text its first bytes.
fn first_turn(written: &[u8]) -> &[u8] {
    let Some(list) = written.strip_prefix(b"[") else {
        return written.get(..MOST_TEXT).unwrap_or(written);
    };
    let (mut depth, mut in_text, mut escaped, mut items) = (0_usize, false, false, 0);
    let mut item_at = 0;
    for (at, byte) in list.iter().enumerate().take(MOST_BYTES) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth > 0 => depth -= 1,
            b',' | b']' if depth == 0 => {
                items += 1;
                let item = list.get(item_at..at).unwrap_or_default();
                let is_persons = item.windows(6).any(|it| it == b"\"user\"");
                if is_persons || items == MOST_MESSAGES || *byte == b']' {
                    return list.get(..at).unwrap_or(list);
                }
                item_at = at + 1;
            }
            _ => {}
        }
    }
    list.get(..MOST_BYTES).unwrap_or(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> &str {
        std::str::from_utf8(first_turn(text.as_bytes())).unwrap()
    }

    #[test]
    fn a_conversation_begins_the_same_however_long_it_grows() {
        let first =
            r#"{"role":"system","content":"be, [kind] \" }"},{"role":"user","content":"hi"}"#;
        for rest in ["", r#",{"role":"assistant","content":"ho"},{"role":"user","content":"x"}"#] {
            assert_eq!(of(&format!("[{first}{rest}]")), first);
        }
        assert_ne!(
            of(r#"[{"role":"user","content":"a"}]"#),
            of(r#"[{"role":"user","content":"b"}]"#)
        );
    }

    #[test]
    fn what_is_no_list_of_messages_is_cut_off() {
        assert_eq!(of("\"short\""), "\"short\"");
        assert_eq!(of("[]"), "");
        assert_eq!(of(&format!("\"{}", "x".repeat(5000))).len(), MOST_TEXT);
        assert_eq!(of(&format!("[\"{}", "x".repeat(50_000))).len(), MOST_BYTES);
        assert_eq!(of("[1,2,3,4,5,6]"), "1,2,3,4");
        // Cut off in the middle, which no body that was read is.
        for broken in ["[", "[{", "[\"a\\", "[]]]", "[}"] {
            let _ = of(broken);
        }
    }
}
