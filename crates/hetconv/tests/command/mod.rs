//! The program, run in a folder where nothing of this machine can be found.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// `hetconv` with these arguments, its output kept.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hetconv"));
    command.current_dir(folder).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("HETCONV_DATA").env_remove("HETCONV_ISA").env_remove("HETCONV_LOG").env("XDG_DATA_HOME", folder);
    command
}

/// Runs it to its end.
pub fn hetconv(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

/// What it said besides its result.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The JSON on stdout of a command that succeeds.
#[track_caller]
pub fn json(folder: &Path, args: &[&str]) -> Value {
    json_and_messages(folder, args).0
}

/// The same, and what it said besides.
#[track_caller]
pub fn json_and_messages(folder: &Path, args: &[&str]) -> (Value, String) {
    let output = hetconv(folder, &[args, &["--format", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    let said = || String::from_utf8_lossy(&output.stdout).into_owned();
    let found = serde_json::from_slice(&output.stdout);
    (found.unwrap_or_else(|error| panic!("{args:?}: {error} in {}", said())), stderr(&output))
}

/// The messages of a command that fails with this status and prints no result.
#[track_caller]
pub fn failure(folder: &Path, status: i32, args: &[&str]) -> String {
    let output = hetconv(folder, args);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {}", stderr(&output));
    assert!(output.stdout.is_empty(), "{args:?}");
    stderr(&output)
}
