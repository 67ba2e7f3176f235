//! The program, run in a folder where nothing of this machine can be found.

use std::path::Path;
use std::process::{Command, Output, Stdio};

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
