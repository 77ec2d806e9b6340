//! Identity and what is asked to a [`Permit`]: roles, model rules, parameter policy.

use http::{HeaderMap, HeaderValue, Method, header};

use crate::api::{Asked, Class, ModelIn};
use crate::auth::{Credential, Identity};
use crate::call::{BodyBounds, Call};
use crate::config::{Change, Cors, ModelName, Origins, Role};
use crate::reject::{Denied, Lack, ModelDenied, Reject, Why};

mod lists;
mod policy;
mod rules;

pub use lists::narrowed;
pub use rules::{Barred, Reach, Rules};

/// Leave to send a body, for whom the endpoint is open. Only [`admit`] makes one.
#[derive(Debug)]
pub struct Entry(Reach);

impl Entry {
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.0
    }
}

/// A caller with a model that it may use, where it asks for one. Only [`choose`] makes one.
#[derive(Debug)]
pub struct Chosen {
    reach: Reach,
    model: Option<ModelName>,
}

impl Chosen {
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    #[must_use]
    pub fn model(&self) -> Option<&ModelName> {
        self.model.as_ref()
    }

    /// Whether the policy wants to know how the model is loaded.
    #[must_use]
    pub fn asks_for_loaded(&self) -> bool {
        self.reach.rule().policy.changes.iter().any(|(_, change)| *change == Change::Loaded)
    }
}

/// Leave to go on. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    reach: Reach,
    model: Option<ModelName>,
    /// What the policy changed, for `x-portcullis-policy`.
    changed: Option<HeaderValue>,
}

impl Permit {
    #[must_use]
    pub fn who(&self) -> &Identity {
        self.reach.who()
    }

    /// The model that is asked for, as names are compared.
    #[must_use]
    pub fn model(&self) -> Option<&ModelName> {
        self.model.as_ref()
    }

    #[must_use]
    pub fn changed(&self) -> Option<&HeaderValue> {
        self.changed.as_ref()
    }

    /// The reach by which a list of models is narrowed, where one is asked for and has to be.
    #[must_use]
    pub fn narrows(&self, asked: &Asked) -> bool {
        asked.is_list() && !self.reach.has_all_models()
    }

    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
}

/// What a policy needs to know beside the call.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    pub bounds: &'a BodyBounds,
    /// The context size of the model as it is in memory; for `num_ctx = "loaded"`.
    pub loaded_context: Option<u32>,
    /// The model has a local name, and runs elsewhere.
    pub runs_elsewhere: bool,
}

/// The parts of a request that decide whether a browser may have been made to send it.
#[derive(Debug, Clone, Copy)]
pub struct Provenance<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub cors: &'a Cors,
}

/// Decides on what the head says, before a byte of the body is read.
///
/// # Errors
/// 403, naming the operation, the caller, the role held and the role needed; 404 for an unknown
/// endpoint that the caller could not use anyway.
pub fn admit(
    rules: &Rules,
    who: Identity,
    asked: &Asked,
    provenance: Provenance<'_>,
) -> Result<Entry, Reject> {
    let (held, needed) = (who.role(), asked.needs());
    let denied = |why| {
        let name = who.name().to_string();
        Err(Reject::Forbidden(Box::new(Denied { operation: asked.operation(), name, why })))
    };
    if held < needed {
        let hidden = asked.endpoint().is_none() && held < Role::Operator;
        return if hidden {
            Err(Reject::UnknownEndpoint)
        } else {
            denied(Why::Role { held, needed })
        };
    }
    if !who.may_ask(asked.path()) {
        return denied(Why::Endpoint);
    }
    let from_browsers = match who.credential() {
        Credential::Password | Credential::Certificate => true,
        Credential::Key | Credential::Signature => false,
    };
    if from_browsers && from_another_site(provenance) {
        return denied(Why::CrossSite);
    }
    let reach = rules.reach_of(who);
    // Nobody can say which model an unknown endpoint uses, or whether it uses one.
    let unseen = asked.endpoint().is_none() && !reach.is_free() && !reach.names_path_of(asked);
    if unseen || !reach.opens(asked) {
        let name = reach.who().name().to_string();
        let denied = Denied { operation: asked.operation(), name, why: Why::Rule };
        return Err(Reject::Forbidden(Box::new(denied)));
    }
    if asked.is_upload() && !reach.is_free() {
        // Whether a layer is there tells of models, and one that was uploaded makes none without all.
        return Err(without_all_models(&reach, asked, "a model"));
    }
    Ok(Entry(reach))
}

/// Decides on the models that the body names.
///
/// # Errors
/// 403 or 404 for a model, 400 for a body whose model cannot be read.
pub fn choose(entry: Entry, call: &Call<'_>) -> Result<Chosen, Reject> {
    let Entry(reach) = entry;
    let model = allowed_model(&reach, call)?;
    Ok(Chosen { reach, model })
}

/// Decides on what else the body says, and changes in it what a policy wants to be otherwise.
///
/// # Errors
/// 403 or 404 for a model that runs elsewhere, 403 for images and tools, 503 where there is no memory
/// for a changed body.
pub fn authorize(
    chosen: Chosen,
    call: &mut Call<'_>,
    ground: &Ground<'_>,
) -> Result<Permit, Reject> {
    let Chosen { reach, model } = chosen;
    if ground.runs_elsewhere && !reach.may_use_cloud() {
        let name = call.model().unwrap_or_default();
        return Err(denied(&reach, call, &name, Lack::Cloud));
    }
    if !reach.may_use_cloud() && call.reading.searches_the_web() {
        let (operation, name) = (call.asked.operation(), reach.who().name().to_string());
        return Err(Reject::Forbidden(Box::new(Denied { operation, name, why: Why::WebSearch })));
    }
    if reach.rule().policy.is_empty() || call.asked.class() != Class::Inference {
        return Ok(Permit { reach, model, changed: None });
    }
    let changed = policy::apply(&reach, call, ground)?;
    Ok(Permit { reach, model, changed })
}

