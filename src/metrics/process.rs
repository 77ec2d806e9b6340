//! What the system says of this process.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// What could be found out; the rest is left out.
#[derive(Debug, Clone, Default)]
pub struct Process {
    pub cpu: Option<Duration>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub threads: Option<u64>,
    pub open_files: Option<u64>,
    pub most_files: Option<u64>,
}

impl Process {
    /// Looks now; a few files of the kernel are read, which takes some 50 microseconds.
    #[must_use]
    pub fn look() -> Self {
        // Nothing, where there is no such file: then what is in it is not told.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |name: &str| field(&status, name).map(|count| count.saturating_mul(1024));
        let files = fs::read_dir("/proc/self/fd").ok();
        Self {
            cpu: cpu(),
            resident_bytes: kilobytes("VmRSS:"),
            virtual_bytes: kilobytes("VmSize:"),
            threads: field(&status, "Threads:"),
            // The folder itself is open while it is read.
            open_files: files.map(|files| (files.count() as u64).saturating_sub(1)),
            most_files: getrlimit(Resource::Nofile).current,
        }
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// In user and kernel mode, of all threads, also of those that have ended.
fn cpu() -> Option<Duration> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).ok()?;
    Some(Duration::new(seconds, u32::try_from(now.tv_nsec).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn everything_is_found_out_on_linux() {
        let before = Process::look();
        let file = fs::File::open("Cargo.toml").unwrap();
        let after = Process::look();
        assert!(after.cpu.unwrap() >= before.cpu.unwrap() && after.cpu.unwrap() > Duration::ZERO);
        assert!(after.resident_bytes.unwrap() > 1 << 20);
        assert!(after.virtual_bytes.unwrap() >= after.resident_bytes.unwrap());
        assert!(after.threads.unwrap() >= 1);
        assert!(after.open_files.unwrap() >= 3 && after.most_files.unwrap() >= 3);
        drop(file);
    }
}
