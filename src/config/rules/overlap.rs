//! Rules that never count, or not for all whom they name, because of those before them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::problems::shown_key;
use super::super::{Config, Pattern, Role};
use super::{Group, Rule};

/// Comparisons in all: of thousands of rules the last ones are not looked at, so that a start is quick.
const MOST_LOOKS: usize = 2_000_000;
/// Of one rule.
const MOST_CALLERS: usize = 100_000;
/// Entries of a list, or rules, that one sentence names.
const MOST_SHOWN: usize = 8;

/// Where such rules stand, and what is to be said of them. A rule that takes only some callers from one
/// behind it is what the order is for.
pub(in crate::config) fn overlaps(config: &Config) -> Vec<(String, String)> {
    let groups = &config.groups;
    let mut told = Vec::new();
    let mut looks = MOST_LOOKS;
    for (at, rule) in config.rules.iter().enumerate() {
        let before = config.rules.get(..at).unwrap_or_default();
        let mut taker = |callers: &Callers<'_>| {
            for (at, earlier) in before.iter().enumerate() {
                looks = looks.checked_sub(entries(earlier, groups))?;
                if callers.are_taken_by(earlier, groups) {
                    return Some(at);
                }
            }
            None
        };
        let Some(callers) = callers_of(rule, before, groups) else { continue };
        let taken: Vec<_> = callers.into_iter().map(|it| (it, taker(&it))).collect();
        let says = says(rule, &taken, before);
        told.extend(says.into_iter().map(|says| (rule.place.clone(), says)));
    }
    told
}

/// How much there is to compare callers with.
fn entries(rule: &Rule, groups: &[Group]) -> usize {
    let members = rule.groups.iter().flatten().flat_map(|group| members_of(group, groups));
    let named = rule.names.iter().flatten().count() + rule.keys.iter().flatten().count();
    1 + named + members.count()
}

/// Whom one entry of each list of a rule is about; all that is there holds of them.
#[derive(Clone, Copy)]
struct Callers<'a> {
    name: Option<&'a Pattern>,
    /// With the name of the group.
    member: Option<(&'a str, &'a Pattern)>,
    role: Role,
    key: Option<&'a Pattern>,
}

/// Nobody, where the groups of a rule have no members; `None` where there are too many to look at, or a
/// group is not known.
fn callers_of<'a>(
    rule: &'a Rule,
    before: &[Rule],
    groups: &'a [Group],
) -> Option<Vec<Callers<'a>>> {
    let (names, keys) = (each(rule.names.as_deref()), each(rule.keys.as_deref()));
    let told_apart = before.iter().any(|earlier| earlier.roles.is_some());
    let any_role =
        if told_apart { Role::ALL.as_slice() } else { std::slice::from_ref(&Role::User) };
    let roles = rule.roles.as_deref().unwrap_or(any_role);
    let members = rule.groups.as_ref().map_or_else(
        || vec![None],
        |named| {
            let of =
                |name: &'a String| members_of(name, groups).map(|it| Some((name.as_str(), it)));
            named.iter().flat_map(of).collect()
        },
    );
    let is_known = |name: &String| groups.iter().any(|group| group.name == *name);
    let counts = [names.len(), members.len(), roles.len(), keys.len()];
    let count = counts.into_iter().fold(1, usize::saturating_mul);
    if count > MOST_CALLERS || !rule.groups.iter().flatten().all(is_known) {
        return None;
    }
    let mut callers = Vec::with_capacity(count);
    for &name in &names {
        for &member in &members {
            for &role in roles {
                callers.extend(keys.iter().map(|&key| Callers { name, member, role, key }));
            }
        }
    }
    Some(callers)
}

fn each<T>(list: Option<&[T]>) -> Vec<Option<&T>> {
    list.map_or_else(|| vec![None], |list| list.iter().map(Some).collect())
}

fn members_of<'a>(name: &str, groups: &'a [Group]) -> impl Iterator<Item = &'a Pattern> {
    let group = groups.iter().find(|group| group.name == *name);
    group.into_iter().flat_map(|group| &group.members)
}

