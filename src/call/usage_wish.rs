//! Asks a backend to say at the end of a stream what it came to, where the caller did not ask.

use bytes::Bytes;

use super::reading::Reading;
use super::rewrite::Edit;
use super::{BodyBounds, Call, READ_AT_ONCE};
use crate::api::Field;

const INCLUDE_USAGE: &str = "include_usage";
const ASKING: &str = r#"{"include_usage":true}"#;

impl Call<'_> {
    /// Puts `stream_options.include_usage` into the body of a stream of one of these operations.
    /// Whether the backend was asked so: then the caller must not see the event that it sends more.
    ///
    /// Where it cannot be done, for want of memory, the backend is not asked.
    pub fn ask_usage(&mut self, operations: &[&str], bounds: &BodyBounds) -> bool {
        let reading = &self.reading;
        let is_wanted = operations.contains(&self.asked.operation())
            && reading.stream() == Some(true)
            && reading.include_usage() != Some(true);
        if !is_wanted {
            return false;
        }
        let Some(body) = self.body.whole() else { return false };
        let edit = if reading.field(Field::StreamOptions).is_none() || reading.is_of(body) {
            asking(reading)
        } else {
            // A policy changed the body, so what was read stands elsewhere now.
            self.read_again(body).as_ref().and_then(asking)
        };
        edit.is_some_and(|edit| self.edit(&[edit], bounds).is_ok())
    }

    fn read_again(&self, body: &Bytes) -> Option<Reading> {
        let is_short = body.len() <= READ_AT_ONCE;
        is_short.then(|| Reading::of_json(body, &self.asked).ok()).flatten()
    }
}

fn asking(reading: &Reading) -> Option<Edit> {
    let Some(options) = reading.field(Field::StreamOptions) else {
        // No change to a body moves its first brace.
        let object = reading.object()?;
        let key = Field::StreamOptions.key().to_owned();
        return Some(Edit::Insert { object, key, value: ASKING.to_owned() });
    };
    if !reading.written(options.value).starts_with('{') {
        return Some(Edit::Replace { value: options.value, with: ASKING.to_owned() });
    }
    let written = reading.usage_wish();
    Some(match written {
        Some(wish) => Edit::Replace { value: wish.value, with: "true".to_owned() },
        None => Edit::Insert {
            object: options.value,
            key: INCLUDE_USAGE.to_owned(),
            value: "true".to_owned(),
        },
    })
}
