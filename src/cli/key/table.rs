//! Keys as a person reads them.

use std::time::Duration;

use comfy_table::{Table, presets};
use jiff::Timestamp;

use crate::store::{KeyState, ManagedKey};

/// One line a key, columns aligned.
pub(super) fn of_keys(keys: &[ManagedKey]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "NAME", "OWNER", "ROLE", "STATE", "EXPIRES", "LAST USED", "NOTE"]);
    let now = Timestamp::now();
    for key in keys {
        let details = &key.details;
        table.add_row([
            key.id.to_string(),
            details.name.clone(),
            details.owner.clone().unwrap_or_else(|| "-".to_owned()),
            details.role.map_or_else(|| "inherit".to_owned(), |role| role.to_string()),
            state(key, now),
            details.expires.map_or_else(|| "never".to_owned(), last_day),
            key.used.map_or_else(|| "-".to_owned(), |used| day(used.at)),
            details.note.clone(),
        ]);
    }
    table.trim_fmt()
}

/// Everything, one line a field.
pub(super) fn of_one(key: &ManagedKey) -> String {
    let details = &key.details;
    let none = || "-".to_owned();
    let networks = details.networks.as_ref().map(|nets| {
        let nets: Vec<_> = nets.iter().map(ToString::to_string).collect();
        nets.join(" ")
    });
    let rows = [
        ("id", key.id.to_string()),
        ("name", details.name.clone()),
        ("owner", details.owner.clone().unwrap_or_else(none)),
        ("role", details.role.map_or_else(|| "inherit".to_owned(), |role| role.to_string())),
        ("state", state(key, Timestamp::now())),
        ("kind", key.form.as_str().to_owned()),
        (
            "models",
            details.models.as_ref().map_or_else(|| "by rules".to_owned(), |it| it.to_string()),
        ),
        ("cloud", details.cloud.map_or_else(|| "by rules".to_owned(), |it| it.to_string())),
        ("networks", networks.unwrap_or_else(|| "any".to_owned())),
        ("limits", if details.limits.is_empty() { none() } else { details.limits.to_string() }),
        ("expires", details.expires.map_or_else(|| "never".to_owned(), second)),
        ("created", format!("{} by {}", second(key.created), key.created_by)),
        (
            "last used",
            key.used.map_or_else(none, |it| format!("{} from {}", second(it.at), it.from)),
        ),
        (
            "rotated",
            key.rotated.map_or_else(none, |it| {
                format!("to {}, both count until {}", it.to, second(it.overlap_until))
            }),
        ),
        ("digest", format!("{}…", key.fingerprint())),
        ("note", details.note.clone()),
    ];
    let lines =
        rows.iter().map(|(what, value)| format!("{what:<10} {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn state(key: &ManagedKey, now: Timestamp) -> String {
    match key.fault_at(now) {
        Some(fault) => fault.as_str().to_owned(),
        None if key.rotated.is_some() => "rotating".to_owned(),
        None => KeyState::Active.as_str().to_owned(),
    }
}

/// The day that an expiry at the end of a day was written as.
fn last_day(at: Timestamp) -> String {
    day(Timestamp::from_nanosecond(at.as_nanosecond() - 1).unwrap_or(at))
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

fn second(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// In the largest unit that fits.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}
