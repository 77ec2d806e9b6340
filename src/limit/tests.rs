//! Tickets, and what is taken for them, with time as it is given.

use std::convert::Infallible;
use std::fs;
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, header};
use jiff::tz::TimeZone;

use super::*;
use crate::access::{Ground, Provenance, Rules, admit, authorize, choose};
use crate::api::Asked;
use crate::auth::{Auth, Files, Identity, Memory, Presented};
use crate::call::{BodyBounds, Call};
use crate::client_addr::{PeerAddr, TrustedProxies};
use crate::config::{Allowance, Config, Given, Measure, Role, load_without_credentials};
use crate::store::Spent;

mod slow; // against a slow model of itself

/// For a key's owner who lists the models; there is no shorter way to a ticket.
async fn ticket(limits: &Limits) -> Ticket {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("api_keys.txt");
    fs::write(&keys, "a-key # anna\n").unwrap();
    let mut config = Config::builtin();
    config.api_keys = Some(keys);
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer a-key"));
    let peer = PeerAddr::new(IpAddr::from([192, 0, 2, 1]));
    let client = TrustedProxies::default().client_addr(peer, &headers);
    let path = "/api/tags";
    let presented = Presented {
        headers: &headers,
        path_key: None,
        method: "GET",
        path,
        ts: None,
        certificate: None,
    };
    let auth = Auth::new(&config, Files::open(&config, None));
    let who = auth
        .authenticate(&Memory::new(1).unwrap(), client, presented, Instant::now())
        .await
        .unwrap();
    let asked = Asked::find(&Method::GET, path, &[]).unwrap();
    let cors = &config.cors;
    let provenance = Provenance { method: &Method::GET, headers: &headers, cors };
    let entry = admit(&Rules::new(&config), who, &asked, provenance).unwrap();
    let bounds = BodyBounds::new(1, 1024, Duration::ZERO);
    let parts = http::Request::new(()).into_parts().0;
    let mut call = Call::without_body(asked, &parts);
    let entered = limits.enter(&entry, [b'0'; 16], "tags");
    let ground = Ground { bounds: &bounds, loaded_context: None, runs_elsewhere: false };
    let chosen = choose(entry, &call).unwrap();
    let permit = authorize(chosen, &mut call, &ground).unwrap();
    let plan = Plan::new(&config);
    let ask = || Ask {
        class: Class::Models,
        model: None,
        tokens_held: 0,
        now: Instant::now(),
        wall: Timestamp::UNIX_EPOCH,
        ledger_full: false,
    };
    limits.admit(&plan, permit, entered, ask).unwrap()
}

#[tokio::test]
async fn a_request_counts_from_its_admission_until_its_ticket_is_dropped() {
    let limits = Limits::default();
    let first = ticket(&limits).await;
    let second = ticket(&limits).await;
    assert_eq!(limits.in_flight(), 2);
    drop(first);
    assert_eq!(limits.in_flight(), 1);
    drop(second);
    assert_eq!(limits.in_flight(), 0);
}

#[tokio::test]
async fn a_clone_counts_the_same_requests() {
    let limits = Limits::default();
    let ticket = ticket(&limits).await;
    let clone = limits.clone();
    drop(limits);
    assert_eq!(clone.in_flight(), 1);
    drop(ticket);
    assert_eq!(clone.in_flight(), 0);
}

#[tokio::test]
async fn a_ticket_says_whose_it_is() {
    let ticket = ticket(&Limits::default()).await;
    assert_eq!(ticket.permit().who().name().as_str(), "anna");
}

/// A configuration's limits, and a clock that is set by hand.
struct Room {
    limits: Limits,
    plan: Plan,
    by_rule: Allowance,
    now: Instant,
    wall: Timestamp,
}

static NOTHING: Allowance = Allowance::NONE;

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn plan(text: &str) -> (Plan, Config) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    fs::write(&file, text).unwrap();
    let given = Given { file: Some(file), ..Given::default() };
    let loaded = load_without_credentials(&given).unwrap_or_else(|told| panic!("{told}"));
    let config = Config { time_zone: berlin(), ..loaded.config };
    (Plan::new(&config), config)
}

impl Room {
    fn new(text: &str) -> Self {
        let (plan, config) = plan(text);
        let by_rule = config.rules.first().map(|it| it.allowance.clone()).unwrap_or_default();
        let (now, wall) = (Instant::now(), "2026-11-24T12:00:00Z".parse().unwrap());
        Self { limits: Limits::default(), plan, by_rule, now, wall }
    }

