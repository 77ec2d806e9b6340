//! `/_portcullis/me`: who a caller is, what they may do, what they used, and what is left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::open::json_answer;
use super::{Live, State};
use crate::auth::Identity;
use crate::limit::{Limits, Shown, Subject};
use crate::pool::queue::{Seen, Spot, whole_seconds};
use crate::reject::Allowed;
use crate::report::{self, Period, Question};
use crate::store::{Store, StoreError, UsageFilter};

/// A sum takes milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);
/// More rows on their way into the store are not read for one caller.
const MOST_LAG: u64 = 10_000;

/// Who may look into the store for a caller: one at a time, however many ask.
#[derive(Debug)]
pub(super) struct Looks(Arc<Semaphore>);

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

pub(super) async fn answer(live: &Live, state: &State, who: &Identity) -> Response<Bytes> {
    let reach = state.rules().reach_of(who.clone());
    let Allowed { by_rule, by_key } = reach.models_shown();
    let both = by_rule.is_some();
    let models = by_rule.or_else(|| by_key.clone());
    let models = models.map_or_else(|| json!("all"), |patterns| json!(patterns));
    let (now, wall) = (Instant::now(), Timestamp::now());
    let Shown { limits, used, left } =
        live.limits.spent(state.plan(), &Subject::of(&reach), now, wall);
    let mut me = json!({
        "name": who.name().as_str(), "role": who.role().to_string(), "models": models,
        "limits": limits, "used": used, "left": left, "waiting": waiting(state, who),
    });
    // A name has to be among both then.
    if let (Some(by_key), Some(me)) = (by_key.filter(|_| both), me.as_object_mut()) {
        me.insert("key_models".to_owned(), json!(by_key));
    }
    if live.ledger.is_some() {
        let looked = tokio::time::timeout(PATIENCE, usage(live, state, who, wall)).await;
        let usage = looked.ok().flatten().unwrap_or_default();
        if let Some(me) = me.as_object_mut() {
            me.insert("usage".to_owned(), usage);
        }
    }
    json_answer(StatusCode::OK, &me)
}

/// What the ledger has of the caller since the day and the month began. `None` where it has not all of
/// it, or cannot be read.
async fn usage(live: &Live, state: &State, who: &Identity, wall: Timestamp) -> Option<Value> {
    let ledger = live.ledger.as_ref()?;
    if ledger.trouble().is_some() || ledger.lag() > MOST_LAG {
        return None;
    }
    let store = Arc::clone(live.memory.managed()?.store());
    let config = state.config();
    let (zone, prices) = (config.time_zone.clone(), config.prices.clone());
    let only = UsageFilter { name: Some(who.name().as_str().to_owned()), ..UsageFilter::default() };
    let (day, month) = Limits::wants_since(state.plan(), wall);
    // Goes with the look, whoever still waits for that.
    let turn = Arc::clone(&live.looks.0).acquire_owned().await.ok()?;
    let look = move || -> Result<Value, StoreError> {
        let _turn = turn;
        let since = |store: &Store, since| {
            let period = Period { since, until: wall };
            let (by, zone, only) = (Vec::new(), zone.clone(), only.clone());
            let asked = Question { by, period, zone, only };
            report::sums(store, &asked, &prices).map(|sums| sums.all_to_json())
        };
        Ok(json!({"today": since(&store, day)?, "month": since(&store, month)?}))
    };
    tokio::task::spawn_blocking(look).await.ok()?.ok()
}

/// A caller's own requests that wait for their turn, the next one first.
fn waiting(state: &State, who: &Identity) -> Vec<Value> {
    let line = state.pool().line();
    let mut own = line.with(|queue, now| queue.waits_of(who.name().as_str(), now));
    own.sort_by_key(Seen::position);
    let told = |seen: &Seen| match seen.spot {
        Spot::Waits { position, expected, .. } => Some(json!({
            "id": String::from_utf8_lossy(&seen.course.id), "model": &*seen.model,
            "position": position, "expected_s": whole_seconds(expected),
        })),
        Spot::Runs { .. } => None,
    };
    own.iter().filter_map(told).collect()
}
