//! Exit codes, and which allocator; nothing else.

use std::process::ExitCode;

#[cfg(any(target_env = "gnu", target_env = "musl"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    #[cfg(target_env = "musl")]
    give_back();
    portcullis::cli::run()
}

/// What many callers took goes back to the system soon after they left: jemalloc does so by itself as
/// long as memory is asked for, and has a thread for when none is, but not with musl.
#[cfg(target_env = "musl")]
fn give_back() {
    use std::thread;
    use std::time::Duration;

    use tikv_jemalloc_ctl::{Access, AsName};

    const EVERY: Duration = Duration::from_secs(10);

    let run = || {
        loop {
            thread::sleep(EVERY);
            let arenas: u32 = b"arenas.narenas\0".name().read().unwrap_or(0);
            for arena in 0..arenas {
                let key = format!("arena.{arena}.dirty_decay_ms\0");
                // An arena that nobody uses has none.
                let Ok(decay) = Access::<isize>::read(key.name()) else { continue };
                // To wait no longer lets go at once of all that is unused.
                for decay in [0, decay] {
                    let _ = key.name().write(decay);
                }
            }
        }
    };
    // Without it the gate needs more memory, and no more than that.
    let _ = thread::Builder::new().name("memory".to_owned()).spawn(run);
}
