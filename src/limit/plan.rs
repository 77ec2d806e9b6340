//! The limits of one configuration, and which of them bear on a request.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::tz::TimeZone;

use crate::access::Reach;
use crate::config::{
    Allowance, Config, Group, Limit, ModelName, Models, Pattern, Per, Role, Roles,
};
use crate::store::KeyId;

/// Part of a snapshot: what is counted lives beside it, and goes on when this is replaced.
#[derive(Debug)]
pub struct Plan {
    limits: Vec<Numbered>,
    groups: Vec<Group>,
    roles: Roles,
    zone: TimeZone,
}

/// A limit, with what its counts are known by: not its place, which moves, and not its numbers.
#[derive(Debug)]
struct Numbered {
    limit: Limit,
    number: u64,
    /// Of a limit with one count for each model those that it names without a `*`.
    named: Vec<ModelName>,
}

/// Who asks, as far as limits go.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `NAME`, or `NAME/USER`.
    pub name: &'a str,
    /// `NAME`.
    pub account: &'a str,
    pub role: Role,
    /// Of a key with conditions of its own.
    pub key: Option<&'a str>,
    /// Of a managed key.
    pub key_id: Option<&'a str>,
    /// Known by a row of usage, of a key that is not known any more, nor its role or its id: whatever
    /// limit may have been about it is.
    pub is_recalled: bool,
    pub by_rule: &'a Allowance,
    pub by_key: &'a Allowance,
}

/// One limit, on one count.
#[derive(Debug)]
pub(super) struct Bearing<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) allowance: &'a Allowance,
    pub(super) models: &'a Models,
}

/// Which count: by whose limit, and by who shares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope<'a> {
    limit: u64,
    shared: Shared<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Shared<'a> {
    Identity(&'a str),
    /// Keys of one name and one account share it, so that a rotated key goes on where it was.
    Key {
        account: &'a str,
        key: Option<&'a str>,
    },
    Group(&'a str),
    Model(&'a ModelName),
    All,
}

impl Plan {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let limits = config.limits.iter().enumerate().map(|(at, limit)| {
            let earlier = config.limits.iter().take(at);
            let copies = earlier.filter(|earlier| earlier.counts_like(limit)).count();
            let named = match limit.per {
                Per::Model => limit.models.named(),
                Per::Identity | Per::Key | Per::Group | Per::All => Vec::new(),
            };
            Numbered { limit: limit.clone(), number: number_of(limit, copies), named }
        });
        Self {
            limits: limits.collect(),
            groups: config.groups.clone(),
            roles: config.roles.clone(),
            zone: config.time_zone.clone(),
        }
    }

    /// That of its days and months.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Whether it matters which key somebody used, beyond its name.
    pub(super) fn minds_the_key(&self) -> bool {
        self.limits.iter().any(|it| it.limit.roles.is_some() || it.limit.keys.is_some())
    }

    /// The role of whom only the account is known.
    pub(super) fn role_of(&self, account: &str) -> Role {
        self.roles.role_of(account)
    }

    /// Whether nothing is limited for a caller whose `own` limits are these, whatever the model.
    #[must_use]
    pub fn is_free(&self, own: [&Allowance; 2]) -> bool {
        self.limits.is_empty() && own.into_iter().all(Allowance::is_empty)
    }

    /// Every limit that bears on a request for this model.
    pub(super) fn bearing<'a>(
        &'a self,
        who: &Subject<'a>,
        model: Option<&'a ModelName>,
    ) -> Vec<Bearing<'a>> {
        let mut all = self.own(who);
        for numbered in self.limits.iter().filter(|it| self.is_about(&it.limit, who)) {
            if is_for(&numbered.limit.models, model) {
                self.shares(numbered, who, model, |bearing| all.push(bearing));
            }
        }
        all
    }

    /// Those of the rule and of the key.
    fn own<'a>(&self, who: &Subject<'a>) -> Vec<Bearing<'a>> {
        let key = Shared::Key { account: who.account, key: who.key };
        let own = [(BY_RULE, Shared::Identity(who.name), who.by_rule), (BY_KEY, key, who.by_key)];
        let bearing = |(limit, shared, allowance)| Bearing {
            scope: Scope { limit, shared },
            allowance,
            models: &Models::All,
        };
        own.into_iter().map(bearing).collect()
    }

    fn is_about(&self, limit: &Limit, who: &Subject<'_>) -> bool {
        let is_unsure = who.is_recalled && who.key.is_some();
        let holds = |key: &Pattern| {
            let may_be = is_unsure && key.to_string().parse::<KeyId>().is_ok();
            may_be || [who.key, who.key_id].into_iter().flatten().any(|held| key.matches(held))
        };
        any(limit.names.as_deref(), |name| name.matches(who.account))
            && any(limit.roles.as_deref(), |role| is_unsure || *role == who.role)
            && any(limit.groups.as_deref(), |group| self.is_member(group, who))
            && any(limit.keys.as_deref(), holds)
    }

    fn is_member(&self, name: &str, who: &Subject<'_>) -> bool {
        let group = self.groups.iter().filter(|group| group.name == name);
        let mut members = group.flat_map(|group| &group.members);
        members.any(|member| member.matches(who.account))
    }

    /// Each count of the limit that this request is in; in more than one for who is in two groups.
    fn shares<'a>(
        &'a self,
        Numbered { limit, number, named: _ }: &'a Numbered,
        who: &Subject<'a>,
        model: Option<&'a ModelName>,
        mut each: impl FnMut(Bearing<'a>),
    ) {
        let mut share = |shared| {
            let scope = Scope { limit: *number, shared };
            each(Bearing { scope, allowance: &limit.allowance, models: &limit.models });
        };
        match limit.per {
            Per::Identity => share(Shared::Identity(who.name)),
            Per::Key => share(Shared::Key { account: who.account, key: who.key }),
            Per::All => share(Shared::All),
            Per::Model => model.map(Shared::Model).into_iter().for_each(share),
            Per::Group => {
                let named = |group: &&Group| {
                    let listed = limit.groups.as_ref();
                    listed.is_none_or(|names| names.contains(&group.name))
                };
                let groups = self.groups.iter().filter(named);
                for group in groups.filter(|group| self.is_member(&group.name, who)) {
                    share(Shared::Group(&group.name));
                }
            }
        }
    }

    /// Limits that are about models, with their counts, as far as it is known which models have one.
    pub(super) fn of_models<'a>(
        &'a self,
        who: &Subject<'a>,
    ) -> impl Iterator<Item = (&'a Limit, Vec<Bearing<'a>>)> {
        let is_of_models = |limit: &Limit| limit.per == Per::Model || limit.models != Models::All;
        let about = self.limits.iter().filter(move |it| is_of_models(&it.limit));
        about.filter(|it| self.is_about(&it.limit, who)).map(|it| {
            let mut counts = Vec::new();
            for model in std::iter::once(None).chain(it.named.iter().map(Some)) {
                self.shares(it, who, model, |bearing| counts.push(bearing));
            }
            (&it.limit, counts)
        })
    }
}

