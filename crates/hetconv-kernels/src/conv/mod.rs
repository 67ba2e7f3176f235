//! The convolution as its callers see it.

mod passes;
mod reordered;
mod spec;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use hetconv_core::Activation;

pub use passes::Batch;
pub(crate) use passes::Images;
pub use reordered::Reordered;
pub use spec::{ConvError, ConvSpec, ConvWeights, ConvWeightsMut};

use crate::aligned::Shared;
use crate::depthwise::{self, Depthwise};
use crate::direct::{self, DirectConv};
use crate::fresh::product;
use crate::grad_weight::Cut;
use crate::isa::Isa;
use crate::kernel::Kernel;
use crate::pack::{Classes, Direction, Layout};
use crate::prepared::Prepared;
use crate::taps::{self, Axis, Region, Rows};
use crate::winograd::{self, Winograd};

/// How forward, grad-input and grad-weight are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// A sum of products, one pass over the output. A value that is not finite reaches the outputs whose windows hold it;
    /// where a vector covers several classes, or the two vectors of a block classes of unequal numbers of channels, also those
    /// of the other classes.
    Direct,
    /// A sum of products where no two channels meet, with lanes over channels: the one algorithm of depthwise layers whose
    /// channels stand in the same order on both sides, and of those alone.
    Depthwise,
    /// F(4×4, 3×3): 36 products where the direct pass has 144, for 3×3 taps at stride 1. Results differ by rounding, some
    /// 10⁻⁶ of their rms, and a value that is not finite spreads over a 6×6 neighbourhood.
    Winograd,
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Depthwise => "depthwise",
            Self::Winograd => "winograd",
        })
    }
}

/// A convolution prepared for one image size: the tables that its three kernels read.
#[derive(Debug)]
pub struct Conv {
    spec: Arc<ConvSpec>,
    classes: Classes,
    in_size: [usize; 2],
    out_size: [usize; 2],
    /// For each direction; like all that follows, made when first needed.
    regions: [OnceLock<Vec<Region>>; 2],
    /// What grad-weight needs besides.
    cut: OnceLock<Cut>,
    /// What depthwise kernels read instead of regions.
    rows: [OnceLock<Rows>; 2],
    depthwise: bool,
}

/// The tables of a network's convolutions.
///
/// ```
/// use hetconv_core::{Conv2dGeometry, ConvKind};
/// use hetconv_kernels::{Conv, ConvSpec, Isa, Tables};
///
/// let layer = |size, window| {
///     Conv::new(ConvSpec::natural(1, 16_384, window, ConvKind::Standard), [size; 2])
/// };
/// let isa = Isa::selected()?;
/// let mut tables = Tables::default();
/// assert!(tables.take(&layer(61, Conv2dGeometry::same(3, 1))?, isa));
/// // Each of its taps meets the image's edges in other ways.
/// let wide = Conv2dGeometry { kernel: [31; 2], stride: [1; 2], padding: [60; 4], dilation: [2; 2] };
/// assert!(!tables.take(&layer(61, wide)?, isa));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tables {
    stretches: usize,
}

impl Tables {
    /// Of a whole network, about 400 MB; ResNet-50 has a hundredth of that.
    const MOST: usize = 1 << 24;

    /// Whether there may be tables for a convolution besides those so far, to which they are added: large windows of many
    /// filters that meet the image's edges in many ways would need more memory than any weights.
    #[must_use]
    pub fn take(&mut self, conv: &Conv, isa: Isa) -> bool {
        self.stretches = self.stretches.saturating_add(conv.stretches(isa));
        self.stretches <= Self::MOST
    }
}

