//! Each backend fails in its turn, each in another way, while callers go on asking. With `--nocapture` it
//! prints what callers saw, and how long a backend that is well again is not asked.

use std::collections::{BTreeMap, HashMap};
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
/// Every connection is reset, also for a list.
const KILLED: u8 = 1;
/// Takes whatever comes and says nothing.
const FROZEN: u8 = 2;
/// Its answers come, but not soon.
const SLOW: u8 = 3;
/// What it says is no HTTP.
const CORRUPT: u8 = 4;
/// Its answers break off.
const BREAKS: u8 = 5;
/// Its process is gone, and with it whatever listened.
const GONE: u8 = 6;

const FAULTS: [u8; 6] = [KILLED, FROZEN, SLOW, CORRUPT, BREAKS, GONE];
const NAMES: [&str; 6] = ["killed", "frozen", "slow", "corrupt", "breaks off", "gone"];

const WORD: &str =
    "{\"model\":\"a\",\"message\":{\"role\":\"assistant\",\"content\":\"x\"},\"done\":false}\n";
const DONE: &str = "{\"model\":\"a\",\"done\":true,\"prompt_eval_count\":1,\"eval_count\":1}\n";

/// Three stand-ins, and what ails each of them.
struct Ward {
    backends: Vec<Backend>,
    ills: Vec<Arc<AtomicU8>>,
    /// What those saw that have gone.
    seen: Vec<Seen>,
    /// Rings again and again, for the slow one.
    bell: Arc<Notify>,
}

impl Ward {
    async fn new() -> Self {
        let bell = Arc::new(Notify::new());
        let (mut backends, mut ills) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let ill = Arc::new(AtomicU8::new(WELL));
            backends.push(Backend::scripted(script(&ill, &bell)).await);
            ills.push(ill);
        }
        Self { backends, ills, seen: Vec::new(), bell }
    }

    /// For a while it is so.
    async fn ails(&mut self, place: usize, fault: u8) {
        if fault == GONE {
            let (seen, socket) = self.backends.remove(place).end().await;
            self.seen.extend(seen);
            tokio::time::sleep(ILL).await;
            let script = script(&self.ills[place], &self.bell);
            let again = Backend::scripted_at(socket.listen(1024).unwrap(), script);
            self.backends.insert(place, again);
            return;
        }
        self.ills[place].store(fault, Ordering::Relaxed);
        tokio::time::sleep(ILL).await;
        self.ills[place].store(WELL, Ordering::Relaxed);
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
        let seen = self.backends.iter().flat_map(|backend| backend.seen());
        for seen in seen.chain(self.seen.iter().cloned()) {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            let text = body["messages"][0]["content"].as_str().unwrap().to_owned();
            *came.entry(text).or_default() += 1;
        }
        came
    }
}

fn script(
    ill: &Arc<AtomicU8>,
    bell: &Arc<Notify>,
) -> impl Fn(&Seen) -> Vec<Step> + Send + Sync + use<> {
    let (ill, bell, disk) = (Arc::clone(ill), Arc::clone(bell), names(&["a"]));
    move |seen| match ill.load(Ordering::Relaxed) {
        KILLED => vec![Step::Reset],
        FROZEN => vec![Step::AwaitClose],
        CORRUPT => vec![Step::Send(b"\x00\x01garbage\r\n\r\n".to_vec()), Step::Close],
        ill => super::lists(seen, &disk, &disk).unwrap_or_else(|| answer(ill, &bell)),
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

/// What became of those that did not get a whole answer, and of how many.
fn failures(answers: &[(String, u16, bool, String)]) -> BTreeMap<&str, usize> {
    let mut failures = BTreeMap::new();
    for (_, status, whole, code) in answers {
        let what = match (status, whole) {
            (200, true) => continue,
            (200, false) => "broken off",
            _ => code,
        };
        *failures.entry(what).or_default() += 1;
    }
    failures
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
    let mut ward = Ward::new().await;
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
        let first = told.answers.lock().unwrap().len();
        ward.ails(place, fault).await;
        let backend = &ward.backends[place];
        let answers = told.answers.lock().unwrap()[first..].to_vec();
        let failures = failures(&answers);
        let failed = failures.values().sum::<usize>();
        assert!(answers.len() > CALLERS, "fault {fault}: others are served meanwhile");
        assert!(
            failed < answers.len() / 10 && (fault == GONE || (failed == 0) == (fault == SLOW)),
            "fault {fault}: {failed} of {} failed",
            answers.len()
        );
        let (seen, well) = (backend.seen().len(), Instant::now());
        until("a backend that is well again to be asked again", || {
            (backend.seen().len() > seen + 5).then_some(())
        })
        .await;
        let (name, back) = (NAMES[number], well.elapsed().as_secs_f64());
        let all = answers.len();
        println!("{name:12} of {all:5} failed {failed:3} {failures:?}, back after {back:.1} s");
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
