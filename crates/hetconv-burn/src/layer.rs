//! The HetConv layer for Burn models.

use std::sync::{Arc, Mutex, PoisonError};

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Distribution, Tensor, TensorData};
use hetconv_core::{ArrangementKind, Conv2dGeometry, ConvKind, GeometryError, HetPattern};
use hetconv_kernels::{Conv, ConvError, ConvSpec, Reordered};

use crate::ops::{ConvOp, ConvTensors, NaturalConvOp};
use crate::{Implementation, LayerError};

/// Configuration of a [`HetConv2d`] layer.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use hetconv_burn::HetConv2dConfig;
///
/// // One step of gradient descent on mean(y²).
/// let device = Device::flex().autodiff();
/// let mut layer = HetConv2dConfig::new([16, 32], [3, 3], 4).with_stride([2, 2]).init(&device);
/// let x = Tensor::random([2, 16, 8, 8], Distribution::Default, &device);
/// let loss = layer.forward(x.clone()).square().mean();
///
/// let gradients = loss.backward();
/// let by_ring = layer.ring.grad(&gradients).unwrap();
/// layer.ring = layer.ring.map(|ring| (ring.inner() - by_ring * 0.1).autodiff().require_grad());
///
/// let improved = layer.forward(x).square().mean();
/// assert!(improved.into_scalar::<f32>() < loss.into_scalar::<f32>());
/// ```
#[derive(Config, Debug)]
pub struct HetConv2dConfig {
    /// M and N: numbers of input channels and of filters.
    pub channels: [usize; 2],
    /// Height and width of the window, in taps; both odd and not both 1.
    pub kernel_size: [usize; 2],
    /// P: every filter sees one P-th of the channels through its whole window and the others through its centre only.
    pub parts: usize,
    /// Distance between neighbouring windows, in pixels, vertical and horizontal. Default 1.
    #[config(default = "[1, 1]")]
    pub stride: [usize; 2],
    /// Zero pixels added on both sides, vertical and horizontal. Default: as many as keep the image size at stride 1.
    #[config(default = "None")]
    pub padding: Option<[usize; 2]>,
    /// Distance between neighbouring taps, in pixels, vertical and horizontal. Default 1.
    #[config(default = "[1, 1]")]
    pub dilation: [usize; 2],
    /// Whether one number per filter is added to the result. Default true.
    #[config(default = true)]
    pub bias: bool,
    /// How classes are assigned. Default [`ArrangementKind::Shifted`].
    #[config(default = "ArrangementKind::Shifted")]
    pub arrangement: ArrangementKind,
}

/// Applies a heterogeneous convolution: filter `f` has a K×K kernel on the channels of its class and a 1×1 kernel on
/// every other one, in a single pass (Singh et al., CVPR 2019, figure 3). To be made with [`HetConv2dConfig`].
#[derive(Module, Debug)]
pub struct HetConv2d {
    /// Centre taps `[N, M]`: the 1×1 kernels, and the centres of the K×K ones.
    pub center: Param<Tensor<2>>,
    /// The other taps of each filter's spatial channels, ascending: `[N, S, kh·kw−1]`, row by row without the centre. If
    /// P does not divide M, the spare slots of filters with fewer channels are 0 and ignored.
    pub ring: Param<Tensor<3>>,
    /// `[N]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    prepared: Prepared,
}

/// The layer's shape, and the convolution for the image size seen last.
#[derive(Clone, Debug)]
struct Prepared {
    /// With channels as the kernels want them.
    spec: ConvSpec,
    last: Arc<Mutex<Option<Made>>>,
}

/// A convolution, and what it was made for.
#[derive(Clone, Debug)]
struct Made {
    implementation: Implementation,
    in_size: [usize; 2],
    form: Form,
}

/// The convolution of one image size.
#[derive(Clone, Debug)]
enum Form {
    Kernels(NaturalConvOp),
    Composed(ConvOp),
}

impl HetConv2dConfig {
    /// A layer on a device. Weights are drawn uniformly from ±1/√fan-in with one fan-in for both tensors of a filter,
    /// M + (kh·kw−1)·S of its own S; that is Burn's default for the dense convolution of the same fan-in.
    ///
    /// # Panics
    /// Where [`HetConv2dConfig::try_init`] gives an error.
    pub fn init(&self, device: &Device) -> HetConv2d {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`HetConv2dConfig::init`].
    ///
    /// # Errors
    /// P that does not fit the channels, an even or a 1×1 kernel, unusable stride, padding or dilation, or an
    /// instruction set that cannot be used.
    pub fn try_init(&self, device: &Device) -> Result<HetConv2d, LayerError> {
        let spec = self.spec()?;
        Implementation::for_device(device)?;
        let ConvKind::Het(pattern) = &spec.kind else { unreachable!("made as HetConv") };
        let [channels, filters] = self.channels;
        let (taps, slots) = (spec.geometry.taps() - 1, pattern.max_spatial());
        let own = pattern.slots();
        let bounds: Vec<f32> =
            pattern.fan_in(taps + 1).into_iter().map(|weights| 1.0 / (weights as f32).sqrt()).collect();
        let spare = (0..filters * slots * taps).map(|i| i / taps % slots >= own[i / (taps * slots)]);
        let spare = TensorData::new(spare.collect::<Vec<bool>>(), [filters, slots, taps]);
        let bounds = Tensor::<1>::from_data(bounds.as_slice(), device);
        let spare = Tensor::<3, Bool>::from_data(spare, device);
        let unit = Distribution::Uniform(-1.0, 1.0);
        let center = Tensor::random([filters, channels], unit, device) * bounds.clone().reshape([filters, 1]);
        let ring = Tensor::random([filters, slots, taps], unit, device) * bounds.clone().reshape([filters, 1, 1]);
        let ring = ring.mask_fill(spare, 0.0);
        let bias = self.bias.then(|| Param::from_tensor((Tensor::random([filters], unit, device) * bounds).detach()));
        Ok(HetConv2d {
            center: Param::from_tensor(center.detach()),
            ring: Param::from_tensor(ring.detach()),
            bias,
            prepared: Prepared { spec, last: Arc::default() },
        })
    }