    fn who<'a>(&'a self, name: &'a str) -> Subject<'a> {
        Subject {
            name,
            account: name.split('/').next().unwrap(),
            role: Role::User,
            key: None,
            key_id: None,
            is_recalled: false,
            by_rule: &self.by_rule,
            by_key: &NOTHING,
        }
    }

    fn ask<'a>(&self, model: &'a str, tokens_held: u64) -> Ask<'a> {
        let class = Class::Inference;
        let (now, wall) = (self.now, self.wall);
        Ask { class, model: Some(model), tokens_held, now, wall, ledger_full: false }
    }

    fn take(&self, name: &str, model: &str, held: u64) -> Result<Box<Charges>, Reject> {
        self.limits.take(&self.plan, &self.who(name), &self.ask(model, held)).map(Option::unwrap)
    }

    /// A whole request: the code of its refusal, or `ok`.
    fn uses(&self, name: &str, model: &str, tokens: u64) -> &'static str {
        match self.take(name, model, 0) {
            Ok(mut charges) => {
                charges.settle(tokens, Duration::from_secs(tokens), self.now);
                "ok"
            }
            Err(reject) => reject.row().code,
        }
    }

    /// Rows of keys that these have, as far as they are known.
    fn restore(&self, day: &[Spent], month: &[Spent], held: &[Identity]) {
        let holders = |_: &str, _: &str| Ok::<_, Infallible>(held.to_vec());
        let _ = self.limits.restore(&self.plan, self.wall, (day, month), holders);
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        self.wall += time;
    }

    fn wait(&self, name: &str, model: &str) -> Duration {
        self.take(name, model, 0).unwrap_err().retry_after().unwrap()
    }
}

#[test]
fn of_two_hundred_at_once_exactly_ten_pass_all_of_the_limits() {
    let room = Room::new(
        "[[rule]]\nrequests_per_minute = 10\n[[limit]]\nper = 'all'\nrequests_per_minute = 60\n",
    );
    let pass = |name: &'static str| {
        let passed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        passed.fetch_add(
                            usize::from(room.take(name, "m", 0).is_ok()),
                            Ordering::Relaxed,
                        );
                    }
                });
            }
        });
        passed.into_inner()
    };
    let all: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].into_iter().map(pass).collect();
    // Who was refused by their own limit took nothing of the one that all share.
    assert_eq!(all, [10, 10, 10, 10, 10, 10, 0]);
}

#[test]
fn two_limits_that_meet_in_either_order_never_wait_for_each_other() {
    let room = Room::new(
        "[groups]\na = ['*']\nb = ['*']\n[[limit]]\nper = 'group'\nconcurrent = 4\n\
         [[limit]]\nper = 'model'\nconcurrent = 4\n[[limit]]\nper = 'all'\nconcurrent = 4\n",
    );
    std::thread::scope(|scope| {
        for number in 0..4 {
            let model = if number % 2 == 0 { "m" } else { "n" };
            let room = &room;
            scope.spawn(move || {
                for _ in 0..2000 {
                    drop(room.take(&number.to_string(), model, 1).unwrap());
                }
            });
        }
    });
    let all: Vec<_> = (0..4).map(|_| room.take("x", "m", 0).unwrap()).collect();
    assert_eq!(room.uses("x", "m", 0), "too_many_concurrent");
    drop(all);
    assert_eq!(room.uses("x", "m", 0), "ok");
}

#[test]
fn tokens_are_held_until_the_true_number_is_known_and_a_debt_delays_the_next() {
    let mut room = Room::new("[[rule]]\ntokens_per_minute = 1000\n");
    let mut first = room.take("anna", "m", 600).unwrap();
    assert_eq!(first.left().tokens.unwrap().remaining, 400);
    let mut second = room.take("anna", "m", 600).unwrap();
    assert_eq!(room.uses("anna", "m", 1), "rate_limited");
    assert_eq!(room.uses("bert", "m", 1), "ok", "everybody has their own");
    second.settle(0, Duration::ZERO, room.now);
    let mut third = room.take("anna", "m", 0).unwrap();
    assert_eq!(third.left().tokens.unwrap().remaining, 400);
    first.settle(3000, Duration::ZERO, room.now);
    third.settle(0, Duration::ZERO, room.now);
    third.settle(9999, Duration::ZERO, room.now);
    let wait = room.wait("anna", "m");
    assert!(wait > Duration::from_secs(120) && wait < Duration::from_secs(121), "{wait:?}");
    room.passes(wait - Duration::from_nanos(1));
    assert_eq!(room.uses("anna", "m", 1), "rate_limited");
    room.passes(Duration::from_nanos(1));
    assert_eq!(room.uses("anna", "m", 1), "ok");
}

