//! A model at work: whether its words come one by one, and whether it stops when its caller leaves.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::backend::models;
use super::probe::{Coming, Probe, Seconds, Silence, printable};
use super::{Finding, Verdict};
use crate::record::Chain;

const STREAMING: &str = "streaming";
const CANCELLING: &str = "cancelling";

const PROMPT: &str = "Count from one to a thousand, each number on a line of its own.";
/// Enough to see whether they come one by one.
const FEW_TOKENS: u32 = 32;
/// So many that it does not end by itself while one looks.
const MANY_TOKENS: u32 = 3000;
/// A model that is loaded is soon there, if others do not keep it busy.
const LOADED: Duration = Duration::from_secs(30);
/// Between two tokens.
const IDLE: Duration = Duration::from_secs(30);
/// A model that stops stops at once; what takes longer may have been its own end.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What came in this time is enough to judge a slow model by.
const LONG: Duration = Duration::from_secs(20);
/// No line of a few words is longer.
const MOST_LINE: usize = 1024 * 1024;
/// Between two looks at whether it has stopped.
const BREATHER: Duration = Duration::from_millis(10);
/// For a model that nobody else uses.
const QUIET_LOOKS: usize = 50;

pub(super) async fn examine(
    probe: &Probe,
    asked: Option<&str>,
    first_byte: Duration,
) -> Vec<Finding> {
    let candidates = match candidates(probe, asked).await {
        Ok(candidates) => candidates,
        Err(finding) => {
            let rest = Finding::skip(CANCELLING, "not asked, for want of a model");
            return vec![finding, rest];
        }
    };
    let first_byte = if asked.is_some() { first_byte } else { first_byte.min(LOADED) };
    let mut refused = None;
    for model in &candidates {
        match stream(probe, model, first_byte).await {
            Ok(streamed) => {
                let streaming = streamed.judge(model);
                let cancelling = cancel(probe, model, first_byte).await;
                return vec![streaming, cancelling.judge(probe.patience(), streamed.at_once())];
            }
            Err(Refused::NoWords(why)) => refused = Some(Finding::skip(STREAMING, why)),
            Err(Refused::Broken(why)) => {
                let model = printable(model);
                refused = Some(Finding::fail(STREAMING, format!("{model}: {why}")).advise(format!(
                    "`ollama run {model}` should say the same, and Ollama's log why; a model that \
                     is stuck answers again after `ollama stop {model}`"
                )));
                break;
            }
        }
    }
    let mut findings: Vec<_> = refused.into_iter().collect();
    findings.push(Finding::skip(CANCELLING, "not asked, for no words came"));
    findings
}

/// The models that may be asked: the one that was named, or those that are loaded. Nothing big is
/// loaded without being told to.
async fn candidates(probe: &Probe, asked: Option<&str>) -> Result<Vec<String>, Finding> {
    let list = |path: &'static str| async move {
        let reply = probe.get(path).await.map_err(|silence| Chain(&silence).to_string());
        match reply {
            Ok(reply) if reply.status() == 200 => Ok(reply.json()),
            Ok(reply) => Err(reply.error()),
            Err(why) => Err(why),
        }
        .map_err(|why| Finding::fail(STREAMING, format!("GET {path} is answered {why}")))
    };
    match asked {
        Some(asked) => named(asked, &list("/api/tags").await?),
        None => {
            let loaded: Vec<_> = models(&list("/api/ps").await?).filter_map(name).collect();
            if loaded.is_empty() {
                return Err(nothing_loaded(&list("/api/tags").await?));
            }
            Ok(loaded)
        }
    }
}

fn name(model: &Value) -> Option<String> {
    let name = model.get("name").or_else(|| model.get("model"))?;
    Some(name.as_str()?.to_owned())
}

fn named(asked: &str, tags: &Value) -> Result<Vec<String>, Finding> {
    let whole = if asked.contains(':') { asked.to_owned() } else { format!("{asked}:latest") };
    let names: Vec<_> = models(tags).filter_map(name).collect();
    if names.iter().any(|it| it.eq_ignore_ascii_case(&whole) || it.eq_ignore_ascii_case(asked)) {
        return Ok(vec![asked.to_owned()]);
    }
    let finding = Finding::fail(STREAMING, format!("there is no model {:?}", printable(asked)));
    Err(finding.advise(match names.as_slice() {
        [] => "there is none at all: `ollama pull` gets one".to_owned(),
        names => {
            let shown: Vec<_> = names.iter().take(5).map(|name| printable(name)).collect();
            format!("there are {}: {}", names.len(), shown.join(", "))
        }
    }))
}

