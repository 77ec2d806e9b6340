//! What processes cost: the processor's time and the memory, as the kernel counts them.

use std::fs;
use std::thread;
use std::time::Duration;

/// The processor's time that processes had used at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Cpu(Vec<(u32, u64)>);

/// Of the kernel's unit in /proc: 100 a second on every platform that we run on.
const TICK: Duration = Duration::from_millis(10);

impl Cpu {
    /// Of these processes, in and outside the kernel, now.
    pub(crate) fn of(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|pid| Some((*pid, ticks(*pid)?))).collect())
    }

    /// Of this program.
    pub(crate) fn of_us() -> Self {
        Self::of(&[std::process::id()])
    }

    /// What was used since then; a process that ended in between is not counted.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let ticks: u64 = self.0.iter().map(|(pid, now)| now - earlier.ticks(*pid).min(*now)).sum();
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    fn ticks(&self, pid: u32) -> u64 {
        self.0.iter().find(|(one, _)| *one == pid).map_or(0, |(_, ticks)| *ticks)
    }
}

/// Fields 14 and 15 of /proc/PID/stat (proc(5)).
fn ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in brackets may hold anything; what follows begins with field 3
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The processor's time of the threads that these processes have now, to the nanosecond: of each
/// group of names, and of all. A thread that has ended counts no more.
pub(crate) fn of_threads<const N: usize>(pids: &[u32], names: [&[&str]; N]) -> ([u64; N], u64) {
    let (mut groups, mut all) = ([0; N], 0);
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks.map(|task| task.path()) {
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            let says = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let nanos = says.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0u64);
            all += nanos;
            for (group, names) in groups.iter_mut().zip(names) {
                *group += if names.contains(&name.trim_end()) { nanos } else { 0 };
            }
        }
    }
    (groups, all)
}

/// Waits until these processes do nothing more, two seconds at most.
pub(crate) fn settle(pids: &[u32]) {
    for _ in 0..20 {
        let before = Cpu::of(pids);
        thread::park_timeout(Duration::from_millis(100));
        if Cpu::of(pids).since(&before) <= TICK {
            return;
        }
    }
}

/// Waits until these processes have done nothing for that long, a minute at most; whether they have.
pub(crate) fn is_idle_for(pids: &[u32], quiet: Duration) -> bool {
    (0..40).any(|_| {
        let before = Cpu::of(pids);
        thread::park_timeout(quiet);
        Cpu::of(pids).since(&before) <= TICK
    })
}

/// The resident memory of these processes together, in KiB. What they share counts in each.
pub(crate) fn memory(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| field(*pid, "VmRSS:")).sum()
}

/// The most that it ever was since [`forget_peak`], each process by itself.
pub(crate) fn peak_memory(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| field(*pid, "VmHWM:")).sum()
}

/// Makes the present memory the most that it ever was.
///
/// # Errors
/// The kernel does not let us.
pub(crate) fn forget_peak(pids: &[u32]) -> std::io::Result<()> {
    pids.iter().try_for_each(|pid| fs::write(format!("/proc/{pid}/clear_refs"), "5"))
}

fn field(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_and_so_is_memory() {
        let before = Cpu::of_us();
        let mut sum = 0u64;
        for _ in 0..2000 {
            sum = (0..100_000u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
            if Cpu::of_us().since(&before) >= 3 * TICK {
                break;
            }
        }
        assert!(Cpu::of_us().since(&before) >= 3 * TICK);
        let us = [std::process::id()];
        // the kernel cuts names off
        let ([ours], all) = of_threads(&us, [&["cost::tests::wo"]]);
        assert!(0 < ours && ours <= all);
        assert!(memory(&us) > 500 && peak_memory(&us) >= memory(&us) / 2);
    }
}
