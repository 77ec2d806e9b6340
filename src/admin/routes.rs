//! The table of routes: what there is, who may ask for it, what it takes and gives.

use std::sync::LazyLock;

use http::Method;

use super::usage;
use crate::auth::Identity;
use crate::config::Role;
use crate::reject::{Denied, Reject, Why};
use crate::store::KeyState;

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Whoever may look, and admins.
    Viewer,
    Admin,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Describe,
    ListKeys,
    CreateKey,
    ImportKeys,
    ShowKey,
    ChangeKey,
    SetKeyState(KeyState),
    RevokeKey,
    RotateKey,
    Allow,
    ListAudit,
    ListDecisions,
    ShowDecision,
    Metrics,
    SumUsage,
    ListUsage,
    ListReloads,
    ListRunning,
    StopRequest,
    StopRequests,
    ListBackends,
    /// Whether new requests are kept from a backend.
    SetDrained(bool),
}

/// One row of the table. A segment in braces stands for any one.
#[derive(Debug)]
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    /// Its name in the log, in refusals and in the description.
    pub operation: &'static str,
    pub needs: Needs,
    pub says: &'static str,
    pub(super) action: Action,
    /// What may stand behind the `?`.
    pub(super) query: &'static [&'static str],
    /// The schema of the body, and whether it may be left out.
    pub(super) takes: Option<(&'static str, Body)>,
    pub(super) status: u16,
    /// The schema of the answer.
    pub(super) gives: &'static str,
    /// The schema of the segment in braces.
    pub(super) id: &'static str,
    /// Programs of this network ask it, by whatever name this machine has there.
    any_host: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Required,
    Optional,
}

impl Needs {
    /// The least that is told of in a refusal.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Viewer => Role::Viewer,
            Self::Admin => Role::Admin,
        }
    }

    fn allow(self, role: Role) -> bool {
        match (self, role) {
            (_, Role::Admin) | (Self::Viewer, Role::Viewer) => true,
            (Self::Viewer, Role::User | Role::Operator) => false,
            (Self::Admin, Role::Viewer | Role::User | Role::Operator) => false,
        }
    }
}

const fn row(
    method: Method,
    path: &'static str,
    operation: &'static str,
    action: Action,
    (gives, says): (&'static str, &'static str),
) -> Route {
    Route {
        method,
        path,
        operation,
        needs: Needs::Admin,
        says,
        action,
        query: &[],
        takes: None,
        status: 200,
        gives,
        id: "KeyId",
        any_host: false,
    }
}

impl Route {
    const fn for_viewers(mut self) -> Self {
        self.needs = Needs::Viewer;
        self
    }

    const fn asked_with(mut self, query: &'static [&'static str]) -> Self {
        self.query = query;
        self
    }

    const fn takes(mut self, schema: &'static str, body: Body) -> Self {
        self.takes = Some((schema, body));
        self
    }

    const fn makes(mut self) -> Self {
        self.status = 201;
        self
    }

    const fn under_any_host(mut self) -> Self {
        self.any_host = true;
        self
    }

    const fn of(mut self, id: &'static str) -> Self {
        self.id = id;
        self
    }

    /// Whether it takes a body at all.
    #[must_use]
    pub fn takes_a_body(&self) -> bool {
        self.takes.is_some()
    }

    /// The schema of its body, if it takes one.
    #[must_use]
    pub fn body(&self) -> Option<&'static str> {
        self.takes.map(|(schema, _)| schema)
    }

    /// Whether it answers to a `Host` that is not one of ours: it changes nothing, and a page that a
    /// foreign name leads here brings no login.
    #[must_use]
    pub fn answers_any_host(&self) -> bool {
        self.any_host
    }

    /// Its answer is a text and not JSON.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.action == Action::Metrics
    }

    fn matches(&self, path: &str) -> bool {
        let (mut ours, mut theirs) = (self.path.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(our), Some(their)) if our == their => {}
                (Some(our), Some(their)) if is_parameter(our) && !their.is_empty() => {}
                (Some(_) | None, _) => return false,
            }
        }
    }

    fn is_literal(&self) -> bool {
        !self.path.contains('{')
    }
}

fn is_parameter(segment: &str) -> bool {
    segment.starts_with('{')
}

