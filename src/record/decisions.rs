//! The last decisions, kept in memory: stage by stage what became of a request, and what it would
//! have taken.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::text::{LONGEST_TEXT, millis, rfc3339, short};
use super::{Line, Outcome, RequestId};
use crate::api::ENDPOINTS;
use crate::auth::Credential;
use crate::reject::Reject;

/// How many are kept; with the longest of everything they take some 16 MiB.
pub const MOST_DECISIONS: usize = 10_000;
/// Longest text of a refusal that is kept, in bytes.
const LONGEST_SAYING: usize = 512;

/// A line each, in the place that its number gives it: nobody waits for another's.
pub struct Decisions(Box<[Place]>);

/// Its memory is asked for once, and swapped for the next line's.
type Place = Mutex<Option<Box<Line>>>;

/// What a caller was told, and what would have made it otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    says: Box<str>,
    remedy: Option<Box<str>>,
}

impl Refusal {
    pub(super) fn of(reject: &Reject) -> Self {
        let kept = |text: String| Box::from(within(&text, LONGEST_SAYING));
        Self { says: kept(reject.says()), remedy: reject.remedy().map(kept) }
    }
}

impl Default for Decisions {
    fn default() -> Self {
        Self((0..MOST_DECISIONS).map(|_| Mutex::new(None)).collect())
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").finish_non_exhaustive()
    }
}

impl Decisions {
    /// Takes a line that has been written, and leaves an older one in its stead.
    pub(super) fn keep(&self, line: &mut Line) {
        bound(line);
        let Some(place) = self.place(line.id) else { return };
        match &mut *open(place) {
            Some(kept) => std::mem::swap(&mut **kept, line),
            empty @ None => *empty = Some(Box::new(std::mem::take(line))),
        }
    }

    /// What became of this request, if it has ended and is not too long ago.
    #[must_use]
    pub fn find(&self, id: RequestId) -> Option<Value> {
        let kept = open(self.place(id)?);
        kept.as_ref().filter(|line| line.id == id).map(|line| whole(line))
    }

    /// One page, the newest first: at most `most` of those before `after`, without their stages, and
    /// whether there are more.
    #[must_use]
    pub fn page(&self, after: Option<RequestId>, most: usize) -> (Vec<Value>, bool) {
        let key = |line: &Line| (line.time, line.id.0);
        let end = after.map(|id| {
            let kept = self.place(id).map(open);
            let kept = kept.as_ref().and_then(|kept| kept.as_ref());
            kept.filter(|line| line.id == id).map(|line| key(line))
        });
        // Whoever asks for what comes after one that is forgotten has seen all that is left.
        let end = match end {
            Some(None) => return (Vec::new(), false),
            Some(Some(end)) => Some(end),
            None => None,
        };
        let keys = self.0.iter().filter_map(|place| open(place).as_ref().map(|line| key(line)));
        let mut keys: Vec<_> = keys.filter(|key| end.is_none_or(|end| *key < end)).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let shown = keys.iter().take(most).filter_map(|(_, id)| {
            let kept = open(self.place(RequestId(*id))?);
            kept.as_ref().filter(|line| line.id.0 == *id).map(|line| facts(line))
        });
        (shown.collect(), keys.len() > most)
    }

    fn place(&self, id: RequestId) -> Option<&Place> {
        self.0.get(id.number() as usize % MOST_DECISIONS)
    }
}

fn open(place: &Place) -> MutexGuard<'_, Option<Box<Line>>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller decides how long these are, and they stay for a while.
fn bound(line: &mut Line) {
    if line.path.len() > LONGEST_TEXT {
        line.path = short(&line.path).to_owned().into();
    }
    if let Some(model) = &mut line.model
        && model.len() > LONGEST_TEXT
    {
        *model = short(model).to_owned();
    }
    if line.method.as_ref().is_some_and(|method| method.as_str().len() > LONGEST_TEXT) {
        line.method = None;
    }
}

fn within(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn facts(line: &Line) -> Value {
    json!({
        "id": line.id.as_str(),
        "time": rfc3339(line.time),
        "client": line.client,
        "name": line.name.as_ref().map(|name| short(name.as_str())),
        "credential": line.credential.map(Credential::as_str),
        "role": line.role.map(|role| role.to_string()),
        "key": line.key.map(|key| key.to_string()),
        "method": line.method.as_ref().map(|method| method.as_str()),
        "path": short(&line.path),
        "operation": line.operation,
        "model": line.model.as_deref().map(short),
        "backend": line.backend.as_deref(),
        "status": line.status,
        "code": line.outcome.code(),
        "outcome": line.outcome.to_string(),
        "bytes_in": line.bytes_in,
        "bytes_out": line.bytes_out,
        "queue_ms": millis(line.queue),
        "first_byte_ms": line.first_byte.map(millis),
        "total_ms": millis(line.total),
        "position": line.position,
    })
}

fn whole(line: &Line) -> Value {
    let mut whole = facts(line);
    let refusal = line.refusal.as_deref();
    let more = json!({
        "says": refusal.map(|refusal| &*refusal.says),
        "would_allow": refusal.and_then(|refusal| refusal.remedy.as_deref()),
        "stages": stages(line),
    });
    if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
        whole.extend(more);
    }
    whole
}

