//! The convolution as its callers see it.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use hetconv_core::{Activation, ChannelOrder, Conv2dGeometry, ConvKind, GeometryError};
use rayon::prelude::*;

use crate::depthwise::{self, Depthwise};
use crate::fresh::{fresh, place};
use crate::gather::{self, Gather};
use crate::grad_weight::{Cut, GradWeight};
use crate::isa::Isa;
use crate::moments::ColumnSums;
use crate::norm::column_sums;
use crate::pack::{Classes, Direction, Layout};
use crate::parallel::reduction_parts;
use crate::prepared::Prepared;
use crate::taps::{self, Region};
use crate::winograd::{self, Winograd};

/// A convolution: its shape, its kind and the channel orders of its two activations.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvSpec {
    /// M.
    pub in_channels: usize,
    /// N.
    pub out_channels: usize,
    /// Kernel, stride, padding, dilation.
    pub geometry: Conv2dGeometry,
    /// Standard, grouped or HetConv.
    pub kind: ConvKind,
    /// Order in which the input's channels are stored.
    pub in_order: ChannelOrder,
    /// Order in which the filters' results are stored.
    pub out_order: ChannelOrder,
}

/// Why a convolution cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConvError {
    /// The window does not fit the image.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Channel numbers, orders, groups or pattern that contradict each other.
    #[error("{0}")]
    Inconsistent(String),
}

/// A layer's weights, in canonical form and natural order.
#[derive(Clone, Copy, Debug)]
pub enum ConvWeights<'a> {
    /// Standard and grouped: `[N, M/groups, kh, kw]`.
    Dense(&'a [f32]),
    /// HetConv.
    Het {
        /// Centre taps `[N, M]`.
        center: &'a [f32],
        /// The other taps of the spatial channels `[N, S, kh·kw−1]`.
        ring: &'a [f32],
    },
}

/// Where a layer's weight gradients go; shaped as [`ConvWeights`].
#[derive(Debug)]
pub enum ConvWeightsMut<'a> {
    /// Standard and grouped: `[N, M/groups, kh, kw]`.
    Dense(&'a mut [f32]),
    /// HetConv.
    Het {
        /// Centre taps `[N, M]`.
        center: &'a mut [f32],
        /// The other taps of the spatial channels `[N, S, kh·kw−1]`; spare slots become +0.
        ring: &'a mut [f32],
    },
}

/// How forward and grad-input are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// A sum of products, one pass over the output. A value that is not finite reaches the outputs whose windows hold it;
    /// where a vector covers several classes, also those of the other classes.
    Direct,
    /// F(4×4, 3×3): 36 products where the direct pass has 144, for 3×3 taps at stride 1. Results differ by rounding, some
    /// 10⁻⁶ of their rms, and a value that is not finite spreads over a 6×6 neighbourhood.
    Winograd,
}

/// A convolution prepared for one image size: the tables that its three kernels read.
#[derive(Debug)]
pub struct Conv {
    spec: ConvSpec,
    classes: Classes,
    in_size: [usize; 2],
    out_size: [usize; 2],
    forward: Vec<Region>,
    /// Made when first needed, as are the pairs: inference needs neither.
    backward: OnceLock<Vec<Region>>,
    /// For every tap, the pairs of input and output pixel it joins.
    pairs: OnceLock<Vec<Vec<(usize, usize)>>>,
    /// What grad-weight needs besides.
    cut: OnceLock<Cut>,
    depthwise: bool,
}

impl Conv {
    /// Prepares a convolution for images of `[height, width]` pixels.
    ///
    /// # Errors
    /// [`ConvError`] if the window does not fit or the parts of the specification contradict each other.
    pub fn new(spec: ConvSpec, in_size: [usize; 2]) -> Result<Self, ConvError> {
        let out_size = spec.geometry.output_size(in_size)?;
        spec.check()?;
        let classes = Classes::new(&spec);
        let geometry = &spec.geometry;
        let axis = |axis: usize| taps::forward_axis(geometry, axis, in_size[axis], out_size[axis]);
        let channels = [spec.in_channels, spec.out_channels];
        let groups = match spec.kind {
            ConvKind::Grouped(groups) => groups,
            _ => 0,
        };
        Ok(Self {
            forward: taps::regions(geometry.kernel[1], &axis(0), &axis(1), in_size[1], channels),
            backward: OnceLock::new(),
            pairs: OnceLock::new(),
            cut: OnceLock::new(),
            depthwise: groups == spec.in_channels && groups == spec.out_channels && spec.in_order == spec.out_order,
            classes,
            in_size,
            out_size,
            spec,
        })
    }