#[test]
fn what_was_never_sent_on_gives_everything_back_but_the_request() {
    let room =
        Room::new("[[rule]]\ntokens_per_day = 1000\nrequests_per_minute = 5\nconcurrent = 1\n");
    let first = room.take("anna", "m", 900).unwrap();
    assert_eq!(room.uses("anna", "m", 1), "too_many_concurrent");
    drop(first);
    let second = room.take("anna", "m", 0).unwrap();
    assert_eq!(second.left().tokens.unwrap().remaining, 1000);
    assert_eq!(second.left().requests.unwrap().remaining, 3);
}

#[test]
fn a_day_and_a_month_end_by_the_calendar_while_a_stream_runs() {
    let mut room = Room::new(
        "[[rule]]\ntokens_per_day = 100\ntokens_per_month = 150\ngpu_seconds_per_month = 1000\n",
    );
    room.wall = "2026-11-30T22:59:00Z".parse().unwrap();
    let mut stream = room.take("anna", "m", 50).unwrap();
    assert_eq!(room.uses("anna", "m", 100), "ok");
    assert_eq!(room.uses("anna", "m", 1), "quota_exhausted");
    assert_eq!(room.wait("anna", "m"), Duration::from_secs(60));
    let says = room.take("anna", "m", 0).unwrap_err().says();
    assert_eq!(
        says,
        "tokens_per_day is 100 for anna, and is used up; there is more from 2026-12-01 00:00 CET"
    );
    room.passes(Duration::from_secs(60));
    assert_eq!(room.uses("anna", "m", 90), "ok");
    // It began in November.
    stream.settle(5000, Duration::from_secs(5000), room.now);
    assert_eq!(room.uses("anna", "m", 10), "ok");
    assert_eq!(room.uses("anna", "m", 1), "quota_exhausted");
    room.passes(Duration::from_secs(24 * 3600));
    assert_eq!(room.uses("anna", "m", 50), "ok");
    // Of a day there is some left, of the month not.
    let wait = room.wait("anna", "m");
    assert_eq!(wait, Duration::from_secs(30 * 24 * 3600));
    // A clock that is set back, by a day or by a month, refills nothing.
    for wall in ["2026-12-01T12:00:00Z", "2026-11-24T12:00:00Z", "1970-01-01T00:00:00Z"] {
        room.wall = wall.parse().unwrap();
        assert_eq!(room.uses("anna", "m", 1), "quota_exhausted", "{wall}");
    }
    room.wall = "2026-12-31T23:00:00Z".parse().unwrap();
    assert_eq!(room.uses("anna", "m", 1), "ok");
}

#[test]
fn what_others_hold_is_no_used_up_quota() {
    for measure in ["tokens_per_day", "tokens_per_minute"] {
        let room = Room::new(&format!("[[rule]]\n{measure} = 100\n"));
        let running = room.take("anna", "m", 500).unwrap();
        let refused = room.take("anna", "m", 0).unwrap_err();
        assert_eq!(refused.row().code, "rate_limited");
        let says = refused.says();
        assert!(says.ends_with("when something that runs has ended"), "{says}");
        drop(running);
        assert_eq!(room.uses("anna", "m", 1), "ok");
    }
}

#[test]
fn backend_seconds_count_for_inference_alone() {
    let room =
        Room::new("[[rule]]\ngpu_seconds_per_day = 10\ntokens_per_day = 10\nconcurrent = 9\n");
    let of = |class| Ask { class, ..room.ask("m", 5) };
    let take = |class| room.limits.take(&room.plan, &room.who("anna"), &of(class));
    let mut pull = take(Class::Manage).unwrap().unwrap();
    pull.settle(0, Duration::from_secs(9000), room.now);
    assert!(take(Class::Health).unwrap().is_none() && take(Class::Models).unwrap().is_none());
    assert_eq!(room.uses("anna", "m", 10), "ok");
    assert_eq!(take(Class::Inference).unwrap_err().row().code, "quota_exhausted");
    assert_eq!(take(Class::Unknown).unwrap_err().row().code, "quota_exhausted");
    assert!(take(Class::Manage).unwrap().is_some());
}

