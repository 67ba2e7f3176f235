//! The moving average of a network's weights.

use burn::tensor::Tensor;
use hetconv_graph::Weights;
use hetconv_kernels::optim::move_towards;

use crate::kernel::{flex, values};
use crate::optim::storage;
use crate::parameters::with_rank;
use crate::{GraphModule, Implementation, ModuleError};

/// The exponential moving average (EMA) of the weights of a network in training, as a network of its own.
///
/// It is the mean of the weights at every update, those of k updates ago weighing decayᵏ as much as the newest; what they were
/// before the first does not count. The running statistics of batch-norms are averaged like all weights.
///
/// ```
/// use burn::tensor::Device;
/// use hetconv_burn::{GraphModule, Sgd, SgdConfig, WeightAverage};
/// use hetconv_graph::{ModelName, Weights, zoo};
///
/// let graph = zoo::build(&"small-cifar_p4".parse::<ModelName>()?, 10)?;
/// let mut network = GraphModule::new(&graph, &Weights::init(&graph, 1)?, &Device::flex())?;
/// let mut optimizer = Sgd::new(SgdConfig::default());
/// let mut average = WeightAverage::new(&network, 0.999);
///
/// let step = network.step(vec![0.5; 2 * 32 * 32 * 3], 2, &[3, 7], 0.1)?;
/// optimizer.step(&mut network, step.gradients, 0.05);
/// average.update(&network);
/// assert_eq!(average.network().graph(), &graph);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct WeightAverage {
    decay: f64,
    updates: u64,
    mean: GraphModule,
}

impl WeightAverage {
    /// The average of a network that is to be updated; until then, the network as it is. `decay` is from 0 to 1, both
    /// excluded.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(network: &GraphModule, decay: f64) -> Self {
        assert!(decay > 0.0 && decay < 1.0, "a decay of {decay}, not between 0 and 1");
        Self { decay, updates: 0, mean: network.clone() }
    }

    /// The average of `network` after so many updates, to go on with.
    ///
    /// # Errors
    /// Weights of another network.
    ///
    /// # Panics
    /// As [`WeightAverage::new`].
    pub fn resumed(network: &GraphModule, decay: f64, mean: &Weights, updates: u64) -> Result<Self, ModuleError> {
        let mut average = Self { updates, ..Self::new(network, decay) };
        average.mean.load_weights(mean)?;
        Ok(average)
    }

    /// Takes the network's present weights in.
    ///
    /// # Panics
    /// If it is another network.
    pub fn update(&mut self, network: &GraphModule) {
        // One part in 1 + d + d² + …, as many as there will be updates.
        let share = (1.0 - self.decay) / (1.0 - self.decay.powf(self.updates as f64 + 1.0));
        let implementation = network.implementation();
        let means = self.mean.parameters_mut();
        assert!(means.iter().map(|mean| &mean.spec).eq(network.parameters()), "the weights of another network");
        for (mean, parameter) in means.iter_mut().zip(network.all_parameters()) {
            if mean.spec.elements() == 0 {
                continue;
            }
            match implementation {
                Implementation::Kernels(isa) => {
                    let weight = flex(parameter.value.clone());
                    move_towards(isa, storage(&mut mean.value), values(&weight), share as f32);
                }
                Implementation::Composed => {
                    mean.value = with_rank!(mean.spec.shape, D => {
                        let old: Tensor<D> = mean.tensor();
                        (old.clone() + (parameter.tensor::<D>() - old) * share).into_dispatch()
                    });
                }
            }
        }
        self.updates += 1;
    }

    /// The network with the averaged weights.
    pub fn network(&self) -> &GraphModule {
        &self.mean
    }
}