    fn regions(&self, direction: Direction) -> &[Region] {
        match direction {
            Direction::Forward => &self.forward,
            Direction::GradInput => self.backward.get_or_init(|| {
                let (geometry, [m, n]) = (&self.spec.geometry, [self.spec.in_channels, self.spec.out_channels]);
                let axis = |axis: usize| taps::backward_axis(geometry, axis, self.in_size[axis], self.out_size[axis]);
                taps::regions(geometry.kernel[1], &axis(0), &axis(1), self.out_size[1], [n, m])
            }),
        }
    }

    fn pairs(&self) -> &[Vec<(usize, usize)>] {
        self.pairs.get_or_init(|| {
            let geometry = &self.spec.geometry;
            let axis = |axis: usize| taps::forward_axis(geometry, axis, self.in_size[axis], self.out_size[axis]);
            let (rows, columns, width) = (axis(0), axis(1), geometry.kernel[1]);
            let of_tap = |t: usize| taps::tap_pairs((t / width, t % width), &rows, &columns, self.in_size[1]);
            (0..geometry.taps()).map(of_tap).collect()
        })
    }

    /// What was asked for.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// Input height and width, in pixels.
    pub fn in_size(&self) -> [usize; 2] {
        self.in_size
    }

    /// Output height and width, in pixels.
    pub fn out_size(&self) -> [usize; 2] {
        self.out_size
    }

    /// MACs of the layer for one image, as the paper counts them: taps on padding included.
    pub fn macs(&self) -> usize {
        let ConvSpec { in_channels, out_channels, geometry, kind, .. } = &self.spec;
        let weights = kind.weights(*in_channels, *out_channels, geometry.taps());
        weights * self.out_size[0] * self.out_size[1]
    }

    /// MACs of the layer's own pattern that forward executes for one image: taps on padding are skipped.
    pub fn executed_macs(&self) -> usize {
        let center = self.spec.geometry.center_tap().filter(|_| self.classes.dense_center);
        let mut class_sizes = vec![0usize; self.classes.count];
        for &class in &self.classes.channels {
            class_sizes[class as usize] += 1;
        }
        let ring: usize = self.classes.filters.iter().map(|&class| class_sizes[class as usize]).sum();
        let of_tap = |tap: usize| {
            if Some(tap) == center { self.spec.in_channels * self.spec.out_channels } else { ring }
        };
        let of_region =
            |region: &Region| region.pixels.len() * region.taps.iter().map(|&(tap, _)| of_tap(tap)).sum::<usize>();
        self.forward.iter().map(of_region).sum()
    }

    pub(crate) fn in_len(&self, batch: usize) -> usize {
        batch * self.in_size[0] * self.in_size[1] * self.spec.in_channels
    }

    pub(crate) fn out_len(&self, batch: usize) -> usize {
        batch * self.out_size[0] * self.out_size[1] * self.spec.out_channels
    }

    /// Whether no two channels meet; then the kernel is a simpler one.
    pub fn is_depthwise(&self) -> bool {
        self.depthwise
    }

