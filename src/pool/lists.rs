//! What backends list to callers: asked together, and kept for when one of them is silent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Backend, Failed, Outbound, Pool};
use crate::api::Asked;
use crate::call::Outgoing;
use crate::config::BackendKind;
use crate::reject::Reject;

mod read;

pub use read::{Entry, Key};

/// Front ends show nothing before they have the list.
const PATIENCE: Duration = Duration::from_millis(250);
/// Where it was changed through the gate since it told its list last.
const AFTER_A_CHANGE: Duration = Duration::from_secs(2);
/// Where nothing is known of any; front ends give up after 5 s.
const AT_FIRST: Duration = Duration::from_secs(4);
/// A backend that takes longer has not told.
const LONGEST: Duration = Duration::from_secs(10);
/// What was told so long ago says little of now.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// A list of 100,000 models has less.
const MOST_BYTES: usize = 32 << 20;
/// Longer lists are read aside, because that takes more than a millisecond.
const READ_AT_ONCE: usize = 64 << 10;

/// What a backend can be asked for that others have too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Models that it has.
    Tags,
    /// Models in memory.
    Running,
    /// Models that it has, as OpenAI tells.
    Models,
    Version,
}

/// What one backend told, in its order.
#[derive(Debug)]
pub struct Told {
    asked: Instant,
    pub entries: Vec<Entry>,
}

/// The list that was made last of long ones, so that many callers at once share its memory.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Option<Last>>);

/// Of what it was made, and what came of it.
type Last = (List, Vec<Arc<Told>>, Bytes);

impl Made {
    /// It may take long, also for who comes meanwhile.
    fn once(&self, list: List, told: &[Arc<Told>], make: impl FnOnce() -> Bytes) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, from, made)) = &*last
            && *of == list
            && from.len() == told.len()
            && from.iter().zip(told).all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return made.clone();
        }
        let made = make();
        *last = Some((list, told.to_vec(), made.clone()));
        made
    }
}

/// Why nothing is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Untold {
    Unreachable,
    NoList,
    Silent,
}

/// The lists of one backend; they outlive a reload.
#[derive(Debug, Default)]
pub(super) struct Lists {
    kept: [Kept; 4],
    asking: Mutex<JoinSet<()>>,
    managed: Mutex<Managed>,
}

/// One list.
#[derive(Debug, Default)]
struct Kept {
    round: watch::Sender<Round>,
    /// That it cannot be had has been told.
    is_complained_of: AtomicBool,
}

/// One asks, and who came before that is served by the answer.
#[derive(Debug, Default)]
struct Round {
    is_asked: bool,
    /// When the last question was put that has come to its end, and what became of it.
    ended: Option<(Instant, Result<(), Untold>)>,
    last: Option<Arc<Told>>,
}

/// What is done to its models through the gate.
#[derive(Debug, Default)]
struct Managed {
    now: usize,
    last: Option<Instant>,
}

/// Goes along with a request that may change what a backend has.
#[derive(Debug)]
pub(super) struct Change(Arc<Backend>);

impl List {
    /// The list that is asked for, if one is.
    #[must_use]
    pub fn of(asked: &Asked) -> Option<Self> {
        match asked.operation() {
            "list" => Some(Self::Tags),
            "ps" => Some(Self::Running),
            "v1_models" => Some(Self::Models),
            "version" => Some(Self::Version),
            _ => None,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Tags => "/api/tags",
            Self::Running => "/api/ps",
            Self::Models => "/v1/models",
            Self::Version => "/api/version",
        }
    }

    /// One in maintenance takes nothing new, but what it has in memory still runs.
    fn is_told_by(self, backend: &Backend) -> bool {
        match (self, backend.kind()) {
            (Self::Models, _) => !backend.is_drained(),
            (Self::Running, kind) => kind == BackendKind::Ollama,
            (Self::Tags | Self::Version, kind) => {
                kind == BackendKind::Ollama && !backend.is_drained()
            }
        }
    }
}

impl Pool {
    /// Whether several backends are asked for it, and not one.
    #[must_use]
    pub fn lists_together(&self, list: List) -> bool {
        self.backends.len() > 1 && self.backends.iter().any(|it| list.is_told_by(it))
    }

    /// One long list made of theirs, once for all callers to whom they told the same; blocks.
    pub fn made_once(
        &self,
        list: List,
        told: &[(Arc<Backend>, Arc<Told>)],
        make: impl FnOnce() -> Bytes,
    ) -> Bytes {
        let told: Vec<_> = told.iter().map(|(_, told)| Arc::clone(told)).collect();
        self.made.once(list, &told, make)
    }

