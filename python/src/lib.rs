//! The extension module `hetconv._native`: the kernels, the runtime and model files for Python.
//!
//! It is private to the Python package, which checks shapes and element types before it hands out the addresses of tensors.
//! All computation releases the interpreter's lock.

mod error;
mod layer;
mod memory;
mod model;
mod runtime;
mod threads;

use std::alloc::System;

use hetconv_kernels::alloc::Recycler;

/// What the kernels put aside in every step comes back in the next.
#[global_allocator]
static ALLOCATOR: Recycler<System> = Recycler::new(System);

/// What the Python package imports.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::error::Error;
    #[pymodule_export]
    use crate::layer::Layer;
    #[pymodule_export]
    use crate::model::{build_model, network_names, read_model, state_in_onnx, write_model};
    #[pymodule_export]
    use crate::runtime::Runtime;
    #[pymodule_export]
    use crate::threads::use_openmp;
}
