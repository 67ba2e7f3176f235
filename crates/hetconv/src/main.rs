//! The `hetconv` command: every subcommand is a file under `cli`.
#![forbid(unsafe_code)]

mod cli;

#[global_allocator]
static ALLOCATOR: hetconv::kernels::alloc::Recycler<mimalloc::MiMalloc> =
    hetconv::kernels::alloc::Recycler::new(mimalloc::MiMalloc);

fn main() -> std::process::ExitCode {
    cli::main()
}