/// The model that is used, if it may be, as may be all others that go with it.
fn allowed_model(reach: &Reach, call: &Call<'_>) -> Result<Option<ModelName>, Reject> {
    let bars = |name: Option<&str>| match name {
        Some(name) => bars(reach, call, name).map(Some),
        // The backend's to refuse, but not for who may not use every model.
        None if reach.is_free() => Ok(None),
        None => Err(Reject::BadBody("the body names no model")),
    };
    let reading = &call.reading;
    match call.asked.model_in() {
        ModelIn::Nowhere => Ok(None),
        ModelIn::Perhaps => unseen_is_allowed(reach, call).map(|()| None),
        ModelIn::Path => bars(call.asked.model_in_path()),
        ModelIn::Form => bars(reading.model().as_deref()),
        ModelIn::Body => {
            let model = bars(reading.model().as_deref())?;
            made_of_what_is_allowed(reach, call)?;
            // What a model is made from is used as well.
            reading.source().map_or(Ok(None), |from| bars(Some(&from))).map(|_| model)
        }
        ModelIn::BothEnds => {
            let model = bars(reading.source().as_deref())?;
            bars(reading.destination().as_deref()).map(|_| model)
        }
    }
}

fn made_of_what_is_allowed(reach: &Reach, call: &Call<'_>) -> Result<(), Reject> {
    let model = || call.reading.model().unwrap_or_default();
    if call.reading.makes_a_stub() && !reach.may_use_cloud() {
        return Err(denied(reach, call, &model(), Lack::Cloud));
    }
    if call.reading.uses_layers() && !reach.is_free() {
        return Err(without_all_models(reach, &call.asked, &model()));
    }
    Ok(())
}

/// Whether an endpoint that nobody knows may be asked with any other model has been decided on before.
fn unseen_is_allowed(reach: &Reach, call: &Call<'_>) -> Result<(), Reject> {
    let name = call.reading.model();
    if reach.may_use_cloud() {
        return Ok(());
    }
    match name.as_deref().map(ModelName::parse) {
        _ if call.reading.is_unclear() => Err(UNSEEN),
        None => Ok(()),
        Some(Err(_)) => Err(UNSEEN),
        Some(Ok(model)) if !model.is_cloud() => Ok(()),
        Some(Ok(_)) => Err(denied(reach, call, name.as_deref().unwrap_or_default(), Lack::Cloud)),
    }
}

const UNSEEN: Reject = Reject::BadBody(
    "which model the body names for this endpoint cannot be read, and who may not use models in the cloud has to \
     say it plainly",
);

fn bars(reach: &Reach, call: &Call<'_>, name: &str) -> Result<ModelName, Reject> {
    let Ok(model) = ModelName::parse(name) else {
        return Err(Reject::BadBody("the model's name is none that a model can have"));
    };
    let barred = reach.may_use(&model);
    barred.map(|()| model).map_err(|barred| {
        let lack = match barred {
            Barred::ByRule | Barred::ByKey => Lack::Pattern,
            Barred::Cloud => Lack::Cloud,
        };
        denied(reach, call, name, lack)
    })
}

/// Nothing is hidden by it: the caller's own model is to be made of what is not its own.
fn without_all_models(reach: &Reach, asked: &Asked, model: &str) -> Reject {
    Reject::ModelForbidden(Box::new(lacking(reach, asked, model, Lack::AllModels)))
}

fn lacking(reach: &Reach, asked: &Asked, model: &str, lack: Lack) -> ModelDenied {
    ModelDenied {
        operation: asked.operation(),
        model: model.to_owned(),
        stands_for: None,
        who: reach.who().name().to_string(),
        lack,
        allowed: reach.models_shown(),
    }
}

fn denied(reach: &Reach, call: &Call<'_>, model: &str, lack: Lack) -> Reject {
    let mut denied = lacking(reach, &call.asked, model, lack);
    (denied.model, denied.stands_for) = call.as_written(model);
    match reach.hides_models() {
        true => Reject::UnknownModel(Box::new(denied)),
        false => Reject::ModelForbidden(Box::new(denied)),
    }
}

/// Browsers send a remembered password, or a certificate, along with any page's request; a request that changes or
/// costs something is refused when it comes from a page that is neither the gate's own nor listed by name. Where it
/// comes from they say themselves (Fetch Metadata, `Sec-Fetch-Site`), but not to a gate without TLS: there the
/// `Origin` says it.
fn from_another_site(Provenance { method, headers, cors }: Provenance<'_>) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    let is_listed = |origin: &HeaderValue| match &cors.origins {
        Origins::Any => false,
        Origins::Listed(origins) => origins.iter().any(|listed| listed.as_bytes() == origin),
    };
    let mut sites = headers.get_all("sec-fetch-site").iter().peekable();
    let pages: Vec<_> = headers.get_all(header::ORIGIN).iter().collect();
    let is_foreign = match sites.peek() {
        Some(_) => sites.any(|site| site != "same-origin" && site != "none"),
        None => pages.iter().any(|page| !is_page_of(page, headers.get(header::HOST))),
    };
    is_foreign && (pages.is_empty() || !pages.into_iter().all(is_listed))
}

/// Whether a page of this origin came from where the request goes to.
#[must_use]
pub fn is_page_of(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let after = origin.as_bytes().splitn(2, |b| *b == b':').nth(1);
    let authority = after.and_then(|rest| rest.strip_prefix(b"//"));
    authority.zip(host).is_some_and(|(it, host)| it.eq_ignore_ascii_case(host.as_bytes()))
}
