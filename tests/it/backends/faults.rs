//! Each backend fails in its turn, each in another way, while callers go on asking. With `--nocapture` it
//! prints what callers saw, and how long a backend that is well again is not asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{before, heard, names};
use crate::house::{Backend, House, Seen, Step, chunk, post, stream_head, until};

const CALLERS: usize = 16;
/// How long a backend is ill.
const ILL: Duration = Duration::from_millis(1500);

const WELL: u8 = 0;
/// As a process that was killed: every connection is reset, also for a list.
const KILLED: u8 = 1;
/// Takes whatever comes and says nothing.
const FROZEN: u8 = 2;
/// Its answers come, but not soon.
const SLOW: u8 = 3;
/// What it says is no HTTP.
const CORRUPT: u8 = 4;
/// Its answers break off.
const BREAKS: u8 = 5;

const FAULTS: [u8; 5] = [KILLED, FROZEN, SLOW, CORRUPT, BREAKS];
const NAMES: [&str; 5] = ["killed", "frozen", "slow", "corrupt", "breaks off"];

const WORD: &str =
    "{\"model\":\"a\",\"message\":{\"role\":\"assistant\",\"content\":\"x\"},\"done\":false}\n";
const DONE: &str = "{\"model\":\"a\",\"done\":true,\"prompt_eval_count\":1,\"eval_count\":1}\n";

/// Three stand-ins, and what ails each of them.
struct Ward {
    backends: Vec<Backend>,
    ills: Vec<Arc<AtomicU8>>,
    /// Rings again and again, for the slow one.
    bell: Arc<Notify>,
}

impl Ward {
    async fn new() -> Self {
        let disk = names(&["a"]);
        let bell = Arc::new(Notify::new());
        let (mut backends, mut ills) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let ill = Arc::new(AtomicU8::new(WELL));
            let (ails, rings, disk) = (Arc::clone(&ill), Arc::clone(&bell), Arc::clone(&disk));
            let script = move |seen: &Seen| match ails.load(Ordering::Relaxed) {
                KILLED => vec![Step::Reset],
                FROZEN => vec![Step::AwaitClose],
                CORRUPT => vec![Step::Send(b"\x00\x01garbage\r\n\r\n".to_vec()), Step::Close],
                ill => super::lists(seen, &disk, &disk).unwrap_or_else(|| answer(ill, &rings)),
            };
            backends.push(Backend::scripted(script).await);
            ills.push(ill);
        }
        Self { backends, ills, bell }
    }

    async fn house(&self) -> House {
        let named: Vec<_> = ["x", "y", "z"].into_iter().zip(&self.backends).collect();
        let house = before(&named, |config, _| {
            config.timeouts.first_byte = Duration::from_millis(300);
        })
        .await;
        heard(&house).await;
        house
    }

    /// How often each chat came to a backend, by what it says.
    fn came(&self) -> HashMap<String, usize> {
        let mut came = HashMap::new();
        for seen in self.backends.iter().flat_map(|backend| backend.seen()) {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            let text = body["messages"][0]["content"].as_str().unwrap().to_owned();
            *came.entry(text).or_default() += 1;
        }
        came
    }
}

fn answer(ill: u8, bell: &Arc<Notify>) -> Vec<Step> {
    let begin = stream_head("application/x-ndjson") + &chunk(WORD);
    let end = chunk(DONE) + "0\r\n\r\n";
    match ill {
        SLOW => vec![
            Step::Wait(Arc::clone(bell)),
            Step::Send(begin.into()),
            Step::Wait(Arc::clone(bell)),
            Step::Send(end.into()),
        ],
        BREAKS => vec![Step::Send(begin.into()), Step::Reset],
        _ => vec![Step::Send((begin + &end).into())],
    }
}

/// What callers were told, in order.
#[derive(Default)]
struct Told {
    asked: AtomicUsize,
    is_over: AtomicBool,
    answers: Mutex<Vec<(String, u16, bool, String)>>,
}

async fn ask_till_the_end(house: Arc<House>, told: Arc<Told>) {
    while !told.is_over.load(Ordering::Relaxed) {
        let name = told.asked.fetch_add(1, Ordering::Relaxed).to_string();
        let body = format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{name}"}}]}}"#);
        let answer = house.ask(post("/api/chat", &body)).await;
        let code = if answer.status == 200 { String::new() } else { answer.code() };
        told.answers.lock().unwrap().push((name, answer.status, answer.whole, code));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_backend_fails_in_each_way_under_load_and_nothing_is_sent_twice() {
    let ward = Ward::new().await;
    let house = Arc::new(ward.house().await);
    let told = Arc::new(Told::default());
    let mut tasks = JoinSet::new();
    let bell = Arc::clone(&ward.bell);
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bell.notify_waiters();
        }
    });
    for _ in 0..CALLERS {
        tasks.spawn(ask_till_the_end(Arc::clone(&house), Arc::clone(&told)));
    }
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let place = number % ward.ills.len();
        let backend = &ward.backends[place];
        let first = told.answers.lock().unwrap().len();
        ward.ills[place].store(fault, Ordering::Relaxed);
        tokio::time::sleep(ILL).await;
        ward.ills[place].store(WELL, Ordering::Relaxed);
        let answers = told.answers.lock().unwrap()[first..].to_vec();
        let failed = answers.iter().filter(|(_, status, whole, _)| *status != 200 || !whole);
        let failed = failed.count();
        assert!(answers.len() > CALLERS, "fault {fault}: others are served meanwhile");
        assert!(
            failed < answers.len() / 10 && (failed == 0) == (fault == SLOW),
            "fault {fault}: {failed} of {} failed",
            answers.len()
        );
        let (seen, well) = (backend.seen().len(), Instant::now());
        until("a backend that is well again to be asked again", || {
            (backend.seen().len() > seen + 5).then_some(())
        })
        .await;
        let (name, back) = (NAMES[number], well.elapsed().as_secs_f64());
        println!("{name:12} {failed:4} of {:5} failed, back after {back:.1} s", answers.len());
    }
    told.is_over.store(true, Ordering::Relaxed);
    until("the last answers", || {
        let answered = told.answers.lock().unwrap().len();
        (answered == told.asked.load(Ordering::Relaxed)).then_some(())
    })
    .await;
    tasks.abort_all();
    let came = ward.came();
    for (name, status, whole, code) in told.answers.lock().unwrap().iter() {
        let times = came.get(name).copied().unwrap_or_default();
        assert!(times <= 1, "{name} came {times} times");
        match status {
            200 => assert_eq!(times, 1, "{name}, whole: {whole}"),
            502 => assert_eq!(code, "backend_failed"),
            504 => assert_eq!(code, "backend_timeout"),
            _ => assert_eq!((*status, code.as_str()), (503, "no_backend")),
        }
    }
}