#[test]
fn each_scope_has_counts_of_its_own() {
    let room = Room::new(
        "[groups]\nteam = ['anna', 'bert']\nall = ['*']\n\
         [[limit]]\nper = 'group'\ngroups = ['team']\ntokens_per_day = 10\n\
         [[limit]]\nnames = ['carl']\nper = 'identity'\ntokens_per_day = 20\n\
         [[limit]]\nper = 'model'\nmodels = ['big*']\ntokens_per_day = 30\n\
         [[limit]]\nper = 'all'\nroles = ['admin']\ntokens_per_day = 1\n",
    );
    assert_eq!(room.uses("anna", "small", 10), "ok");
    assert_eq!(room.uses("bert", "small", 1), "quota_exhausted");
    let says = room.take("bert", "small", 0).unwrap_err().says();
    assert!(says.contains("tokens_per_day is 10 for the group team together"), "{says}");
    // A front end's users are its own, each with a count of their own.
    assert_eq!(room.uses("carl/1", "small", 20), "ok");
    assert_eq!(room.uses("carl/1", "small", 1), "quota_exhausted");
    assert_eq!(room.uses("carl/2", "big", 19), "ok");
    assert_eq!(room.uses("carl/3", "registry.ollama.ai/library/BIG:latest", 19), "ok");
    assert_eq!(room.uses("carl/4", "big", 1), "quota_exhausted");
    assert_eq!(room.uses("carl/4", "big:2b", 1), "ok");
    let free = room.limits.take(&room.plan, &room.who("dora"), &room.ask("small", 0)).unwrap();
    assert!(free.is_none(), "no limit bears on her");
}

#[test]
fn a_keys_limits_are_the_keys_and_go_on_after_its_rotation() {
    let room = Room::new("");
    let limits: Allowance = "tokens_per_day=10".parse().unwrap();
    let held =
        |key, id| Subject { key: Some(key), key_id: Some(id), by_key: &limits, ..room.who("anna") };
    let uses = |who: &Subject<'_>, tokens| {
        let charges = room.limits.take(&room.plan, who, &room.ask("m", 0));
        charges.map(|it| it.unwrap().settle(tokens, Duration::ZERO, room.now)).is_ok()
    };
    assert!(uses(&held("laptop", "k1"), 10));
    assert!(!uses(&held("laptop", "k1"), 1) && !uses(&held("laptop", "k2"), 1));
    assert!(uses(&held("phone", "k3"), 1));
    let says = room.limits.take(&room.plan, &held("laptop", "k1"), &room.ask("m", 0)).unwrap_err();
    assert!(says.says().starts_with("tokens_per_day is 10 for the key laptop, "));
}

#[test]
fn nobody_with_a_limit_passes_while_nothing_can_be_kept() {
    let room = Room::new("[[rule]]\nconcurrent = 5\n");
    let ask = Ask { ledger_full: true, ..room.ask("m", 0) };
    let refused = room.limits.take(&room.plan, &room.who("anna"), &ask).unwrap_err();
    assert_eq!(refused.row().code, "overloaded");
    let by_rule = Allowance::default();
    let free = Subject { by_rule: &by_rule, ..room.who("anna") };
    assert!(room.limits.take(&room.plan, &free, &ask).unwrap().is_none());
}

#[test]
fn counts_go_on_when_the_configuration_is_read_anew_with_other_numbers_in_another_order() {
    let mut room = Room::new(
        "[[limit]]\ntokens_per_day = 10\n[[limit]]\nmodels = ['m*']\ntokens_per_day = 5\n",
    );
    assert_eq!(room.uses("anna", "other", 8), "ok");
    assert_eq!(room.uses("anna", "m", 5), "ok");
    assert_eq!(room.uses("anna", "m", 1), "quota_exhausted");
    room.plan = plan(
        "path_keys = true\n[[limit]]\nmodels = ['m*']\ntokens_per_day = 20\n\
         [[limit]]\ntokens_per_day = 14\n",
    )
    .0;
    assert_eq!(room.uses("anna", "m", 1), "ok");
    assert_eq!(room.uses("anna", "m", 1), "quota_exhausted");
}

#[test]
fn what_a_key_used_counts_after_a_restart_though_its_role_and_its_id_are_not_in_the_ledger() {
    let text = "[[limit]]\nroles = ['user']\ntokens_per_day = 10\n\
                [[limit]]\nkeys = ['k00000000001']\ntokens_per_month = 20\n";
    let room = Room::new(text);
    let used = |key: Option<&str>| Spent {
        name: "anna".to_owned(),
        key: key.map(str::to_owned),
        model: None,
        operation: "chat".to_owned(),
        requests: 1,
        tokens: 15,
        backend_time: Duration::ZERO,
    };
    let all = [used(Some("bot"))];
    room.restore(&all, &all, &[]);
    let who = Subject { key: Some("bot"), key_id: Some("k00000000001"), ..room.who("anna") };
    let shown = room.limits.spent(&room.plan, &who, room.now, room.wall);
    assert_eq!(
        (&shown.used["tokens_per_day"], &shown.used["tokens_per_month"]),
        (&15.into(), &15.into())
    );
    // Whose role is known is asked for it: without a key it is that of `[roles]`.
    let room =
        Room::new("default_role = 'operator'\n[[limit]]\nroles = ['user']\ntokens_per_day = 10\n");
    let all = [used(None)];
    room.restore(&all, &all, &[]);
    let shown = room.limits.spent(&room.plan, &room.who("anna"), room.now, room.wall);
    assert_eq!(shown.used["tokens_per_day"], 0);
}

