//! `hetconv benchmark --training`: whole steps of a network.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::Device;
use hetconv::burn::{GraphModule, Sgd, SgdConfig};
use hetconv::graph::{Graph, Op, Weights};
use hetconv::kernels::{Conv, ConvSpec, Isa, measure};
use hetconv::train::{Purpose, stream, uniform};
use hetconv::units::{count, milliseconds};
use serde::Serialize;

use super::percentile;
use crate::cli::checks::{cpu_name, peak_memory_mib};
use crate::cli::model::{self, Model};
use crate::cli::output::Output;

#[derive(Serialize)]
struct Benchmark {
    model: String,
    batch: usize,
    steps: usize,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    images_per_second: f64,
    gmacs_per_second: f64,
    macs: u64,
    executed_macs: u64,
    fma_peak_gflops: f64,
    fraction_of_peak: f64,
    peak_memory_mib: Option<f64>,
    threads: usize,
    isa: &'static str,
    cpu: String,
}

const WARM_UP: usize = 3;

pub fn run(network: &str, batch: usize, steps: Option<usize>, output: &Output) -> Result<()> {
    let isa = Isa::selected()?;
    let (graph, weights) = match model::open(network)? {
        Model::Name(name) => {
            let graph = model::build(&name, name.usual_classes(), None)?;
            let weights = Weights::init(&graph, 0)?;
            (graph, weights)
        }
        Model::File(file) => (file.graph, file.weights),
    };
    let fma_peak_gflops = measure::fma_peak_all_threads(isa);
    let mut times = time_steps(&graph, &weights, batch, steps)?;
    times.sort_by(f64::total_cmp);
    let median_ms = percentile(&times, 0.5);
    let (macs, executed_macs) = macs_of_step(&graph, batch as u64)?;
    let per_second = 1e3 / median_ms;
    let benchmark = Benchmark {
        model: graph.name,
        batch,
        steps: times.len(),
        median_ms,
        p10_ms: percentile(&times, 0.1),
        p90_ms: percentile(&times, 0.9),
        images_per_second: batch as f64 * per_second,
        gmacs_per_second: macs as f64 * per_second / 1e9,
        macs,
        executed_macs,
        fma_peak_gflops,
        fraction_of_peak: 2.0 * executed_macs as f64 * per_second / (fma_peak_gflops * 1e9),
        peak_memory_mib: peak_memory_mib(),
        threads: rayon::current_num_threads(),
        isa: isa.name(),
        cpu: cpu_name(),
    };
    output.result(&benchmark, text)
}

/// Milliseconds of every measured step.
fn time_steps(graph: &Graph, weights: &Weights, batch: usize, steps: Option<usize>) -> Result<Vec<f64>> {
    const ENOUGH: Duration = Duration::from_secs(5);
    let mut network = GraphModule::new(graph, weights, &Device::flex())?;
    let mut optimizer = Sgd::new(SgdConfig::default());
    let mut rng = stream(0, 0, 0, Purpose::Permutation);
    let per_image: usize = graph.input_shape().unwrap_or_default().iter().product();
    let images: Vec<f32> = (0..batch * per_image).map(|_| 2.0 * uniform(&mut rng) - 1.0).collect();
    let labels: Vec<u16> = (0..batch).map(|i| (i % network.classes()) as u16).collect();
    let mut step = || -> Result<f64> {
        let images = images.clone();
        let started = Instant::now();
        let found = network.step(images, batch, &labels, 0.1)?;
        optimizer.step(&mut network, found.gradients, 1e-3);
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..WARM_UP {
        step()?;
    }
    let started = Instant::now();
    let mut times = Vec::new();
    while match steps {
        Some(steps) => times.len() < steps,
        None => times.len() < 10 || (started.elapsed() < ENOUGH && times.len() < 200),
    } {
        times.push(step()?);
    }
    Ok(times)
}

/// MACs of forward, grad-input and grad-weight over a batch: all of them, and those not on padding.
fn macs_of_step(graph: &Graph, batch: u64) -> Result<(u64, u64)> {
    let shapes = graph.shapes()?;
    let (mut nominal, mut executed) = (0, 0);
    for node in &graph.nodes {
        let (macs, executed_macs) = match &node.op {
            Op::Conv2d { in_channels, out_channels, geometry, kind, .. } => {
                let spec = ConvSpec::by_class(*in_channels, *out_channels, geometry.clone(), kind.clone());
                let conv = Conv::new(spec, shapes[node.inputs[0]].size())?;
                (conv.macs() as u64, conv.executed_macs() as u64)
            }
            Op::Linear { in_features, out_features, .. } => {
                let macs = (in_features * out_features) as u64;
                (macs, macs)
            }
            _ => continue,
        };
        let reads_images = matches!(graph.nodes[node.inputs[0]].op, Op::Input { .. });
        let passes = if reads_images { 2 } else { 3 };
        nominal += passes * batch * macs;
        executed += passes * batch * executed_macs;
    }
    Ok((nominal, executed))
}

fn text(found: &Benchmark) -> String {
    let memory = found.peak_memory_mib.map_or(String::new(), |mib| format!(", {mib:.0} MiB at most"));
    format!(
        "{}, batch {}: {} per training step (10th to 90th percentile {} to {}, {} steps)\n\
         {:.0} images/s, {:.1} GMAC/s of {} MACs ({} executed), {:.1} % of the FMA peak of {:.0} GFLOP/s{memory}\n\
         {} threads, {}, {}",
        found.model,
        found.batch,
        milliseconds(found.median_ms),
        milliseconds(found.p10_ms),
        milliseconds(found.p90_ms),
        found.steps,
        found.images_per_second,
        found.gmacs_per_second,
        count(found.macs),
        count(found.executed_macs),
        100.0 * found.fraction_of_peak,
        found.fma_peak_gflops,
        found.threads,
        found.isa,
        found.cpu,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_three_passes_but_for_the_first_layer() {
        let graph = model::build(&"vgg16-cifar_p4".parse().unwrap(), 10, None).unwrap();
        let (nominal, executed) = macs_of_step(&graph, 2).unwrap();
        let first = 3 * 64 * 9 * 32 * 32;
        assert_eq!(nominal, 2 * (3 * 105_845_760 - first));
        assert!(executed < nominal && executed > nominal / 2, "{executed} of {nominal}");
    }
}
