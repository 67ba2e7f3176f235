//! The taps that HetConv has, fitted to what the convolution gave.
//!
//! The filters of one class have the same unknowns: every channel's centre tap, the off-centre taps of the channels of
//! their class, and a bias. So there is one matrix of normal equations for each class. What is solved for is the
//! difference from the projected weights, and its size is what the ridge holds down: where the images say nothing, weights
//! stay.

use hetconv_core::{Conv2dGeometry, ConvKind};
use hetconv_graph::HetLayer;
use hetconv_kernels::{Batch, Conv, ConvSpec, ConvWeightsMut, Input, Isa};
use rayon::prelude::*;

use crate::linear::Symmetric;
use crate::{CalibrateError, Layer};

/// Windows whose products are summed in f32 at a time.
const CHUNK: usize = 1024;

/// Fits a layer to `target` `[windows, N]` on `windows` `[windows, M, taps]`.
pub(crate) fn refit(
    isa: Isa,
    layer: &Layer,
    windows: &[f32],
    target: &[f32],
    ridge: f64,
) -> Result<HetLayer, CalibrateError> {
    let mut het = HetLayer::projected(layer.pattern.clone(), &layer.geometry, &layer.weight);
    let mut bias = layer.bias.clone();
    let not_finite = || CalibrateError::NotFinite { layer: layer.name.clone() };
    let around = layer.geometry.taps() - 1;
    let (channels, width) = (layer.pattern.in_channels(), layer.pattern.max_spatial());
    for class in (0..layer.pattern.classes()).map(|class| class as u32) {
        let class = Class::new(layer, class);
        if class.filters.is_empty() {
            continue;
        }
        let (mut gram, products) = class.normal_equations(isa, layer, windows, target);
        let unknowns = class.unknowns();
        let starts: Vec<Vec<f64>> = class
            .filters
            .iter()
            .map(|&filter| {
                let center = &het.center[filter * channels..][..channels];
                let ring = &het.ring[filter * width * around..][..class.spatial.len() * around];
                center.iter().chain(ring).chain([&bias[filter]]).map(|&x| f64::from(x)).collect()
            })
            .collect();
        // What the projected weights leave to be explained.
        let mut rest: Vec<Vec<f64>> = starts
            .par_iter()
            .zip(products.par_chunks_exact(unknowns))
            .map(|(start, product)| product.iter().zip(gram.times(start)).map(|(p, g)| p - g).collect())
            .collect();
        let mean = gram.mean_of_inputs();
        if !mean.is_finite() || rest.iter().flatten().any(|x| !x.is_finite()) {
            return Err(not_finite());
        }
        // Layers that read nothing but zeros have nothing to fit but the bias.
        gram.hold_down(ridge, (ridge * mean).max(f64::MIN_POSITIVE.sqrt()));
        let factor = gram.factor().ok_or_else(|| CalibrateError::Singular { layer: layer.name.clone() })?;
        rest.par_iter_mut().for_each(|rest| factor.solve(rest));
        for ((&filter, start), change) in class.filters.iter().zip(&starts).zip(&rest) {
            let mut fitted = start.iter().zip(change).map(|(start, change)| (start + change) as f32);
            het.center[filter * channels..][..channels].fill_with(|| fitted.next().unwrap_or(0.0));
            let ring = &mut het.ring[filter * width * around..][..class.spatial.len() * around];
            ring.fill_with(|| fitted.next().unwrap_or(0.0));
            bias[filter] = fitted.next().unwrap_or(0.0);
        }
    }
    if het.center.iter().chain(&het.ring).chain(&bias).any(|x| !x.is_finite()) {
        return Err(not_finite());
    }
    het.bias = Some(bias);
    Ok(het)
}

/// The filters of one class and what they read.
struct Class {
    filters: Vec<usize>,
    /// The channels of the class.
    spatial: Vec<usize>,
    /// For every unknown but the bias, its place in a window `[M, taps]`.
    sources: Vec<usize>,
}

impl Class {
    fn new(layer: &Layer, class: u32) -> Self {
        let of_class = |classes: &[u32]| -> Vec<usize> {
            classes.iter().enumerate().filter(|(_, of)| **of == class).map(|(index, _)| index).collect()
        };
        let (taps, center) = (layer.geometry.taps(), layer.geometry.center_tap().unwrap_or(0));
        let spatial = of_class(layer.pattern.channel_classes());
        let centers = (0..layer.pattern.in_channels()).map(|channel| channel * taps + center);
        let rings = spatial
            .iter()
            .flat_map(|&channel| (0..taps).filter(move |&tap| tap != center).map(move |tap| channel * taps + tap));
        let sources = centers.chain(rings).collect();
        Self { filters: of_class(layer.pattern.filter_classes()), spatial, sources }
    }

    fn unknowns(&self) -> usize {
        self.sources.len() + 1
    }

    /// Sums over all windows: products of the unknowns' values with each other, and of each filter's target with them,
    /// `[filters, unknowns]`.
    fn normal_equations(&self, isa: Isa, layer: &Layer, windows: &[f32], target: &[f32]) -> (Symmetric, Vec<f64>) {
        let (unknowns, all_filters) = (self.unknowns(), layer.pattern.out_channels());
        let rows = unknowns + self.filters.len();
        let of_window = layer.pattern.in_channels() * layer.geometry.taps();
        let mut sums = vec![0.0_f64; rows * unknowns];
        let mut chunk_sums = vec![0.0_f32; rows * unknowns];
        for (windows, target) in windows.chunks(CHUNK * of_window).zip(target.chunks(CHUNK * all_filters)) {
            let count = windows.len() / of_window;
            let mut values = Vec::with_capacity(count * unknowns);
            let mut both = Vec::with_capacity(count * rows);
            for (window, target) in windows.chunks_exact(of_window).zip(target.chunks_exact(all_filters)) {
                let from = values.len();
                values.extend(self.sources.iter().map(|&source| window[source]).chain([1.0]));
                both.extend_from_slice(&values[from..]);
                both.extend(self.filters.iter().map(|&filter| target[filter]));
            }
            // Sums of products are what a pointwise convolution's weight gradient is.
            let spec = ConvSpec::natural(unknowns, rows, Conv2dGeometry::same(1, 1), ConvKind::Standard);
            let conv = Conv::new(spec, [count, 1]).expect("a 1×1 window fits any image");
            let target = ConvWeightsMut::Dense(&mut chunk_sums);
            let batch = Batch { images: 1, input: Input::Plain(&values), grad_output: &both };
            conv.grad_weight(isa, conv.exact(), batch, target);
            sums.iter_mut().zip(&chunk_sums).for_each(|(sum, &more)| *sum += f64::from(more));
        }
        let products = sums.split_off(unknowns * unknowns);
        (Symmetric(sums), products)
    }
}
