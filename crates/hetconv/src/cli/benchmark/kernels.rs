//! `hetconv benchmark --kernels`: forward, grad-input and grad-weight of single layers.

use std::time::{Duration, Instant};

use anyhow::Result;
use hetconv::core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv::kernels::{Batch, Conv, ConvSpec, ConvWeights, ConvWeightsMut, Direction, Input, Isa, measure};
use serde::Serialize;

use super::percentile;
use crate::cli::output::{Output, table};
use crate::cli::progress::StepProgress;
use crate::cli::timing::noise;
use crate::cli::usage::bad_usage;

/// One kernel of one layer.
#[derive(Serialize)]
struct Measured {
    kernel: &'static str,
    direction: &'static str,
    shape: String,
    parts: usize,
    isa: &'static str,
    threads: usize,
    macs: u64,
    executed_macs: u64,
    gflops: f64,
    fraction_of_peak: f64,
}

/// A layer: batch, channels, filters, height and width, kernel, stride.
#[derive(Clone, Copy)]
struct Layer {
    kernel: &'static str,
    batch: usize,
    channels: usize,
    filters: usize,
    size: usize,
    window: usize,
    stride: usize,
}

const fn layer(batch: usize, channels: usize, filters: usize, size: usize, window: usize, stride: usize) -> Layer {
    Layer { kernel: "standard", batch, channels, filters, size, window, stride }
}

const DIRECTIONS: [&str; 3] = ["forward", "grad_input", "grad_weight"];

/// 3×3 layers of the paper's networks, measured with every number of parts.
const SPATIAL: [Layer; 13] = [
    layer(16, 64, 64, 32, 3, 1),
    layer(64, 256, 256, 8, 3, 1),
    layer(64, 512, 512, 4, 3, 1),
    layer(128, 512, 512, 2, 3, 1),
    layer(4, 128, 128, 28, 3, 1),
    layer(4, 64, 64, 56, 3, 1),
    layer(8, 256, 256, 14, 3, 1),
    layer(8, 512, 512, 7, 3, 1),
    layer(2, 256, 256, 56, 3, 1),
    layer(32, 16, 16, 32, 3, 1),
    layer(64, 32, 32, 16, 3, 1),
    layer(16, 64, 128, 32, 3, 2),
    layer(8, 128, 256, 28, 3, 2),
];

/// First layers, pointwise, grouped and depthwise ones.
const OTHERS: [Layer; 7] = [
    layer(64, 3, 64, 32, 3, 1),
    layer(2, 3, 64, 224, 7, 2),
    Layer { kernel: "pointwise", ..layer(16, 128, 128, 16, 1, 1) },
    Layer { kernel: "pointwise", ..layer(8, 512, 512, 7, 1, 1) },
    Layer { kernel: "grouped", ..layer(16, 128, 128, 16, 3, 1) },
    Layer { kernel: "depthwise", ..layer(16, 128, 128, 16, 3, 1) },
    Layer { kernel: "depthwise", ..layer(16, 64, 64, 32, 3, 2) },
];

/// Groups of the grouped layers, as in the paper's GWC4.
const GROUPS: usize = 4;

impl Layer {
    fn shape(&self) -> String {
        let Self { batch, channels, filters, size, window, stride, .. } = self;
        format!("b{batch} m{channels} n{filters} {size}x{size} k{window} s{stride}")
    }

    /// The layer as it is, or as HetConv with more than one part; `None` with more parts than channels.
    fn conv(&self, parts: usize) -> Result<Option<Conv>> {
        let kind = match self.kernel {
            "depthwise" => ConvKind::Grouped(self.channels),
            "grouped" => ConvKind::Grouped(GROUPS),
            _ if parts == 1 => ConvKind::Standard,
            _ if parts > self.channels => return Ok(None),
            _ => ConvKind::Het(HetPattern::shifted(self.channels, self.filters, parts)?),
        };
        let geometry = Conv2dGeometry::square(self.window, self.stride, self.window / 2, 1);
        let spec = ConvSpec::by_class(self.channels, self.filters, geometry, kind);
        Ok(Some(Conv::new(spec, [self.size; 2])?))
    }
}

