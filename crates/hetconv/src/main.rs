//! The `hetconv` command: every subcommand is a file under `cli`.
#![forbid(unsafe_code)]

mod cli;

/// Every operation of a training step allocates its result; with glibc's allocator each large one is given back to the
/// system and faulted in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