/// The stages of the path, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Head,
    Login,
    Endpoint,
    Access,
    Body,
    Backend,
    Answer,
}

impl Stage {
    const ALL: [Self; 7] = [
        Self::Head,
        Self::Login,
        Self::Endpoint,
        Self::Access,
        Self::Body,
        Self::Backend,
        Self::Answer,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Login => "login",
            Self::Endpoint => "endpoint",
            Self::Access => "access",
            Self::Body => "body",
            Self::Backend => "backend",
            Self::Answer => "answer",
        }
    }

    /// The one that the request did not pass; all were passed by one that was answered.
    fn last_of(line: &Line) -> Option<Self> {
        if line.outcome == Outcome::Done {
            return None;
        }
        let code = line.outcome.code().unwrap_or_default();
        Some(match (&line.name, line.operation, &line.backend) {
            (_, _, Some(_)) if line.first_byte.is_some() => Self::Answer,
            (_, _, Some(_)) => Self::Backend,
            (None, _, _) if is_of_login(line.status, code) => Self::Login,
            (None, _, _) => Self::Head,
            (Some(_), None, None) => Self::Endpoint,
            (Some(_), Some(_), None) if matches!(line.status, 403 | 404 | 429) => Self::Access,
            (Some(_), Some(_), None) => Self::Body,
        })
    }

    fn says(self, line: &Line) -> String {
        match self {
            Self::Head => match &line.method {
                Some(method) => format!("{} {}", short(method.as_str()), short(&line.path)),
                None => "the head of a request".to_owned(),
            },
            Self::Login => match (&line.name, line.credential) {
                (Some(name), Some(credential)) => {
                    let role = line.role.map(|role| format!(", role {role}")).unwrap_or_default();
                    let key = line.key.map(|key| format!(" {key}")).unwrap_or_default();
                    format!("{} by {}{key}{role}", short(name.as_str()), credential.as_str())
                }
                (Some(_) | None, _) => "no login was needed".to_owned(),
            },
            Self::Endpoint => match line.operation {
                Some(operation) => format!("{operation}{}", needs(operation)),
                None => "the gate's own".to_owned(),
            },
            Self::Access => match &line.model {
                Some(model) => format!("role and rules, model {}", short(model)),
                None => "role and rules".to_owned(),
            },
            Self::Body => format!("{} bytes came in", line.bytes_in),
            Self::Backend => match &line.backend {
                Some(backend) => format!("sent to {backend}"),
                None => "answered by the gate".to_owned(),
            },
            Self::Answer => format!(
                "{}, {} bytes went out in {:.1} ms: {}",
                line.status,
                line.bytes_out,
                millis(line.total),
                line.outcome
            ),
        }
    }
}

fn is_of_login(status: u16, code: &str) -> bool {
    matches!(status, 401 | 429) || matches!(code, "tls_required" | "overloaded")
}

fn needs(operation: &str) -> String {
    let row = ENDPOINTS.iter().find(|row| row.operation == operation);
    row.map(|row| format!(", of the class {}, for the role {}", row.class, row.class.needs()))
        .unwrap_or_default()
}

