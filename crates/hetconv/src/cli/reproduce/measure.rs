//! `--measure`: how long networks take here.

use anyhow::Result;
use hetconv::graph::{Graph, Weights};
use hetconv::kernels::Isa;
use hetconv::runtime::Options;

use super::results::{Measurement, What};
use crate::cli::benchmark::{percentile, training};
use crate::cli::checks::cpu_name;
use crate::cli::timing;

/// Images in a training step.
pub const TRAINING_BATCH: usize = 128;
/// How often networks take turns with training steps, and how many steps a turn has.
const ROUNDS: usize = 3;
const STEPS: usize = 3;

/// Something to measure; the graph's name is the network's.
pub struct Wanted {
    pub what: What,
    pub graph: Graph,
    pub batch: usize,
}

/// Measures; what is wanted in one way and batch takes turns, and is kept as soon as it is measured.
pub fn measure(wanted: &[Wanted], command: &str, keep: impl Fn(Vec<Measurement>) -> Result<()>) -> Result<()> {
    let mut rest: Vec<&Wanted> = wanted.iter().collect();
    while let Some(&first) = rest.first() {
        let is_alike = |other: &&Wanted| (other.what, other.batch) == (first.what, first.batch);
        let (alike, others): (Vec<&Wanted>, Vec<&Wanted>) = rest.into_iter().partition(is_alike);
        rest = others;
        let measured = alike.iter().zip(times(&alike)?);
        keep(measured.map(|(wanted, times)| measurement(wanted, times, command)).collect::<Result<_>>()?)?;
    }
    Ok(())
}

/// Milliseconds of every run of networks that are measured in the same way.
fn times(alike: &[&Wanted]) -> Result<Vec<Vec<f64>>> {
    let Some(first) = alike.first() else { return Ok(Vec::new()) };
    let options = Options { batch: first.batch, exact: first.what == What::ExactInference, ..Options::default() };
    if first.what == What::TrainingStep {
        let mut times = vec![Vec::new(); alike.len()];
        for _ in 0..ROUNDS {
            for (wanted, times) in alike.iter().zip(&mut times) {
                let weights = Weights::init(&wanted.graph, 0)?;
                times.extend(training::time_steps(&wanted.graph, &weights, wanted.batch, Some(STEPS))?);
            }
        }
        return Ok(times);
    }
    let weights: Vec<Weights> = alike.iter().map(|wanted| Weights::init(&wanted.graph, 0)).collect::<Result<_, _>>()?;
    timing::inference(alike.iter().map(|wanted| &wanted.graph).zip(&weights), &options)
}

fn measurement(wanted: &Wanted, mut times: Vec<f64>, command: &str) -> Result<Measurement> {
    times.sort_by(f64::total_cmp);
    Ok(Measurement {
        what: wanted.what,
        network: wanted.graph.name.clone(),
        batch: wanted.batch,
        repetitions: times.len(),
        median_ms: rounded(percentile(&times, 0.5)),
        p10_ms: rounded(percentile(&times, 0.1)),
        p90_ms: rounded(percentile(&times, 0.9)),
        threads: rayon::current_num_threads(),
        isa: Isa::selected()?.name().to_owned(),
        machine: cpu_name(),
        command: command.to_owned(),
    })
}

/// To a tenth of a microsecond.
fn rounded(ms: f64) -> f64 {
    (1e4 * ms).round() / 1e4
}
