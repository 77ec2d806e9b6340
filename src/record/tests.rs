//! A line's form, and the queue in front of a sink.

use std::sync::{Condvar, Mutex};

use super::*;

const FIELDS: &str = "time,id,client,name,credential,method,path,operation,model,backend,status,code,\
                      outcome,bytes_in,bytes_out,queue_ms,first_byte_ms,total_ms,position";

fn line() -> Line {
    Line {
        client: Some("192.0.2.1".parse().unwrap()),
        name: Some("anna".into()),
        credential: Some(Credential::Key),
        method: Some(Method::POST),
        path: "/api/chat".into(),
        operation: Some("chat"),
        backend: Some("ollama".into()),
        status: 200,
        outcome: Outcome::Done,
        bytes_in: 3,
        bytes_out: 5,
        first_byte: Some(Duration::from_micros(1_260)),
        total: Duration::from_micros(20_040),
        ..Line::default()
    }
}

fn written(write: fn(&Line, &mut Vec<u8>), line: &Line) -> String {
    let mut text = Vec::new();
    write(line, &mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn a_json_line_has_its_fields_in_their_order() {
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&written(json_line, &line())).unwrap();
    let names: Vec<_> = json.keys().map(String::as_str).collect();
    assert_eq!(names.join(","), FIELDS);
    assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
    assert_eq!((&json["first_byte_ms"], &json["total_ms"]), (&1.3.into(), &20.0.into()));
    assert!(json["code"].is_null() && json["model"].is_null() && json["position"].is_null());
}

#[test]
fn a_text_line_is_one_line_of_columns() {
    assert_eq!(
        written(text_line, &line()),
        "1970-01-01T00:00:00.000Z 0000000000000000 192.0.2.1 anna key POST /api/chat chat - ollama \
         200 - done in=3 out=5 queue=0.0ms first=1.3ms total=20.0ms\n"
    );
    assert_eq!(
        written(text_line, &Line { status: 0, ..Line::default() }),
        "1970-01-01T00:00:00.000Z 0000000000000000 - - - - - - - - 0 - client_gone in=0 out=0 \
         queue=0.0ms first=- total=0.0ms\n"
    );
    let waited = Line { position: Some(12), queue: Duration::from_millis(5), ..line() };
    let text = written(text_line, &waited);
    assert!(text.ends_with("queue=5.0ms first=1.3ms total=20.0ms position=12\n"), "{text}");
}

#[test]
fn what_a_caller_sends_breaks_no_line_no_column_and_no_terminal() {
    let name = format!("a b\n\r\x1b[31m\"\\{}", "ä".repeat(5_000));
    let nasty = Line { name: Some(name.as_str().into()), path: "/x\ty".into(), ..line() };
    let text = written(text_line, &nasty);
    assert_eq!(text.lines().count(), 1);
    assert_eq!(text.split(' ').count(), written(text_line, &line()).split(' ').count());
    assert!(!text.contains('\x1b') && text.len() < 1_000, "{text}");
    let json = written(json_line, &nasty);
    assert_eq!(json.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["name"].as_str().unwrap().len() <= 256);
    assert!(json["name"].as_str().unwrap().starts_with("a b\n\r"));
}

#[test]
fn an_id_is_found_by_what_a_backend_heard_too() {
    for text in ["0123456789abcdef", "0000000000000000"] {
        let id = RequestId::parse(text).unwrap();
        assert_eq!((id.as_str(), &id.padded()[16..]), (text, text.as_bytes()));
        assert_eq!(RequestId::parse(std::str::from_utf8(&id.padded()).unwrap()), Some(id));
    }
    for wrong in ["", "0123456789abcde", "0123456789ABCDEF", "00000000000000000"] {
        assert_eq!(RequestId::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn ids_count_on_and_are_sixteen_digits() {
    let ids = RequestIds { process: 0xabcd, next: AtomicU32::new(0xffff_fffe) };
    assert_eq!(ids.draw().as_str(), "0000abcdfffffffe");
    assert_eq!(ids.draw().as_str(), "0000abcdffffffff");
    assert_eq!(ids.draw().as_str(), "0000abcd00000000");
}

#[test]
fn an_answer_that_broke_is_the_fault_of_whoever_broke_it() {
    let log = Log::start(io::sink(), LogFormat::Json).unwrap();
    for (reject, outcome) in [
        (Reject::BackendTimeout, "backend_timeout"),
        (Reject::BackendFailed("it is gone".into()), "backend_failed"),
        (Reject::Internal, "refused:internal"),
        (Reject::Overloaded("too much"), "refused:overloaded"),
    ] {
        let id = RequestIds::new().unwrap().draw();
        let mut record = Record::open(log.clone(), id, Arc::default());
        record.break_off(&reject);
        assert_eq!(record.outcome().to_string(), outcome);
    }
}

#[test]
fn an_error_is_told_with_its_causes() {
    let error = Reject::NoBackend(Box::new(io::Error::other("no route")));
    assert_eq!(Chain(&error).to_string(), "no backend could be reached: no route");
}

/// A sink that nobody reads until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Taken>, Condvar)>);

/// Whether it is open, and what came through.
type Taken = (bool, Vec<u8>);

impl Gate {
    fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }

    fn lines(&self) -> usize {
        self.0.0.lock().unwrap().1.split(|b| *b == b'\n').count() - 1
    }
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.0.0.lock().unwrap();
        let mut state = self.0.1.wait_while(state, |(open, _)| !*open).unwrap();
        state.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_that_nobody_reads_delays_nobody_and_what_is_dropped_is_counted() {
    let sink = Gate::default();
    let outlet = Outlet::start("test", sink.clone()).unwrap();
    // Returns though the sink takes nothing; a buffer without a bound would keep them all.
    for number in 0..50_000 {
        outlet.post(format!("{number:0>199}\n").as_bytes());
    }
    let dropped = outlet.dropped();
    assert!(dropped > 0 && dropped < 50_000, "{dropped}");
    sink.open();
    outlet.flush(Duration::from_secs(20));
    assert_eq!(sink.lines() as u64 + dropped, 50_000, "each is written or counted");
    assert_eq!(outlet.lost(), dropped);
}

#[test]
fn what_is_told_seldom_is_told_once_a_second() {
    let (seldom, start) = (Seldom::default(), Instant::now());
    let told = |at: u64| seldom.is_due(start + Duration::from_millis(at));
    assert_eq!([0, 1, 999, 1000, 1001, 2500].map(told), [true, false, false, true, false, true]);
}
