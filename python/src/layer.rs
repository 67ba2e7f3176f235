//! The kernels of one HetConv layer.

use std::sync::{Arc, Mutex, PoisonError};

use hetconv_core::{ConvKind, HetPattern};
use hetconv_graph::Op;
use hetconv_kernels::{Algorithm, ConvSpec, ConvWeights, ConvWeightsMut, Direction, Isa, Reordered};
use pyo3::prelude::*;

use crate::error::error;
use crate::memory::{values, values_mut};
use crate::threads;

/// Image sizes that a layer keeps its tables for.
const KEPT: usize = 8;

/// A HetConv layer, described as a `conv2d` operator of a model file is. Addresses are those of `f32` values: images
/// `[batch, height, width, channels]` and canonical weights, contiguous; 0 stands for no bias.
#[pyclass(frozen)]
pub struct Layer {
    spec: ConvSpec,
    isa: Isa,
    prepared: Mutex<Vec<Arc<Reordered>>>,
}

#[pymethods]
impl Layer {
    #[new]
    fn new(description: &str) -> PyResult<Self> {
        let op: Op = serde_json::from_str(description).map_err(error)?;
        let Op::Conv2d { in_channels, out_channels, geometry, kind: kind @ ConvKind::Het(_), .. } = op else {
            return Err(error("not a HetConv layer"));
        };
        geometry.validate().map_err(error)?;
        if geometry.taps() == 1 {
            return Err(error("a 1×1 kernel has nothing around its centre: HetConv is for larger ones"));
        }
        let spec = ConvSpec::by_class(in_channels, out_channels, geometry, kind);
        // What contradicts itself does so for every image; this one the window always fits.
        let [height, width] = [0, 1].map(|axis| spec.geometry.dilation[axis] * (spec.geometry.kernel[axis] - 1) + 1);
        Reordered::new(spec.clone(), [height, width]).map_err(error)?;
        let isa = Isa::selected().map_err(error)?;
        Ok(Self { spec, isa, prepared: Mutex::default() })
    }

    /// Class of every channel.
    #[getter]
    fn channel_classes(&self) -> PyResult<Vec<u32>> {
        Ok(self.pattern()?.channel_classes().to_vec())
    }

    /// Class of every filter.
    #[getter]
    fn filter_classes(&self) -> PyResult<Vec<u32>> {
        Ok(self.pattern()?.filter_classes().to_vec())
    }

    /// S, the extent of the ring weights `[N, S, K²−1]`.
    #[getter]
    fn max_spatial(&self) -> PyResult<usize> {
        Ok(self.pattern()?.max_spatial())
    }

    /// Weights of the layer, biases and spare slots left out; also its MACs for each pixel of the result.
    #[getter]
    fn weights(&self) -> PyResult<usize> {
        Ok(self.pattern()?.weights(self.spec.geometry.taps()))
    }