    /// The algorithms that can compute this layer.
    pub fn algorithms(&self) -> &'static [Algorithm] {
        let transformed = !self.depthwise && winograd::fits(&self.spec.geometry);
        if transformed { &[Algorithm::Direct, Algorithm::Winograd] } else { &[Algorithm::Direct] }
    }

    /// The algorithm that takes less time by a fixed cost, in a large batch.
    pub fn fastest(&self, isa: Isa, direction: Direction) -> Algorithm {
        self.fastest_for(isa, direction, usize::MAX)
    }

    /// As [`Conv::fastest`], in a batch of so many images: all of them share the reading of weights that no cache holds.
    pub fn fastest_for(&self, isa: Isa, direction: Direction, images: usize) -> Algorithm {
        /// What it costs to read a vector of weights from far, in products.
        const READ: f64 = 10.0;
        if !self.algorithms().contains(&Algorithm::Winograd) {
            return Algorithm::Direct;
        }
        let layout = |algorithm| Layout::new(&self.spec, &self.classes, direction, algorithm, isa);
        let (direct, transformed) = (layout(Algorithm::Direct), layout(Algorithm::Winograd));
        let read = |values: usize| READ * (values / isa.lanes()) as f64 / images as f64;
        let direct = self.direct_cost(&direct, direction, isa) + read(direct.len);
        let transformed = self.winograd_cost(&transformed, direction, isa) + read(winograd::weights_len(&transformed));
        if transformed < direct { Algorithm::Winograd } else { Algorithm::Direct }
    }

    /// Whole-vector products of an image.
    pub(crate) fn direct_cost(&self, layout: &Layout, direction: Direction, isa: Isa) -> f64 {
        layout.products(self.regions(direction), isa)
    }

    /// What an image costs, in whole-vector products.
    pub(crate) fn winograd_cost(&self, layout: &Layout, direction: Direction, isa: Isa) -> f64 {
        let (inputs, size) = match direction {
            Direction::Forward => (self.spec.in_channels, self.out_size),
            Direction::GradInput => (self.spec.out_channels, self.in_size),
        };
        winograd::cost(layout, inputs, size, isa)
    }

    /// Packs weights for one direction, algorithm and instruction set.
    ///
    /// # Panics
    /// If the weights are not this layer's, or the algorithm is none of its [`Conv::algorithms`].
    pub fn pack(
        &self,
        isa: Isa,
        direction: Direction,
        algorithm: Algorithm,
        weights: ConvWeights<'_>,
    ) -> PackedWeights {
        PackedWeights { isa, direction, form: self.form(isa, direction, algorithm, weights) }
    }

    fn form(&self, isa: Isa, direction: Direction, algorithm: Algorithm, weights: ConvWeights<'_>) -> PackedForm {
        self.spec.check_weights(&weights);
        assert!(self.algorithms().contains(&algorithm), "{algorithm:?} cannot compute this layer");
        let (spec, classes) = (&self.spec, &self.classes);
        let layout = || Layout::new(spec, classes, direction, algorithm, isa);
        match (algorithm, weights) {
            (Algorithm::Direct, ConvWeights::Dense(weight)) if self.depthwise => {
                PackedForm::Depthwise(Depthwise::new(spec, isa).pack(weight))
            }
            (Algorithm::Direct, _) => {
                let layout = layout();
                let packed = crate::pack::pack(spec, classes, &layout, direction, weights);
                PackedForm::Direct(gather::Weights::new(layout, packed, self.regions(direction)))
            }
            (Algorithm::Winograd, _) => {
                PackedForm::Winograd(winograd::Weights::new(spec, classes, layout(), direction, isa, weights))
            }
        }
    }

    /// A bias in the order of the outputs, padded to what the kernel reads.
    fn stored_bias(&self, isa: Isa, bias: Option<&[f32]>, channels: usize) -> Vec<f32> {
        let len = if self.depthwise { Depthwise::new(&self.spec, isa).padded() } else { channels };
        let mut stored = vec![0.0; len];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.spec.out_channels, "bias length");
            for (slot, &filter) in stored.iter_mut().zip(self.spec.out_order.channels()) {
                *slot = bias[filter as usize];
            }
        }
        stored
    }

    /// A kernel made of this convolution's tables.
    pub(crate) fn kernel<'a>(
        &'a self,
        direction: Direction,
        form: &'a PackedForm,
        bias: &'a [f32],
        activation: Option<Activation>,
    ) -> Kernel<'a> {
        let [m, n] = [self.spec.in_channels, self.spec.out_channels];
        let regions = self.regions(direction);
        let (source_size, target_size, source_channels, target_channels) = match direction {
            Direction::Forward => (self.in_size, self.out_size, m, n),
            Direction::GradInput => (self.out_size, self.in_size, n, m),
        };
        let [source_pixels, target_pixels] = [source_size, target_size].map(|size| size[0] * size[1]);
        match form {
            PackedForm::Depthwise(packed) => Kernel::Depthwise(depthwise::Gather {
                regions,
                packed,
                bias,
                activation,
                channels: m,
                source_pixels,
                target_pixels,
            }),
            PackedForm::Direct(weights) => Kernel::Direct(Gather {
                weights,
                regions,
                bias,
                activation,
                source_pixels,
                target_pixels,
                source_channels,
                target_channels,
            }),
            PackedForm::Winograd(weights) => {
                let padding = [0, 1].map(|axis| self.spec.geometry.padding[axis] as isize);
                let before = match direction {
                    Direction::Forward => padding,
                    Direction::GradInput => padding.map(|padding| 2 - padding),
                };
                Kernel::Winograd(Winograd {
                    weights,
                    bias,
                    activation,
                    source_size,
                    target_size,
                    before,
                    source_channels,
                    target_channels,
                })
            }
        }
    }

    /// Prepares the layer for inference: weights and bias packed, everything made that a pass needs.
    ///
    /// # Panics
    /// As [`Conv::pack`], or if the bias is not `[N]`.
    pub fn prepare(
        self,
        isa: Isa,
        algorithm: Algorithm,
        weights: ConvWeights<'_>,
        bias: Option<&[f32]>,
        activation: Option<Activation>,
    ) -> Prepared {
        let form = self.form(isa, Direction::Forward, algorithm, weights);
        let bias = self.stored_bias(isa, bias, self.spec.out_channels);
        Prepared::new(self, isa, algorithm, form, bias, activation)
    }

    /// Computes `output` `[batch, out height, out width, N]` from `input` `[batch, height, width, M]`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the weights were packed for something else.
    pub fn forward(
        &self,
        batch: usize,
        input: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        self.gather(Direction::Forward, batch, input, weights, bias, place(output), false);
    }

    /// As [`Conv::forward`], into a vector of its own, and returns with it the sums of each channel's outputs and of their
    /// squares.
    ///
    /// # Panics
    /// As [`Conv::forward`].
    pub fn forward_with_sums(
        &self,
        batch: usize,
        input: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
    ) -> (Vec<f32>, ColumnSums) {
        let mut sums = None;
        let len = batch * self.out_size[0] * self.out_size[1] * self.spec.out_channels;
        let fill = |output: &mut [_]| {
            sums = self.gather(Direction::Forward, batch, input, weights, bias, output, true);
        };
        // SAFETY: every target pixel is in one region, and every output in one block.
        let output = unsafe { fresh(len, fill) };
        let sums = sums.unwrap_or_else(|| column_sums(weights.isa, self.spec.out_channels, &output));
        (output, sums)
    }

    /// Computes the loss's gradient by the input, `[batch, height, width, M]`, from its gradient by the output.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer, or the weights were packed for something else.
    pub fn grad_input(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights) -> Vec<f32> {
        let fill = |grad_input: &mut [_]| {
            self.gather(Direction::GradInput, batch, grad_output, weights, None, grad_input, false);
        };
        // SAFETY: as in `forward_with_sums`.
        unsafe { fresh(self.in_len(batch), fill) }
    }

    /// As [`Conv::grad_input`], overwriting `grad_input`.
    ///
    /// # Panics
    /// As [`Conv::grad_input`].
    pub fn grad_input_into(&self, batch: usize, grad_output: &[f32], weights: &PackedWeights, grad_input: &mut [f32]) {
        self.gather(Direction::GradInput, batch, grad_output, weights, None, place(grad_input), false);
    }

    /// Forward or grad-input of one batch, with the channels' sums if they are wanted and the kernel counts them.
    #[allow(clippy::too_many_arguments)]
    fn gather(
        &self,
        direction: Direction,
        batch: usize,
        source: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        target: &mut [MaybeUninit<f32>],
        sums: bool,
    ) -> Option<ColumnSums> {
        assert_eq!(weights.direction, direction, "direction of packed weights");
        let [source_len, target_len] = match direction {
            Direction::Forward => [self.in_len(batch), self.out_len(batch)],
            Direction::GradInput => [self.out_len(batch), self.in_len(batch)],
        };
        assert_eq!(source.len(), source_len, "length of the activation that is read");
        assert_eq!(target.len(), target_len, "length of the activation that is written");
        let target_channels = match direction {
            Direction::Forward => self.spec.out_channels,
            Direction::GradInput => self.spec.in_channels,
        };
        let bias = self.stored_bias(weights.isa, bias, target_channels);
        match self.kernel(direction, &weights.form, &bias, None) {
            Kernel::Depthwise(gather) => {
                gather.run(weights.isa, batch, source, target);
                None
            }
            Kernel::Direct(gather) => gather.run(weights.isa, batch, source, target, sums),
            Kernel::Winograd(winograd) => winograd.run(weights.isa, batch, source, target, sums),
        }
    }

    /// Computes the loss's gradient by the weights, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer.
    pub fn grad_weight(&self, isa: Isa, batch: usize, input: &[f32], grad_output: &[f32], grad: ConvWeightsMut<'_>) {
        assert_eq!(input.len(), self.in_len(batch), "input length");
        assert_eq!(grad_output.len(), self.out_len(batch), "grad-output length");
        self.spec.check_weights(&grad.as_ref());
        let images = Images { batch, input, grad_output, in_size: self.in_size, out_size: self.out_size };
        if self.depthwise {
            let ConvWeightsMut::Dense(grad) = grad else { unreachable!("depthwise weights are dense") };
            return Depthwise::new(&self.spec, isa).grad_weight(isa, &images, self.pairs(), grad);
        }
        let layout = Layout::new(&self.spec, &self.classes, Direction::Forward, Algorithm::Direct, isa);
        let cut = || Cut::new(&self.spec, self.pairs(), &self.forward, [self.in_len(1), self.out_len(1)]);
        let grad_weight = GradWeight {
            layout: &layout,
            cut: self.cut.get_or_init(cut),
            regions: &self.forward,
            images: &images,
            spec: &self.spec,
            classes: &self.classes,
        };
        grad_weight.run(isa, grad);
    }

    /// Computes the loss's gradient by the bias `[N]`, overwriting `grad`.
    ///
    /// # Panics
    /// If a slice has the wrong length for `batch` and the layer.
    pub fn grad_bias(&self, _isa: Isa, batch: usize, grad_output: &[f32], grad: &mut [f32]) {
        let channels = self.spec.out_channels;
        assert_eq!(grad_output.len(), self.out_len(batch), "grad-output length");
        assert_eq!(grad.len(), channels, "bias length");
        let rows = grad_output.len() / channels;
        let parts = reduction_parts(rows, channels);
        let rows_per_part = rows.div_ceil(parts).max(1);
        let partial = |part: &[f32]| {
            let mut sums = vec![0.0f64; channels];
            for row in part.chunks_exact(channels) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
            sums
        };
        let sums: Vec<Vec<f64>> = grad_output.par_chunks(rows_per_part * channels).map(partial).collect();
        for (position, &filter) in self.spec.out_order.channels().iter().enumerate() {
            grad[filter as usize] = sums.iter().map(|part| part[position]).sum::<f64>() as f32;
        }
    }
}

