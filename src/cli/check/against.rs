//! What a configuration would have refused of what was used, and which models it names that nobody used.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use http::{HeaderMap, Method};
use jiff::Timestamp;

use crate::access::{self, Provenance, Rules};
use crate::api::{Asked, ENDPOINTS};
use crate::auth::Identity;
use crate::config::{Config, Limit, ModelName, ModelPattern, Models};
use crate::gateway::{State, holders};
use crate::limit::Limits;
use crate::reject::Reject;
use crate::report::{Period, grouped, printable};
use crate::store::{By, Spent, Store, StoreError, UsageEntry, UsageFilter, UsageQuery, UsageSum};

mod replay;

use replay::{Pages, Replay, subject};

/// Groups of refused requests that are told.
const MOST_TOLD: usize = 10;
const BY: [By; 4] = [By::Name, By::Key, By::Model, By::Operation];

/// What would have become of past requests.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) requests: u64,
    pub(super) refused: u64,
    /// Against how many limits could be tried, where rows were kept for fewer than all.
    rows: Option<u64>,
    /// What was asked, by whom, and why it was refused.
    groups: BTreeMap<Group, u64>,
}

type Group = (String, String, String);
type Columns = Vec<Option<String>>;

/// Tries what was used since then, as far as role, rules, models and limits decide on it.
///
/// # Errors
/// For a time that cannot be read, or a store.
pub(super) fn tried(state: &State, since: &str) -> anyhow::Result<Tried> {
    let config = state.config();
    let Some(folder) = &config.data_dir else {
        anyhow::bail!("without `data_dir` nothing is known of what was used");
    };
    let period = Period::read(Some(since), None, Timestamp::now(), &config.time_zone);
    let period = period.map_err(|says| anyhow::anyhow!(says))?;
    let store = Store::open_current(folder)?;
    let bench = Bench { state, rules: Rules::new(config), store: &store };
    Ok(bench.try_all(period)?)
}

impl Tried {
    /// `312 of 40,120 requests: 290 pulls by homeassistant (forbidden)`.
    pub(super) fn told(&self) -> String {
        let (refused, all) = (grouped(self.refused), grouped(self.requests));
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, requests)| std::cmp::Reverse(**requests));
        let one = |((what, name, code), requests): &(&Group, &u64)| {
            let what = if **requests == 1 { what.clone() } else { plural(what) };
            format!("{} {what} by {} ({code})", grouped(**requests), printable(name))
        };
        let mut told: Vec<_> = groups.iter().take(MOST_TOLD).map(one).collect();
        let more: u64 = groups.iter().skip(MOST_TOLD).map(|(_, requests)| **requests).sum();
        if more > 0 {
            told.push(format!("{} others", grouped(more)));
        }
        let colon = if told.is_empty() { "" } else { ": " };
        let mut says = format!(
            "{refused} of {all} requests would have been refused{colon}{}",
            told.join(", ")
        );
        if let Some(rows) = self.rows {
            says +=
                &format!("; limits were tried on the {} whose rows are still kept", grouped(rows));
        }
        says
    }

    fn refuse(&mut self, group: Group, requests: u64) {
        self.refused += requests;
        *self.groups.entry(group).or_default() += requests;
    }
}

/// What requests are tried with.
struct Bench<'a> {
    state: &'a State,
    rules: Rules,
    store: &'a Store,
}

