//! Time zones by name, from a database that the program brings along.

use jiff::tz::{self, TimeZone};

use super::keys::distance;
use super::problems::shown;

/// So many slips away a name may have been meant.
const SLIPS: usize = 3;
/// Names that are offered.
const OFFERED: usize = 3;

/// `Europe/Berlin`.
pub(super) fn named(name: &str) -> Result<TimeZone, String> {
    if let Ok(zone) = TimeZone::get(name) {
        return Ok(zone);
    }
    let near = near(name);
    let advice = if near.is_empty() {
        "write it as \"Europe/Berlin\" or \"UTC\"".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Err(format!("there is no time zone {}; {advice}", shown(name)))
}

/// By the whole name, or by its last part: many write the city alone.
fn near(name: &str) -> Vec<String> {
    let asked = name.trim().to_lowercase().replace(' ', "_");
    let mut found: Vec<(usize, String)> = Vec::new();
    for zone in tz::db().available() {
        let known = zone.as_str().to_lowercase();
        let city = known.rsplit('/').next().unwrap_or_default();
        let slips = distance(&asked, &known).min(distance(&asked, city));
        // A short name is near to everything.
        if slips <= SLIPS.min(asked.len() / 3) {
            found.push((slips, zone.as_str().to_owned()));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, zone)| zone).take(OFFERED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_without_files_of_the_system() {
        for name in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Asia/Kolkata"] {
            assert_eq!(named(name).unwrap().iana_name(), Some(name));
        }
    }

    #[test]
    fn a_zone_that_is_not_known_names_near_ones() {
        for (wrong, near) in [
            ("Europe/Belrin", "did you mean Europe/Berlin"),
            ("Berlin", "did you mean Europe/Berlin"),
            ("new york", "America/New_York"),
            ("Asia/Calcuta", "Asia/Calcutta"),
            ("", "write it as"),
            ("+02:00", "write it as"),
            ("../../etc/passwd", "write it as"),
            ("Europe/Berlin\0", "Europe/Berlin"),
            (&"x".repeat(100_000), "write it as"),
        ] {
            let says = named(wrong).unwrap_err();
            assert!(says.contains(near), "{says}");
        }
    }
}