    fn spec(&self) -> Result<ConvSpec, LayerError> {
        if self.kernel_size == [1, 1] {
            return Err(LayerError::PointwiseKernel);
        }
        let [channels, filters] = self.channels;
        let pattern = self.arrangement.pattern(channels, filters, self.parts)?;
        let same = |axis: usize| self.dilation[axis].saturating_mul(self.kernel_size[axis] / 2);
        let [vertical, horizontal] = self.padding.unwrap_or([same(0), same(1)]);
        let geometry = Conv2dGeometry {
            kernel: self.kernel_size,
            stride: self.stride,
            padding: [vertical, horizontal, vertical, horizontal],
            dilation: self.dilation,
        };
        geometry.validate()?;
        let kind = ConvKind::Het(pattern);
        kind.check(channels, filters, &geometry)?;
        Ok(ConvSpec::by_class(channels, filters, geometry, kind))
    }
}

impl HetConv2d {
    /// Which filters see which channels through their whole window.
    pub fn pattern(&self) -> &HetPattern {
        match &self.prepared.spec.kind {
            ConvKind::Het(pattern) => pattern,
            ConvKind::Standard | ConvKind::Grouped(_) => unreachable!("made as HetConv"),
        }
    }

    /// Kernel, stride, padding and dilation.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.prepared.spec.geometry
    }

    /// Height and width of the result, in pixels, for images of `[height, width]` pixels.
    ///
    /// # Errors
    /// The window does not fit the padded image.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        self.geometry().output_size(input)
    }

    /// Applies the layer.
    ///
    /// On Flex the kernels compute NHWC: an input that is an NHWC tensor seen as NCHW, `nhwc.permute([0, 3, 1, 2])`, is
    /// read without a copy, and the result is such a view, so that layers in a row copy nothing.
    ///
    /// # Shapes
    /// * `input`: `[batch, M, height, width]`
    /// * result: `[batch, N, out height, out width]`
    ///
    /// # Panics
    /// If the input has another number of channels or is smaller than the window ([`HetConv2d::output_size`]), or if
    /// input and layer are on different devices.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        let form = self.prepared.form(&input.device(), [height, width]);
        let weights = ConvTensors::Het { center: self.center.val(), ring: self.ring.val() };
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let nhwc = input.permute([0, 2, 3, 1]);
        let result = match form {
            Form::Kernels(op) => op.forward(nhwc, weights, bias),
            Form::Composed(op) => op.forward(nhwc, weights, bias),
        };
        result.permute([0, 3, 1, 2])
    }
}

impl Prepared {
    fn form(&self, device: &Device, in_size: [usize; 2]) -> Form {
        let implementation = Implementation::for_device(device).unwrap_or_else(|error| panic!("{error}"));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(made) if made.implementation == implementation && made.in_size == in_size => made.form.clone(),
            _ => {
                let form = self.prepare(implementation, in_size).unwrap_or_else(|error| panic!("{error}"));
                last.insert(Made { implementation, in_size, form }).form.clone()
            }
        }
    }

    fn prepare(&self, implementation: Implementation, in_size: [usize; 2]) -> Result<Form, ConvError> {
        let spec = self.spec.clone();
        Ok(match implementation {
            Implementation::Kernels(isa) => {
                Form::Kernels(NaturalConvOp::new(Arc::new(Reordered::new(spec, in_size)?), isa))
            }
            Implementation::Composed => {
                let ConvSpec { in_channels, out_channels, geometry, kind, .. } = spec;
                let natural = Conv::new(ConvSpec::natural(in_channels, out_channels, geometry, kind), in_size)?;
                Form::Composed(ConvOp::new(Arc::new(natural), implementation))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use hetconv_kernels::ConvWeights;

    use super::*;

    /// What the paper saves is saved by the kernels, too: they compute no products between classes.
    #[test]
    fn the_kernels_weights_are_those_of_the_classes() {
        let device = Device::flex();
        let Ok(Implementation::Kernels(isa)) = Implementation::for_device(&device) else { panic!("kernels") };
        let packed = |arrangement: ArrangementKind, parts: usize| {
            let config = HetConv2dConfig::new([128, 128], [3, 3], parts).with_arrangement(arrangement);
            let Ok(Form::Kernels(op)) = config.init(&device).prepared.prepare(Implementation::Kernels(isa), [8, 8])
            else {
                panic!("kernels")
            };
            let conv = Conv::new(op.conv().conv().spec().clone(), [8, 8]).expect("a window that fits");
            let (center, ring) = conv.spec().weight_lengths();
            let (center, ring) = (vec![1.0; center], vec![1.0; ring]);
            let exact = conv.exact();
            conv.prepare(isa, exact, ConvWeights::Het { center: &center, ring: &ring }, None, None).packed_len()
        };
        for arrangement in [ArrangementKind::Shifted, ArrangementKind::Blocked] {
            // Beside the biases, and a few zeros between blocks.
            assert!((1.0..1.02).contains(&(packed(arrangement, 1) as f64 / (128.0 * (128.0 * 9.0)))));
            assert!((1.0..1.02).contains(&(packed(arrangement, 4) as f64 / (128.0 * (128.0 + 32.0 * 8.0)))));
        }
    }
}