impl Bench<'_> {
    fn try_all(&self, period: Period) -> Result<Tried, StoreError> {
        let (mut tried, mut barred, mut has_limits) = (Tried::default(), BTreeSet::new(), false);
        for sum in self.sums(period.since, period.until)? {
            tried.requests += sum.tally.requests;
            let [name, key, ..] = sum.columns.as_slice() else { continue };
            let name = name.as_deref().unwrap_or_default();
            let who = self.asker(name, key.as_deref())?;
            let reach = self.rules.reach_of(who.clone());
            has_limits |= !self.state.plan().is_free(subject(&reach, name, key.as_deref()).own());
            if let Some(group) = self.refused(&sum, who) {
                tried.refuse(group, sum.tally.requests);
                barred.insert(sum.columns);
            }
        }
        if has_limits {
            self.try_limits(period, &barred, &mut tried)?;
        }
        Ok(tried)
    }

    /// Limits depend on what came before, so every request is tried in its turn, but for those that
    /// come to no limit.
    fn try_limits(
        &self,
        period: Period,
        barred: &BTreeSet<Columns>,
        tried: &mut Tried,
    ) -> Result<(), StoreError> {
        let plan = self.state.plan();
        let mut replay = Replay::new(plan, (period.since, Instant::now()));
        let (day, month) = Limits::wants_since(plan, period.since);
        let spent = |since| -> Result<Vec<Spent>, StoreError> {
            Ok(self.sums(since, period.since)?.into_iter().map(Spent::from).collect())
        };
        let holders = holders(self.store, self.state.auth());
        replay.recall((&spent(day)?, &spent(month)?), holders)?;
        let (mut rows, mut reaches) = (0, BTreeMap::new());
        for page in Pages::new(self.store, period) {
            for row in page? {
                rows += 1;
                if barred.contains(&columns(&row)) {
                    continue;
                }
                let reach = match reaches.entry((row.name.clone(), row.key.clone())) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let who = self.asker(&row.name, row.key.as_deref())?;
                        new.insert(self.rules.reach_of(who))
                    }
                };
                let who = subject(reach, &row.name, row.key.as_deref());
                if let Err(reject) = replay.take(&row, &who) {
                    let says = limit_told(&reject, &row.name);
                    tried.refuse((row.operation, row.name, says), 1);
                }
            }
        }
        tried.rows = (rows < tried.requests).then_some(rows);
        // Some may have come while the others were read.
        tried.requests = tried.requests.max(rows);
        Ok(())
    }

    fn sums(&self, since: Timestamp, until: Timestamp) -> Result<Vec<UsageSum>, StoreError> {
        let zone = self.state.config().time_zone.clone();
        let only = UsageFilter::default();
        self.store.usage(&UsageQuery { by: BY.to_vec(), since, until, zone, only })
    }

    fn refused(&self, sum: &UsageSum, who: Identity) -> Option<Group> {
        let [name, _, model, operation] = sum.columns.as_slice() else { return None };
        let (name, operation) = (name.as_deref().unwrap_or_default(), operation.as_deref());
        let operation = operation.unwrap_or_default();
        let group = |what: String, code: &str| Some((what, name.to_owned(), code.to_owned()));
        let headers = HeaderMap::new();
        let (method, path) = endpoint(operation);
        let cors = &self.state.config().cors;
        let provenance = Provenance { method: &method, headers: &headers, cors };
        let asked = Asked::find(&method, path, &self.state.config().extra_endpoints);
        let entry = asked.and_then(|asked| access::admit(&self.rules, who, &asked, provenance));
        let entry = match entry {
            Ok(entry) => entry,
            Err(reject) => return group(operation.to_owned(), reject.row().code),
        };
        let name_of = model.as_deref().and_then(|model| ModelName::parse(model).ok());
        let barred = name_of.and_then(|model| entry.reach().may_use(&model).err().map(|_| model));
        barred.and_then(|model| group(format!("{operation} of {model}"), "model_forbidden"))
    }

    /// With the role and the models of the key, where it is known.
    fn asker(&self, name: &str, key: Option<&str>) -> Result<Identity, StoreError> {
        let auth = self.state.auth();
        let account = name.split('/').next().unwrap_or_default();
        let Some(key) = key else { return Ok(auth.suppose(account)) };
        let holder = holders(self.store, auth)(account, key)?.into_iter().next();
        Ok(holder.unwrap_or_else(|| auth.suppose(account)))
    }
}

/// Those of `BY`.
fn columns(row: &UsageEntry) -> Columns {
    let model = row.summed_model().map(str::to_owned);
    vec![Some(row.name.clone()), row.key.clone(), model, Some(row.operation.clone())]
}

/// `rate_limited: requests_per_minute = 30 for the group students together`.
fn limit_told(reject: &Reject, name: &str) -> String {
    let code = reject.row().code;
    let (Reject::RateLimited(limit)
    | Reject::QuotaExhausted(limit)
    | Reject::TooManyConcurrent(limit)) = reject
    else {
        return code.to_owned();
    };
    let mut says = format!("{code}: {} = {}", limit.measure.as_str(), limit.number);
    if limit.whose != name {
        says += &format!(" for {}", printable(&limit.whose));
    }
    if let Some(models) = &limit.models {
        says += &format!(" with {models}");
    }
    says
}

