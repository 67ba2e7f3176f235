//! `hetconv benchmark --training`: whole steps of a network.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::Device;
use hetconv::burn::{GraphModule, Sgd, SgdConfig};
use hetconv::graph::{Graph, Op, Weights};
use hetconv::kernels::{Conv, ConvSpec, Isa, measure};

use super::Benchmark;
use crate::cli::model::{self, Size};
use crate::cli::output::Output;
use crate::cli::timing::{Repeat, noise_images, repeated};

pub fn run(network: &str, size: Size, batch: usize, steps: Option<usize>, output: &Output) -> Result<()> {
    let isa = Isa::selected()?;
    let (graph, weights) = model::with_weights(network, size)?;
    let fma_peak_gflops = measure::fma_peak_all_threads(isa);
    let times = time_steps(&graph, &weights, batch, steps)?;
    let (macs, executed_macs) = macs_of_step(&graph, batch as u64)?;
    let benchmark = Benchmark::new(graph.name, batch, times, [macs, executed_macs], fma_peak_gflops, isa);
    output.result(&benchmark, |benchmark| benchmark.text("per training step", "steps"))
}

/// Milliseconds of every measured step.
fn time_steps(graph: &Graph, weights: &Weights, batch: usize, steps: Option<usize>) -> Result<Vec<f64>> {
    let mut network = GraphModule::new(graph, weights, &Device::flex())?;
    let mut optimizer = Sgd::new(SgdConfig::default());
    let per_image: usize = graph.input_shape().unwrap_or_default().iter().product();
    let images = noise_images(batch, per_image)?;
    let labels: Vec<u16> = (0..batch).map(|i| (i % network.classes()) as u16).collect();
    let repeat = Repeat { asked: steps, enough: Duration::from_secs(5), most: 200 };
    repeated(&graph.name, repeat, || {
        let images = images.clone();
        let started = Instant::now();
        let found = network.step(images, batch, &labels, 0.1)?;
        optimizer.step(&mut network, found.gradients, 1e-3);
        Ok(started.elapsed().as_secs_f64() * 1e3)
    })
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
