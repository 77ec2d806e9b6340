//! To which backends a call goes that manages models.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use super::{Backend, Lease, Pool, choice, refusal};
use crate::access::Permit;
use crate::api::Class;
use crate::call::Call;
use crate::config::{BackendKind, ModelName, NamedBackends};
use crate::limit::Ticket;
use crate::reject::{Denied, Reject, Why};

/// Names the backend that a call is for.
const BACKEND: &str = "x-portcullis-backend";
const UNKNOWN: Reject =
    Reject::BadRequest("x-portcullis-backend names no backend that manages models");
const TWICE: Reject = Reject::BadRequest("x-portcullis-backend was sent twice");

/// What of a call decides where it goes.
#[derive(Debug, Clone, Copy)]
struct Managing<'a> {
    /// By the caller, in its header.
    named: Option<&'a str>,
    /// By the caller's rule.
    rule: &'a [NamedBackends],
    /// That has to be there already.
    model: Option<&'a ModelName>,
}

/// Whether a call is one that manages models, or the account of a server's owner.
pub(super) fn may_change_models(call: &Call<'_>) -> bool {
    match call.asked.class() {
        Class::Manage | Class::Owner => true,
        Class::Health | Class::Inference | Class::Models | Class::Unknown => false,
    }
}

impl Pool {
    /// The backends of the caller's rule, where the call goes to each of several.
    #[must_use]
    pub fn goes_to_each(&self, permit: &Permit, call: &Call<'_>) -> bool {
        let rule = &permit.reach().rule().manage;
        if rule.is_empty() || call.asked.class() != Class::Manage {
            return false;
        }
        // A model is made where its blobs are.
        let is_of_blobs = call.asked.is_upload() || call.reading.uses_layers();
        let is_named = call.parts.headers.contains_key(BACKEND);
        !is_of_blobs && !is_named && managers(&self.backends, rule).nth(1).is_some()
    }

    /// A place at each backend of the caller's rule that the call concerns.
    pub async fn each(&self, admitted: &Ticket, call: &Call<'_>) -> Vec<Lease> {
        let chosen = self.managers_of(admitted.permit(), call).await;
        chosen.into_iter().map(|it| self.manager(it, admitted, call)).collect()
    }

    /// Where a call that manages models would go, by name; `None` for any other.
    ///
    /// # Errors
    /// As [`Pool::choose`].
    pub async fn manages(
        &self,
        permit: &Permit,
        call: &Call<'_>,
    ) -> Result<Option<Vec<Arc<str>>>, Reject> {
        if !may_change_models(call) {
            return Ok(None);
        }
        let chosen = match self.goes_to_each(permit, call) {
            true => self.managers_of(permit, call).await,
            false => vec![self.manager_of(permit, call).await?],
        };
        Ok(Some(chosen.into_iter().map(|it| Arc::clone(it.name())).collect()))
    }

    pub(super) async fn choose_manager(
        &self,
        admitted: &Ticket,
        call: &Call<'_>,
    ) -> Result<Lease, Reject> {
        let backend = self.manager_of(admitted.permit(), call).await?;
        Ok(self.manager(backend, admitted, call))
    }

    async fn managers_of<'a>(&'a self, permit: &Permit, call: &Call<'_>) -> Vec<&'a Arc<Backend>> {
        let model = there_already(permit, call);
        self.hear_who_has(model).await;
        let all: Vec<_> = managers(&self.backends, &permit.reach().rule().manage).collect();
        let having = match model {
            Some(model) => all.iter().copied().filter(|it| it.has(model) != Some(false)).collect(),
            None => Vec::new(),
        };
        // Where none is known to have it, each says so itself.
        if having.is_empty() { all } else { having }
    }

