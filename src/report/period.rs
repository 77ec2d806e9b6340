//! From when until when: what is written for `--since` and `--until`, in the configured time zone.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::config;

/// A span of time: its first moment is in it, its last one is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub since: Timestamp,
    pub until: Timestamp,
}

/// A moment, or how long before now; a day is its beginning or, as an end, its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Since,
    Until,
}

/// How far back is looked unless told otherwise.
pub const USUAL: &str = "30d";
const WANTED: &str = "write it as 7d, 24h, 2026-11-01 or 2026-11-01T08:00:00Z";

impl Period {
    /// # Errors
    /// Says which end is wrong, and how it is written.
    pub fn read(
        since: Option<&str>,
        until: Option<&str>,
        now: Timestamp,
        zone: &TimeZone,
    ) -> Result<Self, String> {
        let read = |text: &str, edge, name: &str| {
            moment(text, edge, now, zone).ok_or_else(|| format!("{name}: {WANTED}"))
        };
        let since = read(since.unwrap_or(USUAL), Edge::Since, "since")?;
        let until = until.map_or(Ok(now), |text| read(text, Edge::Until, "until"))?;
        Ok(Self { since, until })
    }

    /// It ends before it begins.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.until <= self.since
    }
}

fn moment(text: &str, edge: Edge, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(date) = text.parse::<Date>()
        && text.len() == "2026-11-01".len()
    {
        let date = match edge {
            Edge::Since => date,
            Edge::Until => date.tomorrow().ok()?,
        };
        return date.to_zoned(zone.clone()).ok().map(|it| it.timestamp());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // Days are the calendar's: one of them has 23 hours, and one 25.
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u16>().ok());
    if let Some(days) = days.filter(|_| text.bytes().all(|b| b.is_ascii_alphanumeric())) {
        let then = now.to_zoned(zone.clone()).checked_sub(i64::from(days).days());
        return then.ok().map(|it| it.timestamp());
    }
    now.checked_sub(config::duration(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> TimeZone {
        // As Europe/Berlin: summer time ends on 2026-10-25 at 01:00 UTC.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn read(since: &str, until: Option<&str>) -> Result<(String, String), String> {
        let now = "2026-10-26T09:30:00Z".parse().unwrap();
        let period = Period::read(Some(since), until, now, &zone())?;
        Ok((period.since.to_string(), period.until.to_string()))
    }

    #[test]
    fn a_period_is_written_in_days_hours_dates_or_moments_of_the_zone() {
        for (since, until, from, to) in [
            ("24h", None, "2026-10-25T09:30:00Z", "2026-10-26T09:30:00Z"),
            // The day before yesterday at the same time on the clock, 49 hours ago.
            ("2d", None, "2026-10-24T08:30:00Z", "2026-10-26T09:30:00Z"),
            ("90m", Some("30m"), "2026-10-26T08:00:00Z", "2026-10-26T09:00:00Z"),
            // That day has 25 hours.
            ("2026-10-25", Some("2026-10-25"), "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (
                "2026-10-25T08:00:00+02:00",
                Some("2026-12-31"),
                "2026-10-25T06:00:00Z",
                "2026-12-31T23:00:00Z",
            ),
        ] {
            assert_eq!(read(since, until), Ok((from.to_owned(), to.to_owned())), "{since}");
        }
    }

    #[test]
    fn what_is_no_period_is_told_with_how_to_write_it() {
        for bad in [
            "",
            "7",
            "7 days",
            "-7d",
            "+7d",
            "d",
            "yesterday",
            "2026-13-01",
            "2026-02-30",
            "2026-11-01T08:00:00",
            "99999d9",
            "99999999999999999999d",
            "65535d",
            "\u{0}",
        ] {
            let told = read(bad, None);
            let is_told = told.as_ref().is_err_and(|says| says.starts_with("since: write it"));
            // So many days ago there was a time as well.
            assert!(is_told || bad == "65535d", "{bad:?}: {told:?}");
        }
        assert!(read("7d", Some("x")).unwrap_err().starts_with("until: "));
        for (since, until) in [("1h", "2h"), ("2026-10-25", "2026-10-24"), ("0s", "0s")] {
            let now = "2026-10-26T09:30:00Z".parse().unwrap();
            let period = Period::read(Some(since), Some(until), now, &zone()).unwrap();
            assert!(period.is_empty(), "{since}");
        }
    }
}
