//! What models each backend has, on disk and in memory, heard aside while requests come and go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Backend;
use super::own::PATIENCE;
use crate::config::{BackendKind, ModelName};

/// How often each is asked.
const DISK_EVERY: Duration = Duration::from_secs(8);
const MEMORY_EVERY: Duration = Duration::from_secs(2);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// A list that no request waits for may take longer.
const BACKGROUND: Duration = Duration::from_secs(10);
/// Requests for models that nobody has make no more questions than this.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

impl Backend {
    /// Whether it has the model; `None` where that has not been heard.
    #[must_use]
    pub fn has(&self, model: &ModelName) -> Option<bool> {
        let listed = self.live.listed.latest()?;
        let names = listed.as_ref().as_ref()?;
        match names.contains_key(&*model.without_source()) {
            true => Some(true),
            // A server that is signed in asks ollama.com for what it does not list.
            false if model.is_cloud() && self.kind() == BackendKind::Ollama => None,
            false => Some(false),
        }
    }

    /// Whether it told so just now: what it told before may have changed, and nobody asks one that is alone.
    pub(super) fn lacks(&self, model: &ModelName, now: Instant) -> bool {
        self.live.listed.last(now).is_some() && self.has(model) == Some(false)
    }

    /// Whether the model is one that runs elsewhere, where it has it.
    pub(super) fn is_stub(&self, model: &ModelName) -> Option<bool> {
        let listed = self.live.listed.latest()?;
        listed.as_ref().as_ref()?.get(&*model.without_source()).copied()
    }

    /// Whether it has the model in memory, as far as was heard.
    #[must_use]
    pub fn is_loaded(&self, model: &ModelName) -> bool {
        match self.kind() {
            BackendKind::Ollama => {
                let (loaded, model) = (self.live.loaded.latest(), model.without_source());
                loaded.is_some_and(|it| it.iter().any(|(name, _)| name.without_source() == model))
            }
            // These servers load what they have when they start.
            BackendKind::OpenAi => self.has(model) == Some(true),
        }
    }

    /// Whether this is its name for a model that runs elsewhere, as far as was heard: no slot of its
    /// own is taken then.
    pub(super) fn sends_on(&self, model: &ModelName) -> bool {
        let listed = self.live.listed.latest();
        let names = listed.as_ref().and_then(|listed| listed.as_ref().as_ref());
        model.is_cloud() || names.is_some_and(|it| it.get(&*model.without_source()) == Some(&true))
    }

    /// Whether its list was never asked for.
    pub(super) fn is_unheard(&self, now: Instant) -> bool {
        self.live.listed.latest().is_none() && self.live.listed.is_due(Duration::MAX, now)
    }

    /// Asks, aside, whatever is due; one look at a time.
    pub(super) fn look(self: &Arc<Self>, now: Instant, probes: bool) {
        let mut looking = self.live.looking();
        while looking.try_join_next().is_some() {}
        if looking.is_empty() {
            let backend = Arc::clone(self);
            looking.spawn(async move { backend.look_now(now, probes).await });
        }
    }

    async fn look_now(&self, now: Instant, probes: bool) {
        if probes && self.wants_probe(now) && self.live.probe_is_due(PROBE_EVERY, now) {
            let finding = self.probe().await;
            self.find(finding);
        }
        if probes && !self.is_up() {
            // What it had it will most likely have.
            return;
        }
        if self.live.loaded.is_due(MEMORY_EVERY, now) {
            self.hear_loaded(now).await;
        }
        if self.live.listed.is_due(DISK_EVERY, now) {
            self.hear_listed(now, BACKGROUND).await;
        }
    }

    /// Asks at once, for a request that waits; not more often than is good.
    pub(super) async fn look_again(&self, now: Instant) {
        if self.live.listed.is_due(AT_MOST_EVERY, now) {
            self.hear_listed(now, PATIENCE).await;
        }
    }

    async fn hear_listed(&self, now: Instant, patience: Duration) {
        let (listed, is_heard) = self.live.listed.newest(now, self.tell_listed(patience)).await;
        if is_heard {
            if listed.is_none() {
                self.tell_once("its list of models", "what is answered is no such list");
            } else {
                self.live.told.store(false, Ordering::Relaxed);
            }
        }
    }

    async fn hear_loaded(&self, now: Instant) {
        let before = self.live.loaded.latest();
        let asking = self.tell_loaded(BACKGROUND);
        let (loaded, is_heard) = self.live.loaded.newest(now, asking).await;
        if is_heard && before.is_none_or(|before| before != loaded) {
            self.live.tell_loaded(&loaded);
        }
    }

    /// Says what cannot be had of it, once until it can be had again.
    pub(super) fn tell_once(&self, what: &str, why: &str) {
        if !self.live.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(backend = &**self.name(), "{what} cannot be had: {why}");
        }
    }
}
