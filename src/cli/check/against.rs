//! What a configuration would have refused of what was used, and which prices are nobody's.

use std::collections::BTreeMap;

use http::{HeaderMap, Method};
use jiff::Timestamp;

use crate::access::{self, Provenance, Rules};
use crate::api::{Asked, ENDPOINTS};
use crate::auth::Identity;
use crate::config::{Config, ModelName};
use crate::gateway::State;
use crate::report::{Period, grouped, printable};
use crate::store::{By, Store, StoreError, UsageFilter, UsageQuery, UsageSum};

/// Groups of refused requests that are told.
const MOST_TOLD: usize = 10;
const BY: [By; 4] = [By::Name, By::Key, By::Model, By::Operation];

/// What would have become of past requests.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) requests: u64,
    pub(super) refused: u64,
    groups: BTreeMap<(String, String, String), u64>,
}

/// Tries what was used since then, as far as role, rules and models decide on it.
///
/// # Errors
/// For a time that cannot be read, or a store.
pub(super) fn tried(state: &State, since: &str) -> anyhow::Result<Tried> {
    let config = state.config();
    let zone = &config.time_zone;
    let Some(folder) = &config.data_dir else {
        anyhow::bail!("without `data_dir` nothing is known of what was used");
    };
    let period = Period::read(Some(since), None, Timestamp::now(), zone);
    let period = period.map_err(|says| anyhow::anyhow!(says))?;
    let store = Store::open_current(folder)?;
    let query = UsageQuery {
        by: BY.to_vec(),
        since: period.since,
        until: period.until,
        zone: zone.clone(),
        only: UsageFilter::default(),
    };
    let bench = Bench { state, rules: Rules::new(config), store: &store };
    let mut tried = Tried::default();
    for sum in store.usage(&query)? {
        tried.requests += sum.tally.requests;
        if let Some(group) = bench.refused(&sum)? {
            tried.refused += sum.tally.requests;
            *tried.groups.entry(group).or_default() += sum.tally.requests;
        }
    }
    Ok(tried)
}

impl Tried {
    /// `312 of 40,120 requests: 290 pulls by homeassistant (forbidden)`.
    pub(super) fn told(&self) -> String {
        let (refused, all) = (grouped(self.refused), grouped(self.requests));
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, requests)| std::cmp::Reverse(**requests));
        let one = |((what, name, code), requests): &(&(String, String, String), &u64)| {
            let what = if **requests == 1 { what.clone() } else { plural(what) };
            format!("{} {what} by {} ({code})", grouped(**requests), printable(name))
        };
        let mut told: Vec<_> = groups.iter().take(MOST_TOLD).map(one).collect();
        let more: u64 = groups.iter().skip(MOST_TOLD).map(|(_, requests)| **requests).sum();
        if more > 0 {
            told.push(format!("{} others", grouped(more)));
        }
        let colon = if told.is_empty() { "" } else { ": " };
        format!("{refused} of {all} requests would have been refused{colon}{}", told.join(", "))
    }
}

/// What requests are tried with.
struct Bench<'a> {
    state: &'a State,
    rules: Rules,
    store: &'a Store,
}

impl Bench<'_> {
    /// What was asked, by whom, and the code of the refusal.
    fn refused(&self, sum: &UsageSum) -> Result<Option<(String, String, String)>, StoreError> {
        let [name, key, model, operation] = sum.columns.as_slice() else { return Ok(None) };
        let (name, operation) = (name.as_deref().unwrap_or_default(), operation.as_deref());
        let operation = operation.unwrap_or_default();
        let who = self.asker(name, key.as_deref())?;
        let group = |what: String, code: &str| Some((what, name.to_owned(), code.to_owned()));
        let headers = HeaderMap::new();
        let (method, path) = endpoint(operation);
        let cors = &self.state.config().cors;
        let provenance = Provenance { method: &method, headers: &headers, cors };
        let asked = Asked::find(&method, path, &self.state.config().extra_endpoints);
        let entry = asked.and_then(|asked| access::admit(&self.rules, who, &asked, provenance));
        let entry = match entry {
            Ok(entry) => entry,
            Err(reject) => return Ok(group(operation.to_owned(), reject.row().code)),
        };
        let name_of = model.as_deref().and_then(|model| ModelName::parse(model).ok());
        let barred = name_of.and_then(|model| entry.reach().may_use(&model).err().map(|_| model));
        Ok(barred.and_then(|model| group(format!("{operation} of {model}"), "model_forbidden")))
    }

    /// With the role and the models of the key, where it is known.
    fn asker(&self, name: &str, key: Option<&str>) -> Result<Identity, StoreError> {
        let auth = self.state.auth();
        let account = name.split('/').next().unwrap_or_default();
        let Some(key) = key else { return Ok(auth.suppose(account)) };
        let managed = match self.store.find_keys(key) {
            Ok(keys) => keys.into_iter().find(|it| it.details.identity() == account),
            Err(error) if error.is_askers() => None,
            Err(error) => return Err(error),
        };
        if let Some(key) = managed {
            return Ok(auth.suppose_key(&key));
        }
        let by_file = auth.suppose(key);
        let is_theirs = by_file.account().as_str() == account;
        Ok(if is_theirs { by_file } else { auth.suppose(account) })
    }
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

/// Patterns of `[prices]` that are about no model that was ever used, as far as the store can be read.
pub(super) fn prices_of_nothing(config: &Config) -> Vec<String> {
    let Some(folder) = config.data_dir.as_ref().filter(|_| !config.prices.is_empty()) else {
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
    let is_nobodys = |pattern: &&crate::config::ModelPattern| {
        !names.is_empty() && !names.iter().any(|name| pattern.matches(name))
    };
    config.prices.patterns().filter(is_nobodys).map(ToString::to_string).collect()
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
