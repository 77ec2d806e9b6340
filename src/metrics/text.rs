//! Everything that is counted, as the text of OpenMetrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::registry::Registry;

use super::families::{self as all, Family};
use super::histogram::{Histogram, float};
use super::{CLASSES, Gauges, Metrics};
use crate::reject::CODES;

type Told = Result<(), fmt::Error>;

/// What the text calls itself.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that there is to tell at one time.
#[derive(Debug)]
struct Page {
    metrics: Arc<Metrics>,
    gauges: Gauges,
}

impl Metrics {
    /// # Errors
    /// Never: a text takes what it is given.
    pub fn encode(self: &Arc<Self>, gauges: Gauges) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Page { metrics: Arc::clone(self), gauges }));
        let mut page = String::with_capacity(32 * 1024);
        text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Told {
        let mut out = Out(encoder);
        self.of_requests(&mut out)?;
        self.of_models(&mut out)?;
        self.of_the_gate(&mut out)?;
        self.of_files(&mut out)?;
        self.of_the_process(&mut out)
    }
}

impl Page {
    fn of_requests(&self, out: &mut Out<'_>) -> Told {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.begin(&all::BUILD)?.encode_info(&version)?;
        let metrics = &self.metrics;
        let mut requests = out.begin(&all::REQUESTS)?;
        for ((operation, ending, status), counter) in metrics.requests() {
            // Most of them never come.
            if let count @ 1.. = load(counter) {
                let labels = [("operation", operation), ("outcome", ending), ("status", status)];
                count_of(requests.encode_family(&labels)?, count)?;
            }
        }
        let mut refusals = out.begin(&all::REFUSALS)?;
        for (code, counter) in CODES.iter().zip(&metrics.refusals) {
            count_of(refusals.encode_family(&[("code", *code)])?, load(counter))?;
        }
        for (family, counters) in [(&all::RECEIVED, &metrics.received), (&all::SENT, &metrics.sent)]
        {
            let mut bytes = out.begin(family)?;
            for (class, counter) in CLASSES.iter().zip(counters) {
                count_of(bytes.encode_family(&[("class", *class)])?, load(counter))?;
            }
        }
        for (family, times) in
            [(&all::DURATION, &metrics.total), (&all::FIRST_BYTE, &metrics.first_byte)]
        {
            let mut encoder = out.begin(family)?;
            for (class, histogram) in CLASSES.iter().zip(times) {
                buckets_of(encoder.encode_family(&[("class", *class)])?, histogram)?;
            }
        }
        buckets_of(out.begin(&all::QUEUE)?, &metrics.queue)
    }

    fn of_models(&self, out: &mut Out<'_>) -> Told {
        let metrics = &self.metrics;
        buckets_of(out.begin(&all::FIRST_TOKEN)?, &metrics.first_token)?;
        buckets_of(out.begin(&all::SPEED)?, &metrics.speed)?;
        let mut tokens = out.begin(&all::TOKENS)?;
        for (model, counts) in metrics.models.all() {
            let kinds = [
                ("prompt", &counts.prompt),
                ("completion", &counts.completion),
                ("cached", &counts.cached),
                ("reasoning", &counts.reasoning),
            ];
            for (kind, counter) in kinds {
                let labels = [("model", model), ("kind", kind)];
                count_of(tokens.encode_family(&labels)?, load(counter))?;
            }
        }
        let mut requests = out.begin(&all::MODEL_REQUESTS)?;
        for (model, counts) in metrics.models.all() {
            count_of(requests.encode_family(&[("model", model)])?, load(&counts.requests))?;
        }
        let mut estimated = out.begin(&all::ESTIMATED)?;
        for (model, counts) in metrics.models.all() {
            count_of(estimated.encode_family(&[("model", model)])?, load(&counts.estimated))?;
        }
        let mut backend = out.begin(&all::BACKEND_TIME)?;
        for (model, counts) in metrics.models.all() {
            seconds_of(backend.encode_family(&[("model", model)])?, &counts.backend_time)?;
        }
        let mut loading = out.begin(&all::LOAD_TIME)?;
        for (model, counts) in metrics.models.all() {
            seconds_of(loading.encode_family(&[("model", model)])?, &counts.load_time)?;
        }
        Ok(())
    }