#[test]
fn a_clock_that_was_a_day_behind_at_the_start_refills_nothing_when_it_is_right() {
    let mut room = Room::new("[[rule]]\ntokens_per_day = 100\n");
    room.restore(&[], &[], &[]);
    assert_eq!(room.uses("anna", "m", 30), "ok");
    room.passes(Duration::from_secs(24 * 3600));
    let today = [Spent {
        name: "anna".to_owned(),
        key: None,
        model: None,
        operation: "chat".to_owned(),
        requests: 1,
        tokens: 120,
        backend_time: Duration::ZERO,
    }];
    room.restore(&today, &today, &[]);
    assert_eq!(room.uses("anna", "m", 1), "quota_exhausted");
}

#[test]
fn a_day_and_a_month_are_known_after_a_restart() {
    let text = "[groups]\nteam = ['a*']\n\
                [[rule]]\ntokens_per_month = 1000\n\
                [[limit]]\nper = 'group'\ntokens_per_day = 100\n\
                [[limit]]\nper = 'model'\nmodels = ['big']\ngpu_seconds_per_day = 50\n";
    let room = Room::new(text);
    let (day, month) = Limits::wants_since(&room.plan, room.wall);
    assert_eq!(day.to_string(), "2026-11-23T23:00:00Z");
    assert_eq!(month.to_string(), "2026-10-31T23:00:00Z");
    let spent = |name: &str, model: &str, tokens, seconds| Spent {
        name: name.to_owned(),
        key: None,
        model: Some(model.to_owned()),
        operation: "chat".to_owned(),
        requests: 1,
        tokens,
        backend_time: Duration::from_secs(seconds),
    };
    let today = [
        spent("anna", "small:latest", 60, 1),
        spent("axel/7", "small:latest", 39, 1),
        spent("bert", "big:latest", 1, 49),
    ];
    let pull = Spent { operation: "pull".to_owned(), ..spent("bert", "big:latest", 0, 999) };
    let today = [today.to_vec(), vec![pull]].concat();
    let all = [today.clone(), vec![spent("bert", "other:latest", 998, 1)]].concat();
    // Before and after a count was asked for, and twice: it is the same.
    assert_eq!(room.uses("anna", "small", 0), "ok");
    for _ in 0..2 {
        room.restore(&today, &all, &[]);
    }
    let shown = room.limits.spent(&room.plan, &room.who("anna"), room.now, room.wall);
    assert_eq!(shown.used["tokens_per_month"], 60);
    assert_eq!(shown.used["tokens_per_day"], 99);
    assert_eq!(shown.limits["tokens_per_day"], 100);
    assert_eq!(room.uses("axel/7", "small", 1), "ok");
    assert_eq!(room.uses("anna", "small", 1), "quota_exhausted");
    assert_eq!(room.uses("carl", "big", 1), "ok");
    assert_eq!(room.uses("carl", "big", 1), "quota_exhausted");
    assert_eq!(room.uses("bert", "small", 1), "ok");
    assert_eq!(room.uses("bert", "small", 1), "quota_exhausted");
}

#[test]
fn a_hundred_thousand_names_that_came_once_are_forgotten_again() {
    let mut room = Room::new("[[rule]]\nrequests_per_minute = 5\ntokens_per_day = 100\n");
    for number in 0..100_000 {
        assert_eq!(room.uses(&format!("webui/{number}"), "m", 0), "ok");
        room.passes(Duration::from_millis(1));
    }
    // Those of the last 12 s are still needed, and as many again may be there.
    assert!(room.limits.book.len() < 64 * 512 + 24_000, "{}", room.limits.book.len());
    for _ in 0..100 {
        assert_eq!(room.uses("webui/heavy", "m", 1), "ok");
        room.passes(Duration::from_secs(12));
    }
    for number in 0..100_000 {
        room.uses(&format!("webui/{number}"), "m", 0);
        room.passes(Duration::from_millis(1));
    }
    assert_eq!(room.uses("webui/heavy", "m", 1), "quota_exhausted", "not who has used something");
}
