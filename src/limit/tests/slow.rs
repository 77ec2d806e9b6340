//! Limits against a slow model of them, with time as an input.

use proptest::prelude::*;

use super::*;

/// Who, whether big, the day that it began, what is held or was used, and whether it is over.
type Past = (usize, bool, jiff::civil::Date, u64, bool);

proptest! {
    /// Against a list of everything that ever happened, for several callers under several limits.
    #[test]
    fn limits_decide_as_a_slow_list_does(
        steps in prop::collection::vec(
            (0u64..20_000, 0usize..4, prop::bool::ANY, 0u64..40, 0u64..40, prop::bool::ANY), 1..120,
        ),
    ) {
        let mut room = Room::new(
            "[groups]\nteam = ['n0', 'n1']\n[[rule]]\ntokens_per_day = 200\nconcurrent = 2\n\
             [[limit]]\nper = 'group'\ntokens_per_month = 350\n\
             [[limit]]\nper = 'model'\nmodels = ['big']\nconcurrent = 3\n",
        );
        let mut past: Vec<Past> = Vec::new();
        let mut running: Vec<(usize, Box<Charges>)> = Vec::new();
        for (seconds, who, is_big, held, used, ends) in steps {
            room.passes(Duration::from_secs(seconds));
            let day = room.wall.to_zoned(berlin()).date();
            let month = day.first_of_month();
            let sum = |test: &dyn Fn(&Past) -> bool| {
                past.iter().filter(|it| test(it)).map(|it| it.3).sum::<u64>()
            };
            let count = |test: &dyn Fn(&Past) -> bool| {
                past.iter().filter(|it| test(it)).count()
            };
            let fits = sum(&|it| it.0 == who && it.2 == day) < 200
                && count(&|it| it.0 == who && !it.4) < 2
                && (who > 1 || sum(&|it| it.0 < 2 && it.2.first_of_month() == month) < 350)
                && (!is_big || count(&|it| it.1 && !it.4) < 3);
            let name = format!("n{who}");
            let taken = room.take(&name, if is_big { "big" } else { "small" }, held);
            prop_assert_eq!(taken.is_ok(), fits);
            if let Ok(charges) = taken {
                past.push((who, is_big, day, held, false));
                running.push((past.len() - 1, charges));
            }
            if ends && !running.is_empty() {
                let (at, mut charges) = running.remove(running.len() / 2);
                if used % 5 != 0 {
                    charges.settle(used, Duration::ZERO, room.now);
                }
                past[at].3 = if used % 5 == 0 { 0 } else { used };
                past[at].4 = true;
            }
        }
    }
}

const MINUTE: u128 = 60_000_000_000;

/// A request that passed, and what it used: tokens, and as many seconds.
struct Passed {
    at: Duration,
    day: jiff::civil::Date,
    name: String,
    key: &'static str,
    is_big: bool,
    used: u64,
}

/// What is left in a bucket that leaks so many units a minute, of which all were put in at these times; in
/// parts of a unit.
fn level(rate: u64, put_in: impl Iterator<Item = (Duration, u64)>, now: Duration) -> u128 {
    let (mut level, mut before) = (0_u128, Duration::ZERO);
    for (at, units) in put_in.chain([(now, 0)]) {
        level = level.saturating_sub((at - before).as_nanos() * u128::from(rate));
        level += u128::from(units) * MINUTE;
        before = at;
    }
    level
}

/// How long until that bucket has room for so much more, in parts; nothing where it has.
fn until_room(rate: u64, level: u128, more: u128) -> Option<Duration> {
    let above = (level + more).saturating_sub(u128::from(rate) * MINUTE);
    let nanos = above.div_ceil(u128::from(rate));
    (above > 0).then(|| Duration::from_nanos(nanos.try_into().unwrap()))
}