    async fn manager_of<'a>(
        &'a self,
        permit: &Permit,
        call: &Call<'_>,
    ) -> Result<&'a Arc<Backend>, Reject> {
        let rule = match call.asked.class() {
            Class::Manage => permit.reach().rule().manage.as_slice(),
            Class::Health | Class::Inference | Class::Models | Class::Owner | Class::Unknown => &[],
        };
        let named = named(&call.parts.headers)?;
        let model = there_already(permit, call).filter(|_| named.is_none());
        self.hear_who_has(model).await;
        let managing = Managing { named, rule, model };
        let has = |backend: &Backend, model: &ModelName| backend.has(model);
        match one(&self.backends, &managing, has) {
            Ok(backend) => Ok(backend),
            Err(Nobody::Manages) => Err(refusal(choice::Nobody::Speaks, permit, call)),
            Err(Nobody::IsThere) => Err(refusal(choice::Nobody::IsThere, permit, call)),
            Err(Nobody::HasThatName) => Err(UNKNOWN),
            Err(Nobody::MayBeNamed) => {
                let (operation, name) = (call.asked.operation(), permit.who().name());
                let why = Why::Elsewhere;
                let denied = Denied { operation, name: name.to_string(), why };
                Err(Reject::Forbidden(Box::new(denied)))
            }
        }
    }

    /// Such a call is seldom, and goes wrong where what was heard is old.
    async fn hear_who_has(&self, model: Option<&ModelName>) {
        if model.is_some() && self.backends.len() > 1 {
            self.look_again(Instant::now()).await;
        }
    }

    fn manager(&self, backend: &Arc<Backend>, admitted: &Ticket, call: &Call<'_>) -> Lease {
        let mut lease = self.beside(backend, admitted, call);
        lease.change = Some(backend.change());
        lease
    }
}

/// Why there is no backend for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nobody {
    /// None is an Ollama.
    Manages,
    /// The one that it would go to is in maintenance.
    IsThere,
    HasThatName,
    /// The rule is about others.
    MayBeNamed,
}

/// The one that is named, or else the first of the rule, the one that has the model, the one that is
/// to manage, the first. One in maintenance has to be named, and no other does its work meanwhile: what
/// belongs together would come to be on two machines.
fn one<'a>(
    backends: &'a [Arc<Backend>],
    managing: &Managing<'_>,
    has: impl Fn(&Backend, &ModelName) -> Option<bool>,
) -> Result<&'a Arc<Backend>, Nobody> {
    let all: Vec<_> = managers(backends, &[]).collect();
    let among: Vec<_> = managers(backends, managing.rule).collect();
    if let Some(name) = managing.named {
        let is_it = |it: &&&Arc<Backend>| **it.name() == *name;
        all.iter().find(is_it).ok_or(Nobody::HasThatName)?;
        return among.iter().find(is_it).copied().ok_or(Nobody::MayBeNamed);
    }
    let usual = match managing.rule {
        [] => among.iter().find(|it| it.manages()).or(among.first()),
        [_, ..] => among.first(),
    };
    let usual = usual.copied().ok_or(Nobody::Manages)?;
    let chosen = match managing.model.filter(|model| has(usual, model) == Some(false)) {
        None => usual,
        Some(model) => {
            let having = || among.iter().filter(|it| has(it, model) == Some(true));
            having().find(|it| !it.is_drained()).or(having().next()).copied().unwrap_or(usual)
        }
    };
    if chosen.is_drained() { Err(Nobody::IsThere) } else { Ok(chosen) }
}

/// Those of the rule, or all, in the order of the file.
fn managers<'a, 'r>(
    backends: &'a [Arc<Backend>],
    rule: &'r [NamedBackends],
) -> impl Iterator<Item = &'a Arc<Backend>> + use<'a, 'r> {
    let is_meant = |it: &Backend| {
        rule.is_empty() || rule.iter().any(|named| named.means(it.name(), it.tags()))
    };
    backends.iter().filter(move |it| it.kind() == BackendKind::Ollama && is_meant(it))
}

fn there_already<'a>(permit: &'a Permit, call: &Call<'_>) -> Option<&'a ModelName> {
    let is_of_it = matches!(call.asked.operation(), "delete" | "copy" | "push");
    permit.model().filter(|_| is_of_it)
}

