//! `hetconv checks`

use std::time::Duration;

use anyhow::Result;
use hetconv::kernels::{Isa, measure};
use serde::Serialize;

use super::output::Output;

/// Say what this machine offers and what will be used: CPU, instruction sets, threads, measured peaks
#[derive(clap::Args)]
#[command(after_help = "\
HETCONV_ISA=portable|avx2|avx512 forces an instruction set; one that this CPU does not have is an error.

Example:
  hetconv checks --format json")]
pub struct Args {}

#[derive(Serialize)]
struct Checks {
    cpu: String,
    cores: usize,
    /// Those of the CPU's features that matter here.
    features: Vec<&'static str>,
    isas: Vec<&'static str>,
    isa: &'static str,
    lanes: usize,
    threads: usize,
    fma_peak_gflops: f64,
    fma_peak_all_threads_gflops: f64,
    memory_bandwidth_gb_per_s: f64,
    versions: Versions,
}

/// The one that the workspace's Cargo.toml asks for, exactly; a test compares the two.
const BURN_VERSION: &str = "0.22.1";

#[derive(Serialize)]
struct Versions {
    hetconv: &'static str,
    burn: &'static str,
}

pub fn run(_: &Args, output: &Output) -> Result<()> {
    let isa = Isa::selected()?;
    // A core that was idle needs a moment to reach its clock.
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(100) {
        measure::fma_peak(isa);
    }
    let checks = Checks {
        cpu: measure::cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        features: features(),
        isas: Isa::available().into_iter().map(Isa::name).collect(),
        isa: isa.name(),
        lanes: isa.lanes(),
        threads: rayon::current_num_threads(),
        fma_peak_gflops: measure::fma_peak(isa),
        fma_peak_all_threads_gflops: measure::fma_peak_all_threads(isa),
        memory_bandwidth_gb_per_s: measure::memory_bandwidth(),
        versions: Versions { hetconv: env!("CARGO_PKG_VERSION"), burn: BURN_VERSION },
    };
    output.result(&checks, text)
}

fn text(checks: &Checks) -> String {
    format!(
        "CPU               {}, {} cores\n\
         Features          {}\n\
         Instruction sets  {}; used: {} ({} × f32)\n\
         Threads           {}\n\
         FMA peak          {:.1} GFLOP/s on one thread, {:.1} GFLOP/s on all\n\
         Memory bandwidth  {:.1} GB/s, copying\n\
         Versions          hetconv {}, Burn {}",
        checks.cpu,
        checks.cores,
        checks.features.join(" "),
        checks.isas.join(" "),
        checks.isa,
        checks.lanes,
        checks.threads,
        checks.fma_peak_gflops,
        checks.fma_peak_all_threads_gflops,
        checks.memory_bandwidth_gb_per_s,
        checks.versions.hetconv,
        checks.versions.burn,
    )
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($feature:tt)*) => {
            [$(($feature, std::arch::is_x86_feature_detected!($feature))),*]
        };
    }
    let known = detected!("avx2" "fma" "avx512f" "avx512vl" "avx512bw" "avx512bf16" "avx512vnni" "avxvnni");
    known.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// The most memory this process has had, in MiB, where the system tells.
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