    fn of_the_gate(&self, out: &mut Out<'_>) -> Told {
        let gauges = &self.gauges;
        out.gauge(&all::IN_FLIGHT, Some(gauges.in_flight as u64))?;
        out.gauge(&all::QUEUED, Some(gauges.queued as u64))?;
        let longest = gauges.longest_wait.as_secs_f64();
        out.begin(&all::LONGEST_WAIT)?.encode_gauge(&longest)?;
        let expected = gauges.expected_wait.as_secs_f64();
        out.begin(&all::EXPECTED_WAIT)?.encode_gauge(&expected)?;
        out.gauge(&all::DRAINING, Some(u64::from(gauges.is_draining)))?;
        out.gauge(&all::ALARMS, Some(gauges.alarms as u64))?;
        let backends = &gauges.backends;
        let up = backends.iter().map(|it| (&*it.name, u64::from(it.is_up)));
        out.gauges(&all::BACKEND_UP, "backend", up)?;
        let drained = backends.iter().map(|it| (&*it.name, u64::from(it.is_drained)));
        out.gauges(&all::BACKEND_DRAINED, "backend", drained)?;
        let busy = backends.iter().map(|it| (&*it.name, it.busy as u64));
        out.gauges(&all::BACKEND_BUSY, "backend", busy)?;
        out.gauge(&all::KEYS, gauges.managed_keys.map(|keys| keys as u64))?;
        out.gauge(&all::STORE_GOOD, gauges.is_store_good.map(u64::from))?;
        out.gauge(&all::ROWS_WAITING, gauges.waiting_rows)?;
        out.counter(&all::ROWS_LOST, gauges.lost_rows)?;
        out.counter(&all::ANSWERS_LATE, gauges.late_answers)?;
        out.counter(&all::LINES_LOST, Some(gauges.lost_lines))?;
        out.counter(&all::SPANS_LOST, gauges.lost_spans)
    }

    fn of_files(&self, out: &mut Out<'_>) -> Told {
        let files = &self.gauges.files;
        let good = files.iter().map(|it| (it.name, u64::from(it.is_good)));
        out.gauges(&all::FILE_GOOD, "file", good)?;
        let entries = files.iter().map(|it| (it.name, it.entries as u64));
        out.gauges(&all::FILE_ENTRIES, "file", entries)?;
        let mut certificates = out.begin(&all::CERTIFICATE)?;
        for (file, seconds) in &self.gauges.certificates {
            certificates.encode_family(&[("file", file.as_str())])?.encode_gauge(seconds)?;
        }
        Ok(())
    }

    fn of_the_process(&self, out: &mut Out<'_>) -> Told {
        let process = &self.gauges.process;
        if let Some(cpu) = process.cpu {
            let mut encoder = out.begin(&all::CPU)?;
            encoder.encode_counter::<NoLabelSet, _, f64>(&cpu.as_secs_f64(), None)?;
        }
        let began = self.gauges.began.duration_since(SystemTime::UNIX_EPOCH);
        let began = began.unwrap_or_default().as_secs_f64();
        out.begin(&all::STARTED)?.encode_gauge(&began)?;
        out.gauge(&all::RESIDENT, process.resident_bytes)?;
        out.gauge(&all::VIRTUAL, process.virtual_bytes)?;
        out.gauge(&all::THREADS, process.threads)?;
        out.gauge(&all::OPEN_FILES, process.open_files)?;
        out.gauge(&all::MOST_FILES, process.most_files)
    }
}

/// The text as it grows.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn begin(&mut self, family: &Family) -> Result<MetricEncoder<'_>, fmt::Error> {
        let (name, unit) = (family.bare_name(), family.unit.unit());
        self.0.encode_descriptor(name, family.says, unit, family.kind.as_type())
    }

    /// What is not known is not told.
    fn gauge(&mut self, family: &Family, value: Option<u64>) -> Told {
        let Some(value) = value else { return Ok(()) };
        self.begin(family)?.encode_gauge(&float(value))
    }

    fn counter(&mut self, family: &Family, value: Option<u64>) -> Told {
        let Some(value) = value else { return Ok(()) };
        count_of(self.begin(family)?, value)
    }

    fn gauges<'v>(
        &mut self,
        family: &Family,
        label: &str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> Told {
        let mut encoder = self.begin(family)?;
        for (labelled, value) in values {
            encoder.encode_family(&[(label, labelled)])?.encode_gauge(&float(value))?;
        }
        Ok(())
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn count_of(mut encoder: MetricEncoder<'_>, count: u64) -> Told {
    encoder.encode_counter::<NoLabelSet, _, f64>(&count, None)
}

fn seconds_of(mut encoder: MetricEncoder<'_>, micros: &AtomicU64) -> Told {
    let seconds = Duration::from_micros(load(micros)).as_secs_f64();
    encoder.encode_counter::<NoLabelSet, _, f64>(&seconds, None)
}

fn buckets_of(mut encoder: MetricEncoder<'_>, histogram: &Histogram) -> Told {
    let seen = histogram.snapshot();
    encoder.encode_histogram::<NoLabelSet>(seen.sum, seen.count, &seen.buckets, None)
}