/// The two activations of grad-weight.
pub(crate) struct Images<'a> {
    pub batch: usize,
    pub input: &'a [f32],
    pub grad_output: &'a [f32],
    pub in_size: [usize; 2],
    pub out_size: [usize; 2],
}

/// A layer's weights in the order that a kernel reads them; see [`Conv::pack`].
#[derive(Debug)]
pub struct PackedWeights {
    isa: Isa,
    direction: Direction,
    form: PackedForm,
}

#[derive(Debug)]
pub(crate) enum PackedForm {
    Depthwise(Vec<f32>),
    Direct(gather::Weights),
    Winograd(winograd::Weights),
}

/// One of the three kernels of forward and grad-input, with its arguments but for the activations.
pub(crate) enum Kernel<'a> {
    Depthwise(depthwise::Gather<'a>),
    Direct(Gather<'a>),
    Winograd(Winograd<'a>),
}

impl ConvWeightsMut<'_> {
    fn as_ref(&self) -> ConvWeights<'_> {
        match self {
            Self::Dense(weight) => ConvWeights::Dense(weight),
            Self::Het { center, ring } => ConvWeights::Het { center, ring },
        }
    }
}

impl ConvSpec {
    /// A convolution whose activations are stored in natural order.
    pub fn natural(in_channels: usize, out_channels: usize, geometry: Conv2dGeometry, kind: ConvKind) -> Self {
        let (in_order, out_order) = (ChannelOrder::natural(in_channels), ChannelOrder::natural(out_channels));
        Self { in_channels, out_channels, geometry, kind, in_order, out_order }
    }

