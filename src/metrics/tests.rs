//! What is counted of requests and rows, and how it is told.

use std::collections::BTreeMap;

use super::*;
use crate::store::Usage;

/// A finished chat of this model.
pub(super) fn row(model: &str) -> UsageRow {
    UsageRow {
        time: SystemTime::UNIX_EPOCH,
        id: [b'0'; 16],
        client: None,
        name: "anna".into(),
        key: None,
        model: Some(model.to_owned()),
        operation: "chat",
        is_inference: true,
        backend: "ollama".into(),
        status: 200,
        outcome: "done",
        usage: Usage {
            prompt: 10,
            completion: 20,
            cached: Some(4),
            reasoning: Some(5),
            estimated: false,
            load: Some(Duration::from_millis(250)),
            generation: Some(Duration::from_millis(500)),
            prefill: None,
            total: None,
        },
        runner_options: None,
        bytes_in: 100,
        bytes_out: 200,
        queue: Duration::ZERO,
        first_byte: Some(Duration::from_millis(10)),
        first_token: Some(Duration::from_millis(20)),
        total: Duration::from_secs(1),
        backend_time: Duration::from_millis(900),
    }
}

fn ended(operation: Option<&'static str>, status: u16, outcome: Outcome) -> Ended {
    Ended {
        operation,
        status,
        outcome,
        bytes_in: 3,
        bytes_out: 5,
        queue: Duration::from_millis(2),
        first_byte: Some(Duration::from_millis(30)),
        total: Duration::from_secs(2),
    }
}

fn gauges() -> Gauges {
    Gauges {
        began: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        in_flight: 7,
        queued: 8,
        longest_wait: Duration::from_millis(2_500),
        expected_wait: Duration::from_millis(40_500),
        is_draining: true,
        alarms: 2,
        backends: vec![BackendGauge {
            name: "big \"one\"\n".into(),
            is_up: true,
            is_drained: true,
            busy: 3,
        }],
        files: vec![FileGauge { name: "htpasswd", is_good: false, entries: 12 }],
        certificates: vec![("gate.pem".to_owned(), -86_400)],
        managed_keys: Some(9),
        is_store_good: Some(true),
        waiting_rows: Some(11),
        lost_rows: Some(1),
        late_answers: Some(5),
        lost_lines: 4,
        lost_spans: Some(6),
        process: Process::look(),
    }
}