proptest! {
    /// Against the same list, read anew each time: of all limits that are reached the one that lasts
    /// longest tells, with its true end.
    #[test]
    fn the_limit_that_lasts_longest_tells_and_its_wait_is_true(
        steps in prop::collection::vec(
            (prop_oneof![4 => 0u64..9_000, 1 => 0u64..30_000_000], 0usize..3, 0usize..2, any::<bool>(), 0u64..40),
            1..150,
        ),
    ) {
        let mut room = Room::new(
            "[[rule]]\nrequests_per_minute = 6\ntokens_per_day = 250\n\
             [[limit]]\nper = 'key'\ntokens_per_minute = 60\n\
             [[limit]]\nper = 'all'\ngpu_seconds_per_day = 500\n\
             [[limit]]\nper = 'model'\nmodels = ['big']\nrequests_per_minute = 4\n",
        );
        let (mut past, mut passed_time): (Vec<Passed>, _) = (Vec::new(), Duration::ZERO);
        for (millis, who, key, is_big, used) in steps {
            let step = Duration::from_millis(millis);
            room.passes(step);
            passed_time += step;
            let (name, key) = (format!("n{who}"), ["k0", "k1"][key]);
            let day = room.wall.to_zoned(berlin()).date();
            let put_in = |test: &dyn Fn(&Passed) -> bool, units: fn(&Passed) -> u64| {
                past.iter().filter(|it| test(it)).map(|it| (it.at, units(it))).collect::<Vec<_>>()
            };
            let asks = |rate, test: &dyn Fn(&Passed) -> bool| {
                until_room(rate, level(rate, put_in(test, |_| 1).into_iter(), passed_time), MINUTE)
            };
            let tokens = put_in(&|it| it.name == name && it.key == key, |it| it.used);
            let tokens = until_room(60, level(60, tokens.into_iter(), passed_time), 1);
            let today = |test: &dyn Fn(&Passed) -> bool| {
                past.iter().filter(|it| it.day == day && test(it)).map(|it| it.used).sum::<u64>()
            };
            let midnight = day.tomorrow().unwrap().to_zoned(berlin()).unwrap().timestamp();
            let until_midnight = Duration::try_from(midnight.duration_since(room.wall)).unwrap();
            let is_up = |number, used| (used >= number).then_some(until_midnight);
            let reached: Vec<_> = [
                (Measure::RequestsPerMinute, 6, name.clone(), asks(6, &|it| it.name == name)),
                (Measure::TokensPerDay, 250, name.clone(), is_up(250, today(&|it| it.name == name))),
                (Measure::TokensPerMinute, 60, format!("the key {key}"), tokens),
                (Measure::GpuSecondsPerDay, 500, "everybody together".to_owned(), is_up(500, today(&|_| true))),
                (
                    Measure::RequestsPerMinute,
                    4,
                    "all who use big:latest".to_owned(),
                    asks(4, &|it| it.is_big).filter(|_| is_big),
                ),
            ]
            .into_iter()
            .filter_map(|(measure, number, whose, wait)| Some((measure, number, whose, wait?)))
            .collect();
            let longest = reached.iter().map(|it| it.3).max();
            let who = Subject { key: Some(key), ..room.who(&name) };
            let model = if is_big { "big" } else { "small" };
            let taken = room.limits.take(&room.plan, &who, &room.ask(model, 0));
            match taken {
                Ok(charges) => {
                    prop_assert_eq!(longest, None);
                    charges.unwrap().settle(used, Duration::from_secs(used), room.now);
                    past.push(Passed { at: passed_time, day, name, key, is_big, used });
                }
                Err(
                    Reject::RateLimited(told)
                    | Reject::QuotaExhausted(told)
                    | Reject::TooManyConcurrent(told),
                ) => {
                    let wait = account::wait(&told.again);
                    let is_it = |it: &&(Measure, u64, String, Duration)| {
                        (it.0, it.1, &it.2) == (told.measure, told.number, &told.whose)
                    };
                    let which = reached.iter().find(is_it);
                    prop_assert_eq!(which.map(|it| it.3), longest, "{:?} of {:?}", told, reached);
                    prop_assert_eq!(Some(wait), longest);
                }
                Err(other) => prop_assert!(false, "{}", other.says()),
            }
        }
    }
}
