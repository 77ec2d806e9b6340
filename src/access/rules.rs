//! The rules of the configuration, and which of them is somebody's.

use std::sync::Arc;

use crate::api::{Asked, Class};
use crate::auth::Identity;
use crate::config::{Config, Group, ModelName, Models, Opening, Role, Rule};
use crate::reject::Allowed;

/// All rules, and the one for whom no other is.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Arc<Rule>>,
    groups: Vec<Group>,
    otherwise: Arc<Rule>,
    hides_models: bool,
}

impl Rules {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let otherwise =
            Rule { place: "the default, since no rule matches".to_owned(), ..Rule::default() };
        Self {
            rules: config.rules.iter().cloned().map(Arc::new).collect(),
            groups: config.groups.clone(),
            otherwise: Arc::new(otherwise),
            hides_models: config.hide_models,
        }
    }

    /// What this caller may do: by the first rule that matches.
    #[must_use]
    pub fn reach_of(&self, who: Identity) -> Reach {
        let rule = who.own_rule(&self.rules, &self.groups);
        let rule = Arc::clone(rule.unwrap_or(&self.otherwise));
        Reach { who, rule, hides_models: self.hides_models }
    }
}

/// A caller with the rule that counts for it.
#[derive(Debug)]
pub struct Reach {
    who: Identity,
    rule: Arc<Rule>,
    hides_models: bool,
}

/// Why a model may not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    /// No pattern of the rule is about it.
    ByRule,
    /// No pattern of the key is about it.
    ByKey,
    /// It runs in the cloud.
    Cloud,
}

impl Reach {
    #[must_use]
    pub fn who(&self) -> &Identity {
        &self.who
    }

    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    #[must_use]
    pub fn hides_models(&self) -> bool {
        self.hides_models
    }

    /// Whether no model is kept from it, so that lists need no look.
    #[must_use]
    pub fn has_all_models(&self) -> bool {
        self.is_free() && self.may_use_cloud()
    }

    /// Whether no model is kept from it but those in the cloud.
    #[must_use]
    pub fn is_free(&self) -> bool {
        let granted = self.who.grant().and_then(|grant| grant.models.as_ref());
        self.rule.models == Models::All && granted.is_none_or(|models| *models == Models::All)
    }

    #[must_use]
    pub fn may_use_cloud(&self) -> bool {
        let by_rule = self.rule.cloud || self.who.role() == Role::Admin;
        by_rule && self.who.grant().is_none_or(|grant| grant.cloud != Some(false))
    }

    /// # Errors
    /// Says which of rule, key and cloud keeps it away.
    pub fn may_use(&self, model: &ModelName) -> Result<(), Barred> {
        if !self.rule.models.allow(model) {
            return Err(Barred::ByRule);
        }
        let granted = self.who.grant().and_then(|grant| grant.models.as_ref());
        if granted.is_some_and(|models| !models.allow(model)) {
            return Err(Barred::ByKey);
        }
        match model.is_cloud() && !self.may_use_cloud() {
            true => Err(Barred::Cloud),
            false => Ok(()),
        }
    }

    /// The patterns of the rule and of the key, for people; the narrower list alone, where one is.
    #[must_use]
    pub fn models_shown(&self) -> Allowed {
        let all = &Models::All;
        let rule = &self.rule.models;
        let key = self.who.grant().and_then(|grant| grant.models.as_ref()).unwrap_or(all);
        let (rule, key) = match (rule.cover(key), key.cover(rule)) {
            (true, _) => (all, key),
            (false, true) => (rule, all),
            (false, false) => (rule, key),
        };
        Allowed { by_rule: rule.shown(), by_key: key.shown() }
    }

    /// Whether the rule names this endpoint by its path.
    #[must_use]
    pub fn names_path_of(&self, asked: &Asked) -> bool {
        self.rule.endpoints.iter().flatten().any(|opening| match opening {
            Opening::Class(_) => false,
            Opening::Path(path) => path.matches(asked.path().as_bytes()),
        })
    }

    /// Whether the rule opens this endpoint.
    #[must_use]
    pub fn opens(&self, asked: &Asked) -> bool {
        // Every client begins with these.
        let is_free = asked.class() == Class::Health;
        is_free
            || self.rule.endpoints.as_deref().is_none_or(|openings| {
                openings.iter().any(|opening| match opening {
                    Opening::Class(class) => asked.class().as_str() == *class,
                    Opening::Path(path) => path.matches(asked.path().as_bytes()),
                })
            })
    }
}
