//! What is written for the options of `portcullis key`.

use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::config::{self, Allowance, Measure, Models, Role};
use crate::store::KeyState;

/// A role, or `None` for what `[roles]` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyRole(pub(super) Option<Role>);

impl KeyRole {
    pub(super) const USUAL: Self = Self(Some(Role::User));
    pub(super) const INHERIT: Self = Self(None);
}

pub(super) fn role(text: &str) -> Result<KeyRole, String> {
    match text {
        "inherit" => Ok(KeyRole::INHERIT),
        role => role.parse().map(|role| KeyRole(Some(role))),
    }
}

pub(super) fn state(text: &str) -> Result<KeyState, String> {
    KeyState::of(text).ok_or_else(|| "expected active, disabled or revoked".to_owned())
}

/// `all`, or patterns behind commas, semicolons or blanks.
pub(super) fn models(text: &str) -> Result<Models, String> {
    if text == "all" {
        return Ok(Models::All);
    }
    let patterns = words(text).map(|it| it.parse().map_err(|error| format!("{it:?}: {error}")));
    patterns.collect::<Result<_, _>>().map(Models::Only)
}

pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ']).filter(|word| !word.is_empty())
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| {
        "expected a network such as 10.0.0.0/8, or an address such as 192.0.2.7".to_owned()
    })
}

/// A network, or `None` for anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network(pub(super) Option<IpNet>);

pub(super) fn network_or_any(text: &str) -> Result<Network, String> {
    match text {
        "any" => Ok(Network(None)),
        text => network(text).map(|network| Network(Some(network))),
    }
}

/// A word for the cloud, or `None` for what the rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cloud(pub(super) Option<bool>);

pub(super) fn cloud(text: &str) -> Result<Cloud, String> {
    match text {
        "true" => Ok(Cloud(Some(true))),
        "false" => Ok(Cloud(Some(false))),
        "inherit" => Ok(Cloud(None)),
        _ => Err("expected true, false or inherit".to_owned()),
    }
}

/// `None` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expiry(pub(super) Option<Timestamp>);

/// A time from now, the last day on which the key counts (in UTC), or a moment.
pub(super) fn expiry(text: &str) -> Result<Expiry, String> {
    expiry_from(Timestamp::now(), text)
}

fn expiry_from(now: Timestamp, text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry(None));
    }
    let later = || {
        let span = text.parse::<Span>().ok().filter(|span| span.is_positive())?;
        now.to_zoned(TimeZone::UTC).checked_add(span).ok().map(|it| it.timestamp())
    };
    let at = config::expiry(text).ok().or_else(later).ok_or_else(|| {
        "expected a time such as 90d, a day such as 2027-01-31, or never".to_owned()
    })?;
    match at > now {
        true => Ok(Expiry(Some(at))),
        false => Err("that is over already".to_owned()),
    }
}

/// `tokens_per_day=100000`.
pub(super) fn limit(text: &str) -> Result<(Measure, u64), String> {
    let all: Allowance = text.parse()?;
    let mut each = all.iter();
    match (each.next(), each.next()) {
        (Some(one), None) => Ok(one),
        (None, _) | (Some(_), Some(_)) => {
            Err("expected one limit, such as tokens_per_day=100000".to_owned())
        }
    }
}

/// A limit, or `None` for none at all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(pub(super) Option<(Measure, u64)>);

pub(super) fn limit_or_none(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => limit(text).map(|limit| Limit(Some(limit))),
    }
}

/// As `24h` or `7d`.
pub(super) fn overlap(text: &str) -> Result<Duration, String> {
    let said = || "expected a time such as 24h or 7d; 0s ends the old key at once".to_owned();
    let span: Span = text.parse().map_err(|_| said())?;
    let start = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let end = start.checked_add(span).map_err(|_| said())?;
    Duration::try_from(end.timestamp().duration_since(start.timestamp())).map_err(|_| said())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_time_from_now_a_day_a_moment_or_never() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (text, at) in [
            ("never", None),
            ("90d", Some("2027-02-22T12:00:00Z")),
            ("12h", Some("2026-11-25T00:00:00Z")),
            ("1y", Some("2027-11-24T12:00:00Z")),
            ("2027-01-31", Some("2027-02-01T00:00:00Z")),
            ("2027-01-31T08:00:00+01:00", Some("2027-01-31T07:00:00Z")),
        ] {
            let at = at.map(|at| at.parse().unwrap());
            assert_eq!(expiry_from(now, text), Ok(Expiry(at)), "{text}");
        }
        for bad in ["", "soon", "-1d", "2026-11-23", "2020-01-01", "90", "0s"] {
            assert!(expiry_from(now, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_overlap_is_a_length_of_time() {
        assert_eq!(overlap("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(overlap("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(overlap("0s"), Ok(Duration::ZERO));
        for bad in ["", "x", "-1h", "10"] {
            assert!(overlap(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn models_are_all_or_patterns() {
        assert_eq!(models("all"), Ok(Models::All));
        assert_eq!(models("gemma3*, qwen3:8b").unwrap().to_string(), "gemma3*, qwen3:8b");
        assert!(models("gemma3*,what?").unwrap_err().contains("what?"));
    }

    #[test]
    fn a_limit_is_a_name_and_a_number() {
        assert_eq!(limit("concurrent=2"), Ok((Measure::Concurrent, 2)));
        for bad in ["", "concurrent", "concurrent=0", "concurrent=1,tokens_per_day=2", "x=1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_may_be_one_address() {
        assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(network("10.0.0.0/40").is_err());
    }
}
