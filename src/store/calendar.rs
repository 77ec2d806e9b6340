//! Hours and days of a time zone, as the sums of the ledger have them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

const HOUR: i64 = 3600;

/// A time zone's hours and days, all in seconds since 1970.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    zone: TimeZone,
}

impl Calendar {
    pub(super) fn new(zone: TimeZone) -> Self {
        Self { zone }
    }

    /// The beginning of the hour that has this moment. Some zones' hours begin at the half.
    pub(super) fn hour(&self, second: i64) -> i64 {
        let offset = i64::from(self.zone.to_offset(moment(second)).seconds());
        (second + offset).div_euclid(HOUR) * HOUR - offset
    }

    /// The beginning of the day that has this moment.
    pub(super) fn day(&self, second: i64) -> i64 {
        let begins = self.zoned(second).start_of_day();
        begins.map_or(second, |begins| begins.timestamp().as_second())
    }

    /// `2026-11-24`.
    pub(super) fn day_name(&self, second: i64) -> String {
        self.zoned(second).date().to_string()
    }

    /// `2026-11-24T13:00+01:00`.
    pub(super) fn hour_name(&self, second: i64) -> String {
        let begins = self.zoned(self.hour(second));
        begins.strftime("%Y-%m-%dT%H:%M%:z").to_string()
    }

    fn zoned(&self, second: i64) -> Zoned {
        moment(second).to_zoned(self.zone.clone())
    }
}

/// What no calendar has is its last moment, or its first.
fn moment(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(if second < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(zone: &str) -> Calendar {
        Calendar::new(TimeZone::get(zone).unwrap())
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn hours_and_days_begin_where_the_zone_says() {
        let kolkata = calendar("Asia/Kolkata");
        let moment = at("2026-11-24T19:14:59Z");
        assert_eq!(kolkata.hour(moment), at("2026-11-24T18:30:00Z"));
        assert_eq!(kolkata.day(moment), at("2026-11-24T18:30:00Z"));
        assert_eq!(kolkata.day_name(moment), "2026-11-25");
        assert_eq!(kolkata.hour_name(moment), "2026-11-25T00:00+05:30");
    }

    #[test]
    fn a_day_of_a_change_of_the_clock_is_longer_or_shorter() {
        let berlin = calendar("Europe/Berlin");
        for (noon, begins, next) in [
            ("2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            ("2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ] {
            assert_eq!(berlin.day(at(noon)), at(begins));
            assert_eq!(berlin.day(at(next)), at(next));
            assert_eq!(berlin.day(at(next) - 1), at(begins));
        }
        // The hour that comes twice is two hours.
        assert_eq!(berlin.hour_name(at("2026-10-25T00:30:00Z")), "2026-10-25T02:00+02:00");
        assert_eq!(berlin.hour_name(at("2026-10-25T01:30:00Z")), "2026-10-25T02:00+01:00");
    }

    #[test]
    fn no_moment_is_too_early_or_too_late() {
        let berlin = calendar("Europe/Berlin");
        for second in [i64::MIN / 4, -1, i64::MAX / 4] {
            berlin.day(second);
            berlin.hour(second);
            berlin.day_name(second);
        }
    }
}