/// Each sample by its name and labels.
fn samples(metrics: &Arc<Metrics>) -> BTreeMap<String, f64> {
    let text = metrics.encode(gauges()).unwrap();
    assert!(text.ends_with("# EOF\n"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    let mut samples = BTreeMap::new();
    for (name, value) in pairs {
        let twice = samples.insert(name.to_owned(), value.parse().unwrap());
        assert!(twice.is_none(), "{name} is told twice");
    }
    samples
}

fn value(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    *samples.get(name).unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
}

#[test]
fn a_request_is_counted_by_what_it_was_and_how_it_ended() {
    let metrics = Arc::new(Metrics::default());
    metrics.observe(&ended(Some("chat"), 200, Outcome::Done));
    metrics.observe(&ended(Some("chat"), 200, Outcome::Done));
    metrics.observe(&ended(Some("chat"), 0, Outcome::ClientGone));
    metrics.observe(&ended(Some("unknown"), 404, Outcome::Done));
    metrics.observe(&ended(Some("list_keys"), 200, Outcome::Done));
    metrics.observe(&ended(None, 401, Outcome::Refused("bad_credentials")));
    let seen = samples(&metrics);
    for (labels, count) in [
        ("operation=\"chat\",outcome=\"done\",status=\"2xx\"", 2.0),
        ("operation=\"chat\",outcome=\"client_gone\",status=\"none\"", 1.0),
        ("operation=\"unknown\",outcome=\"done\",status=\"4xx\"", 1.0),
        ("operation=\"admin\",outcome=\"done\",status=\"2xx\"", 1.0),
        ("operation=\"none\",outcome=\"refused\",status=\"4xx\"", 1.0),
    ] {
        assert_eq!(value(&seen, &format!("portcullis_requests_total{{{labels}}}")), count);
    }
    assert_eq!(value(&seen, "portcullis_refusals_total{code=\"bad_credentials\"}"), 1.0);
    assert_eq!(value(&seen, "portcullis_refusals_total{code=\"overloaded\"}"), 0.0);
    assert_eq!(value(&seen, "portcullis_received_bytes_total{class=\"inference\"}"), 9.0);
    assert_eq!(value(&seen, "portcullis_sent_bytes_total{class=\"none\"}"), 5.0);
    let duration = "portcullis_request_duration_seconds";
    assert_eq!(value(&seen, &format!("{duration}_sum{{class=\"inference\"}}")), 6.0);
    assert_eq!(value(&seen, &format!("{duration}_count{{class=\"admin\"}}")), 1.0);
    let bucket = |le: &str| format!("{duration}_bucket{{le=\"{le}\",class=\"inference\"}}");
    assert_eq!(value(&seen, &bucket("1.0")), 0.0);
    assert_eq!(value(&seen, &bucket("2.5")), 3.0);
    assert_eq!(value(&seen, &bucket("+Inf")), 3.0);
    assert_eq!(value(&seen, "portcullis_queue_seconds_count"), 3.0, "only inference waits");
}

#[test]
fn every_operation_has_its_own_name_and_class() {
    for (place, row) in ENDPOINTS.iter().enumerate() {
        assert_eq!(place_of(Some(row.operation)), place);
        assert_eq!(CLASSES[class_of(place)], row.class.as_str());
        // A text of the same letters at another place.
        let copy: &'static str = Box::leak(row.operation.to_owned().into_boxed_str());
        assert_eq!(place_of(Some(copy)), place);
    }
    for (operation, name) in
        [(None, "none"), (Some("unknown"), "unknown"), (Some("revoke_key"), "admin")]
    {
        let place = place_of(operation);
        assert_eq!((name_of(place), CLASSES[class_of(place)]), (name, name));
    }
}

#[test]
fn a_row_of_usage_is_counted_by_its_model() {
    let metrics = Arc::new(Metrics::default());
    metrics.observe_usage(&row("gemma3:12b"));
    let mut cut = row("gemma3:12b");
    cut.usage = Usage { prompt: 1, completion: 8, estimated: true, ..Usage::default() };
    (cut.first_token, cut.total) = (Some(Duration::from_secs(1)), Duration::from_secs(3));
    metrics.observe_usage(&cut);
    metrics.observe_usage(&UsageRow { is_inference: false, operation: "pull", ..row("llama3") });
    let seen = samples(&metrics);
    let tokens = |kind: &str| {
        value(&seen, &format!("portcullis_tokens_total{{model=\"gemma3:12b\",kind=\"{kind}\"}}"))
    };
    assert_eq!(["prompt", "completion", "cached", "reasoning"].map(tokens), [11.0, 28.0, 4.0, 5.0]);
    let of_model = |name: &str| value(&seen, &format!("{name}{{model=\"gemma3:12b\"}}"));
    assert_eq!(of_model("portcullis_model_requests_total"), 2.0);
    assert_eq!(of_model("portcullis_estimated_requests_total"), 1.0);
    assert_eq!(of_model("portcullis_backend_time_seconds_total"), 1.8);
    assert_eq!(of_model("portcullis_model_load_seconds_total"), 0.25);
    assert_eq!(value(&seen, "portcullis_first_token_seconds_count"), 2.0);
    // 20 in half a second by the backend's clock, and 8 in two seconds by ours.
    assert_eq!(value(&seen, "portcullis_tokens_per_second_sum"), 44.0);
    assert!(!seen.keys().any(|name| name.contains("llama3")), "management has no tokens");
}

#[test]
fn what_is_true_now_is_told() {
    let seen = samples(&Arc::default());
    for (name, expected) in [
        ("portcullis_in_flight_requests", 7.0),
        ("portcullis_waiting_requests", 8.0),
        ("portcullis_longest_wait_seconds", 2.5),
        ("portcullis_expected_wait_seconds", 40.5),
        ("portcullis_draining", 1.0),
        ("portcullis_alarms", 2.0),
        ("portcullis_backend_up{backend=\"big \\\"one\\\"\\n\"}", 1.0),
        ("portcullis_backend_drained{backend=\"big \\\"one\\\"\\n\"}", 1.0),
        ("portcullis_backend_busy_requests{backend=\"big \\\"one\\\"\\n\"}", 3.0),
        ("portcullis_file_good{file=\"htpasswd\"}", 0.0),
        ("portcullis_file_entries{file=\"htpasswd\"}", 12.0),
        ("portcullis_certificate_left_seconds{file=\"gate.pem\"}", -86_400.0),
        ("portcullis_managed_keys", 9.0),
        ("portcullis_store_good", 1.0),
        ("portcullis_ledger_waiting_rows", 11.0),
        ("portcullis_ledger_lost_rows_total", 1.0),
        ("portcullis_ledger_late_answers_total", 5.0),
        ("portcullis_log_lost_lines_total", 4.0),
        ("portcullis_traces_lost_spans_total", 6.0),
        ("process_start_time_seconds", 1.5),
    ] {
        assert_eq!(value(&seen, name), expected, "{name}");
    }
    let version = concat!("portcullis_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(value(&seen, version), 1.0);
}

#[test]
fn what_is_told_is_the_table_and_nothing_else() {
    let metrics = Arc::new(Metrics::default());
    metrics.observe(&ended(Some("chat"), 200, Outcome::Done));
    metrics.observe_usage(&row("gemma3"));
    let seen = samples(&metrics);
    let mut told = std::collections::BTreeSet::new();
    for family in FAMILIES {
        let name = family.name();
        let suffixes: &[&str] = match family.kind {
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Counter | Kind::Gauge | Kind::Info => &[""],
        };
        for suffix in suffixes {
            let full = format!("{name}{suffix}");
            let of_it = seen.keys().filter(|it| it.split('{').next() == Some(&full));
            let of_it: Vec<_> = of_it.collect();
            assert!(!of_it.is_empty() || cfg!(not(target_os = "linux")), "{full} is not told");
            for sample in &of_it {
                for label in family.labels {
                    assert!(sample.contains(&format!("{label}=\"")), "{sample} has no {label}");
                }
                let more = usize::from(*suffix == "_bucket");
                assert_eq!(sample.matches("=\"").count(), family.labels.len() + more, "{sample}");
            }
            told.extend(of_it.into_iter().cloned());
        }
        assert!(!family.says.ends_with('.') && !family.says.contains(['|', '\n', '\\']), "{name}");
    }
    let beside: Vec<_> = seen.keys().filter(|name| !told.contains(*name)).collect();
    assert!(beside.is_empty(), "not in the table: {beside:?}");
}

#[test]
fn nobody_can_make_more_than_two_thousand_series() {
    let metrics = Arc::new(Metrics::default());
    let endings = [
        Outcome::Done,
        Outcome::ClientGone,
        Outcome::BackendFailed,
        Outcome::BackendTimeout,
        Outcome::Drained,
        Outcome::Stopped,
        Outcome::Refused("overloaded"),
        Outcome::Refused("no code of the table"),
    ];
    let operations = ENDPOINTS.iter().map(|row| Some(row.operation));
    for operation in operations.chain([None, Some("unknown"), Some("anything"), Some("")]) {
        for ending in endings {
            for status in (0..=u16::MAX).step_by(50) {
                metrics.observe(&ended(operation, status, ending));
            }
        }
    }
    for number in 0..1_000 {
        metrics.observe_usage(&row(&format!("model-{number}")));
    }
    let seen = samples(&metrics);
    let counted = seen.keys().filter(|name| name.starts_with("portcullis_requests_total")).count();
    assert_eq!(counted, OPERATIONS * OUTCOMES.len() * STATUSES.len(), "everything was filled");
    assert!(seen.len() <= 2_000, "{}", seen.len());
}