fn nothing_loaded(tags: &Value) -> Finding {
    let size = |model: &Value| model.get("size").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let smallest = models(tags)
        .filter_map(|model| Some((size(model), name(model)?)))
        // Those of the cloud have no weights here, and cost the owner.
        .filter(|(_, name)| !name.ends_with("-cloud") && !name.ends_with(":cloud"))
        .min();
    match smallest {
        Some((size, name)) => {
            let name = printable(&name);
            Finding::skip(STREAMING, "no model is loaded, and none is loaded without your leave")
                .advise(format!("`--model {name}` asks the smallest, of {}", megabytes(size)))
        }
        None => Finding::skip(STREAMING, "there is no model").advise("`ollama pull` gets one"),
    }
}

fn megabytes(bytes: u64) -> String {
    match bytes / 1_000_000 {
        0 => "less than 1 MB".to_owned(),
        mb @ ..10_000 => format!("{mb} MB"),
        mb => format!("{} GB", mb / 1000),
    }
}

/// Why no words came.
enum Refused {
    /// It is a model for something else.
    NoWords(String),
    Broken(String),
}

impl From<Silence> for Refused {
    fn from(silence: Silence) -> Self {
        Self::Broken(Chain(&silence).to_string())
    }
}

/// How the words came.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Streamed {
    tokens: u32,
    /// In so many pieces.
    pieces: u32,
    first: Duration,
    /// From the first to the last.
    spread: Duration,
    /// What the model itself says that it took for them.
    worked: Duration,
}

async fn stream(probe: &Probe, model: &str, first_byte: Duration) -> Result<Streamed, Refused> {
    let started = Instant::now();
    let mut words = Words::ask(probe, model, FEW_TOKENS, first_byte).await?;
    let mut streamed = Streamed::default();
    let (mut first, mut last) = (None, None);
    while let Some(line) = words.next().await? {
        if let Some(error) = line.get("error").and_then(Value::as_str) {
            return Err(Refused::Broken(printable(error)));
        }
        if line.get("done") == Some(&Value::Bool(true)) {
            let worked = line.get("eval_duration").and_then(Value::as_u64).unwrap_or(0);
            streamed.worked = Duration::from_nanos(worked);
            break;
        }
        streamed.tokens += 1;
        streamed.pieces = words.pieces;
        // It need not stop where it was asked to.
        if streamed.tokens >= 2 * FEW_TOKENS
            || first.is_some_and(|it| started.elapsed() > it + LONG)
        {
            break;
        }
        last = Some(started.elapsed());
        first = first.or(last);
    }
    streamed.first = first.unwrap_or_default();
    streamed.spread = last.unwrap_or_default().saturating_sub(streamed.first);
    Ok(streamed)
}

impl Streamed {
    fn judge(&self, model: &str) -> Finding {
        let Self { tokens, pieces, first, .. } = self;
        let model = printable(model);
        if *tokens < 4 {
            let found = format!("{model} said only {tokens} tokens, too few to tell");
            return Finding::skip(STREAMING, found).advise("name another with `--model`");
        }
        if self.is_in_lumps() {
            let found = format!("{model}: {tokens} tokens came in {pieces} pieces, not one by one");
            return Finding::warn(STREAMING, found).advise(
                "something between here and Ollama collects them: a proxy that buffers (in nginx \
                 `proxy_buffering off;` ends that), or a scanner",
            );
        }
        let first = Seconds(*first);
        let found = format!("{model}: {tokens} tokens one by one, the first after {first}");
        Finding::ok(STREAMING, found)
    }

    /// How soon a model of this pace must have stopped: well before it would end by itself.
    fn at_once(&self) -> Duration {
        match self.worked.checked_div(self.tokens) {
            Some(each) if !each.is_zero() => AT_ONCE.min(each * MANY_TOKENS / 4),
            Some(_) | None => AT_ONCE,
        }
    }

    fn is_in_lumps(&self) -> bool {
        let all_at_once = self.worked > Duration::from_millis(200) && self.spread * 2 < self.worked;
        all_at_once || self.pieces * 4 <= self.tokens
    }
}

/// What came of leaving in the middle of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Cancelled {
    /// So long after the caller had left.
    Stopped(Duration),
    GoesOn,
    Unseen(String),
}

