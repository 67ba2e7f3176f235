//! `hetconv benchmark --model`: latency of a network in the runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hetconv::kernels::{Isa, measure};
use hetconv::runtime::{Algorithm, Options, Plan, Session, Team};
use hetconv::units::milliseconds;
use serde::Serialize;

use super::{Benchmark, layers};
use crate::cli::model::Size;
use crate::cli::output::Output;
use crate::cli::timing::{Repeat, noise_images, repeated};
use crate::cli::{give_memory_back, model};

pub fn run(
    network: &str,
    size: Size,
    options: Options,
    runs: Option<usize>,
    of_layers: bool,
    output: &Output,
) -> Result<()> {
    give_memory_back();
    let isa = Isa::selected()?;
    let batch = options.batch;
    let (graph, weights) = model::with_weights(network, size)?;
    let macs = graph.cost()?.macs;
    let started = Instant::now();
    let plan = Arc::new(Plan::compile_owned(&graph, weights, &options).with_context(|| network.to_owned())?);
    let compile_ms = started.elapsed().as_secs_f64() * 1e3;
    let fma_peak_gflops = measure::fma_peak_all_threads(isa);
    let mut session = Session::with_team(&plan, batch, &Arc::new(Team::new(rayon::current_num_threads())))?;
    let inputs = random_inputs(&session)?;
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let repeat = Repeat { asked: runs, enough: Duration::from_secs(3), most: 1000 };
    let times = repeated(&graph.name, repeat, || {
        let started = Instant::now();
        session.run_all(&inputs)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    })?;
    let executed: usize = plan.layers().iter().map(|layer| layer.executed_macs).sum();
    let macs = [macs, executed as u64].map(|macs| macs * batch as u64);
    // Before the yardsticks of the layers take memory of their own.
    let whole = Benchmark::new(graph.name, batch, times, macs, fma_peak_gflops, isa);
    let layers = match of_layers {
        true => Some(layers::measure(&mut session, &inputs, whole.steps, fma_peak_gflops)?),
        false => None,
    };
    let [arena_bytes, alive_bytes] = session.arena_bytes();
    let (packed_bytes, scratch_bytes) = (plan.packed_bytes(), session.scratch_bytes());
    let found = Inference { whole, compile_ms, packed_bytes, arena_bytes, alive_bytes, scratch_bytes, layers };
    output.result(&found, |found| {
        let layers = found.layers.as_ref().map_or(String::new(), |layers| format!("\n{}", layers::text(layers)));
        let whole = found.whole.text("per batch", "runs");
        let compiled = milliseconds(found.compile_ms);
        format!("{whole}\nCompiled in {compiled}\n{}{layers}", memory_and_algorithms(&plan, &session))
    })
}

/// What is measured, as JSON has it.
#[derive(Serialize)]
struct Inference {
    #[serde(flatten)]
    whole: Benchmark,
    /// From the weights in memory to the plan.
    compile_ms: f64,
    packed_bytes: usize,
    arena_bytes: usize,
    alive_bytes: usize,
    scratch_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<layers::Layer>>,
}

fn random_inputs(session: &Session) -> Result<Vec<Vec<f32>>> {
    let of_shape = |shape: [usize; 3]| noise_images(session.batch(), shape.iter().product());
    session.plan().input_shapes().map(of_shape).collect()
}

fn memory_and_algorithms(plan: &Plan, session: &Session) -> String {
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let [arena, alive] = session.arena_bytes();
    let mut algorithms: Vec<(Algorithm, Vec<&str>)> = Vec::new();
    for layer in plan.layers() {
        match algorithms.iter_mut().find(|(algorithm, _)| *algorithm == layer.algorithm) {
            Some((_, layers)) => layers.push(&layer.name),
            None => algorithms.push((layer.algorithm, vec![&layer.name])),
        }
    }
    let lines = algorithms.iter().map(|(algorithm, layers)| format!("{algorithm}: {}", layers.join(" ")));
    format!(
        "Activations {:.2} MiB ({:.2} alive at once), packed weights {:.2} MiB, scratch {:.2} MiB\n{}",
        mib(arena),
        mib(alive),
        mib(plan.packed_bytes()),
        mib(session.scratch_bytes()),
        lines.collect::<Vec<_>>().join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_named_once() {
        let (graph, weights) = model::with_weights("small-cifar_p4", Size::Own).unwrap();
        let plan = Arc::new(Plan::compile(&graph, &weights, &Options::default()).unwrap());
        let session = Session::new(&plan, 1).unwrap();
        let text = memory_and_algorithms(&plan, &session);
        for layer in plan.layers() {
            let line = text.lines().find(|line| line.starts_with(&layer.algorithm.to_string())).unwrap();
            assert_eq!(line.split_whitespace().filter(|name| *name == layer.name).count(), 1, "{text}");
        }
    }
}
