//! A network's parameters on a device, by name.

use burn::backend::DispatchTensor;
use burn::tensor::{Device, Gradients as BurnGradients, Tensor, TensorData};
use hetconv_graph::{WeightSpec, WeightTensor};

/// A tensor of the graph, without autodiff.
///
/// Ranks differ from tensor to tensor, so it is kept in Burn's rank-free form; [`Parameter::tensor`] gives it its rank back.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub spec: WeightSpec,
    pub value: DispatchTensor,
}

impl Parameter {
    pub fn new(spec: WeightSpec, weight: &WeightTensor, device: &Device) -> Self {
        let value = upload(&spec.shape, weight.data.clone(), device);
        Self { spec, value }
    }

    pub fn tensor<const D: usize>(&self) -> Tensor<D> {
        debug_assert_eq!(D, self.spec.shape.len(), "rank of {}", self.spec.name);
        Tensor::from_dispatch(self.value.clone())
    }

    pub fn data(&self) -> Vec<f32> {
        download(&self.spec.shape, &self.value)
    }
}

/// Calls `$body` with the rank of a shape as the constant `$rank`.
macro_rules! with_rank {
    ($shape:expr, $rank:ident => $body:expr) => {
        match $shape.len() {
            1 => {
                const $rank: usize = 1;
                $body
            }
            2 => {
                const $rank: usize = 2;
                $body
            }
            3 => {
                const $rank: usize = 3;
                $body
            }
            4 => {
                const $rank: usize = 4;
                $body
            }
            rank => unreachable!("no parameter has rank {rank}"),
        }
    };
}
pub(crate) use with_rank;

/// Host values as a tensor on a device.
pub(crate) fn upload(shape: &[usize], data: Vec<f32>, device: &Device) -> DispatchTensor {
    let data = TensorData::new(data, shape.to_vec());
    with_rank!(shape, D => Tensor::<D>::from_data(data, device).into_dispatch())
}

/// The values of a tensor.
pub(crate) fn download(shape: &[usize], value: &DispatchTensor) -> Vec<f32> {
    let data = with_rank!(shape, D => Tensor::<D>::from_dispatch(value.clone()).into_data());
    data.iter::<f32>().collect()
}

/// The parameters of one training pass, as autodiff leaves.
#[derive(Debug)]
pub(crate) struct Leaves(Vec<DispatchTensor>);

impl Leaves {
    /// Trainable parameters become leaves that keep their gradient; running statistics stay constants.
    pub fn new(parameters: &[Parameter]) -> Self {
        let leaf = |parameter: &Parameter| {
            if !parameter.spec.role.trainable() {
                return parameter.value.clone();
            }
            with_rank!(parameter.spec.shape, D => parameter.tensor::<D>().autodiff().require_grad().into_dispatch())
        };
        Self(parameters.iter().map(leaf).collect())
    }

    /// The parameters themselves, for evaluation.
    pub fn constants(parameters: &[Parameter]) -> Self {
        Self(parameters.iter().map(|parameter| parameter.value.clone()).collect())
    }

    pub fn get<const D: usize>(&self, index: usize) -> Tensor<D> {
        Tensor::from_dispatch(self.0[index].clone())
    }

    /// The gradients that a backward pass left behind.
    pub fn gradients(self, parameters: &[Parameter], mut grads: BurnGradients) -> Gradients {
        let mut entries = Vec::with_capacity(parameters.len());
        for (parameter, leaf) in parameters.iter().zip(self.0) {
            if !parameter.spec.role.trainable() {
                continue;
            }
            let shape = &parameter.spec.shape;
            let grad = with_rank!(shape, D => {
                Tensor::<D>::from_dispatch(leaf).grad_remove(&mut grads).map(Tensor::into_dispatch)
            });
            entries.extend(grad.map(|value| Gradient {
                name: parameter.spec.name.clone(),
                shape: shape.clone(),
                value,
            }));
        }
        Gradients(entries)
    }
}

/// Gradients of the loss by a network's parameters, by name. A parameter that the loss does not depend on has none.
#[derive(Debug)]
pub struct Gradients(pub(crate) Vec<Gradient>);

#[derive(Debug)]
pub(crate) struct Gradient {
    pub name: String,
    pub shape: Vec<usize>,
    pub value: DispatchTensor,
}

impl Gradients {
    /// Names and values, in the order of the graph's weights; values are copied from the device.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Vec<f32>)> {
        self.0.iter().map(|gradient| (gradient.name.as_str(), download(&gradient.shape, &gradient.value)))
    }

    /// The gradient by one parameter, copied from the device.
    pub fn get(&self, name: &str) -> Option<Vec<f32>> {
        let gradient = self.0.iter().find(|gradient| gradient.name == name)?;
        Some(download(&gradient.shape, &gradient.value))
    }

    /// The sum of two backward passes over the same parameters, for batches that make one step together.
    ///
    /// # Panics
    /// If the gradients belong to different networks.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        assert_eq!(self.0.len(), other.0.len(), "gradients of different networks");
        let sum = |(a, b): (Gradient, Gradient)| {
            assert_eq!(a.name, b.name, "gradients of different networks");
            let value = with_rank!(a.shape, D => {
                (Tensor::<D>::from_dispatch(a.value) + Tensor::from_dispatch(b.value)).into_dispatch()
            });
            Gradient { value, ..a }
        };
        Self(self.0.into_iter().zip(other.0).map(sum).collect())
    }

    /// All gradients times a number.
    #[must_use]
    pub fn scaled(self, factor: f32) -> Self {
        let scale = |gradient: Gradient| {
            let value = with_rank!(gradient.shape, D => {
                (Tensor::<D>::from_dispatch(gradient.value) * factor).into_dispatch()
            });
            Gradient { value, ..gradient }
        };
        Self(self.0.into_iter().map(scale).collect())
    }
}