impl Callers<'_> {
    /// Whether the rule is about all of them, as far as can be seen from the patterns.
    fn are_taken_by(&self, rule: &Rule, groups: &[Group]) -> bool {
        let is_named = |wide: &Pattern| {
            let names = [self.name, self.member.map(|(_, member)| member)];
            names.into_iter().flatten().any(|name| wide.covers(name))
        };
        let is_in = |group: &String| {
            let own = self.member.is_some_and(|(own, _)| own == group);
            own || members_of(group, groups).any(is_named)
        };
        let has_key = |wide: &Pattern| self.key.is_some_and(|key| wide.covers(key));
        rule.roles.as_ref().is_none_or(|roles| roles.contains(&self.role))
            && rule.keys.as_ref().is_none_or(|keys| keys.iter().any(has_key))
            && rule.names.as_ref().is_none_or(|names| names.iter().any(is_named))
            && rule.groups.as_ref().is_none_or(|groups| groups.iter().any(is_in))
    }
}

/// Callers, with the first rule that takes them all.
type Taken<'a> = (Callers<'a>, Option<usize>);
/// What of a list callers come from; `None` where that is not written.
type Entry<'a> = &'a dyn Fn(&Callers<'_>) -> Option<String>;

fn says(rule: &Rule, taken: &[Taken<'_>], before: &[Rule]) -> Vec<String> {
    if taken.is_empty() {
        return vec!["this rule never counts: its groups have no members".to_owned()];
    }
    let takers: Option<BTreeSet<_>> = taken.iter().map(|(_, taker)| *taker).collect();
    if let Some(takers) = takers {
        let places = places(&takers, before);
        return vec![match takers.len() {
            1 => format!(
                "this rule never counts: the one at {places} matches first; put this one above it"
            ),
            _ => format!(
                "this rule never counts: those at {places} match first; put this one above them"
            ),
        }];
    }
    let of_name = |it: &Callers<'_>| it.name.map(|it| it.as_str().to_owned());
    let of_group = |it: &Callers<'_>| it.member.map(|(group, _)| group.to_owned());
    let of_role = |it: &Callers<'_>| rule.roles.as_ref().map(|_| it.role.to_string());
    let of_key = |it: &Callers<'_>| it.key.map(|it| it.as_str().to_owned());
    let lists: [(&str, Entry<'_>); 4] =
        [("names", &of_name), ("groups", &of_group), ("roles", &of_role), ("keys", &of_key)];
    let of_each = lists.into_iter().filter_map(|(list, entry)| {
        let (dead, takers) = dead(taken, entry)?;
        let (dead, places) = (listed(dead.into_iter()), places(&takers, before));
        Some(format!(
            "of its {list} these never count here: {dead}; what is at {places} matches first"
        ))
    });
    of_each.collect()
}

/// The entries of one list whose callers are all taken, and by which rules.
fn dead(taken: &[Taken<'_>], entry: Entry<'_>) -> Option<(Vec<String>, BTreeSet<usize>)> {
    let mut entries: BTreeMap<String, Option<BTreeSet<usize>>> = BTreeMap::new();
    for (callers, taker) in taken {
        let takers = entries.entry(entry(callers)?).or_insert_with(|| Some(BTreeSet::new()));
        *takers = takers.take().zip(*taker).map(|(mut takers, taker)| {
            takers.insert(taker);
            takers
        });
    }
    let mut dead = Vec::new();
    let mut all = BTreeSet::new();
    for (entry, takers) in entries {
        if let Some(takers) = takers {
            dead.push(format!("\"{}\"", shown_key(&entry)));
            all.extend(takers);
        }
    }
    (!dead.is_empty()).then_some((dead, all))
}

fn places(takers: &BTreeSet<usize>, before: &[Rule]) -> String {
    listed(takers.iter().filter_map(|at| before.get(*at)).map(|rule| rule.place.clone()))
}

fn listed(all: impl Iterator<Item = String>) -> String {
    let mut all = all.peekable();
    let some: Vec<_> = all.by_ref().take(MOST_SHOWN).collect();
    let more = if all.peek().is_some() { ", …" } else { "" };
    some.join(", ") + more
}
