//! How much somebody may have: the seven limits, in a `[[rule]]`, a `[[key]]` or a `[[limit]]`.

use std::str::FromStr;

use super::keys::in_table;
use super::problems::{Found, shown};
use super::written::{Form, Written};
use super::{Config, Models, Pattern, Role, rules};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    RequestsPerMinute,
    TokensPerMinute,
    TokensPerDay,
    TokensPerMonth,
    GpuSecondsPerDay,
    GpuSecondsPerMonth,
    Concurrent,
}

impl Measure {
    pub const ALL: [Self; 7] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
        Self::GpuSecondsPerDay,
        Self::GpuSecondsPerMonth,
        Self::Concurrent,
    ];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::TokensPerMonth => "tokens_per_month",
            Self::GpuSecondsPerDay => "gpu_seconds_per_day",
            Self::GpuSecondsPerMonth => "gpu_seconds_per_month",
            Self::Concurrent => "concurrent",
        }
    }

    /// Counted from the beginning of a day or a month.
    #[must_use]
    pub fn is_by_calendar(self) -> bool {
        match self {
            Self::TokensPerDay
            | Self::TokensPerMonth
            | Self::GpuSecondsPerDay
            | Self::GpuSecondsPerMonth => true,
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::Concurrent => false,
        }
    }

    /// `None` for a word that is none.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.as_str() == text)
    }
}

/// The limits that are written, each once; none is the default. Takes no memory of its own then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance(Vec<(Measure, u64)>);

impl Allowance {
    pub const NONE: Self = Self(Vec::new());

    /// # Errors
    /// Says why there cannot be such a limit.
    pub fn set(&mut self, measure: Measure, number: u64) -> Result<(), String> {
        if number == 0 {
            return Err("0 would refuse every request; take the line out for no limit".to_owned());
        }
        if number > MOST {
            return Err(format!("a limit is {MOST} at most"));
        }
        self.unset(measure);
        self.0.push((measure, number));
        self.0.sort_unstable();
        self.0.shrink_to_fit();
        Ok(())
    }

    pub fn unset(&mut self, measure: Measure) {
        self.0.retain(|(it, _)| *it != measure);
    }

    /// In the order of [`Measure::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Measure, u64)> + '_ {
        self.0.iter().copied()
    }

    #[must_use]
    pub fn get(&self, measure: Measure) -> Option<u64> {
        self.iter().find(|(it, _)| *it == measure).map(|(_, number)| number)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `tokens_per_day=100000`, several parted by blanks or commas.
impl FromStr for Allowance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        let parts = text.split([' ', ',']).filter(|part| !part.is_empty());
        for part in parts {
            let says = || format!("{} is no limit; write it as tokens_per_day=100000", shown(part));
            let (name, number) = part.split_once('=').ok_or_else(says)?;
            let measure = Measure::of(name).ok_or_else(|| no_measure(name))?;
            if all.get(measure).is_some() {
                return Err(format!("{name} is written twice"));
            }
            let number = number.parse().map_err(|_| says())?;
            all.set(measure, number).map_err(|says| format!("{name}: {says}"))?;
        }
        Ok(all)
    }
}

impl std::fmt::Display for Allowance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (measure, number)) in self.iter().enumerate() {
            let blank = if at == 0 { "" } else { " " };
            write!(f, "{blank}{}={number}", measure.as_str())?;
        }
        Ok(())
    }
}

/// What is said to a word that is no limit.
#[must_use]
pub fn no_measure(name: &str) -> String {
    let all: Vec<_> = Measure::ALL.into_iter().map(Measure::as_str).collect();
    format!("there is no limit {}; there are {}", shown(name), all.join(", "))
}

/// Who shares one count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Per {
    #[default]
    Identity,
    Key,
    Group,
    Model,
    All,
}

impl Per {
    const NAMED: [(&'static str, Self); 5] = [
        ("identity", Self::Identity),
        ("key", Self::Key),
        ("group", Self::Group),
        ("model", Self::Model),
        ("all", Self::All),
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMED.iter().find(|(_, per)| *per == self).map_or("", |(name, _)| name)
    }
}

/// One `[[limit]]`. All that match a request count at once.
#[derive(Debug, Clone, Default)]
pub struct Limit {
    /// Where it stands, for `check`.
    pub place: String,
    pub per: Per,
    /// Of each of these four that is written one has to match; without any it is everybody's.
    pub names: Option<Vec<Pattern>>,
    pub roles: Option<Vec<Role>>,
    pub groups: Option<Vec<String>>,
    pub keys: Option<Vec<Pattern>>,
    /// For requests of which models; all is also for those that name none.
    pub models: Models,
    pub allowance: Allowance,
}

impl Limit {
    /// Whether it counts the same requests together as another one.
    #[must_use]
    pub fn counts_like(&self, other: &Self) -> bool {
        let whom = (&self.names, &self.roles, &self.groups, &self.keys);
        self.per == other.per
            && whom == (&other.names, &other.roles, &other.groups, &other.keys)
            && self.models == other.models
    }
}

pub(super) fn open(config: &mut Config, written: &Written) -> Result<(), Found> {
    config.limits.push(Limit { place: written.place.to_string(), ..Limit::default() });
    Ok(())
}

/// The one that is being read; its header came before its keys.
pub(super) fn limit(
    config: &mut Config,
    set: impl FnOnce(&mut Limit) -> Result<(), Found>,
) -> Result<(), Found> {
    config.limits.last_mut().map_or(Ok(()), set)
}

pub(super) fn of_limit(config: &mut Config, written: &Written) -> Result<(), Found> {
    limit(config, |limit| written.number(&mut limit.allowance))
}

pub(super) fn of_rule(config: &mut Config, written: &Written) -> Result<(), Found> {
    rules::rule(config, |rule| written.number(&mut rule.allowance))
}

pub(super) fn of_key(config: &mut Config, written: &Written) -> Result<(), Found> {
    rules::key(config, |key| written.number(&mut key.allowance))
}

impl Written {
    pub(super) fn per(&self) -> Result<Per, Found> {
        self.one_of(&Per::NAMED)
    }