fn named(headers: &HeaderMap) -> Result<Option<&str>, Reject> {
    let mut values = headers.get_all(BACKEND).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match values.next() {
        None => value.to_str().map(Some).map_err(|_| UNKNOWN),
        Some(_) => Err(TWICE),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::Config;
    use crate::pool::BOUNDS;
    use crate::pool::line::Line;

    /// The first is of another kind, the last is to manage, where one is.
    fn backends(manage: bool) -> Vec<Arc<Backend>> {
        let written = Config::builtin().backends.remove(0);
        let of = |(at, name): (usize, &str)| {
            let mut one = written.clone();
            one.name = name.to_owned();
            one.kind = if at == 0 { BackendKind::OpenAi } else { BackendKind::Ollama };
            one.tags = if at > 1 { vec!["lab".to_owned()] } else { Vec::new() };
            one.manage = manage && at == 3;
            let (line, via) = (Arc::new(Line::new(BOUNDS)), HeaderValue::from_static("1.1 gate"));
            Arc::new(Backend::new(&one, &[], (&line, &via)).unwrap())
        };
        ["cpp", "a", "b", "c"].into_iter().enumerate().map(of).collect()
    }

    fn place(
        backends: &[Arc<Backend>],
        managing: Managing<'_>,
        having: &[&str],
    ) -> Result<String, Nobody> {
        let has = |backend: &Backend, _: &ModelName| Some(having.contains(&&**backend.name()));
        one(backends, &managing, has).map(|it| it.name().to_string())
    }

    #[test]
    fn a_call_goes_to_one_by_name_by_rule_by_model_or_by_the_file() {
        let model = ModelName::parse("gemma3").unwrap();
        let lab = [NamedBackends::Tag("lab".to_owned())];
        let (plain, managed) = (backends(false), backends(true));
        let call = |named, rule, model| Managing { named, rule, model };
        for (backends, managing, having, expected) in [
            (&plain, call(None, &[][..], None), &[][..], Ok("a")),
            (&managed, call(None, &[], None), &[], Ok("c")),
            (&plain, call(None, &[], Some(&model)), &["b", "c"], Ok("b")),
            (&managed, call(None, &[], Some(&model)), &["b", "c"], Ok("c")),
            (&plain, call(None, &[], Some(&model)), &[], Ok("a")),
            (&plain, call(None, &[], Some(&model)), &["cpp"], Ok("a")),
            (&managed, call(None, &lab, None), &[], Ok("b")),
            (&plain, call(None, &lab, Some(&model)), &["a", "c"], Ok("c")),
            (&managed, call(Some("b"), &[], Some(&model)), &["c"], Ok("b")),
            (&plain, call(Some("b"), &lab, None), &[], Ok("b")),
            (&plain, call(Some("a"), &lab, None), &[], Err(Nobody::MayBeNamed)),
            (&plain, call(Some("cpp"), &[], None), &[], Err(Nobody::HasThatName)),
            (&plain, call(Some("B"), &lab, None), &[], Err(Nobody::HasThatName)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(place(backends, managing, having), expected, "{managing:?} {having:?}");
        }
        let nobody = place(&plain[..1], call(None, &[], None), &[]);
        assert_eq!(nobody, Err(Nobody::Manages));
    }

    #[test]
    fn one_in_maintenance_is_asked_by_name_only_and_nobody_in_its_place() {
        let model = ModelName::parse("gemma3").unwrap();
        let lab = [NamedBackends::Tag("lab".to_owned())];
        let (first, second) = (backends(false), backends(false));
        first[1].drain(true);
        second[2].drain(true);
        let call = |named, rule, model| Managing { named, rule, model };
        for (backends, managing, having, expected) in [
            (&first, call(None, &[][..], None), &[][..], Err(Nobody::IsThere)),
            (&first, call(None, &[], Some(&model)), &["a", "b"], Err(Nobody::IsThere)),
            (&first, call(None, &[], Some(&model)), &["b"], Ok("b")),
            (&first, call(None, &lab, None), &[], Ok("b")),
            (&first, call(Some("a"), &[], None), &[], Ok("a")),
            (&second, call(None, &[], None), &[], Ok("a")),
            (&second, call(None, &[], Some(&model)), &["b", "c"], Ok("c")),
            (&second, call(None, &[], Some(&model)), &["b"], Err(Nobody::IsThere)),
            (&second, call(None, &lab, None), &[], Err(Nobody::IsThere)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(place(backends, managing, having), expected, "{managing:?} {having:?}");
        }
    }
}