fn stages(line: &Line) -> Vec<Value> {
    let last = Stage::last_of(line);
    let stage = |stage: Stage| {
        let (result, says) = match last {
            Some(last) if stage > last => ("not reached", String::new()),
            Some(last) if stage == last => match (&line.refusal, line.outcome) {
                (Some(refusal), _) => ("refused", refusal.says.to_string()),
                (None, Outcome::ClientGone) => ("left", "the caller left".to_owned()),
                (None, _) => ("broke off", stage.says(line)),
            },
            Some(_) | None => ("passed", stage.says(line)),
        };
        json!({"stage": stage.as_str(), "result": result, "says": says})
    };
    Stage::ALL.into_iter().map(stage).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::config::Role;
    use crate::record::RequestIds;
    use crate::reject::{Denied, Why};

    fn line(id: RequestId, second: u64) -> Line {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Line { id, time, status: 200, outcome: Outcome::Done, ..Line::default() }
    }

    #[test]
    fn the_last_ten_thousand_are_kept_and_the_one_before_is_gone() {
        let (decisions, ids) = (Decisions::default(), RequestIds::new().unwrap());
        let drawn: Vec<_> = (0..=MOST_DECISIONS).map(|_| ids.draw()).collect();
        for (at, id) in drawn.iter().enumerate() {
            decisions.keep(&mut line(*id, at as u64));
        }
        assert_eq!(decisions.find(drawn[0]), None);
        for id in &drawn[1..] {
            assert_eq!(decisions.find(*id).unwrap()["id"], id.as_str());
        }
    }

    #[test]
    fn pages_go_from_the_newest_to_the_oldest_without_a_gap() {
        let (decisions, ids) = (Decisions::default(), RequestIds::new().unwrap());
        let drawn: Vec<_> = (0..25).map(|_| ids.draw()).collect();
        for id in &drawn {
            decisions.keep(&mut line(*id, 7));
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = decisions.page(after, 10);
            seen.extend(page.iter().map(|it| it["id"].as_str().unwrap().to_owned()));
            after = seen.last().and_then(|id| RequestId::parse(id));
            if !more {
                break;
            }
        }
        let expected: Vec<_> = drawn.iter().rev().map(|id| id.as_str().to_owned()).collect();
        assert_eq!(seen, expected);
        assert_eq!(decisions.page(RequestId::parse("ffffffffffffffff"), 10), (Vec::new(), false));
    }

    #[test]
    fn what_a_caller_makes_long_is_kept_short() {
        let (decisions, id) = (Decisions::default(), RequestIds::new().unwrap().draw());
        let long = "é".repeat(5000);
        let mut kept = Line {
            path: format!("/{long}").into(),
            model: Some(long.clone()),
            method: Some(http::Method::from_bytes(&[b'A'; 5000]).unwrap()),
            ..line(id, 1)
        };
        decisions.keep(&mut kept);
        assert!(decisions.find(id).unwrap().to_string().len() < 2500);
        assert!(within(&long, LONGEST_SAYING).len() <= LONGEST_SAYING);
    }

    fn told(change: impl FnOnce(&mut Line)) -> Value {
        let id = RequestIds::new().unwrap().draw();
        let mut line = line(id, 1);
        line.method = Some(http::Method::POST);
        line.path = "/api/pull".into();
        change(&mut line);
        let decisions = Decisions::default();
        decisions.keep(&mut line);
        decisions.find(id).unwrap()
    }

    fn results(told: &Value) -> Vec<String> {
        let of = |stage: &Value| stage["result"].as_str().unwrap().to_owned();
        told["stages"].as_array().unwrap().iter().map(of).collect()
    }

    fn refuse(line: &mut Line, reject: &Reject) {
        line.status = reject.row().status;
        line.outcome = Outcome::Refused(reject.row().code);
        line.refusal = Some(Box::new(Refusal::of(reject)));
    }

    #[test]
    fn a_refusal_stands_at_its_stage_with_what_would_have_allowed_it() {
        let why = Why::Role { held: Role::User, needed: Role::Operator };
        let denied = Denied { operation: "pull", name: "anna".to_owned(), why };
        let reject = Reject::Forbidden(Box::new(denied));
        let told = told(|line| {
            line.name = Some("anna".into());
            line.credential = Some(Credential::Key);
            line.role = Some(Role::User);
            line.operation = Some("pull");
            refuse(line, &reject);
        });
        let expected =
            ["passed", "passed", "passed", "refused", "not reached", "not reached", "not reached"];
        assert_eq!(results(&told), expected);
        assert_eq!(told["says"], reject.says());
        assert!(told["would_allow"].as_str().unwrap().contains("operator = [\"anna\"]"), "{told}");
        assert_eq!(told["stages"][1]["says"], "anna by key, role user");
        let endpoint = "pull, of the class manage, for the role operator";
        assert_eq!(told["stages"][2]["says"], endpoint);
    }

    #[test]
    fn each_stage_can_be_the_last() {
        let known = |line: &mut Line| line.name = Some("anna".into());
        let asked = move |line: &mut Line| {
            known(line);
            line.operation = Some("chat");
        };
        let sent = move |line: &mut Line| {
            asked(line);
            line.backend = Some("ollama".into());
        };
        let at = |told: Value| results(&told).iter().position(|it| it == "refused").unwrap();
        assert_eq!(at(told(|line| refuse(line, &Reject::BadPath("x")))), 0);
        assert_eq!(at(told(|line| refuse(line, &Reject::NoCredentials))), 1);
        let late = Reject::TooManyFailures { retry_after: Duration::from_secs(1) };
        assert_eq!(at(told(|line| refuse(line, &late))), 1);
        let wrong = Reject::MethodNotAllowed { allow: "GET" };
        assert_eq!(at(told(|line| (known(line), refuse(line, &wrong)).1)), 2);
        let large = Reject::BodyTooLarge { limit: 1 };
        assert_eq!(at(told(|line| (asked(line), refuse(line, &large)).1)), 4);
        let down = Reject::NoBackend("x".into());
        assert_eq!(at(told(|line| (sent(line), refuse(line, &down)).1)), 5);
        let cut = told(|line| {
            sent(line);
            line.first_byte = Some(Duration::ZERO);
            line.outcome = Outcome::ClientGone;
        });
        assert_eq!(results(&cut).last().unwrap(), "left");
        assert!(results(&told(sent)).iter().all(|it| it == "passed"));
    }
}