/// Leaves in the middle of an answer. Ollama sets a model's `expires_at` anew when the last request
/// for it has ended [server/sched.go processCompleted], and only then: that is where it shows.
async fn cancel(probe: &Probe, model: &str, first_byte: Duration) -> Cancelled {
    let unseen = |why: &str| Cancelled::Unseen(why.to_owned());
    // While the next one runs the end of the last one does not show [server/sched.go, `refCount`].
    let _ = quiet_expiry(probe, model).await;
    let Ok(mut words) = Words::ask(probe, model, MANY_TOKENS, first_byte).await else {
        return unseen("the second answer did not begin");
    };
    for _ in 0..3 {
        match words.next().await {
            Ok(Some(line)) if line.get("done") == Some(&Value::Bool(false)) => {}
            Ok(_) | Err(_) => return unseen("the answer ended before its caller could leave"),
        }
    }
    let before = match quiet_expiry(probe, model).await {
        Ok(before) => before,
        Err(why) => return unseen(why),
    };
    drop(words);
    let left = Instant::now();
    while left.elapsed() < probe.patience() {
        match expiry(probe, model).await {
            Some(now) if now == before => sleep(BREATHER).await,
            // A model that was unloaded has stopped as well.
            Some(_) | None => return Cancelled::Stopped(left.elapsed()),
        }
    }
    Cancelled::GoesOn
}

/// As long as nobody else's request ends. That of one which ended just now may be told late.
async fn quiet_expiry(probe: &Probe, model: &str) -> Result<String, &'static str> {
    for _ in 0..QUIET_LOOKS {
        let (Some(before), Some(again)) = (expiry(probe, model).await, expiry(probe, model).await)
        else {
            return Err("/api/ps shows no `expires_at` of the model");
        };
        if before == again {
            return Ok(again);
        }
        sleep(BREATHER).await;
    }
    Err("others are using the model at this moment")
}

const WORKS_ON: &str = "either others are using it: ask again when it is idle; or it works on for \
    nobody: something before Ollama keeps the connection";

async fn expiry(probe: &Probe, model: &str) -> Option<String> {
    let loaded = probe.get("/api/ps").await.ok()?.json();
    let is_it = |it: &str| it == model || it.strip_suffix(":latest") == Some(model);
    let mut same = models(&loaded).filter(|it| name(it).is_some_and(|name| is_it(&name)));
    Some(same.next()?.get("expires_at")?.as_str()?.to_owned())
}

impl Cancelled {
    fn judge(&self, patience: Duration, at_once: Duration) -> Finding {
        match self {
            Self::Stopped(after) if *after > at_once => {
                let found = format!("the model was let go only {} later", Seconds(*after));
                Finding::warn(CANCELLING, found).advise(WORKS_ON)
            }
            Self::Stopped(after) => {
                let after = Seconds(*after);
                Finding::ok(
                    CANCELLING,
                    format!("the model was let go {after} after its caller left"),
                )
            }
            Self::GoesOn => {
                let patience = Seconds(patience);
                let found = format!("{patience} after its caller left the model is still in use");
                Finding::warn(CANCELLING, found).advise(WORKS_ON)
            }
            Self::Unseen(why) => {
                Finding::new(Verdict::Skip, CANCELLING, format!("cannot be seen here: {why}"))
            }
        }
    }
}

/// The lines of an answer, as they come.
struct Words {
    answer: Coming,
    unread: BytesMut,
    /// That the body came in so far.
    pieces: u32,
}

impl Words {
    async fn ask(
        probe: &Probe,
        model: &str,
        tokens: u32,
        first_byte: Duration,
    ) -> Result<Self, Refused> {
        // Only what does not load the model anew, and nothing that changes how long it stays.
        let body = json!({
            "model": model, "prompt": PROMPT, "stream": true, "options": {"num_predict": tokens},
        });
        let answer = probe.post("/api/generate", &body, first_byte).await?;
        if answer.head.status == 200 {
            return Ok(Self { answer, unread: BytesMut::new(), pieces: 0 });
        }
        let reply = answer.whole(probe.patience()).await?;
        match reply.error() {
            error if error.contains("does not support generate") => Err(Refused::NoWords(format!(
                "{} is loaded, which is no model for text",
                printable(model)
            ))),
            error => Err(Refused::Broken(format!("POST /api/generate is answered {error}"))),
        }
    }