    /// The number behind the key's own name.
    fn number(&self, allowance: &mut Allowance) -> Result<(), Found> {
        let Form::Number(number) = &self.form else { return Err(self.misfit()) };
        let Some(measure) = Measure::of(in_table(self.key.name).1) else { return Ok(()) };
        let number = u64::try_from(*number)
            .map_err(|_| self.wrong(format!("from 1 to {MOST}; {number} is not")))?;
        allowance.set(measure, number).map_err(|says| self.wrong(says))
    }
}

/// Limits that make no sense.
pub(super) fn faults(config: &Config) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for limit in &config.limits {
        let mut add = |says: String| faults.push((limit.place.clone(), says));
        for group in limit.groups.iter().flatten() {
            if !config.groups.iter().any(|known| known.name == *group) {
                add(format!("there is no group {}; [groups] names them", shown(group)));
            }
        }
        if limit.allowance.is_empty() {
            add("a [[limit]] needs a number, such as tokens_per_day = 100000".to_owned());
        }
        if limit.models == Models::Only(Vec::new()) {
            add("a limit for no model limits nothing; take `models` out for all".to_owned());
        }
        if limit.per == Per::Group && config.groups.is_empty() {
            add("per = \"group\" needs groups; [groups] names them".to_owned());
        }
    }
    faults
}

/// Numbers that can never matter, because another is always reached first.
pub(super) fn pointless(config: &Config) -> Vec<(String, String)> {
    let mut told = Vec::new();
    let rules = config.rules.iter().map(|rule| (&rule.place, &rule.allowance));
    let keys = config.keys.iter().map(|key| (&key.place, &key.allowance));
    let limits = config.limits.iter().map(|limit| (&limit.place, &limit.allowance));
    for (place, allowance) in rules.chain(keys).chain(limits) {
        for (day, month) in DAY_IN_MONTH {
            if let (Some(a), Some(b)) = (allowance.get(day), allowance.get(month))
                && a >= b
            {
                let (day, month) = (day.as_str(), month.as_str());
                told.push((
                    place.clone(),
                    format!("{day} ({a}) never counts: {month} ({b}) is reached first"),
                ));
            }
        }
    }
    for (at, limit) in config.limits.iter().enumerate() {
        let others = config.limits.iter().enumerate().filter(|(other, _)| *other != at);
        for (other_at, other) in others.filter(|(_, other)| other.counts_like(limit)) {
            for (measure, number) in limit.allowance.iter() {
                let tighter = |it: u64| it < number || it == number && other_at < at;
                if let Some(less) = other.allowance.get(measure).filter(|it| tighter(*it)) {
                    let says = format!(
                        "{} ({number}) never counts: {less} stands at {} for the same requests",
                        measure.as_str(),
                        other.place
                    );
                    told.push((limit.place.clone(), says));
                }
            }
        }
    }
    told
}

const DAY_IN_MONTH: [(Measure, Measure); 2] = [
    (Measure::TokensPerDay, Measure::TokensPerMonth),
    (Measure::GpuSecondsPerDay, Measure::GpuSecondsPerMonth),
];

/// So much is no limit, and sums of it stay far within 64 bits.
const MOST: u64 = 1_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_as_they_are_written() {
        let text = "requests_per_minute=10 tokens_per_day=100000 concurrent=2";
        let all: Allowance = text.parse().unwrap();
        assert_eq!(all.to_string(), text);
        assert_eq!(all.get(Measure::Concurrent), Some(2));
        assert_eq!(all.get(Measure::TokensPerMinute), None);
        assert_eq!("concurrent=2,".parse::<Allowance>().unwrap().to_string(), "concurrent=2");
        assert!("".parse::<Allowance>().unwrap().is_empty());
        for (bad, says) in [
            ("tokens=1", "there are requests_per_minute"),
            ("concurrent", "write it as"),
            ("concurrent=-1", "write it as"),
            ("concurrent=0", "refuse every request"),
            ("concurrent=1 concurrent=2", "twice"),
            ("concurrent=1000000000000001", "at most"),
            ("concurrent=99999999999999999999", "write it as"),
        ] {
            assert!(bad.parse::<Allowance>().unwrap_err().contains(says), "{bad}");
        }
    }

    #[test]
    fn each_limit_has_a_word_of_its_own() {
        for measure in Measure::ALL {
            assert_eq!(Measure::of(measure.as_str()), Some(measure));
        }
        assert!(Measure::ALL.is_sorted());
    }
}
