//! The machine that the figures come from, in a few words each.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a reader needs to judge figures by.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Of the processor, and whether it is a virtual one.
    pub(crate) cpu: String,
    /// Of the whole machine, whatever core this program is bound to.
    pub(crate) cores: usize,
    pub(crate) memory: String,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) rustc: String,
    /// Today, in UTC.
    pub(crate) date: String,
}

impl Machine {
    /// This one, today.
    pub(crate) fn here() -> Self {
        let cpus = read("/proc/cpuinfo");
        let fields = |name: &'static str| {
            cpus.lines().filter_map(move |line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            })
        };
        let named = fields("model name").next().filter(|name| !name.is_empty());
        let virtual_one = fields("flags").any(|flags| flags.contains("hypervisor"));
        let mut cpu = named.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        if virtual_one {
            cpu.push_str(", virtual");
        }
        Self {
            cpu,
            cores: fields("processor").count(),
            memory: memory(),
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            system: system(),
            rustc: first_line("rustc", &["--version"]),
            date: date(),
        }
    }

    /// Name and value of each, in the order of a table.
    pub(crate) fn rows(&self) -> [(&'static str, String); 7] {
        [
            ("processor", self.cpu.clone()),
            ("cores", self.cores.to_string()),
            ("memory", self.memory.clone()),
            ("kernel", self.kernel.clone()),
            ("system", self.system.clone()),
            ("compiler", self.rustc.clone()),
            ("date", self.date.clone()),
        ]
    }
}

/// Today in UTC, as 2026-01-31.
pub(crate) fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    civil(since.as_secs() / 86_400)
}

/// The date of a day counted from 1970-01-01: years that begin in March put the leap day last.
fn civil(day: u64) -> String {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

fn memory() -> String {
    let text = read("/proc/meminfo");
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    // the kernel keeps some for itself: 8 GiB show as 7.8
    kib.map_or_else(|| "?".to_owned(), |kib| format!("{:.1} GiB", kib as f64 / 1_048_576.0))
}

fn system() -> String {
    let text = read("/etc/os-release");
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "?".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let said = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = said.map(|said| said.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("?").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let known = [(0, "1970-01-01"), (11_016, "2000-02-29"), (20_454, "2026-01-01")];
        for (day, date) in known {
            assert_eq!(civil(day), date);
        }
    }
}
