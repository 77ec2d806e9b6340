//! The request once more, for the form of its answer.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use super::{Door, Passed, Served, State, cors, own};
use crate::admin;
use crate::api;
use crate::forward;
use crate::limit::Ticket;
use crate::meter::{Answer, Metered, Riders};
use crate::record::{Record, RequestId};
use crate::reject::{Dialect, REQUEST_ID, Reject, Told};

/// Says which of a request's parameters a policy changed.
const POLICY: HeaderName = HeaderName::from_static("x-portcullis-policy");

const SERVER: HeaderValue = HeaderValue::from_static("portcullis");

/// See the top of the file.
pub(super) struct Asker<'a> {
    pub(super) state: &'a State,
    pub(super) parts: &'a Parts,
    pub(super) door: &'a Door,
}

impl Asker<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::of(api::without_key(self.parts.uri.path()))
    }

    /// Also whether the connection has to end with it.
    pub(super) fn respond(
        &self,
        came: Result<Served, Reject>,
        mut record: Box<Record>,
    ) -> (Response<Answer>, bool) {
        let response = match came {
            Ok(Served::Passed(passed)) => self.pass(*passed, record),
            Ok(Served::Own(answer)) => own(answer, record),
            Ok(Served::Flowing(answer)) => {
                record.line.status = answer.status().as_u16();
                answer.map(|flow| Answer::Flowing { flow, record })
            }
            Ok(Served::Gathered(answer)) => {
                record.line.status = answer.status().as_u16();
                answer.map(|gathered| Answer::Gathered { gathered, record })
            }
            Err(reject) => return (self.refuse(&reject, record), reject.closes()),
        };
        (response, false)
    }

    fn pass(&self, passed: Passed, mut record: Box<Record>) -> Response<Answer> {
        let Passed { answered, ticket, lease, sifts } = passed;
        let mut headers = HeaderMap::new();
        tell_of(&ticket, &mut headers);
        let forward::Answered { status, fields, connection } = answered;
        record.line.status = status.as_u16();
        let riders = Riders { connection, lease, ticket, record, sifts };
        let answer = Metered::around(fields, riders, self.state.idle(), self.dialect());
        let mut response = Response::new(answer);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    pub(super) fn refuse(&self, reject: &Reject, mut record: Box<Record>) -> Response<Answer> {
        let headers = &self.parts.headers;
        let signin_url = match self.door {
            Door::Admin => String::new(),
            Door::Plain | Door::Redirect | Door::Tls(_) => {
                self.state.signin_url(self.door.scheme(), headers.get(header::HOST))
            }
        };
        let told = Told {
            dialect: self.dialect(),
            request_id: record.line.id.as_str(),
            signin_url: &signin_url,
            challenges: self.state.auth().challenges(headers),
        };
        let refusal = reject.response(&told);
        record.refuse(reject, refusal.body().len());
        refusal.map(|data| Answer::Own { data, record: Some(record) })
    }

    pub(super) fn finish(&self, response: &mut Response<Answer>, id: RequestId) {
        if let Answer::Passing { fields, .. } = response.body_mut() {
            // Among the backend's own, which takes less than a map.
            fields.push(REQUEST_ID.as_str().as_bytes(), id.as_bytes());
            fields.push(header::SERVER.as_str().as_bytes(), SERVER.as_bytes());
            self.open_up(response.headers_mut());
        } else {
            self.sign(response.headers_mut(), id);
        }
    }

    /// What the gate says in every answer's head.
    pub(super) fn sign(&self, headers: &mut HeaderMap, id: RequestId) {
        if let Ok(id) = HeaderValue::from_bytes(id.as_bytes()) {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(header::SERVER, SERVER);
        self.open_up(headers);
    }

    /// To whom a browser may show it.
    fn open_up(&self, headers: &mut HeaderMap) {
        if let Door::Admin = self.door {
            return admin::with_safe_headers(headers);
        }
        if let Some(granted) = cors::Granted::to(&self.parts.headers, self.state.cors()) {
            granted.write(headers);
        }
    }
}

/// What an answer says of the decision that let it through.
pub(super) fn tell_of(ticket: &Ticket, headers: &mut HeaderMap) {
    if let Some(changed) = ticket.permit().changed() {
        headers.insert(POLICY, changed.clone());
    }
    if let Some(left) = ticket.left() {
        left.write(headers);
    }
}