pub fn run(wanted: &str, parts: &[u32], output: &Output) -> Result<()> {
    let isa = Isa::selected()?;
    let peak = measure::fma_peak_all_threads(isa);
    let mut layers: Vec<(Layer, usize)> = Vec::new();
    for layer in SPATIAL {
        layers.extend(parts.iter().map(|&parts| (layer, parts as usize)));
    }
    layers.extend(OTHERS.map(|layer| (layer, 1)));
    let mut found = Vec::new();
    let mut progress = StepProgress::new("kernels", "layers");
    let all = layers.len();
    for (done, (layer, parts)) in layers.into_iter().enumerate() {
        progress.at(done, all);
        let kernel = if parts > 1 { "hetconv" } else { layer.kernel };
        if !layer.shape().contains(wanted) && !kernel.contains(wanted) {
            continue;
        }
        let Some(conv) = layer.conv(parts)? else { continue };
        let (macs, executed_macs) = (conv.macs() as u64, conv.executed_macs() as u64);
        let batch = layer.batch as u64;
        for (direction, seconds) in DIRECTIONS.into_iter().zip(seconds(&conv, layer.batch, isa)) {
            let gflops = 2.0 * (batch * executed_macs) as f64 / seconds / 1e9;
            found.push(Measured {
                kernel,
                direction,
                shape: layer.shape(),
                parts,
                isa: isa.name(),
                threads: rayon::current_num_threads(),
                macs: batch * macs,
                executed_macs: batch * executed_macs,
                gflops,
                fraction_of_peak: gflops / peak,
            });
        }
    }
    drop(progress);
    if found.is_empty() {
        bad_usage!("--shapes {wanted}: no kernel has that in its name or shape, which is like {}", SPATIAL[0].shape());
    }
    output.result(&found, |found| text(found, peak))
}

/// Median seconds of forward, grad-input and grad-weight.
fn seconds(conv: &Conv, batch: usize, isa: Isa) -> [f64; 3] {
    let (spec, [height, width], [out_height, out_width]) = (conv.spec(), conv.in_size(), conv.out_size());
    let noise = |len: usize| noise().take(len).collect::<Vec<f32>>();
    let input = noise(batch * height * width * spec.in_channels);
    let grad_output = noise(batch * out_height * out_width * spec.out_channels);
    let (main, ring) = spec.weight_lengths();
    let is_het = matches!(spec.kind, ConvKind::Het(_));
    // Spare slots of the ring are 0, and not read.
    let (mut main, mut ring) = (noise(main), vec![0.5; ring]);
    let weights = if is_het { ConvWeights::Het { center: &main, ring: &ring } } else { ConvWeights::Dense(&main) };
    let forward = conv.pack(isa, Direction::Forward, conv.exact(), weights);
    let backward = conv.pack(isa, Direction::GradInput, conv.exact(), weights);
    let mut output = vec![0.0; grad_output.len()];
    [
        median(|| conv.forward(batch, &input, &forward, None, &mut output)),
        median(|| drop(std::hint::black_box(conv.grad_input(batch, &grad_output, &backward)))),
        median(|| {
            let grad = match is_het {
                true => ConvWeightsMut::Het { center: &mut main, ring: &mut ring },
                false => ConvWeightsMut::Dense(&mut main),
            };
            let batch = Batch { images: batch, input: Input::Plain(&input), grad_output: &grad_output };
            conv.grad_weight(isa, conv.exact(), batch, grad);
        }),
    ]
}

/// Median seconds of some runs, after one to warm up.
fn median(mut run: impl FnMut()) -> f64 {
    const ENOUGH: Duration = Duration::from_millis(200);
    run();
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || started.elapsed() < ENOUGH {
        let started = Instant::now();
        run();
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    percentile(&times, 0.5)
}

fn text(found: &[Measured], peak: f64) -> String {
    let mut rows =
        table(&["kernel", "shape", "P", "executed", "forward", "grad-input", "grad-weight"], &["kernel", "shape"]);
    for of_layer in found.chunks(DIRECTIONS.len()) {
        let first = &of_layer[0];
        let executed = hetconv::units::count(first.executed_macs);
        let mut row = vec![first.kernel.to_owned(), first.shape.clone(), first.parts.to_string(), executed];
        row.extend(of_layer.iter().map(|measured| format!("{:.1} %", 100.0 * measured.fraction_of_peak)));
        rows.add_row(row);
    }
    let threads = rayon::current_num_threads();
    let isa = found[0].isa;
    format!(
        "{rows}\n\nMACs executed in a forward pass, and shares of the FMA peak of {peak:.0} GFLOP/s: {threads} thread{}, {isa}, {}",
        if threads == 1 { "" } else { "s" },
        measure::cpu_name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_the_macs_of_its_kind() {
        let macs = |layer: Layer, parts| layer.conv(parts).unwrap().map(|conv| conv.macs());
        assert_eq!(macs(SPATIAL[0], 1), Some(9 * 64 * 64 * 32 * 32));
        // Equation 5: 1/4 + 3/4 · 1/9 of the standard layer is a third.
        assert_eq!(macs(SPATIAL[0], 4), Some(3 * 64 * 64 * 32 * 32));
        assert_eq!(macs(SPATIAL[0], 65), None);
        assert_eq!(macs(OTHERS[1], 1), Some(49 * 3 * 64 * 112 * 112));
        assert_eq!(macs(OTHERS[2], 1), Some(128 * 128 * 16 * 16));
        assert_eq!(macs(OTHERS[4], 1), Some(9 * 128 * 32 * 16 * 16));
        assert_eq!(macs(OTHERS[6], 1), Some(9 * 64 * 16 * 16));
    }
}