impl Conv {
    /// Prepares a convolution for images of `[height, width]` pixels.
    ///
    /// # Errors
    /// [`ConvError`] if images have no pixels, the window does not fit, the parts of the specification contradict each
    /// other, or an image or the weights have more values than can be addressed.
    pub fn new(spec: ConvSpec, in_size: [usize; 2]) -> Result<Self, ConvError> {
        if in_size.contains(&0) {
            return Err(ConvError::NoPixels(in_size));
        }
        let out_size = spec.geometry.output_size(in_size)?;
        spec.check()?;
        // Kernels rely on it that lengths do not wrap around.
        let (m, n) = (spec.in_channels, spec.out_channels);
        let lengths = [[in_size[0], in_size[1], m], [out_size[0], out_size[1], n], [m, n, spec.geometry.taps()]];
        let fits = |factors: &[usize; 3]| {
            let bytes = factors.iter().try_fold(size_of::<f32>(), |bytes, &factor| bytes.checked_mul(factor));
            bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
        };
        if !lengths.iter().all(fits) {
            return Err(ConvError::TooLarge { size: in_size, layer: [m, n] });
        }
        let classes = Classes::new(&spec);
        let depthwise = spec.kind.is_depthwise(spec.in_channels, spec.out_channels);
        Ok(Self {
            regions: [OnceLock::new(), OnceLock::new()],
            cut: OnceLock::new(),
            rows: [OnceLock::new(), OnceLock::new()],
            depthwise: depthwise && spec.in_order == spec.out_order,
            classes,
            in_size,
            out_size,
            spec: Arc::new(spec),
        })
    }

    /// At most so many stretches of an image's values are named by the tables of a forward pass, in about 24 bytes each: for
    /// each block of filters the taps of every way in which the window meets the image's edges. Depthwise ones have none.
    fn stretches(&self, isa: Isa) -> usize {
        if self.depthwise {
            return 0;
        }
        let ways = self.axes(Direction::Forward).map(|axis| {
            let taps = |reads: &Vec<(usize, usize)>| reads.iter().map(|&(tap, _)| tap).collect::<Vec<_>>();
            axis.iter().map(taps).collect::<HashSet<_>>().iter().map(Vec::len).sum::<usize>()
        });
        let taps = ways[0].saturating_mul(ways[1]).max(self.spec.geometry.taps());
        taps.saturating_mul(self.spec.out_channels.div_ceil(isa.half_lanes()))
    }

    /// For every target row and column, the taps inside and the source index each reads.
    fn axes(&self, direction: Direction) -> [Axis; 2] {
        let axis_of = match direction {
            Direction::Forward => taps::forward_axis,
            Direction::GradInput => taps::backward_axis,
        };
        [0, 1].map(|axis| axis_of(&self.spec.geometry, axis, self.in_size[axis], self.out_size[axis]))
    }

    fn regions(&self, direction: Direction) -> &[Region] {
        let ConvSpec { in_channels, out_channels, geometry, .. } = &*self.spec;
        let (made, source_size, channels) = match direction {
            Direction::Forward => (&self.regions[0], self.in_size, [*in_channels, *out_channels]),
            Direction::GradInput => (&self.regions[1], self.out_size, [*out_channels, *in_channels]),
        };
        made.get_or_init(|| {
            let [rows, columns] = self.axes(direction);
            taps::regions(geometry.kernel[1], &rows, &columns, source_size, channels)
        })
    }

    fn rows(&self, direction: Direction) -> &Rows {
        let (made, source_width) = match direction {
            Direction::Forward => (&self.rows[0], self.in_size[1]),
            Direction::GradInput => (&self.rows[1], self.out_size[1]),
        };
        made.get_or_init(|| {
            let [rows, columns] = self.axes(direction);
            Rows::new(self.spec.geometry.kernel[1], &rows, &columns, source_width, self.spec.in_channels)
        })
    }

    /// For every tap, the pairs of input and output pixel it joins.
    fn pairs(&self) -> Vec<Vec<(usize, usize)>> {
        let (geometry, [rows, columns]) = (&self.spec.geometry, self.axes(Direction::Forward));
        let width = geometry.kernel[1];
        let of_tap = |t: usize| taps::tap_pairs((t / width, t % width), &rows, &columns, self.in_size[1]);
        (0..geometry.taps()).map(of_tap).collect()
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
        let ConvSpec { in_channels, out_channels, geometry, kind, .. } = &*self.spec;
        let weights = kind.weights(*in_channels, *out_channels, geometry.taps());
        weights * self.out_size[0] * self.out_size[1]
    }

