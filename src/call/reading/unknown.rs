//! The body of an endpoint that nobody knows: which model it may name.

use bytes::Bytes;
use http::header;
use http::request::Parts;

use super::{Found, Reading, form};
use crate::api::Asked;

impl Reading {
    /// Reads a body of an endpoint that nobody knows, and refuses none: another server may take what
    /// cannot be read here.
    pub(super) fn of_unknown(body: &Bytes, asked: &Asked, parts: &Parts) -> Self {
        let header =
            |name| parts.headers.get(name).map_or(&b""[..], |it| it.as_bytes().trim_ascii());
        let (encoding, kind) = (header(header::CONTENT_ENCODING), header(header::CONTENT_TYPE));
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity") {
            return Self::unclear();
        }
        let is_kind =
            |it: &[u8]| kind.get(..it.len()).is_some_and(|start| start.eq_ignore_ascii_case(it));
        let read = if may_be_object(body) {
            Self::of_json(body, asked)
        } else if is_kind(b"multipart/") {
            Self::of_form(body, kind, parts.uri.query())
        } else if is_kind(b"application/x-www-form-urlencoded") {
            form::no_model_in(std::str::from_utf8(body).ok()).map(|()| Self::default())
        } else {
            Ok(Self::default())
        };
        read.unwrap_or_else(|_| Self::unclear())
    }

    pub(super) fn unclear() -> Self {
        Self(Some(Box::new(Found { unclear: true, ..Found::default() })))
    }

    /// Whether the body, of an endpoint that nobody knows, may name a model that is not seen here.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        self.found().is_some_and(|found| found.unclear)
    }
}

/// Whether Go's reader of JSON would find an object in it.
pub(in crate::call) fn may_be_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}
