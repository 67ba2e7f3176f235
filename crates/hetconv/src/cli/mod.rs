//! The command line: what is common to all commands.

mod benchmark;
mod checks;
mod classifier;
mod compare;
mod convert;
mod data;
mod eval;
mod export;
mod files;
mod images;
mod interrupt;
mod list;
mod model;
mod npy;
mod output;
mod predict;
mod progress;
mod prune;
mod report;
mod reproduce;
mod run;
mod runs;
mod summary;
mod timing;
mod train;
mod usage;

use std::io::IsTerminal;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use output::{Format, Output};

/// Networks with heterogeneous convolutions (HetConv): train them, compare them, count them.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = "Begin with `hetconv compare`.")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How results are printed; JSON goes to stdout alone
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Threads to compute with; all cores unless given
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_THREADS))]
    threads: Option<u16>,
}

/// More threads than any machine has cores.
const MOST_THREADS: i64 = 1024;

#[derive(Subcommand)]
enum Command {
    Compare(compare::Args),
    List(list::Args),
    Summary(summary::Args),
    Train(train::Args),
    Prune(prune::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Run(run::Args),
    Benchmark(benchmark::Args),
    Convert(convert::Args),
    Export(export::Args),
    Data(data::Args),
    Reproduce(reproduce::Args),
    Report(report::Args),
    Checks(checks::Args),
}

/// Runs the command line of this process: 0 when what was asked for was done, 1 for a failed run, 2 for bad usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Only logs; results and errors do not depend on the variable.
    let filter = EnvFilter::try_from_env("HETCONV_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let logs =
        tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(std::io::stderr);
    logs.with_ansi(std::io::stderr().is_terminal()).with_target(false).without_time().init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(usage::exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = cli.threads {
        pool = pool.num_threads(threads.into());
    }
    pool.build_global().context("cannot start the threads")?;
    // On one of the threads itself: work then starts and ends without waking or waiting for another.
    rayon::scope(|_| dispatch(cli))
}

/// For commands that make memory once, and not the same sizes again and again as training does: what they free goes back to
/// the system.
fn give_memory_back() {
    crate::ALLOCATOR.keep(0);
}

fn dispatch(cli: Cli) -> Result<()> {
    let output = Output::new(cli.format);
    match cli.command {
        Command::Compare(args) => compare::run(&args, &output),
        Command::List(args) => list::run(&args, &output),
        Command::Summary(args) => summary::run(&args, &output),
        Command::Train(args) => train::run(&args, &output),
        Command::Prune(args) => prune::run(&args, &output),
        Command::Eval(args) => eval::run(&args, &output),
        Command::Predict(args) => predict::run(&args, &output),
        Command::Run(args) => run::run(&args, &output),
        Command::Benchmark(args) => benchmark::run(&args, &output),
        Command::Convert(args) => convert::run(&args, &output),
        Command::Export(args) => export::run(&args, &output),
        Command::Data(args) => data::run(&args, &output),
        Command::Reproduce(args) => reproduce::run(&args, &output),
        Command::Report(args) => report::run(&args, &output),
        Command::Checks(args) => checks::run(&args, &output),
    }
}