impl<'a> Subject<'a> {
    #[must_use]
    pub fn of(reach: &'a Reach) -> Self {
        let (who, [by_rule, by_key]) = (reach.who(), Self::own_of(reach));
        let grant = who.grant();
        Self {
            name: who.name().as_str(),
            account: who.account().as_str(),
            role: who.role(),
            key: grant.map(|grant| grant.key_name.as_str()),
            key_id: grant.and_then(|grant| grant.key_id.as_ref()).map(KeyId::as_str),
            is_recalled: false,
            by_rule,
            by_key,
        }
    }

    /// The limits of the rule and of the key.
    #[must_use]
    pub fn own(&self) -> [&'a Allowance; 2] {
        [self.by_rule, self.by_key]
    }

    /// As [`Subject::own`], without asking who it is.
    #[must_use]
    pub fn own_of(reach: &'a Reach) -> [&'a Allowance; 2] {
        let grant = reach.who().grant();
        [&reach.rule().allowance, grant.map_or(&NOTHING, |grant| &grant.allowance)]
    }
}

impl Scope<'_> {
    /// For the caller.
    pub(super) fn whose(&self) -> String {
        match &self.shared {
            Shared::Identity(name) => (*name).to_owned(),
            Shared::Key { account: name, key: None } => (*name).to_owned(),
            Shared::Key { key: Some(key), .. } => format!("the key {key}"),
            Shared::Group(name) => format!("the group {name} together"),
            Shared::Model(name) => format!("all who use {name}"),
            Shared::All => "everybody together".to_owned(),
        }
    }
}

/// What names no model counts where all do.
fn is_for(models: &Models, model: Option<&ModelName>) -> bool {
    match model {
        Some(model) => models.allow(model),
        None => *models == Models::All,
    }
}

/// What is not written is about everybody.
fn any<T>(list: Option<&[T]>, test: impl FnMut(&T) -> bool) -> bool {
    list.is_none_or(|list| list.iter().any(test))
}

/// Two that count the same requests in the same way are told apart by their order alone.
fn number_of(limit: &Limit, copies: usize) -> u64 {
    let Limit { place: _, per, names, roles, groups, keys, models, allowance: _ } = limit;
    let mut hasher = DefaultHasher::new();
    (per, copies).hash(&mut hasher);
    format!("{names:?} {roles:?} {groups:?} {keys:?} {models:?}").hash(&mut hasher);
    // Below are the numbers of rules and keys.
    hasher.finish().max(BY_KEY + 1)
}

/// A caller has one rule at a time, so their places do not matter.
const BY_RULE: u64 = 0;
const BY_KEY: u64 = 1;

static NOTHING: Allowance = Allowance::NONE;