    /// A convolution whose activations are stored class by class.
    pub fn by_class(in_channels: usize, out_channels: usize, geometry: Conv2dGeometry, kind: ConvKind) -> Self {
        let natural = Self::natural(in_channels, out_channels, geometry, kind);
        match &natural.kind {
            ConvKind::Het(pattern) => Self {
                in_order: ChannelOrder::by_class(pattern.channel_classes()),
                out_order: ChannelOrder::by_class(pattern.filter_classes()),
                ..natural
            },
            _ => natural,
        }
    }

    fn check(&self) -> Result<(), ConvError> {
        let (m, n) = (self.in_channels, self.out_channels);
        let wrong = |message: String| Err(ConvError::Inconsistent(message));
        if m == 0 || n == 0 {
            return wrong(format!("a convolution needs channels and filters, got {m} and {n}"));
        }
        if self.in_order.len() != m || self.out_order.len() != n {
            let (a, b) = (self.in_order.len(), self.out_order.len());
            return wrong(format!("channel orders of {a} and {b} for a convolution of {m} channels and {n} filters"));
        }
        match &self.kind {
            ConvKind::Standard => Ok(()),
            ConvKind::Grouped(groups) => {
                if *groups == 0 || !m.is_multiple_of(*groups) || !n.is_multiple_of(*groups) {
                    return wrong(format!("{groups} groups do not divide {m} channels and {n} filters"));
                }
                Ok(())
            }
            ConvKind::Het(pattern) => {
                if self.geometry.center_tap().is_none() {
                    let [h, w] = self.geometry.kernel;
                    return wrong(format!("HetConv needs an odd kernel to have a centre, got {h}×{w}"));
                }
                if (pattern.in_channels(), pattern.out_channels()) != (m, n) {
                    let (a, b) = (pattern.in_channels(), pattern.out_channels());
                    return wrong(format!(
                        "a pattern of {a} channels and {b} filters for a convolution of {m} and {n}"
                    ));
                }
                Ok(())
            }
        }
    }

    /// Lengths of the canonical weight tensors: `weight` alone, or `center` and `ring`.
    pub fn weight_lengths(&self) -> (usize, usize) {
        let (m, n, taps) = (self.in_channels, self.out_channels, self.geometry.taps());
        match &self.kind {
            ConvKind::Standard => (n * m * taps, 0),
            ConvKind::Grouped(groups) => (n * (m / groups) * taps, 0),
            ConvKind::Het(pattern) => (n * m, n * pattern.max_spatial() * (taps - 1)),
        }
    }

    fn check_weights(&self, weights: &ConvWeights<'_>) {
        let lengths = match (weights, &self.kind) {
            (ConvWeights::Dense(weight), ConvKind::Standard | ConvKind::Grouped(_)) => (weight.len(), 0),
            (ConvWeights::Het { center, ring }, ConvKind::Het(_)) => (center.len(), ring.len()),
            _ => panic!("weights of another kind of convolution"),
        };
        assert_eq!(lengths, self.weight_lengths(), "weight lengths");
    }
}
