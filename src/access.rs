//! Identity and what is asked to a [`Permit`]: by role, and by the endpoints of a restricted key.

use http::{HeaderMap, Method, header};

use crate::api::Asked;
use crate::auth::{Credential, Identity};
use crate::config::{Cors, Origins, Role};
use crate::reject::{Denied, Reject, Why};

/// Leave to go on. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    who: Identity,
}

impl Permit {
    #[must_use]
    pub fn who(&self) -> &Identity {
        &self.who
    }
}

/// The parts of a request that decide whether a browser may have been made to send it.
#[derive(Debug, Clone, Copy)]
pub struct Provenance<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub cors: &'a Cors,
}

/// # Errors
/// 403, naming the operation, the caller, the role held and the role needed; 404 for an unknown
/// endpoint that the caller could not use anyway.
pub fn authorize(
    who: Identity,
    asked: &Asked,
    provenance: Provenance<'_>,
) -> Result<Permit, Reject> {
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
    Ok(Permit { who })
}

/// Browsers send a remembered password, or a certificate, along with any page's request; a request that changes or
/// costs something is refused when it comes from a site that is not listed by name
/// (Fetch Metadata, `Sec-Fetch-Site`).
fn from_another_site(Provenance { method, headers, cors }: Provenance<'_>) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    let other = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    let listed = match &cors.origins {
        Origins::Any => false,
        Origins::Listed(origins) => headers
            .get(header::ORIGIN)
            .is_some_and(|origin| origins.iter().any(|listed| listed.as_bytes() == origin)),
    };
    other && !listed
}
