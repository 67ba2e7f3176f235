//! Constants of a layer that live on its device, and selections of channels.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Float, Int, Tensor, TensorData};

/// A constant of a layer, uploaded once to the device it is used on.
#[derive(Clone, Debug)]
pub(crate) struct Constant<const D: usize, K: Basic = Float> {
    data: TensorData,
    uploaded: Arc<Mutex<Option<Tensor<D, K>>>>,
}

impl<const D: usize, K: Basic + 'static> Constant<D, K> {
    pub(crate) fn new(data: TensorData) -> Self {
        Self { data, uploaded: Arc::default() }
    }

    /// The constant on a device without autodiff.
    pub(crate) fn on(&self, device: &Device) -> Tensor<D, K> {
        let mut uploaded = self.uploaded.lock().unwrap_or_else(PoisonError::into_inner);
        match &*uploaded {
            Some(tensor) if tensor.device() == *device => tensor.clone(),
            _ => uploaded.insert(Tensor::from_data(self.data.clone(), device)).clone(),
        }
    }
}

/// A permutation or selection of channels; `None` if it changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct Selection(Option<Constant<1, Int>>);

impl Selection {
    pub(crate) fn identity() -> Self {
        Self(None)
    }

    /// Index `i` of the result is `indices[i]` of the operand.
    pub(crate) fn new(indices: &[u32], operands: usize) -> Self {
        if indices.len() == operands && indices.iter().enumerate().all(|(i, &index)| i == index as usize) {
            return Self(None);
        }
        let indices: Vec<i32> = indices.iter().map(|&index| index as i32).collect();
        Self(Some(Constant::new(TensorData::from(indices.as_slice()))))
    }

    pub(crate) fn apply<const D: usize>(&self, tensor: Tensor<D>, axis: usize) -> Tensor<D> {
        let Some(constant) = &self.0 else { return tensor };
        let device = tensor.device().inner();
        tensor.select(axis, constant.on(&device))
    }
}
