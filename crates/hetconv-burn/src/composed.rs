//! The same operations composed of Burn's own differentiable ones, for devices that our kernels do not run on.

use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData, activation};
use hetconv_core::{ChannelOrder, Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::Conv;

use crate::ops::{ConvTensors, Moments, NormTensors};
use crate::selection::{Constant, Selection};

/// Bringing values per channel from natural into stored order.
fn to_stored(order: &ChannelOrder) -> Selection {
    Selection::new(order.channels(), order.len())
}

/// Bringing values per channel from stored into natural order.
fn to_natural(order: &ChannelOrder) -> Selection {
    Selection::new(&order.positions(), order.len())
}

/// A convolution as one `conv2d` with a weight tensor in stored order; HetConv's is the dense masked form.
#[derive(Clone, Debug)]
pub(crate) struct ComposedConv {
    options: ConvOptions<2>,
    kernel: [usize; 2],
    /// Applied to the input and the output of a grouped convolution, which cannot absorb an order.
    input: Selection,
    output: Selection,
    /// Applied to the weights' channels, the weights' filters and the bias.
    channels: Selection,
    filters: Selection,
    ring: Option<Ring>,
}

/// How the ring of a HetConv layer is spread over all channels.
#[derive(Clone, Debug)]
struct Ring {
    /// For every channel its slot.
    slots: Selection,
    /// `[N, M, 1]`: 1 where a filter sees a channel through its whole window.
    mask: Constant<3>,
}

impl ComposedConv {
    pub(crate) fn new(conv: &Conv) -> Self {
        let spec = conv.spec();
        let groups = match spec.kind {
            ConvKind::Grouped(groups) => groups,
            ConvKind::Standard | ConvKind::Het(_) => 1,
        };
        let Conv2dGeometry { kernel, stride, padding: [top, left, bottom, right], dilation } = spec.geometry;
        let none = Selection::identity;
        let (input, output, channels, filters) = if groups > 1 {
            (to_natural(&spec.in_order), to_stored(&spec.out_order), none(), none())
        } else {
            (none(), none(), to_stored(&spec.in_order), to_stored(&spec.out_order))
        };
        let ring = match &spec.kind {
            ConvKind::Het(pattern) if pattern.max_spatial() > 0 && spec.geometry.taps() > 1 => Some(Ring::new(pattern)),
            _ => None,
        };
        let padding = [(top, bottom), (left, right)];
        let options = ConvOptions::new_with_padding(stride, padding, dilation, groups);
        Self { options, kernel, input, output, channels, filters, ring }
    }

    pub(crate) fn forward(&self, input: Tensor<4>, weights: ConvTensors, bias: Option<Tensor<1>>) -> Tensor<4> {
        let weight = match weights {
            ConvTensors::Dense(weight) => weight,
            ConvTensors::Het { center, ring } => self.dense(center, ring),
        };
        let weight = self.filters.apply(self.channels.apply(weight, 1), 0);
        let bias = bias.map(|bias| self.filters.apply(bias, 0));
        let input = self.input.apply(input, 3).permute([0, 3, 1, 2]);
        let output = conv2d(input, weight, bias, self.options.clone()).permute([0, 2, 3, 1]);
        self.output.apply(output, 3)
    }

    /// The dense masked form `[N, M, kh, kw]` of a HetConv layer's weights.
    fn dense(&self, center: Tensor<2>, ring: Tensor<3>) -> Tensor<4> {
        let [filters, channels] = center.dims();
        let taps = self.kernel[0] * self.kernel[1];
        let middle = taps / 2;
        let device = center.device().inner();
        let center = center.reshape([filters, channels, 1]);
        let dense = match &self.ring {
            Some(Ring { slots, mask }) => {
                let mask = mask.on(&device);
                let ring = slots.apply(ring, 1) * mask;
                let before = ring.clone().narrow(2, 0, middle);
                let after = ring.narrow(2, middle, taps - 1 - middle);
                Tensor::cat(vec![before, center, after], 2)
            }
            None if taps > 1 => {
                let zeros = |taps: usize| Tensor::zeros([filters, channels, taps], &device);
                Tensor::cat(vec![zeros(middle), center, zeros(taps - 1 - middle)], 2)
            }
            None => center,
        };
        dense.reshape([filters, channels, self.kernel[0], self.kernel[1]])
    }
}

impl Ring {
    fn new(pattern: &HetPattern) -> Self {
        let (filters, channels, spatial) = (pattern.out_channels(), pattern.in_channels(), pattern.max_spatial());
        // A class without filters may have more channels than there are slots; the mask hides them.
        let slots: Vec<u32> = pattern.ring_slots().iter().map(|&slot| slot.min(spatial - 1) as u32).collect();
        let pairs = (0..filters).flat_map(|f| (0..channels).map(move |c| (f, c)));
        let mask: Vec<f32> = pairs.map(|(f, c)| f32::from(u8::from(pattern.is_spatial(f, c)))).collect();
        Self {
            slots: Selection::new(&slots, spatial),
            mask: Constant::new(TensorData::new(mask, [filters, channels, 1])),
        }
    }
}

/// Batch normalisation, residual sum and ReLU.
#[derive(Clone, Debug)]
pub(crate) struct ComposedNorm {
    to_stored: Selection,
    to_natural: Selection,
    epsilon: f32,
    relu: bool,
}

impl ComposedNorm {
    pub(crate) fn new(order: &ChannelOrder, epsilon: f32, relu: bool) -> Self {
        Self { to_stored: to_stored(order), to_natural: to_natural(order), epsilon, relu }
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<4>,
        affine: NormTensors,
        residual: Option<Tensor<4>>,
    ) -> (Tensor<4>, Moments) {
        let channels = x.dims()[3];
        let mean = x.clone().mean_dims(&[0, 1, 2]);
        let centered = x - mean.clone();
        let variance = centered.clone().square().mean_dims(&[0, 1, 2]);
        let natural = |stored: &Tensor<4>| self.to_natural.apply(stored.clone().inner().reshape([channels]), 0);
        let moments = Moments { mean: natural(&mean), variance: natural(&variance) };
        let normal = centered / (variance + self.epsilon).sqrt();
        let y = normal * self.stored(affine.scale) + self.stored(affine.shift);
        (self.finish(y, residual), moments)
    }

    pub(crate) fn evaluate(
        &self,
        x: Tensor<4>,
        affine: NormTensors,
        moments: Moments,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let factor = affine.scale / (moments.variance + self.epsilon).sqrt();
        let summand = affine.shift - moments.mean * factor.clone();
        self.finish(x * self.stored(factor) + self.stored(summand), residual)
    }

    fn stored(&self, per_channel: Tensor<1>) -> Tensor<4> {
        let channels = per_channel.dims()[0];
        self.to_stored.apply(per_channel, 0).reshape([1, 1, 1, channels])
    }

    fn finish(&self, y: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
        let y = match residual {
            Some(residual) => y + residual,
            None => y,
        };
        if self.relu { activation::relu(y) } else { y }
    }
}

/// Largest value of each window of NHWC activations.
pub(crate) fn max_pool(geometry: &Conv2dGeometry, input: Tensor<4>) -> Tensor<4> {
    let [top, left, bottom, right] = geometry.padding;
    let options = MaxPoolOptions::new(geometry.kernel)
        .with_stride(geometry.stride)
        .with_padding_pairs([(top, bottom), (left, right)])
        .with_dilation(geometry.dilation);
    max_pool2d(input.permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
}

/// Mean of each window of NHWC activations, as a depthwise convolution with ones: Burn's average pooling knows neither
/// dilation nor every padding.
pub(crate) fn avg_pool(geometry: &Conv2dGeometry, count_padding: bool, input: Tensor<4>) -> Tensor<4> {
    let [_, height, width, _] = input.dims();
    let device = input.device().inner();
    let sums = |input: Tensor<4>| {
        let channels = input.dims()[1];
        let [top, left, bottom, right] = geometry.padding;
        let padding = [(top, bottom), (left, right)];
        let options = ConvOptions::new_with_padding(geometry.stride, padding, geometry.dilation, channels);
        let ones = Tensor::ones([channels, 1, geometry.kernel[0], geometry.kernel[1]], &device);
        conv2d(input, ones, None, options).permute([0, 2, 3, 1])
    };
    let totals = sums(input.permute([0, 3, 1, 2]));
    if count_padding {
        return totals / geometry.taps() as f32;
    }
    totals / sums(Tensor::ones([1, 1, height, width], &device)).clamp_min(1.0)
}

/// Mean softmax cross-entropy with label smoothing, `[1]`.
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: &[u16], smoothing: f32) -> Tensor<1> {
    let [batch, classes] = logits.dims();
    let device: Device = logits.device().inner();
    let share = smoothing / classes as f32;
    let mut target = vec![share; batch * classes];
    for (row, &label) in target.chunks_exact_mut(classes).zip(labels) {
        row[usize::from(label)] += 1.0 - smoothing;
    }
    let target = Tensor::<2>::from_data(TensorData::new(target, [batch, classes]), &device);
    let terms = activation::log_softmax(logits, 1) * target;
    // Not `sum`, which Burn's other devices do with atomic additions: in any order, and not on every driver.
    -terms.sum_dims(&[0, 1]).reshape([1]) / batch as f32
}