    /// MACs of the layer's own pattern that forward executes for one image: taps on padding are skipped.
    pub fn executed_macs(&self) -> usize {
        let ConvSpec { in_channels, out_channels, geometry, .. } = &*self.spec;
        let center = geometry.center_tap().filter(|_| self.classes.dense_center);
        // Target rows, and columns, in which a tap is inside.
        let inside = |axis: Axis, taps: usize| {
            let mut inside = vec![0; taps];
            axis.iter().flatten().for_each(|&(tap, _)| inside[tap] += 1);
            inside
        };
        let ([rows, columns], [height, width]) = (self.axes(Direction::Forward), geometry.kernel);
        let (rows, columns) = (inside(rows, height), inside(columns, width));
        let ring = self.classes.slots.iter().sum();
        let of_tap = |tap: usize| {
            let pairs = if Some(tap) == center { in_channels * out_channels } else { ring };
            pairs * rows[tap / width] * columns[tap % width]
        };
        (0..geometry.taps()).map(of_tap).sum()
    }

    pub(crate) fn in_len(&self, batch: usize) -> usize {
        product([batch, self.in_size[0], self.in_size[1], self.spec.in_channels])
    }

    pub(crate) fn out_len(&self, batch: usize) -> usize {
        product([batch, self.out_size[0], self.out_size[1], self.spec.out_channels])
    }

