//! t
#![forbid(unsafe_code)]
#![allow(missing_docs)]
mod augment;
mod data;
mod loader;
mod rng;
pub use augment::*;
pub use data::*;
pub use loader::*;
pub use rng::*;
