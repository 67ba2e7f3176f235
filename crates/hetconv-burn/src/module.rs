//! A network of the graph crate as something that Burn can train.

use std::sync::Arc;

use burn::tensor::{Device, Gradients as BurnGradients, Tensor, TensorData};
use hetconv_graph::{Graph, Shape, WeightSpec, WeightTensor, Weights};

use crate::ops::{Moments, cross_entropy};
use crate::parameters::{Gradients, Leaves, Parameter};
use crate::program::{Pass, Program, RunningIds};
use crate::{Implementation, ModuleError};

/// A [`Graph`] with its weights on a Burn device.
///
/// Parameters are canonical and in natural order, activations are NHWC with channels in the order of the graph's
/// [`ChannelPlan`](hetconv_graph::ChannelPlan); batch-norm is fused with the sum and the ReLU behind it.
///
/// ```
/// use burn::tensor::Device;
/// use hetconv_burn::{GraphModule, Sgd, SgdConfig};
/// use hetconv_graph::{ModelName, Weights, zoo};
///
/// let graph = zoo::build(&"small-cifar_p4".parse::<ModelName>()?, 10)?;
/// let weights = Weights::init(&graph, 1)?;
/// let mut network = GraphModule::new(&graph, &weights, &Device::flex())?;
/// let mut optimizer = Sgd::new(SgdConfig::default());
///
/// let images = vec![0.5; 2 * 32 * 32 * 3]; // NHWC
/// let step = network.step(images, 2, &[3, 7], 0.1)?;
/// optimizer.step(&mut network, step.gradients, 0.05);
/// assert!(step.loss.is_finite());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct GraphModule {
    program: Arc<Program>,
    parameters: Vec<Parameter>,
    device: Device,
    fast_evaluation: bool,
}

/// What one training step found.
#[derive(Debug)]
pub struct StepOutput {
    /// Mean loss of the batch.
    pub loss: f64,
    /// Images whose largest logit is the label's.
    pub top1: usize,
    /// Images whose label is among the five largest logits.
    pub top5: usize,
    /// Gradients of the mean loss.
    pub gradients: Gradients,
}

/// The logits of a training pass, and the leaves to find their gradients by.
#[derive(Debug)]
pub struct TrainingPass {
    /// `[batch, classes]`, differentiable.
    pub logits: Tensor<2>,
    leaves: Leaves,
}

impl GraphModule {
    /// How far running statistics move towards a batch's, as PyTorch's `momentum`.
    pub const MOMENTUM: f32 = 0.1;

    /// A network on a device, with our kernels on Flex and Burn's operations on every other device.
    ///
    /// # Errors
    /// A faulty graph, weights that do not belong to it, or an instruction set that cannot be used.
    pub fn new(graph: &Graph, weights: &Weights, device: &Device) -> Result<Self, ModuleError> {
        Self::with_implementation(graph, weights, device, Implementation::for_device(device)?)
    }

    /// As [`GraphModule::new`], with the implementation chosen by the caller.
    ///
    /// # Errors
    /// As of [`GraphModule::new`].
    pub fn with_implementation(
        graph: &Graph,
        weights: &Weights,
        device: &Device,
        implementation: Implementation,
    ) -> Result<Self, ModuleError> {
        weights.check(graph)?;
        let program = Arc::new(Program::new(graph, implementation)?);
        let device = device.clone().inner();
        let parameters = upload(graph, weights, &device)?;
        Ok(Self { program, parameters, device, fast_evaluation: false })
    }

    /// Whether evaluation may use Winograd's algorithm, whose results differ by rounding and which spreads a value that is
    /// not finite over its neighbours. It sums directly unless asked otherwise.
    #[must_use]
    pub fn with_fast_evaluation(self, fast: bool) -> Self {
        Self { fast_evaluation: fast, ..self }
    }

    /// The network.
    pub fn graph(&self) -> &Graph {
        &self.program.graph
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What computes the network.
    pub fn implementation(&self) -> Implementation {
        self.program.implementation
    }

    /// Number of classes, the extent of the logits.
    pub fn classes(&self) -> usize {
        self.program.shapes[self.program.logits].channels()
    }

    /// Names, shapes and roles of the parameters, running statistics included, in the order of the graph's nodes.
    pub fn parameters(&self) -> impl Iterator<Item = &WeightSpec> {
        self.parameters.iter().map(|parameter| &parameter.spec)
    }

    /// The weights, copied from the device.
    pub fn weights(&self) -> Weights {
        let mut weights = Weights::new();
        for parameter in &self.parameters {
            let tensor = WeightTensor { shape: parameter.spec.shape.clone(), data: parameter.data() };
            weights.insert(parameter.spec.name.clone(), tensor);
        }
        weights
    }

    /// Takes over other weights of the same graph.
    ///
    /// # Errors
    /// They do not belong to the graph; nothing is changed then.
    pub fn load_weights(&mut self, weights: &Weights) -> Result<(), ModuleError> {
        weights.check(&self.program.graph)?;
        self.parameters = upload(&self.program.graph, weights, &self.device)?;
        Ok(())
    }

    /// The network's result in evaluation, with running statistics and without a graph for gradients.
    ///
    /// # Shapes
    /// * `images`: `[batch, height, width, channels]`, channels in natural order
    /// * result: `[batch, classes]`
    ///
    /// # Errors
    /// Images of another size.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, ModuleError> {
        self.evaluate(images, self.program.output)
    }

