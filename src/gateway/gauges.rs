//! What is true of the gate at the moment, for its metrics.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::{Live, State, open};
use crate::metrics::{BackendGauge, FileGauge, Gauges, Process};

const DAY: i64 = 24 * 60 * 60;

/// Looks at everything now.
pub(super) fn look(live: &Live, state: &State) -> Gauges {
    let backends = state.pool().backends().iter();
    let reports = state.auth().files().reports().into_iter();
    let now = SystemTime::now();
    let certificates = state.tls().map(|tls| tls.certificates(now)).unwrap_or_default();
    let keys = live.memory.managed();
    let ledger = live.ledger.as_ref();
    let line = state.pool().line();
    let (queued, longest, expected) = line
        .with(|queue, now| (queue.queued(), queue.longest_wait(now), queue.longest_expected(now)));
    Gauges {
        began: now.checked_sub(live.began.elapsed()).unwrap_or(now),
        in_flight: live.limits.in_flight(),
        queued,
        longest_wait: Duration::from_micros(longest),
        expected_wait: Duration::from_micros(expected),
        is_draining: live.draining.load(Ordering::Relaxed),
        alarms: open::alarms(live, state),
        backends: backends
            .map(|backend| BackendGauge {
                name: backend.name().clone(),
                is_up: backend.is_up(),
                is_drained: backend.is_drained(),
                busy: backend.busy(),
            })
            .collect(),
        files: reports
            .map(|(name, report)| FileGauge {
                name,
                is_good: report.trouble.is_none(),
                entries: report.entries,
            })
            .collect(),
        certificates: certificates
            .into_iter()
            .map(|(file, _, days)| (file, days.saturating_mul(DAY)))
            .collect(),
        managed_keys: keys.map(|keys| keys.len()),
        is_store_good: keys.map(|keys| keys.trouble().is_none()),
        waiting_rows: ledger.map(|ledger| ledger.lag() + ledger.waiting() as u64),
        lost_rows: ledger.map(|ledger| ledger.lost()),
        late_answers: ledger.map(|ledger| ledger.late()),
        lost_lines: live.log.lost(),
        lost_spans: state.tracer().map(|tracer| tracer.lost()),
        process: Process::look(),
    }
}
