//! Stochastic gradient descent with momentum, as PyTorch defines it.

use std::collections::BTreeMap;

use burn::backend::{BackendTensor, DispatchTensor, DispatchTensorKind};
use burn::tensor::Tensor;
use hetconv_graph::WeightRole;
use hetconv_kernels::Isa;
use hetconv_kernels::optim::SgdStep;

use crate::parameters::{Gradient, Gradients, Parameter, download, upload, with_rank};
use crate::{GraphModule, Implementation, VelocityError};

/// Which parameters weight decay reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecayScope {
    /// All of them, as PyTorch's `SGD(model.parameters())`.
    #[default]
    All,
    /// The kernels of convolutions and linear layers only: no bias, no batch-norm.
    Kernels,
}

/// Settings of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdConfig {
    /// Share of the velocity that survives a step.
    pub momentum: f32,
    /// Whether the step looks ahead along the velocity (Nesterov).
    pub nesterov: bool,
    /// Factor of the weight that is added to its gradient.
    pub weight_decay: f32,
    /// Which parameters decay.
    pub decay: DecayScope,
}

impl Default for SgdConfig {
    /// Momentum 0.9, no Nesterov, weight decay 5·10⁻⁴ on all parameters: the paper's VGG-16 recipe.
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 5e-4, decay: DecayScope::All }
    }
}

impl SgdConfig {
    fn decay_of(&self, role: &WeightRole) -> f32 {
        match self.decay {
            DecayScope::Kernels if !role.decays() => 0.0,
            DecayScope::All | DecayScope::Kernels => self.weight_decay,
        }
    }
}

/// The optimizer: `g = grad + decay·w; v = momentum·v + g; w −= rate·(g + momentum·v` with Nesterov, else `v)`.
///
/// Velocities are kept by parameter name, so a checkpoint can hold them; they start at 0.
#[derive(Clone, Debug)]
pub struct Sgd {
    config: SgdConfig,
    velocities: BTreeMap<String, Velocity>,
}

#[derive(Clone, Debug)]
struct Velocity {
    shape: Vec<usize>,
    value: DispatchTensor,
}

impl Sgd {
    /// An optimizer without velocity.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, velocities: BTreeMap::new() }
    }

    /// The settings.
    pub fn config(&self) -> &SgdConfig {
        &self.config
    }

    /// Changes every parameter that has a gradient.
    ///
    /// # Panics
    /// If the gradients are another network's.
    pub fn step(&mut self, network: &mut GraphModule, gradients: Gradients, learning_rate: f32) {
        let implementation = network.implementation();
        let device = network.device().clone();
        let mut gradients = gradients.0.into_iter().peekable();
        for parameter in network.parameters_mut() {
            // Gradients stand in the order of the parameters.
            let Some(gradient) = gradients.next_if(|gradient| gradient.name == parameter.spec.name) else { continue };
            if parameter.spec.elements() == 0 {
                continue;
            }
            let velocity = self.velocities.entry(gradient.name.clone()).or_insert_with(|| {
                let shape = parameter.spec.shape.clone();
                let value = upload(&shape, vec![0.0; parameter.spec.elements()], &device);
                Velocity { shape, value }
            });
            let decay = self.config.decay_of(&parameter.spec.role);
            match implementation {
                Implementation::Kernels(isa) => {
                    self.config.in_place(isa, parameter, velocity, gradient, learning_rate, decay);
                }
                Implementation::Composed => self.config.composed(parameter, velocity, gradient, learning_rate, decay),
            }
        }
        assert!(gradients.next().is_none(), "gradients of another network");
    }

    /// The velocities by parameter name, with their shapes, copied from the device.
    pub fn export(&self) -> impl Iterator<Item = (&str, &[usize], Vec<f32>)> {
        self.velocities.iter().map(|(name, velocity)| {
            (name.as_str(), velocity.shape.as_slice(), download(&velocity.shape, &velocity.value))
        })
    }

    /// Takes over the velocity of one parameter of `network`.
    ///
    /// # Errors
    /// The network has no such parameter, or it has another shape.
    pub fn import(
        &mut self,
        network: &GraphModule,
        name: &str,
        shape: &[usize],
        data: Vec<f32>,
    ) -> Result<(), VelocityError> {
        let spec = network.parameters().find(|spec| spec.name == name && spec.role.trainable());
        let spec = spec.ok_or_else(|| VelocityError::Unexpected(name.to_owned()))?;
        if spec.shape != shape || spec.elements() != data.len() {
            return Err(VelocityError::Shape {
                name: name.to_owned(),
                expected: spec.shape.clone(),
                found: shape.to_vec(),
                elements: data.len(),
            });
        }
        let value = upload(shape, data, network.device());
        self.velocities.insert(name.to_owned(), Velocity { shape: shape.to_vec(), value });
        Ok(())
    }
}

impl SgdConfig {
    fn in_place(
        &self,
        isa: Isa,
        parameter: &mut Parameter,
        velocity: &mut Velocity,
        gradient: Gradient,
        rate: f32,
        decay: f32,
    ) {
        let gradient = crate::kernel::flex(gradient.value);
        let gradient = crate::kernel::values(&gradient);
        let (weight, velocity) = (storage(&mut parameter.value), storage(&mut velocity.value));
        let &SgdConfig { momentum, nesterov, .. } = self;
        SgdStep { lr: rate, momentum, weight_decay: decay, nesterov }.apply(isa, weight, velocity, gradient);
    }

    fn composed(&self, parameter: &mut Parameter, velocity: &mut Velocity, gradient: Gradient, rate: f32, decay: f32) {
        with_rank!(velocity.shape, D => {
            let weight: Tensor<D> = parameter.tensor();
            let gradient = Tensor::<D>::from_dispatch(gradient.value).inner() + weight.clone() * decay;
            let moved = Tensor::<D>::from_dispatch(velocity.value.clone()) * self.momentum + gradient.clone();
            let direction = if self.nesterov { gradient + moved.clone() * self.momentum } else { moved.clone() };
            velocity.value = moved.into_dispatch();
            parameter.value = (weight - direction * rate).into_dispatch();
        });
    }
}

/// The values of a parameter, velocity or average on the Flex device; copied first if somebody else holds them as well.
pub(crate) fn storage(tensor: &mut DispatchTensor) -> &mut [f32] {
    match &mut tensor.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => tensor.storage_mut::<f32>(),
        _ => panic!("expected a float tensor on the Flex device"),
    }
}
