//! Ctrl-C, and a system that asks for the end: what is being trained stops with a checkpoint.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Once};

static IS_ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on being asked to end is noticed. A second Ctrl-C ends the process at once.
pub fn notice() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = listen() {
            tracing::warn!("Ctrl-C will end a run without a checkpoint of that moment: {error}");
        }
    });
}

/// Whether the process was asked to end.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}

#[cfg(unix)]
fn listen() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // What `nohup` and shells have a process ignore is none of ours.
    let ignored = ignored();
    let heard = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = signal_hook::iterator::Signals::new(heard)?;
    let hear = move || {
        for signal in signals.forever() {
            match (IS_ASKED.swap(true, Ordering::Relaxed), signal) {
                (false, _) => super::output::say("stopping with a checkpoint; Ctrl-C once more ends at once"),
                // As shells tell of a process that was interrupted.
                (true, SIGINT) => std::process::exit(130),
                // A terminal that is closed may hang up twice.
                (true, _) => {}
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(hear).map(drop)
}

/// The signals that this process was started to ignore, a bit for each from 1 on, where the system tells.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn listen() -> io::Result<()> {
    use signal_hook::{consts::SIGINT, flag};
    flag::register_conditional_shutdown(SIGINT, 130, IS_ASKED.clone())?;
    flag::register(SIGINT, IS_ASKED.clone()).map(drop)
}