    /// The next line; `None` at the end.
    async fn next(&mut self) -> Result<Option<Value>, Silence> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.unread) {
                let line = self.unread.split_to(end + 1);
                return match serde_json::from_slice(&line) {
                    Ok(line) => Ok(Some(line)),
                    Err(_) => Err(Silence::NoHttp("a line that is no JSON".to_owned())),
                };
            }
            if self.unread.len() > MOST_LINE {
                return Err(Silence::NoHttp("a line without an end".to_owned()));
            }
            let piece = timeout(IDLE, self.answer.piece()).await;
            match piece.unwrap_or(Err(Silence::Late(IDLE)))? {
                Some(piece) => {
                    self.pieces += 1;
                    self.unread.extend_from_slice(&piece);
                }
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(tokens: u32, pieces: u32, spread_ms: u64, worked_ms: u64) -> Streamed {
        Streamed {
            tokens,
            pieces,
            first: Duration::from_millis(80),
            spread: Duration::from_millis(spread_ms),
            worked: Duration::from_millis(worked_ms),
        }
    }

    #[test]
    fn lumps_are_told_from_tokens_one_by_one() {
        for (how, verdict) in [
            (streamed(32, 32, 900, 1000), Verdict::Ok),
            // A fast model on a busy machine: some come together.
            (streamed(32, 12, 40, 45), Verdict::Ok),
            (streamed(32, 1, 0, 1000), Verdict::Warn),
            // Collected by something that keeps the chunks as they were.
            (streamed(32, 32, 5, 1000), Verdict::Warn),
            (streamed(32, 4, 900, 1000), Verdict::Warn),
            (streamed(3, 3, 10, 10), Verdict::Skip),
            (Streamed::default(), Verdict::Skip),
        ] {
            let finding = how.judge("tiny");
            assert_eq!(finding.verdict, verdict, "{how:?} {finding:?}");
        }
    }

    #[test]
    fn a_model_that_may_have_come_to_its_own_end_was_not_stopped() {
        // A thousand tokens a second: it would end by itself after three.
        let quick = streamed(32, 32, 32, 32).at_once();
        assert_eq!(quick, Duration::from_millis(750));
        assert_eq!(streamed(32, 32, 900, 1000).at_once(), AT_ONCE);
        assert_eq!(Streamed::default().at_once(), AT_ONCE);
        let verdict = |after, at_once| {
            Cancelled::Stopped(Duration::from_millis(after)).judge(Duration::ZERO, at_once).verdict
        };
        assert_eq!(verdict(20, quick), Verdict::Ok);
        assert_eq!(verdict(751, quick), Verdict::Warn);
        assert_eq!(verdict(751, AT_ONCE), Verdict::Ok);
        assert_eq!(verdict(2001, AT_ONCE), Verdict::Warn);
    }

    #[test]
    fn a_model_that_was_named_must_be_there() {
        let tags = json!({"models": [{"name": "tiny:latest"}, {"name": "gemma3:1b"}]});
        for there in ["tiny", "tiny:latest", "Gemma3:1B"] {
            assert_eq!(named(there, &tags).unwrap(), [there]);
        }
        let missing = named("gemma3", &tags).unwrap_err();
        assert_eq!(missing.verdict, Verdict::Fail);
        assert!(missing.advice.unwrap().contains("tiny:latest, gemma3:1b"));
        assert!(named("x", &json!({})).unwrap_err().advice.unwrap().contains("ollama pull"));
        // It comes from a server and goes to a terminal.
        let odd = json!({"models": [{"name": "\u{1b}[31mred"}]});
        assert!(!named("x", &odd).unwrap_err().advice.unwrap().contains('\u{1b}'));
    }

    #[test]
    fn the_smallest_model_is_offered_and_none_of_the_cloud() {
        let tags = json!({"models": [
            {"name": "gpt-oss:120b-cloud", "size": 300}, {"name": "big:70b", "size": 40_000_000_000_u64},
            {"name": "gemma3:1b", "size": 815_000_000},
        ]});
        let offer = nothing_loaded(&tags);
        assert_eq!(offer.verdict, Verdict::Skip);
        assert_eq!(offer.advice.unwrap(), "`--model gemma3:1b` asks the smallest, of 815 MB");
        assert!(nothing_loaded(&json!({"models": []})).advice.unwrap().contains("ollama pull"));
        assert_eq!(megabytes(40_000_000_000), "40 GB");
        assert_eq!(megabytes(500_000), "less than 1 MB");
    }
}