    /// What they tell, or told last if they are silent, in the order of the file.
    ///
    /// # Errors
    /// 502, 503, 504 where nothing is known of any.
    pub async fn lists(&self, list: List) -> Result<Vec<(Arc<Backend>, Arc<Told>)>, Reject> {
        let since = Instant::now();
        for patience in [PATIENCE, AT_FIRST] {
            let tellers = self.backends.iter().filter(|it| list.is_told_by(it));
            let telling = tellers.map(|it| async move {
                let told = it.told(list, (since, patience)).await;
                told.map(|told| (Arc::clone(it), told))
            });
            let told = join_all(telling).await;
            let worst = told.iter().filter_map(|it| it.as_ref().err().copied()).max();
            let known: Vec<_> = told.into_iter().flatten().collect();
            match worst {
                _ if !known.is_empty() => return Ok(known),
                Some(Untold::Silent) => {}
                Some(Untold::NoList) => {
                    return Err(Reject::BackendFailed("none of them tells a list".into()));
                }
                Some(Untold::Unreachable) | None => {
                    return Err(Reject::NoBackend("none of them can be reached".into()));
                }
            }
        }
        Err(Reject::BackendTimeout)
    }
}

impl Backend {
    /// Or told last, where that is not long ago.
    async fn told(
        self: &Arc<Self>,
        list: List,
        (since, patience): (Instant, Duration),
    ) -> Result<Arc<Told>, Untold> {
        let lists = &self.live.lists;
        let newest = tokio::time::timeout(patience, self.newest(list, since)).await;
        let why = match newest {
            Ok(Ok(told)) => return Ok(told),
            Ok(Err(why)) => why,
            Err(_) if lists.is_changed_since(lists.kept(list).last_asked()) => {
                let newest = self.newest(list, since);
                match tokio::time::timeout(AFTER_A_CHANGE, newest).await {
                    Ok(Ok(told)) => return Ok(told),
                    Ok(Err(why)) => why,
                    Err(_) => Untold::Silent,
                }
            }
            Err(_) => Untold::Silent,
        };
        let last = lists.kept(list).round.borrow().last.clone();
        last.filter(|told| told.asked.elapsed() < KEPT_FOR).ok_or(why)
    }

    /// What it tells to a question that was not put before `since`.
    async fn newest(self: &Arc<Self>, list: List, since: Instant) -> Result<Arc<Told>, Untold> {
        let kept = self.live.lists.kept(list);
        let mut rounds = kept.round.subscribe();
        loop {
            {
                let round = rounds.borrow_and_update();
                if let Some((_, came)) = round.ended.filter(|(asked, _)| *asked >= since) {
                    return came.and(round.last.clone().ok_or(Untold::NoList));
                }
            }
            if kept.takes_turn() {
                self.ask_aside(list);
            }
            // The sender lives as long as the backend.
            let _ = rounds.changed().await;
        }
    }

    /// Whoever waits may leave; the answer is good for the next.
    fn ask_aside(self: &Arc<Self>, list: List) {
        let backend = Arc::clone(self);
        let mut asking = self.live.lists.asking.lock().unwrap_or_else(PoisonError::into_inner);
        while asking.try_join_next().is_some() {}
        asking.spawn(async move {
            let mut turn = Turn {
                kept: backend.live.lists.kept(list),
                asked: Instant::now(),
                came: Err(Untold::Silent),
            };
            let heard = tokio::time::timeout(LONGEST, backend.hear(list)).await;
            let heard = heard.unwrap_or(Err((Untold::Silent, "it is silent".to_owned())));
            turn.kept.complain(&backend, list, heard.as_ref().err().map(|(_, why)| &**why));
            turn.came = heard.map_err(|(untold, _)| untold);
        });
    }

    async fn hear(&self, list: List) -> Result<Vec<Entry>, (Untold, String)> {
        let body = self.fetch(list.path()).await?;
        let is_short = body.len() <= READ_AT_ONCE;
        let read = move || read::entries(list, &body);
        let entries = match is_short {
            true => read(),
            // It does not fail but by a panic.
            false => tokio::task::spawn_blocking(read).await.ok().flatten(),
        };
        entries.ok_or_else(|| (Untold::NoList, "what it answers is no list".to_owned()))
    }