    /// The algorithms that can compute this layer, the exact one first.
    pub fn algorithms(&self) -> &'static [Algorithm] {
        if self.depthwise {
            &[Algorithm::Depthwise]
        } else if winograd::fits(&self.spec.geometry) {
            &[Algorithm::Direct, Algorithm::Winograd]
        } else {
            &[Algorithm::Direct]
        }
    }

    /// The algorithm that sums the layer's own products.
    pub fn exact(&self) -> Algorithm {
        self.algorithms()[0]
    }

    /// The algorithm that takes less time by a fixed cost, in a large batch.
    pub fn fastest(&self, isa: Isa, direction: Direction) -> Algorithm {
        self.fastest_for(isa, direction, usize::MAX)
    }

    /// As [`Conv::fastest`], in a batch of so many images: all of them share the reading of weights that no cache holds.
    pub fn fastest_for(&self, isa: Isa, direction: Direction, images: usize) -> Algorithm {
        /// What it costs to read a vector of weights from far, in products.
        const READ: f64 = 9.5;
        if !self.algorithms().contains(&Algorithm::Winograd) {
            return self.exact();
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
        let size = match direction {
            Direction::Forward => self.out_size,
            Direction::GradInput => self.in_size,
        };
        winograd::cost(layout, size, isa)
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
        let form = self.form(isa, direction, algorithm, weights);
        PackedWeights { spec: Arc::clone(&self.spec), in_size: self.in_size, isa, direction, form }
    }

    fn form(&self, isa: Isa, direction: Direction, algorithm: Algorithm, weights: ConvWeights<'_>) -> PackedForm {
        self.spec.check_weights(&weights);
        assert!(self.algorithms().contains(&algorithm), "{algorithm:?} cannot compute this layer");
        let (spec, classes) = (&self.spec, &self.classes);
        let layout = || Layout::new(spec, classes, direction, algorithm, isa);
        match (algorithm, weights) {
            (Algorithm::Depthwise, ConvWeights::Dense(weight)) => {
                PackedForm::Depthwise(Depthwise::new(spec, isa).pack(weight).into())
            }
            (Algorithm::Depthwise, ConvWeights::Het { .. }) => unreachable!("a depthwise layer is no HetConv"),
            (Algorithm::Direct, _) => {
                let layout = layout();
                let packed = crate::pack::pack(spec, classes, &layout, direction, weights).into();
                PackedForm::Direct(direct::Weights::new(layout, packed, self.regions(direction)))
            }
            (Algorithm::Winograd, _) => {
                PackedForm::Winograd(winograd::Weights::new(spec, classes, layout(), direction, isa, weights))
            }
        }
    }

    /// Insists that weights were packed for this direction, by this convolution or one like it: kernels read where the packed
    /// weights say.
    fn check_packed(&self, weights: &PackedWeights, direction: Direction) {
        assert_eq!(weights.direction, direction, "direction of packed weights");
        let same = Arc::ptr_eq(&weights.spec, &self.spec) || weights.spec == self.spec;
        assert!(same && weights.in_size == self.in_size, "weights packed for another convolution or image size");
    }

    /// A bias in the order of the outputs, padded to what the kernel reads.
    fn stored_bias(&self, isa: Isa, bias: Option<&[f32]>, direction: Direction) -> Vec<f32> {
        let channels = match direction {
            Direction::Forward => self.spec.out_channels,
            Direction::GradInput => self.spec.in_channels,
        };
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
        let (source_size, target_size, source_channels, target_channels) = match direction {
            Direction::Forward => (self.in_size, self.out_size, m, n),
            Direction::GradInput => (self.out_size, self.in_size, n, m),
        };
        let [source_pixels, target_pixels] = [source_size, target_size].map(|size| size[0] * size[1]);
        match form {
            PackedForm::Depthwise(packed) => Kernel::Depthwise(depthwise::DepthwiseConv {
                rows: self.rows(direction),
                packed,
                bias,
                activation,
                scaled: None,
                channels: m,
                source_pixels,
                target_pixels,
            }),
            PackedForm::Direct(weights) => Kernel::Direct(DirectConv {
                weights,
                regions: self.regions(direction),
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
        let bias = self.stored_bias(isa, bias, Direction::Forward);
        if self.depthwise {
            self.rows(Direction::Forward);
        }
        Prepared::new(self, isa, algorithm, form, bias, activation)
    }
}

/// A layer's weights in the order that a kernel reads them; see [`Conv::pack`].
#[derive(Debug)]
pub struct PackedWeights {
    /// The convolution that they were packed by.
    spec: Arc<ConvSpec>,
    in_size: [usize; 2],
    isa: Isa,
    direction: Direction,
    form: PackedForm,
}

#[derive(Debug)]
pub(crate) enum PackedForm {
    Depthwise(Shared),
    Direct(direct::Weights),
    Winograd(winograd::Weights),
}

impl PackedForm {
    /// All that is read anew for every image.
    pub fn weights(&mut self) -> &mut Shared {
        match self {
            Self::Depthwise(packed) => packed,
            Self::Direct(weights) => &mut weights.packed,
            Self::Winograd(weights) => &mut weights.packed,
        }
    }
}

#[cfg(test)]
mod tests {
    use hetconv_core::{Conv2dGeometry, ConvKind};

    use super::*;

    /// Kernels compare lengths and trust them then: one that wrapped around would pass for a short one.
    #[test]
    fn lengths_that_wrap_around_are_refused() {
        let geometry = Conv2dGeometry::square(1, 1 << 16, 0, 1);
        for (channels, filters, size) in [
            (1 << 22, 1, [1 << 21, 1 << 21]),
            (1 << 23, 1, [1_436_473, 1_530_849]),
            (1 << 20, 1 << 20, [1 << 21, 1 << 21]),
        ] {
            let spec = ConvSpec::natural(channels, filters, geometry.clone(), ConvKind::Standard);
            let refused = Conv::new(spec, size).map(drop);
            assert_eq!(refused, Err(ConvError::TooLarge { size, layer: [channels, filters] }));
        }
        // The weights of a layer of few pixels.
        let wide = ConvSpec::natural(1 << 23, 1 << 23, Conv2dGeometry::square(1 << 8, 1, 0, 1), ConvKind::Standard);
        assert!(matches!(Conv::new(wide, [1 << 8; 2]), Err(ConvError::TooLarge { .. })));
    }

    #[test]
    fn stretches_are_those_of_all_ways_in_which_a_window_meets_the_edges() {
        let isa = Isa::selected().unwrap();
        let of = |kernel, size| {
            let spec = ConvSpec::natural(3, isa.half_lanes(), Conv2dGeometry::same(kernel, 1), ConvKind::Standard);
            Conv::new(spec, [size; 2]).unwrap().stretches(isa)
        };
        // First, middle and last pixel of an axis have 2, 3 and 2 taps.
        assert_eq!(of(3, 8), 49);
        // Fewer than the window has are never counted: tables have room for all.
        assert_eq!(of(3, 1), 9);
        assert_eq!(of(1, 8), 1);
    }
}
