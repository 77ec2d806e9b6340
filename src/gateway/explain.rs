//! What would become of a request, stage by stage, decided by the code of the path.

use bytes::Bytes;
use http::request::Parts;

use super::{State, admission, aliases, loaded};
use crate::access;
use crate::api::Asked;
use crate::auth::Identity;
use crate::call::{self, Call};
use crate::limit::{Ask, Bears, Limits, Subject};
use crate::reject::{Allowed, Reject};

/// What one stage decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub name: &'static str,
    pub says: String,
}

/// The stages up to the one that refuses, if one does.
#[derive(Debug)]
pub struct Explained {
    pub stages: Vec<Stage>,
    pub refused: Option<Reject>,
}

/// As if `who` had sent this. No backend is asked, but for how a model is loaded, where it runs or who
/// has it, where that matters. `limits` has what was used, as far as is known.
pub async fn explain(
    (state, limits): (&State, &Limits),
    who: Identity,
    parts: &Parts,
    body: Bytes,
) -> Explained {
    let mut stages = Vec::new();
    let refused = Box::pin(walk((state, limits), who, parts, body, &mut stages)).await.err();
    Explained { stages, refused }
}

async fn walk(
    (state, limits): (&State, &Limits),
    who: Identity,
    parts: &Parts,
    body: Bytes,
    stages: &mut Vec<Stage>,
) -> Result<(), Reject> {
    let mut tell = |name, says| stages.push(Stage { name, says });
    tell("caller", format!("{}, with the role {}", who.name(), who.role()));
    let target = call::strict(parts)?;
    let asked = Asked::find(&parts.method, &target.path, state.extra_endpoints())?;
    let (operation, class, needs) = (asked.operation(), asked.class(), asked.needs());
    tell("endpoint", format!("{operation}, of the class {class}, which needs the role {needs}"));
    let entry = access::admit(state.rules(), who, &asked, state.provenance(parts))?;
    tell("rule", entry.reach().rule().place.clone());
    let length = body.len();
    let mut call = Call::with(asked, parts, body, state.bounds()).await?;
    let model = call.model().map_or_else(|| "no model".to_owned(), |it| format!("the model {it}"));
    tell("body", format!("{length} bytes, names {model}"));
    aliases::replace(state, &mut call).await?;
    if let Some(real) = call.model().filter(|real| !model.ends_with(&**real)) {
        tell("alias", format!("stands for the model {real}"));
    }
    tell("model", models_of(&entry));
    let (chosen, ground) = loaded::ground(state, entry, &call).await?;
    let permit = access::authorize(chosen, &mut call, &ground)?;
    let changed = permit.changed().and_then(|changed| changed.to_str().ok());
    tell("policy", changed.unwrap_or("changes nothing").to_owned());
    if permit.narrows(&call.asked) {
        tell("answer", "the list is narrowed to what may be used".to_owned());
    }
    match state.pool().manages(&permit, &call).await?.as_deref() {
        None => {}
        Some([one]) => tell("backend", format!("goes to {one}")),
        Some(several) => tell("backend", format!("goes to each of {}", several.join(", "))),
    }
    let model = call.model().map(|it| it.into_owned());
    let ask = admission::supposed(&call, model.as_deref());
    let who = Subject::of(permit.reach());
    limited(state, limits, (&who, &ask), tell)
}

/// Each limit that bears on it, and whether it passes them.
fn limited(
    state: &State,
    limits: &Limits,
    (who, ask): (&Subject<'_>, &Ask<'_>),
    mut tell: impl FnMut(&'static str, String),
) -> Result<(), Reject> {
    let all = limits.bearing(state.plan(), who, ask);
    if all.is_empty() {
        tell("limits", "none".to_owned());
    }
    for Bears { measure, number, used, whose, models } in all {
        let models = models.map(|models| format!(" with {models}")).unwrap_or_default();
        let left = match measure.is_by_calendar() {
            true => format!("{} left", number.saturating_sub(used)),
            false => "what is left only the running gate knows".to_owned(),
        };
        tell("limits", format!("{} is {number} for {whose}{models}; {left}", measure.as_str()));
    }
    limits.take(state.plan(), who, ask).map(drop)
}

fn models_of(entry: &access::Entry) -> String {
    let allowed = entry.reach().models_shown();
    let shown = match allowed == Allowed::default() {
        true => "all are allowed".to_owned(),
        false => format!("allowed are {}", allowed.told(usize::MAX)),
    };
    let cloud = if entry.reach().may_use_cloud() { "" } else { ", but those in the cloud" };
    shown + cloud
}
