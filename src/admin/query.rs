//! What stands behind the `?`: parameters that are known, each once.

use crate::api::decode_key;
use crate::reject::Reject;

/// Entries of a page, at most and unless told otherwise.
pub(super) const MOST: usize = 999;
pub(super) const USUAL: usize = 100;

#[derive(Debug)]
pub(super) struct Query(Vec<(&'static str, String)>);

impl Query {
    pub(super) fn read(text: Option<&str>, known: &[&'static str]) -> Result<Self, Reject> {
        let mut read: Vec<(&'static str, String)> = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name)?;
            let Some(name) = known.iter().find(|known| **known == name) else {
                let says = match known {
                    [] => "nothing may stand behind the `?` here".to_owned(),
                    known => format!("behind the `?` only {} may stand", known.join(", ")),
                };
                return Err(Reject::Invalid(says.into()));
            };
            if read.iter().any(|(other, _)| other == name) {
                return Err(Reject::Invalid(format!("`{name}` stands twice").into()));
            }
            read.push((name, decoded(value)?));
        }
        Ok(Self(read))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Reject> {
        let number = self.text(name).map(|text| plain_number(text).ok_or(name));
        let wrong = |name| Reject::Invalid(format!("`{name}` has to be a whole number").into());
        number.transpose().map_err(wrong)
    }

    /// How many entries to give.
    pub(super) fn limit(&self) -> Result<usize, Reject> {
        let limit = self.number("limit")?.map_or(Some(USUAL), |it| usize::try_from(it).ok());
        limit
            .filter(|limit| (1..=MOST).contains(limit))
            .ok_or_else(|| Reject::Invalid(format!("`limit` has to be from 1 to {MOST}").into()))
    }
}

/// Without a sign and without what else `parse` takes.
fn plain_number(text: &str) -> Option<u64> {
    let number: i64 = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??;
    u64::try_from(number).ok()
}

fn decoded(text: &str) -> Result<String, Reject> {
    let wrong = || Reject::Invalid("the text behind the `?` is not encoded right".into());
    let bytes = decode_key(&text.replace('+', " ")).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    if text.contains('\0') { Err(wrong()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Query, Reject> {
        Query::read(Some(text), &["limit", "after", "identity"])
    }

    #[test]
    fn parameters_are_decoded() {
        let query = read("limit=7&identity=anna%20b%C3%A9+c&after=").unwrap();
        assert_eq!(query.limit().unwrap(), 7);
        assert_eq!(query.text("identity"), Some("anna bé c"));
        assert_eq!(query.text("after"), Some(""));
        assert_eq!(read("").unwrap().limit().unwrap(), USUAL);
    }

    #[test]
    fn what_is_not_known_comes_twice_or_is_out_of_bounds_is_refused() {
        for bad in [
            "x=1",
            "limit=1&limit=2",
            "limit=1&%6Cimit=2",
            "identity=%zz",
            "identity=%ff%fe",
            "identity=%00",
        ] {
            assert!(matches!(read(bad), Err(Reject::Invalid(_))), "{bad}");
        }
        for bad in [
            "limit=0",
            "limit=1000",
            "limit=-1",
            "limit=+1",
            "limit=",
            "limit=1e2",
            "limit=99999999999999999999",
        ] {
            assert!(read(bad).is_err() || read(bad).unwrap().limit().is_err(), "{bad}");
        }
    }
}
