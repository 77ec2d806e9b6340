//! This machine: its clock, and how many files may be open at once.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Finding;
use crate::server;

/// With fewer than this many open files, a handful of callers is too many.
const FEWEST: u64 = 256;
/// A signature's time may be off by this much.
const SIGNATURES: Duration = Duration::from_secs(300);
const NOTABLE: Duration = Duration::from_secs(30);
/// No earlier clock is right: this program was not made before 2026.
const MADE: Duration = Duration::from_secs(1_767_225_600);

/// Compares our clock with the `Date` of answers; with `signs` much hangs on it.
pub(super) fn clock(now: SystemTime, dates: &[(String, Option<String>)], signs: bool) -> Finding {
    const WHAT: &str = "clock";
    const ADVICE: &str = "let every machine keep its clock by NTP: `timedatectl set-ntp true`";
    if now < UNIX_EPOCH + MADE {
        let found = "this machine's clock shows a time before this program was made";
        return Finding::fail(WHAT, found).advise(ADVICE);
    }
    let compared = dates.iter().filter_map(|(who, date)| {
        let theirs = httpdate::parse_http_date(date.as_deref()?).ok()?;
        let off = now.duration_since(theirs).or_else(|_| theirs.duration_since(now));
        Some((who.as_str(), off.unwrap_or_default()))
    });
    let compared: Vec<_> = compared.collect();
    let Some((who, off)) = compared.iter().max_by_key(|(_, off)| *off) else {
        return Finding::skip(WHAT, "nobody answered with a time to compare with");
    };
    if *off <= NOTABLE {
        let all: Vec<_> = compared.iter().map(|(who, _)| *who).collect();
        return Finding::ok(WHAT, format!("agrees with that of {}", all.join(" and ")));
    }
    let found = format!("it is {} s off that of {who}", off.as_secs());
    match (*off > SIGNATURES, signs) {
        (true, true) => Finding::fail(
            WHAT,
            format!(
                "{found}; a signature that is more than {} s off is refused",
                SIGNATURES.as_secs()
            ),
        ),
        (true, false) | (false, _) => Finding::warn(WHAT, found),
    }
    .advise(ADVICE)
}

/// The limit of the gate that runs, or of one that is started from this shell, for so many callers.
pub(super) fn open_files(gate: Option<SocketAddr>, callers: u32) -> Finding {
    let running = gate.and_then(|gate| process_at(gate.port()));
    let (limits, whose) = match running {
        Some(process) => (format!("/proc/{process}/limits"), Whose::Gate(process)),
        None => ("/proc/self/limits".to_owned(), Whose::Shell),
    };
    match fs::read_to_string(limits) {
        Ok(limits) => judge_open_files(&limits, &whose, callers.into()),
        Err(_) => Finding::skip(OPEN_FILES, "this system does not tell the limit; see `ulimit -n`"),
    }
}

const OPEN_FILES: &str = "open files";

/// Whose limit it is.
enum Whose {
    Gate(u32),
    Shell,
}

fn judge_open_files(limits: &str, whose: &Whose, callers: u64) -> Finding {
    let needed = server::files_for(callers);
    let (soft, hard) = limits_of(limits);
    // A gate takes what it can get when it starts.
    let (whose, limit) = match whose {
        Whose::Gate(process) => (format!("the gate, process {process},"), soft),
        Whose::Shell => ("what is started from this shell".to_owned(), hard),
    };
    let limit = match limit {
        None => return Finding::skip(OPEN_FILES, "the limit could not be read; see `ulimit -n`"),
        Some(Limit::None) => {
            return Finding::ok(OPEN_FILES, format!("{whose} may open as many as it wants"));
        }
        Some(Limit::At(limit)) => limit,
    };
    if limit >= needed {
        let found = format!("{whose} may open {limit}, enough for {callers} callers at once");
        return Finding::ok(OPEN_FILES, found);
    }
    let found = format!(
        "{whose} may open {limit}, enough for {} callers at once, not for the {callers} of \
         max_connections",
        server::connections_with(limit)
    );
    let finding = match limit < FEWEST {
        true => Finding::fail(OPEN_FILES, found),
        false => Finding::warn(OPEN_FILES, found),
    };
    finding.advise(format!(
        "for all of them: `ulimit -n {needed}` before the start, LimitNOFILE={needed} in a \
         systemd unit, or `ulimits: {{ nofile: {needed} }}` in a compose file"
    ))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    At(u64),
    None,
}

/// The one in force, and the one to which it can be raised, from `/proc/PID/limits` (proc(5)).
fn limits_of(limits: &str) -> (Option<Limit>, Option<Limit>) {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut both = line.unwrap_or_default().split_whitespace().map(|number| match number {
        "unlimited" => Some(Limit::None),
        number => number.parse().ok().map(Limit::At),
    });
    (both.next().flatten(), both.next().flatten())
}