    /// Over a kept connection, or a new one.
    async fn fetch(&self, path: &str) -> Result<Bytes, (Untold, String)> {
        let mut head = format!("GET {path} HTTP/1.1\r\n").into_bytes();
        let mut push = |name: &header::HeaderName, value: &HeaderValue| {
            crate::http1::push_field(&mut head, name, value.as_bytes());
        };
        push(&header::HOST, self.host());
        push(&header::USER_AGENT, &HeaderValue::from_static("portcullis"));
        push(&header::VIA, self.via());
        if let Some(key) = self.key() {
            push(&header::AUTHORIZATION, key);
        }
        head.extend_from_slice(b"\r\n");
        let mut request = Outbound::new(Method::GET, head, Outgoing::empty());
        let mut kept = self.take_idle(Instant::now());
        loop {
            let is_fresh = kept.is_none();
            let mut connection = match kept.take() {
                Some(kept) => kept,
                None => {
                    let fresh = self.connect().await;
                    fresh.map_err(|error| (Untold::Unreachable, error.to_string()))?
                }
            };
            match connection.exchange(&mut request, LONGEST).await {
                Ok(head) if head.status == StatusCode::OK => {}
                Ok(head) => return Err((Untold::NoList, format!("it answers {}", head.status))),
                Err(Failed::NotBegun) if !is_fresh => continue,
                Err(Failed::Broken(cause)) => return Err((Untold::NoList, cause.to_string())),
                Err(Failed::NotBegun | Failed::Late | Failed::Upload) => {
                    return Err((Untold::NoList, "it ends the connection".to_owned()));
                }
            }
            let body = connection.whole(LONGEST, MOST_BYTES).await;
            let body = body.map_err(|reject| (Untold::NoList, reject.to_string()))?;
            self.keep(connection, Instant::now());
            return Ok(body);
        }
    }

    /// From now on its lists are others, until what is done is over.
    pub(super) fn change(self: &Arc<Self>) -> Change {
        self.live.lists.managed().now += 1;
        Change(Arc::clone(self))
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        {
            let mut managed = self.0.live.lists.managed();
            managed.now -= 1;
            managed.last = Some(Instant::now());
        }
        self.0.live.listed.outdate();
    }
}

impl Lists {
    fn kept(&self, list: List) -> &Kept {
        let [tags, running, models, version] = &self.kept;
        match list {
            List::Tags => tags,
            List::Running => running,
            List::Models => models,
            List::Version => version,
        }
    }

    fn managed(&self) -> std::sync::MutexGuard<'_, Managed> {
        self.managed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what it told at that time may be outdated by what was done through the gate.
    fn is_changed_since(&self, asked: Option<Instant>) -> bool {
        let managed = self.managed();
        let is_newer = |last: Instant| asked.is_none_or(|asked| asked <= last);
        managed.now > 0 || managed.last.is_some_and(is_newer)
    }
}

impl Kept {
    fn last_asked(&self) -> Option<Instant> {
        self.round.borrow().last.as_ref().map(|told| told.asked)
    }

    /// Whether it is for the one who asks this to put the question.
    fn takes_turn(&self) -> bool {
        self.round.send_if_modified(|round| !std::mem::replace(&mut round.is_asked, true))
    }

    /// Says that it cannot be had, once until it can.
    fn complain(&self, backend: &Backend, list: List, why: Option<&str>) {
        let was = self.is_complained_of.swap(why.is_some(), Ordering::Relaxed);
        if let Some(why) = why.filter(|_| !was) {
            let backend = &**backend.name();
            tracing::warn!(
                backend,
                path = list.path(),
                "the list of a backend cannot be had: {why}"
            );
        }
    }
}

/// A question that is under way; however it ends, the next one may be put.
struct Turn<'a> {
    kept: &'a Kept,
    asked: Instant,
    came: Result<Vec<Entry>, Untold>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let asked = self.asked;
        let came = std::mem::replace(&mut self.came, Err(Untold::Silent));
        self.kept.round.send_modify(|round| {
            round.is_asked = false;
            round.ended = Some((asked, came.as_ref().map(|_| ()).map_err(|why| *why)));
            if let Ok(entries) = came {
                round.last = Some(Arc::new(Told { asked, entries }));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_made_anew_only_of_what_is_told_anew() {
        let told = || Arc::new(Told { asked: Instant::now(), entries: Vec::new() });
        let (a, b, made) = (told(), told(), Made::default());
        let is_made = |list, told: &[&Arc<Told>]| {
            let told: Vec<_> = told.iter().copied().map(Arc::clone).collect();
            let mut is_made = false;
            made.once(list, &told, || {
                is_made = true;
                Bytes::new()
            });
            is_made
        };
        for (list, told, expected) in [
            (List::Tags, &[&a, &b][..], true),
            (List::Tags, &[&a, &b], false),
            (List::Models, &[&a, &b], true),
            (List::Tags, &[&a], true),
            (List::Tags, &[&b], true),
        ] {
            assert_eq!(is_made(list, told), expected, "{list:?}");
        }
    }

    #[test]
    fn what_was_told_before_a_change_ended_is_outdated() {
        let backend = Backend::plain("a", "http://127.0.0.1:1".parse().unwrap(), None);
        let backend = Arc::new(backend);
        let is_changed = |asked| backend.live.lists.is_changed_since(asked);
        let before = Instant::now();
        assert!(!is_changed(None) && !is_changed(Some(before)));
        let change = backend.change();
        assert!(is_changed(Some(Instant::now())));
        drop(change);
        assert!(is_changed(Some(before)) && is_changed(None));
        assert!(!is_changed(Some(Instant::now() + Duration::from_millis(1))));
    }
}