/// Everything there is.
#[rustfmt::skip]
pub static ROUTES: [Route; 24] = [
    row(Method::GET, "/api/v1/openapi.json", "describe", Action::Describe, ("Description", "this description")).for_viewers(),
    row(Method::GET, "/api/v1/keys", "list_keys", Action::ListKeys, ("KeyPage", "managed keys, the oldest first"))
        .asked_with(&["limit", "after", "identity", "state"]),
    row(Method::POST, "/api/v1/keys", "create_key", Action::CreateKey, ("NewKey", "makes a key; its text is in this answer and nowhere else"))
        .takes("KeyTerms", Body::Required).makes(),
    row(Method::POST, "/api/v1/keys/import", "import_keys", Action::ImportKeys, ("Imported", "takes over keys by their digests; those that are there already stay as they are"))
        .takes("KeyImport", Body::Required),
    row(Method::GET, "/api/v1/keys/{id}", "show_key", Action::ShowKey, ("Key", "one key, but not its text")),
    row(Method::PATCH, "/api/v1/keys/{id}", "change_key", Action::ChangeKey, ("Key", "changes the fields that are sent; null takes one away"))
        .takes("KeyChange", Body::Required),
    row(Method::POST, "/api/v1/keys/{id}/disable", "disable_key", Action::SetKeyState(KeyState::Disabled), ("Key", "lets nobody in with the key until it is enabled"))
        .takes("Nothing", Body::Optional),
    row(Method::POST, "/api/v1/keys/{id}/enable", "enable_key", Action::SetKeyState(KeyState::Active), ("Key", "lets a disabled key count again"))
        .takes("Nothing", Body::Optional),
    row(Method::POST, "/api/v1/keys/{id}/revoke", "revoke_key", Action::RevokeKey, ("Revoked", "takes the key away for ever; with `now` it also ends what runs with it"))
        .takes("Revocation", Body::Optional),
    row(Method::POST, "/api/v1/keys/{id}/rotate", "rotate_key", Action::RotateKey, ("NewKey", "makes a key that takes the place of this one; both count for a while"))
        .takes("Rotation", Body::Optional).makes(),
    row(Method::POST, "/api/v1/knocks/{code}/allow", "allow_knock", Action::Allow, ("Key", "lets the machine in that was told this code"))
        .takes("Admission", Body::Required).makes().of("Code"),
    row(Method::GET, "/api/v1/audit", "list_audit", Action::ListAudit, ("AuditPage", "who changed what, and failed logins of this API; the newest first"))
        .asked_with(&["limit", "after", "subject"]),
    row(Method::GET, "/api/v1/decisions", "list_decisions", Action::ListDecisions, ("DecisionPage", "the last 10,000 requests that ended, the newest first"))
        .asked_with(&["limit", "after"]),
    row(Method::GET, "/api/v1/decisions/{id}", "show_decision", Action::ShowDecision, ("Decision", "one of them, stage by stage, with what would have allowed it")).of("RequestId"),
    row(Method::GET, "/metrics", "metrics", Action::Metrics, ("Metrics", "what is counted, for Prometheus, as OpenMetrics text"))
        .for_viewers().under_any_host(),
    row(Method::GET, "/api/v1/usage", "sum_usage", Action::SumUsage, ("UsageSums", "what was used, summed by the columns of `by`, as JSON or CSV"))
        .asked_with(&usage::SUMS).for_viewers(),
    row(Method::GET, "/api/v1/usage/rows", "list_usage", Action::ListUsage, ("UsagePage", "what was used, request by request, the newest first"))
        .asked_with(&usage::ROWS).for_viewers(),
    row(Method::GET, "/api/v1/usage/reloads", "list_reloads", Action::ListReloads, ("ReloadPage", "which models had to be loaded, for whom, and whose options were the cause"))
        .asked_with(&usage::ROWS).for_viewers(),
    row(Method::GET, "/api/v1/running", "list_running", Action::ListRunning, ("Running", "the requests that run, by backend, and those that wait, the next one first"))
        .asked_with(&["limit"]).for_viewers(),
    row(Method::POST, "/api/v1/running/stop", "stop_requests", Action::StopRequests, ("Stopped", "ends all requests of one identity, whether they run or wait"))
        .takes("Whose", Body::Required),
    row(Method::POST, "/api/v1/running/{id}/stop", "stop_request", Action::StopRequest, ("Stopped", "ends a request, whether it runs or waits"))
        .takes("Nothing", Body::Optional).of("RequestId"),
    row(Method::GET, "/api/v1/backends", "list_backends", Action::ListBackends, ("Backends", "the model servers, what each has in memory, and how much it works on at once"))
        .for_viewers(),
    row(Method::POST, "/api/v1/backends/{name}/drain", "drain_backend", Action::SetDrained(true), ("Backend", "gives a backend no new requests until it is undrained or the gate starts anew; what runs there goes on"))
        .takes("Nothing", Body::Optional).of("BackendName"),
    row(Method::POST, "/api/v1/backends/{name}/undrain", "undrain_backend", Action::SetDrained(false), ("Backend", "gives a backend new requests again"))
        .takes("Nothing", Body::Optional).of("BackendName"),
];