/// The process that listens on a port, as far as we may see it.
fn process_at(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let inodes: Vec<_> = tables.iter().flatten().flat_map(|table| listening(table, port)).collect();
    let sockets: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let number = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let is_one = |link: &std::path::Path| sockets.iter().any(|it| link.as_os_str() == &**it);
        files
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| is_one(&link)))
            .then_some(number)
    })
}

/// Inodes of the sockets that listen on a port, from `/proc/net/tcp` (proc(5)).
fn listening(table: &str, port: u16) -> impl Iterator<Item = &str> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_whitespace().skip(1);
        let (_, at) = columns.next()?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(at, 16) == Ok(port) && columns.nth(1) == Some(LISTEN);
        columns.nth(5).filter(|_| is_it)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max file size             unlimited            unlimited            bytes     
Max open files            1024                 524288               files     
Max locked memory         8388608              8388608              bytes     
";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Ten in the morning, by the clock of somebody who answers, and ours so many seconds later.
    fn clock_off_by(seconds: i64, signs: bool) -> Finding {
        let theirs = at(1_795_514_400);
        let now = at(1_795_514_400_u64.saturating_add_signed(seconds));
        let date = Some(httpdate::fmt_http_date(theirs));
        clock(now, &[("the backend".to_owned(), date), ("the gate".to_owned(), None)], signs)
    }

    #[test]
    fn of_several_clocks_it_is_said_which() {
        let date = |seconds| Some(httpdate::fmt_http_date(at(seconds)));
        let ours = 1_795_514_400;
        let of = |first, second| {
            let dates = [("the backend a".to_owned(), first), ("the backend b".to_owned(), second)];
            clock(at(ours), &dates, false).found
        };
        assert_eq!(
            of(date(ours), date(ours)),
            "agrees with that of the backend a and the backend b"
        );
    }

    #[test]
    fn clocks_are_compared_both_ways() {
        for (off, signs, verdict) in [
            (0, true, Verdict::Ok),
            (30, true, Verdict::Ok),
            (-31, true, Verdict::Warn),
            (300, true, Verdict::Warn),
            (301, true, Verdict::Fail),
            (-301, true, Verdict::Fail),
            (-86_400, false, Verdict::Warn),
        ] {
            let finding = clock_off_by(off, signs);
            assert_eq!(finding.verdict, verdict, "{off} {finding:?}");
            assert_eq!(finding.advice.is_none(), verdict == Verdict::Ok);
        }
        assert!(clock_off_by(-301, true).found.starts_with("it is 301 s off that of the backend"));
    }

    #[test]
    fn a_clock_without_another_to_compare_with_is_judged_by_what_cannot_be() {
        let noon = Some("noon".to_owned());
        let dates = [("the backend".to_owned(), None), ("the gate".to_owned(), noon)];
        assert_eq!(clock(at(1_795_514_400), &dates, true).verdict, Verdict::Skip);
        // What a board without a battery believes after a cold start.
        assert_eq!(clock(at(3600), &dates, false).verdict, Verdict::Fail);
    }

    #[test]
    fn the_worst_clock_counts() {
        let now = at(1_795_514_400);
        let date = |off: u64| Some(httpdate::fmt_http_date(at(1_795_514_400 + off)));
        let finding = clock(
            now,
            &[("the backend".to_owned(), date(1)), ("the gate".to_owned(), date(99))],
            false,
        );
        assert_eq!(finding.found, "it is 99 s off that of the gate");
    }

    #[test]
    fn the_limits_are_read_and_weighed() {
        assert_eq!(limits_of(LIMITS), (Some(Limit::At(1024)), Some(Limit::At(524_288))));
        let soft = LIMITS.replace("1024 ", "unlimited ");
        assert_eq!(limits_of(&soft).0, Some(Limit::None));
        assert_eq!(limits_of("Max cpu time  unlimited unlimited seconds\n"), (None, None));
        for (limit, verdict) in [
            ("64 ", Verdict::Fail),
            ("1024 ", Verdict::Warn),
            ("20039 ", Verdict::Warn),
            ("20040 ", Verdict::Ok),
            ("unlimited ", Verdict::Ok),
        ] {
            let limits = LIMITS.replace("1024 ", limit);
            let finding = judge_open_files(&limits, &Whose::Gate(7), 10_000);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
        let finding = judge_open_files(LIMITS, &Whose::Gate(7), 10_000);
        assert!(finding.found.starts_with("the gate, process 7, may open 1024, enough for 492"));
        // What starts takes as many as it can get.
        assert_eq!(judge_open_files(LIMITS, &Whose::Shell, 10_000).verdict, Verdict::Ok);
    }

    #[test]
    fn a_listening_socket_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:22B0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:22B0 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n\
            \x20  2: 00000000:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table, 8880).collect::<Vec<_>>(), ["4711"]);
        assert_eq!(listening(table, 11434).collect::<Vec<_>>(), ["4713"]);
        assert_eq!(listening(table, 54321).count(), 0);
    }

    #[test]
    fn our_own_listening_socket_is_ours() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(process_at(port), Some(std::process::id()));
    }
}