/// Where an operation is asked for; an unknown one at a place that nobody knows either.
fn endpoint(operation: &str) -> (Method, &'static str) {
    let known = ENDPOINTS.iter().find(|row| row.operation == operation);
    let method = known.and_then(|row| row.methods.last()).cloned();
    let path = known.map_or("/unknown", |row| match row.operation {
        "blob" => "/api/blobs/x",
        "v1_model" => "/v1/models/x",
        "user_key" => "/api/user/keys/x",
        _ => row.path,
    });
    (method.unwrap_or(Method::POST), path)
}

/// Of an operation, perhaps with its model behind it.
fn plural(what: &str) -> String {
    let (verb, rest) = what
        .split_once(' ')
        .map_or((what, String::new()), |(verb, rest)| (verb, format!(" {rest}")));
    match verb.strip_suffix('y') {
        Some(stem) => format!("{stem}ies{rest}"),
        None if verb.ends_with('s') => what.to_owned(),
        None => format!("{verb}s{rest}"),
    }
}

/// Patterns of `[prices]` and of limits that are about no model that was ever used, as far as the store can
/// be read, each with where it stands.
pub(super) fn patterns_of_nothing(config: &Config) -> Vec<(String, String)> {
    let prices = config.prices.patterns().map(|pattern| ("[prices]".to_owned(), pattern));
    let named: Vec<_> = prices.chain(config.limits.iter().flat_map(models_of)).collect();
    let Some(folder) = config.data_dir.as_ref().filter(|_| !named.is_empty()) else {
        return Vec::new();
    };
    let query = UsageQuery {
        by: vec![By::Model],
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::MAX,
        zone: config.time_zone.clone(),
        only: UsageFilter::default(),
    };
    let used = Store::open_current(folder).and_then(|store| store.usage(&query));
    let used: Vec<_> = used.unwrap_or_default().into_iter().flat_map(|sum| sum.columns).collect();
    let names: Vec<_> =
        used.iter().flatten().filter_map(|name| ModelName::parse(name).ok()).collect();
    let is_nobodys = |(_, pattern): &(String, &ModelPattern)| {
        !names.is_empty() && !names.iter().any(|name| pattern.matches(name))
    };
    let nobodys = named.into_iter().filter(is_nobodys);
    nobodys.map(|(place, pattern)| (place, pattern.to_string())).collect()
}

fn models_of(limit: &Limit) -> Vec<(String, &ModelPattern)> {
    match &limit.models {
        Models::All => Vec::new(),
        Models::Only(patterns) => patterns.iter().map(|it| (limit.place.clone(), it)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_one_line_the_most_first() {
        let mut tried = Tried { requests: 40_120, refused: 312, ..Tried::default() };
        let mut add = |what: &str, name: &str, code: &str, requests| {
            tried.groups.insert((what.to_owned(), name.to_owned(), code.to_owned()), requests)
        };
        add("chat of gemma3:27b", "s01", "model_forbidden", 21);
        add("copy", "s01", "forbidden", 1);
        add("pull", "homeassistant", "forbidden", 290);
        let expected = "312 of 40,120 requests would have been refused: 290 pulls by homeassistant \
                        (forbidden), 21 chats of gemma3:27b by s01 (model_forbidden), 1 copy by s01 \
                        (forbidden)";
        assert_eq!(tried.told(), expected);
        let none = Tried { requests: 7, ..Tried::default() };
        assert_eq!(none.told(), "0 of 7 requests would have been refused");
        assert_eq!([plural("copy"), plural("embeddings")], ["copies", "embeddings"]);
    }

    #[test]
    fn every_operation_has_a_place_where_it_is_asked_for() {
        for row in &ENDPOINTS {
            let (method, path) = endpoint(row.operation);
            let asked = Asked::find(&method, path, &[]).unwrap();
            assert_eq!(asked.operation(), row.operation);
        }
        let (method, path) = endpoint("unknown");
        assert_eq!(Asked::find(&method, path, &[]).unwrap().operation(), "unknown");
    }
}