    /// Writes the result for `batch` images of `size` pixels.
    ///
    /// # Safety
    /// The addresses are those of tensors of the layer's shapes, which outlive the call.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        py: Python<'_>,
        images: (usize, [usize; 2]),
        addresses: [usize; 4],
        output: usize,
        exact: bool,
        threads: usize,
    ) -> PyResult<()> {
        let ((batch, size), [input, center, ring, bias]) = (images, addresses);
        let conv = self.conv(size)?;
        threads::run(py, threads, || {
            let (in_len, out_len) = lengths(&conv, batch);
            // SAFETY: the package has checked the tensors' shapes and made the output; it holds them meanwhile.
            let (input, output) = unsafe { (values(input, in_len), values_mut(output, out_len)) };
            // SAFETY: as above.
            let bias = (bias != 0).then(|| unsafe { values(bias, self.spec.out_channels) });
            let weights = self.weights_at(center, ring);
            let packed = conv.conv().pack(
                self.isa,
                Direction::Forward,
                self.algorithm(&conv, Direction::Forward, exact),
                weights,
            );
            conv.forward(batch, input, &packed, bias, output);
        })
    }

    /// Writes the gradient by the input.
    ///
    /// # Safety
    /// As of [`Layer::forward`].
    #[allow(clippy::too_many_arguments)]
    fn grad_input(
        &self,
        py: Python<'_>,
        images: (usize, [usize; 2]),
        addresses: [usize; 3],
        grad_input: usize,
        exact: bool,
        threads: usize,
    ) -> PyResult<()> {
        let ((batch, size), [grad_output, center, ring]) = (images, addresses);
        let conv = self.conv(size)?;
        threads::run(py, threads, || {
            let (in_len, out_len) = lengths(&conv, batch);
            // SAFETY: as in `forward`.
            let (grad_output, grad_input) = unsafe { (values(grad_output, out_len), values_mut(grad_input, in_len)) };
            let direction = Direction::GradInput;
            let algorithm = self.algorithm(&conv, direction, exact);
            let packed = conv.conv().pack(self.isa, direction, algorithm, self.weights_at(center, ring));
            conv.grad_input(batch, grad_output, &packed, grad_input);
        })
    }

    /// Writes the gradients by the centre and ring weights.
    ///
    /// # Safety
    /// As of [`Layer::forward`].
    #[allow(clippy::too_many_arguments)]
    fn grad_weight(
        &self,
        py: Python<'_>,
        images: (usize, [usize; 2]),
        addresses: [usize; 2],
        targets: [usize; 2],
        exact: bool,
        threads: usize,
    ) -> PyResult<()> {
        let ((batch, size), [input, grad_output], [center, ring]) = (images, addresses, targets);
        let conv = self.conv(size)?;
        threads::run(py, threads, || {
            let (in_len, out_len) = lengths(&conv, batch);
            let (center_len, ring_len) = self.spec.weight_lengths();
            // SAFETY: as in `forward`.
            let (input, grad_output) = unsafe { (values(input, in_len), values(grad_output, out_len)) };
            // SAFETY: as in `forward`.
            let (center, ring) = unsafe { (values_mut(center, center_len), values_mut(ring, ring_len)) };
            let algorithm = if exact { conv.conv().exact() } else { conv.conv().fastest_grad_weight(self.isa, batch) };
            let grad = ConvWeightsMut::Het { center, ring };
            conv.grad_weight(self.isa, algorithm, batch, input, grad_output, grad);
        })
    }
}

impl Layer {
    fn pattern(&self) -> PyResult<&HetPattern> {
        match &self.spec.kind {
            ConvKind::Het(pattern) => Ok(pattern),
            _ => Err(error("not a HetConv layer")),
        }
    }

    /// The convolution of an image size.
    fn conv(&self, size: [usize; 2]) -> PyResult<Arc<Reordered>> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = prepared.iter().find(|conv| conv.conv().in_size() == size) {
            return Ok(found.clone());
        }
        let conv = Arc::new(Reordered::new(self.spec.clone(), size).map_err(error)?);
        if prepared.len() == KEPT {
            prepared.remove(0);
        }
        prepared.push(conv.clone());
        Ok(conv)
    }

    fn algorithm(&self, conv: &Reordered, direction: Direction, exact: bool) -> Algorithm {
        if exact { conv.conv().exact() } else { conv.conv().fastest(self.isa, direction) }
    }

    fn weights_at(&self, center: usize, ring: usize) -> ConvWeights<'_> {
        let (center_len, ring_len) = self.spec.weight_lengths();
        // SAFETY: as in `forward`.
        unsafe { ConvWeights::Het { center: values(center, center_len), ring: values(ring, ring_len) } }
    }
}

/// Values of the input and of the output.
fn lengths(conv: &Reordered, batch: usize) -> (usize, usize) {
    let conv = conv.conv();
    let pixels = |size: [usize; 2]| batch * size[0] * size[1];
    let spec = conv.spec();
    (pixels(conv.in_size()) * spec.in_channels, pixels(conv.out_size()) * spec.out_channels)
}