    /// As [`GraphModule::forward`], but what a final softmax reads, if the network has one.
    ///
    /// # Errors
    /// Images of another size.
    pub fn logits(&self, images: Tensor<4>) -> Result<Tensor<2>, ModuleError> {
        self.evaluate(images, self.program.logits)
    }

    fn evaluate(&self, images: Tensor<4>, wanted: usize) -> Result<Tensor<2>, ModuleError> {
        self.check_images(&images.dims())?;
        let constants = Leaves::constants(&self.parameters);
        let pass = Pass::Evaluation { fast: self.fast_evaluation };
        Ok(self.program.run(images.inner(), &constants, pass, wanted))
    }

    /// A training pass: batch-norm uses the statistics of the batch and moves its running ones, with the unbiased
    /// variance, by [`GraphModule::MOMENTUM`]. The logits are what a final softmax reads, if the network has one.
    ///
    /// # Shapes
    /// As of [`GraphModule::forward`].
    ///
    /// # Errors
    /// Images of another size, or one alone where a batch-norm would have no variance.
    pub fn forward_training(&mut self, images: Tensor<4>) -> Result<TrainingPass, ModuleError> {
        self.check_images(&images.dims())?;
        if let (1, Some(node)) = (images.dims()[0], &self.program.norm_of_one_pixel) {
            return Err(ModuleError::SingleValue { node: node.clone() });
        }
        let leaves = Leaves::new(&self.parameters);
        let mut moments = Vec::new();
        let logits = self.program.run(images.autodiff(), &leaves, Pass::Training(&mut moments), self.program.logits);
        for (running, moments, count) in moments {
            self.update_running(running, moments, count);
        }
        Ok(TrainingPass { logits, leaves })
    }

    fn update_running(&mut self, running: RunningIds, moments: Moments, count: usize) {
        let unbiased = count as f32 / (count.max(2) - 1) as f32;
        for (index, batch) in [(running.mean, moments.mean), (running.variance, moments.variance * unbiased)] {
            let old: Tensor<1> = self.parameters[index].tensor();
            let new = old * (1.0 - Self::MOMENTUM) + batch * Self::MOMENTUM;
            self.parameters[index].value = new.into_dispatch();
        }
    }

    /// Forward, loss and backward of one batch: softmax cross-entropy with label smoothing.
    ///
    /// `images` holds `batch` images, NHWC, channels in natural order.
    ///
    /// # Errors
    /// Images or labels that do not fit the network; nothing is changed then.
    pub fn step(
        &mut self,
        images: Vec<f32>,
        batch: usize,
        labels: &[u16],
        smoothing: f32,
    ) -> Result<StepOutput, ModuleError> {
        let images = self.upload_images(images, batch)?;
        let classes = self.classes();
        if labels.len() != batch {
            return Err(ModuleError::Labels { labels: labels.len(), batch });
        }
        if let Some(image) = labels.iter().position(|&label| usize::from(label) >= classes) {
            return Err(ModuleError::LabelRange { image, label: labels[image], classes });
        }
        let implementation = self.program.implementation;
        let pass = self.forward_training(images)?;
        let loss = cross_entropy(implementation, pass.logits.clone(), labels, smoothing);
        let gradients = self.gradients(pass, loss.mean.backward());
        Ok(StepOutput { loss: loss.sum / batch as f64, top1: loss.top1, top5: loss.top5, gradients })
    }

    /// The gradients of a loss computed from a training pass, by parameter name.
    pub fn gradients(&self, pass: TrainingPass, gradients: BurnGradients) -> Gradients {
        pass.leaves.gradients(&self.parameters, gradients)
    }

    /// Images as a tensor on the network's device; `images` is taken over without a copy where the device allows.
    ///
    /// # Errors
    /// Not `batch` images of the network's size, or no image at all.
    pub fn upload_images(&self, images: Vec<f32>, batch: usize) -> Result<Tensor<4>, ModuleError> {
        let [channels, height, width] = self.program.input;
        let per_image = Shape::Image { channels, height, width }.elements();
        if batch == 0 || batch.checked_mul(per_image) != Some(images.len()) {
            return Err(self.wrong_images(vec![images.len()]));
        }
        Ok(Tensor::from_data(TensorData::new(images, [batch, height, width, channels]), &self.device))
    }

    fn check_images(&self, found: &[usize; 4]) -> Result<(), ModuleError> {
        let [channels, height, width] = self.program.input;
        if found[0] > 0 && found[1..] == [height, width, channels] {
            return Ok(());
        }
        Err(self.wrong_images(found.to_vec()))
    }

    fn wrong_images(&self, found: Vec<usize>) -> ModuleError {
        let [channels, height, width] = self.program.input;
        ModuleError::Images { found, height, width, channels }
    }

    pub(crate) fn all_parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }
}

fn upload(graph: &Graph, weights: &Weights, device: &Device) -> Result<Vec<Parameter>, ModuleError> {
    let parameter = |spec: WeightSpec| {
        let weight = weights.get(&spec.name);
        let weight = weight.ok_or_else(|| hetconv_graph::WeightError::Missing { name: spec.name.clone() })?;
        Ok(Parameter::new(spec, weight, device))
    };
    graph.weight_specs()?.into_iter().map(parameter).collect()
}