/// What is in `Allow`, by the place of a route in the table.
static ALLOWED: LazyLock<Vec<String>> = LazyLock::new(|| {
    let methods = |route: &Route| {
        let same = ROUTES.iter().filter(|other| other.path == route.path);
        let names: Vec<_> = same.map(|route| route.method.as_str()).collect();
        let names = names.join(", ");
        if names.contains("GET") { format!("{names}, HEAD") } else { names }
    };
    ROUTES.iter().map(methods).collect()
});

/// A route, and what stood in its path.
#[derive(Debug)]
pub struct Found {
    route: &'static Route,
    id: String,
}

impl Found {
    /// # Errors
    /// 404; 405 for a path that answers to other methods.
    pub fn new(method: &Method, path: &str) -> Result<Self, Reject> {
        let matching = || ROUTES.iter().enumerate().filter(|(_, route)| route.matches(path));
        let literal = matching().find(|(_, route)| route.is_literal());
        let (at, first) = literal.or_else(|| matching().next()).ok_or(Reject::UnknownEndpoint)?;
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let mut same = ROUTES.iter().filter(|route| route.path == first.path);
        let route = same.find(|route| route.method == *method).ok_or_else(|| {
            Reject::MethodNotAllowed { allow: ALLOWED.get(at).map_or("", String::as_str) }
        })?;
        let segments = route.path.split('/').zip(path.split('/'));
        let id = segments.filter(|(our, _)| is_parameter(our)).map(|(_, their)| their).next();
        Ok(Self { route, id: id.unwrap_or_default().to_owned() })
    }

    #[must_use]
    pub fn route(&self) -> &'static Route {
        self.route
    }

    /// What stood for the segment in braces.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// # Errors
    /// 403, naming the role held and the role needed.
    pub fn admit(&self, who: &Identity) -> Result<(), Reject> {
        let (held, needs) = (who.role(), self.route.needs);
        if needs.allow(held) {
            return Ok(());
        }
        let why = Why::Role { held, needed: needs.role() };
        let name = who.name().to_string();
        Err(Reject::Forbidden(Box::new(Denied { operation: self.route.operation, name, why })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_by_its_own_path_and_no_two_are_the_same() {
        for (at, route) in ROUTES.iter().enumerate() {
            let path = ["{id}", "{code}", "{name}"]
                .iter()
                .fold(route.path.to_owned(), |path, it| path.replace(it, "x"));
            let found = Found::new(&route.method, &path).unwrap();
            assert_eq!(found.route().operation, route.operation);
            let same = |it: &&Route| it.path == route.path && it.method == route.method;
            assert_eq!(ROUTES.iter().position(|it| same(&it)), Some(at), "{}", route.path);
            assert!(!route.says.ends_with('.') && !route.says.contains('|'));
        }
    }

    #[test]
    fn no_get_changes_anything_and_every_change_is_for_admins() {
        for route in &ROUTES {
            let reads = matches!(
                route.action,
                Action::Describe
                    | Action::ListKeys
                    | Action::ShowKey
                    | Action::ListAudit
                    | Action::ListDecisions
                    | Action::ShowDecision
                    | Action::Metrics
                    | Action::SumUsage
                    | Action::ListUsage
                    | Action::ListReloads
                    | Action::ListRunning
                    | Action::ListBackends
            );
            assert_eq!(reads, route.method == Method::GET, "{}", route.operation);
            assert!(reads || route.needs == Needs::Admin, "{}", route.operation);
        }
    }

    #[test]
    fn other_methods_are_told_which_there_are() {
        let allow = |method: Method, path: &str| match Found::new(&method, path) {
            Err(Reject::MethodNotAllowed { allow }) => allow,
            other => panic!("{other:?}"),
        };
        assert_eq!(allow(Method::DELETE, "/api/v1/keys"), "GET, POST, HEAD");
        assert_eq!(allow(Method::PUT, "/api/v1/keys/k1"), "GET, PATCH, HEAD");
        assert_eq!(allow(Method::GET, "/api/v1/keys/import"), "POST");
        assert_eq!(allow(Method::GET, "/api/v1/keys/k1/revoke"), "POST");
        assert!(Found::new(&Method::HEAD, "/api/v1/audit").is_ok());
    }

    #[test]
    fn what_is_not_in_the_table_is_not_there() {
        for path in
            ["/", "/api/tags", "/api/v1", "/api/v1/keys/", "/api/v1/keys/a/b", "/api/v2/keys"]
        {
            let found = Found::new(&Method::GET, path);
            assert!(matches!(found, Err(Reject::UnknownEndpoint)), "{path}");
        }
    }
}
