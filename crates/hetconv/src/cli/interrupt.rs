//! Ctrl-C, and a system that asks for the end: what is being trained stops with a checkpoint.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// From now on being asked to end is noticed, once: asked a second time, the process ends at once.
pub fn notice() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let noticed = ctrlc::set_handler(|| {
            if IS_ASKED.swap(true, Ordering::Relaxed) {
                // As shells tell of a process that was interrupted.
                std::process::exit(130);
            }
        });
        if let Err(error) = noticed {
            tracing::warn!("Ctrl-C will end a run without a checkpoint of that moment: {error}");
        }
    });
}

/// Whether the process was asked to end.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}
