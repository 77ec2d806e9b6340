//! The table of everything that is told: names, labels, and what they mean.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// One row of the table.
#[derive(Debug)]
pub struct Family {
    /// Without the unit and, of a counter, `_total`.
    name: &'static str,
    pub kind: Kind,
    pub(super) unit: Measure,
    pub labels: &'static [&'static str],
    /// One sentence, without a full stop.
    pub says: &'static str,
}

/// How its samples are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// What its samples are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    Seconds,
    Bytes,
    /// Things.
    Count,
}

impl Measure {
    pub(super) fn unit(self) -> Option<&'static Unit> {
        match self {
            Self::Seconds => Some(&Unit::Seconds),
            Self::Bytes => Some(&Unit::Bytes),
            Self::Count => None,
        }
    }
}

impl Kind {
    pub(super) fn as_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

impl Family {
    const fn new(
        name: &'static str,
        kind: Kind,
        unit: Measure,
        labels: &'static [&'static str],
        says: &'static str,
    ) -> Self {
        Self { name, kind, unit, labels, says }
    }

    pub(super) fn bare_name(&self) -> &'static str {
        self.name
    }

    /// As a query asks for it; of a histogram, what stands before `_bucket`, `_sum` and `_count`.
    #[must_use]
    pub fn name(&self) -> String {
        let unit = match self.unit {
            Measure::Seconds => "_seconds",
            Measure::Bytes => "_bytes",
            Measure::Count => "",
        };
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{suffix}", self.name)
    }
}

macro_rules! families {
    ($($place:ident $name:literal $kind:ident $unit:ident $labels:expr, $says:literal;)*) => {
        $(pub(super) static $place: Family =
            Family::new($name, Kind::$kind, Measure::$unit, &$labels, $says);)*

        /// Everything that is told.
        pub static FAMILIES: &[&Family] = &[$(&$place),*];
    };
}

#[rustfmt::skip]
families! {
    BUILD "portcullis_build" Info Count ["version"],
        "the version of this program; always 1";
    REQUESTS "portcullis_requests" Counter Count ["operation", "outcome", "status"],
        "requests that have ended: the operation (`admin` is the admin API; `none` is what came to no endpoint: a refusal before one was found, or one of the gate's own pages), the outcome as in the log, and the class of the status";
    REFUSALS "portcullis_refusals" Counter Count ["code"],
        "requests that the gate refused, by code";
    RECEIVED "portcullis_received" Counter Bytes ["class"],
        "bytes of requests' bodies";
    SENT "portcullis_sent" Counter Bytes ["class"],
        "bytes of answers' bodies";
    DURATION "portcullis_request_duration" Histogram Seconds ["class"],
        "from a request's head to the last byte of its answer";
    FIRST_BYTE "portcullis_first_byte" Histogram Seconds ["class"],
        "from a request's head to the first byte of a backend's answer";
    QUEUE "portcullis_queue" Histogram Seconds [],
        "how long inference waited for its turn";
    FIRST_TOKEN "portcullis_first_token" Histogram Seconds [],
        "from a request's head to the first token of its answer";
    SPEED "portcullis_tokens_per_second" Histogram Count [],
        "how fast an answer was generated, by the backend's own clock where it tells";
    TOKENS "portcullis_tokens" Counter Count ["model", "kind"],
        "tokens: `prompt` (of which `cached` were known already) and `completion` (of which `reasoning` is not shown)";
    MODEL_REQUESTS "portcullis_model_requests" Counter Count ["model"],
        "requests for a model that a backend began";
    ESTIMATED "portcullis_estimated_requests" Counter Count ["model"],
        "of those, how many had their tokens counted by the gate, because the backend did not tell";
    BACKEND_TIME "portcullis_backend_time" Counter Seconds ["model"],
        "how long a backend had requests for this model";
    LOAD_TIME "portcullis_model_load" Counter Seconds ["model"],
        "of that, how long loading it took, where the backend tells";
    IN_FLIGHT "portcullis_in_flight_requests" Gauge Count [],
        "requests between the login and the end of their answer";
    QUEUED "portcullis_waiting_requests" Gauge Count [],
        "requests that wait for their turn at a model server";
    LONGEST_WAIT "portcullis_longest_wait" Gauge Seconds [],
        "how long the one of them has waited that came first; 0 while none waits";
    EXPECTED_WAIT "portcullis_expected_wait" Gauge Seconds [],
        "how long it will be, about, until all of them have had their turn; 0 while none waits";
    DRAINING "portcullis_draining" Gauge Count [],
        "1 while the gate is about to stop";
    ALARMS "portcullis_alarms" Gauge Count [],
        "what does not serve as it should: files, certificates, the store; the log says which";
    BACKEND_UP "portcullis_backend_up" Gauge Count ["backend"],
        "0 after an attempt to connect that failed";
    BACKEND_DRAINED "portcullis_backend_drained" Gauge Count ["backend"],
        "1 while a backend gets no new requests, because somebody said so";
    BACKEND_BUSY "portcullis_backend_busy_requests" Gauge Count ["backend"],
        "requests that a backend has";
    FILE_GOOD "portcullis_file_good" Gauge Count ["file"],
        "0 for a credential file whose newest content does not serve: it is missing, empty, unreadable or replaced";
    FILE_ENTRIES "portcullis_file_entries" Gauge Count ["file"],
        "logins that a credential file holds";
    CERTIFICATE "portcullis_certificate_left" Gauge Seconds ["file"],
        "until a certificate ends, in whole days; below 0 once it has";
    KEYS "portcullis_managed_keys" Gauge Count [],
        "managed keys that the gate knows";
    STORE_GOOD "portcullis_store_good" Gauge Count [],
        "0 while the store in `data_dir` cannot be used";
    ROWS_WAITING "portcullis_ledger_waiting_rows" Gauge Count [],
        "rows of usage that are not in the store yet: they wait in memory or in the journal";
    ROWS_LOST "portcullis_ledger_lost_rows" Counter Count [],
        "rows of usage that could not be kept";
    ANSWERS_LATE "portcullis_ledger_late_answers" Counter Count [],
        "answers that went out whole before their row was in the journal";
    LINES_LOST "portcullis_log_lost_lines" Counter Count [],
        "lines of the log that were dropped because nobody read them fast enough";
    SPANS_LOST "portcullis_traces_lost_spans" Counter Count [],
        "spans that the collector of traces did not take";
    CPU "process_cpu" Counter Seconds [],
        "what the process has used of the processors";
    STARTED "process_start_time" Gauge Seconds [],
        "when the process began, since 1970";
    RESIDENT "process_resident_memory" Gauge Bytes [],
        "memory that the process has";
    VIRTUAL "process_virtual_memory" Gauge Bytes [],
        "addresses that the process has asked for";
    THREADS "process_threads" Gauge Count [],
        "threads of the process";
    OPEN_FILES "process_open_fds" Gauge Count [],
        "files and sockets that are open";
    MOST_FILES "process_max_fds" Gauge Count [],
        "files and sockets that may be open";
}
