//! Which code computes an operation: our kernels or Burn's own operations.

use burn::backend::DispatchDevice;
use burn::tensor::Device;
use hetconv_kernels::{Isa, IsaError};

/// What computes the operations of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The kernels of `hetconv-kernels` with this instruction set, as custom operations with a hand-written backward.
    /// Only for tensors on Burn's CPU device, Flex.
    Kernels(Isa),
    /// Burn's own differentiable operations, on any device.
    Composed,
}

impl Implementation {
    /// The kernels on Flex, composed operations on every other device.
    ///
    /// # Errors
    /// `HETCONV_ISA` names an instruction set that is unknown or that this CPU does not have.
    pub fn for_device(device: &Device) -> Result<Self, IsaError> {
        match device.clone().inner().as_dispatch() {
            DispatchDevice::Flex(_) => Isa::selected().map(Self::Kernels),
            #[allow(unreachable_patterns)]
            _ => Ok(Self::Composed),
        }
    }
}
