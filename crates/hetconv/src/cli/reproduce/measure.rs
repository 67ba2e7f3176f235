//! `--measure`: how long networks take here.
//!
//! `hetconv benchmark` measures each in a process of its own. In one process networks push each other's weights out of the
//! caches and work in memory that others left in pieces: a training step took a fifth longer than it does in training.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use hetconv::graph::{Graph, ModelFile, Normalisation, Weights};
use hetconv::kernels::Isa;
use serde::Deserialize;

use super::results::{Measurement, What};
use crate::cli::progress::StepProgress;

/// Images in a training step.
pub const TRAINING_BATCH: usize = 128;

/// How often networks that are measured alike take turns; the middle one of a network's medians counts.
const ROUNDS: usize = 3;
/// Training steps of a turn.
const TRAINING_STEPS: usize = 5;
/// Batches of a turn: so many MACs' worth, within these limits.
const MACS_OF_TURN: u64 = 40_000_000_000;
const BATCHES: [u64; 2] = [9, 400];

/// Something to measure.
pub struct Wanted {
    pub what: What,
    pub subject: Subject,
    pub batch: usize,
}

/// A network to measure.
pub enum Subject {
    /// One of the zoo's, by its name.
    OfZoo(&'static str, Graph),
    /// One that was put together for the purpose.
    Own(Graph),
}

impl Subject {
    fn graph(&self) -> &Graph {
        match self {
            Subject::OfZoo(_, graph) | Subject::Own(graph) => graph,
        }
    }

    /// What it is called in the results.
    pub fn name(&self) -> &str {
        match self {
            Subject::OfZoo(name, _) => name,
            Subject::Own(graph) => &graph.name,
        }
    }
}

/// What `hetconv benchmark` says.
#[derive(Deserialize)]
struct Timed {
    steps: usize,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    threads: usize,
    isa: String,
    cpu: String,
}

/// Measures; what is wanted in one way and batch takes turns, and is kept as soon as it is measured.
pub fn measure(wanted: &[Wanted], command: &str, keep: impl Fn(Vec<Measurement>) -> Result<()>) -> Result<()> {
    // Each measuring process would refuse it.
    Isa::selected()?;
    let folder = tempfile::tempdir().context("cannot make a folder for networks")?;
    let mut progress = StepProgress::new("measuring", "turns");
    let mut turns = 0..ROUNDS * wanted.len();
    let mut rest: Vec<&Wanted> = wanted.iter().collect();
    while let Some(&first) = rest.first() {
        let is_alike = |other: &&Wanted| (other.what, other.batch) == (first.what, first.batch);
        let (alike, others): (Vec<&Wanted>, Vec<&Wanted>) = rest.into_iter().partition(is_alike);
        rest = others;
        let commands = alike.iter().map(|wanted| wanted.command(folder.path())).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<Vec<Timed>> = alike.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (arguments, found) in commands.iter().zip(&mut found) {
                progress.at(turns.next().unwrap_or_default(), turns.end);
                found.push(time(arguments, folder.path())?);
            }
        }
        let found =
            alike.iter().zip(found).filter_map(|(wanted, found)| Some(wanted.measurement(middle(found)?, command)));
        keep(found.collect())?;
    }
    Ok(())
}

impl Wanted {
    /// The arguments that measure it. A network without a name goes into a file.
    fn command(&self, folder: &Path) -> Result<Vec<String>> {
        let (graph, batch) = (self.subject.graph(), self.batch);
        let model = match &self.subject {
            Subject::OfZoo(name, _) => PathBuf::from(name),
            Subject::Own(graph) => {
                let path = folder.join(format!("{}.safetensors", graph.name));
                let channels = graph.input_shape().map_or(0, |shape| shape[0]);
                let (weights, normalisation) = (Weights::init(graph, 0)?, Normalisation::identity(channels));
                ModelFile { graph: graph.clone(), weights, classes: Vec::new(), normalisation }.save(&path)?;
                path
            }
        };
        let steps = match self.what {
            What::TrainingStep => TRAINING_STEPS as u64,
            What::Inference | What::ExactInference => {
                let [least, most] = BATCHES;
                (MACS_OF_TURN / (graph.cost()?.macs * batch as u64).max(1)).clamp(least, most)
            }
        };
        let way = match self.what {
            What::Inference => None,
            What::ExactInference => Some("--exact"),
            What::TrainingStep => Some("--training"),
        };
        let mut arguments = vec!["benchmark".to_owned(), "--model".to_owned(), model.display().to_string()];
        arguments.extend(way.map(str::to_owned));
        let numbers =
            [("--batch", batch as u64), ("--steps", steps), ("--threads", rayon::current_num_threads() as u64)];
        arguments.extend(numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]));
        arguments.extend(["--format".to_owned(), "json".to_owned()]);
        Ok(arguments)
    }

    fn measurement(&self, timed: Timed, command: &str) -> Measurement {
        Measurement {
            what: self.what,
            network: self.subject.name().to_owned(),
            batch: self.batch,
            repetitions: timed.steps,
            median_ms: rounded(timed.median_ms),
            p10_ms: rounded(timed.p10_ms),
            p90_ms: rounded(timed.p90_ms),
            threads: timed.threads,
            isa: timed.isa,
            machine: timed.cpu,
            command: command.to_owned(),
        }
    }
}

/// Runs this program with these arguments, in a folder where no network's name is that of a file.
fn time(arguments: &[String], folder: &Path) -> Result<Timed> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let command = || format!("hetconv {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .with_context(|| format!("cannot start {}", command()))?;
    if !output.status.success() {
        bail!("{} failed: {}", command(), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("cannot read what {} said", command()))
}

/// The turn with the middle one of the medians.
fn middle(mut turns: Vec<Timed>) -> Option<Timed> {
    turns.sort_by(|a, b| a.median_ms.total_cmp(&b.median_ms));
    let middle = turns.len() / 2;
    turns.into_iter().nth(middle)
}

/// To a tenth of a microsecond.
fn rounded(ms: f64) -> f64 {
    (1e4 * ms).round() / 1e4
}
