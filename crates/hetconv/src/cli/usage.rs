//! Which errors are the person's way of asking, and which a run's failing.

use hetconv::graph::NameError;
use hetconv::kernels::IsaError;
use hetconv::train::{ConfigError, DataError};

/// Something asked for that cannot be meant; the message says what would be accepted.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// 2 for bad usage, 1 for a failed run.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let bad_usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.is::<NameError>()
            || matches!(cause.downcast_ref(), Some(IsaError::Unknown(_)))
            || matches!(cause.downcast_ref(), Some(DataError::UnknownName { .. }))
            || matches!(cause.downcast_ref(), Some(ConfigError::Setting { .. }))
    });
    if bad_usage { 2 } else { 1 }
}

/// Ends a command with a [`Usage`] error.
macro_rules! bad_usage {
    ($($message:tt)*) => {
        return Err($crate::cli::usage::Usage(format!($($message)*)).into())
    };
}
pub(in crate::cli) use bad_usage;
