//! How a kernel over slices becomes a differentiable Burn operation on the CPU device.
//!
//! A [`Kernel`] takes contiguous Flex tensors and says what its gradients are; [`apply`] unwraps Burn's tensors, records
//! the backward step if any input is tracked, and wraps the result. Tensors without autodiff count as constants beside
//! tensors with it, as in Burn's own operations.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchKindConversion, DispatchTensor, Flex,
    GradientCheckpointingStrategy,
};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use std::fmt::Debug;
use std::marker::PhantomData;

/// An operation of `N` input tensors and one output tensor, all `f32`, contiguous, on the CPU.
pub(crate) trait Kernel<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs.
    type Saved: Clone + Debug + Send + 'static;
    /// Results that are not differentiated.
    type Side;

    /// The output, and what to keep of the way there.
    fn forward(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, Self::Side, Self::Saved);

    /// The gradient of every input that is `wanted`.
    fn backward(&self, saved: Self::Saved, grad_output: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

type Tracked = FloatTensor<Autodiff<Flex>>;

/// Whether autodiff follows a tensor.
pub(crate) fn is_tracked(tensor: &DispatchTensor) -> bool {
    tensor.autodiff != DispatchAutodiffContext::Disabled
}

/// Runs a kernel on Burn tensors.
///
/// # Panics
/// If a tensor is not a float tensor of the Flex device.
pub(crate) fn apply<K: Kernel<N>, const N: usize>(kernel: K, inputs: [DispatchTensor; N]) -> (DispatchTensor, K::Side) {
    let context = inputs.iter().fold(DispatchAutodiffContext::Disabled, |all, input| match input.autodiff {
        DispatchAutodiffContext::Disabled => all,
        enabled => enabled,
    });
    if context == DispatchAutodiffContext::Disabled {
        let (output, side, _) = kernel.forward(&inputs.map(untracked).map(contiguous));
        return (wrap(output), side);
    }
    let parts = inputs.map(|input| tracked(input).into_parts());
    let mut primitives = Vec::with_capacity(N);
    let nodes = parts.map(|(primitive, node)| {
        primitives.push(contiguous(primitive));
        node
    });
    let primitives = primitives.try_into().expect("as many primitives as inputs");
    let (output, side, saved) = kernel.forward(&primitives);
    drop(primitives);
    let step = KernelBackward::<K, N>(PhantomData);
    let output = match step.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((kernel, saved), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    let output = <DispatchTensor as DispatchKindConversion<Autodiff<Flex>>>::from_backend(BackendTensor::Float(output));
    (DispatchTensor { autodiff: context, ..output }, side)
}

struct KernelBackward<K, const N: usize>(PhantomData<fn() -> K>);

impl<K, const N: usize> Debug for KernelBackward<K, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelBackward")
    }
}

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for KernelBackward<K, N> {
    type State = (K, K::Saved);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad_output = contiguous(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (kernel, saved) = ops.state;
        let results = kernel.backward(saved, grad_output, wanted);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<Flex>(parent.id, result);
            }
        }
    }
}

/// The autodiff tensor behind a Burn tensor; a tensor without autodiff becomes a constant.
///
/// The checkpointing strategy of the tensor makes no difference here, because every kernel counts as compute-bound; it
/// is the same type underneath.
fn tracked(tensor: DispatchTensor) -> Tracked {
    if tensor.autodiff == DispatchAutodiffContext::Disabled {
        return <Autodiff<Flex> as AutodiffBackend>::from_inner(untracked(tensor));
    }
    let autodiff = DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Disabled);
    let tensor = DispatchTensor { autodiff, ..tensor };
    match <DispatchTensor as DispatchKindConversion<Autodiff<Flex>>>::try_into_backend(tensor) {
        Ok(BackendTensor::Float(tensor)) => tensor,
        Ok(other) => panic!("expected a float tensor on the Flex device, got {}", other.name()),
        Err(message) => panic!("expected a float tensor on the Flex device: {message}"),
    }
}

/// The Flex tensor behind a Burn tensor without autodiff.
///
/// # Panics
/// If it is anything else.
pub(crate) fn untracked(tensor: DispatchTensor) -> FlexTensor {
    match <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(tensor) {
        Ok(BackendTensor::Float(tensor)) => tensor,
        Ok(other) => panic!("expected a float tensor on the Flex device, got {}", other.name()),
        Err(message) => panic!("expected a float tensor on the Flex device: {message}"),
    }
}

/// The contiguous Flex tensor behind a Burn tensor without autodiff.
///
/// # Panics
/// If it is anything else.
pub(crate) fn flex(tensor: DispatchTensor) -> FlexTensor {
    contiguous(untracked(tensor))
}

/// A Burn tensor without autodiff.
pub(crate) fn wrap(tensor: FlexTensor) -> DispatchTensor {
    <DispatchTensor as DispatchKindConversion<Flex>>::from_backend(BackendTensor::Float(tensor))
}

/// The same values in row-major order, copied only if they are not.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    assert_eq!(tensor.dtype(), DType::F32, "the kernels compute in f32");
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of a contiguous tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// The values of a contiguous tensor, to be written over; what others read too, or a part of it, is copied first.
pub(crate) fn values_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    let shape = tensor.layout().shape().clone();
    if tensor.storage::<f32>().len() != shape.num_elements() {
        *tensor = self::tensor(values(tensor).to_vec(), shape);
    }
    tensor.storage_mut()
}

/// A tensor that takes over `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let shape = shape.into();
    assert_eq!(values.len(), shape.num_elements(), "values do not fill the shape");
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// As many as there have to be.
///
/// # Panics
/// If it is another number.
pub(crate) fn array<T, const N: usize>(inputs: Vec<T>) -> [T; N] {
    inputs.try_into().unwrap_or_else(|inputs: Vec<T>| panic!("{} inputs for {N}", inputs.len()))
}
