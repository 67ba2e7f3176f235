//! What learns: a network, its optimizer, and the average of its weights.

use burn::tensor::Device;
use hetconv_burn::{Gradients, GraphModule, Sgd, SgdConfig, WeightAverage};
use hetconv_graph::{Graph, WeightTensor, Weights};

use super::TrainError;
use crate::checkpoint::Checkpoint;

/// What a run changes with every step, and what its checkpoints hold.
pub(super) struct Learner {
    pub network: GraphModule,
    optimizer: Sgd,
    average: Option<WeightAverage>,
}

impl Learner {
    /// A network at its first step; `ema` is the decay of the average of its weights, if there is to be one.
    pub fn new(
        graph: &Graph,
        weights: &Weights,
        optimizer: SgdConfig,
        ema: Option<f64>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let network = GraphModule::new(graph, weights, device)?;
        let average = ema.map(|decay| WeightAverage::new(&network, decay));
        Ok(Self { network, optimizer: Sgd::new(optimizer), average })
    }

    /// As it was when the checkpoint was made, which must have an average if, and only if, there is to be one.
    pub fn resumed(
        checkpoint: &Checkpoint,
        optimizer: SgdConfig,
        ema: Option<f64>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let Checkpoint { model, velocity, average, progress, .. } = checkpoint;
        let mut learner = Self::new(&model.graph, &model.weights, optimizer, None, device)?;
        for (name, tensor) in velocity.iter() {
            learner.optimizer.import(&learner.network, name, &tensor.shape, tensor.data.clone())?;
        }
        if let (Some(decay), Some(mean)) = (ema, average) {
            learner.average = Some(WeightAverage::resumed(&learner.network, decay, mean, progress.steps)?);
        }
        Ok(learner)
    }

    /// A step along the gradients.
    pub fn learn(&mut self, gradients: Gradients, rate: f64) {
        self.optimizer.step(&mut self.network, gradients, rate as f32);
        if let Some(average) = &mut self.average {
            average.update(&self.network);
        }
    }

    /// The network that is evaluated and, at the end, kept: the average where there is one.
    pub fn judged(&self) -> &GraphModule {
        self.average.as_ref().map_or(&self.network, WeightAverage::network)
    }

    /// The optimizer's velocities by the names of their weights.
    pub fn velocity(&self) -> Weights {
        let tensor = |shape: &[usize], data| WeightTensor { shape: shape.to_vec(), data };
        self.optimizer.export().map(|(name, shape, data)| (name.to_owned(), tensor(shape, data))).collect()
    }

    /// The averaged weights, if there are any.
    pub fn average(&self) -> Option<Weights> {
        self.average.as_ref().map(|average| average.network().weights())
    }
}
