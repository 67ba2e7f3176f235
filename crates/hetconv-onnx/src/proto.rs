//! The messages of an ONNX file, generated from the official definition in `proto/onnx.proto`.
//!
//! `proto/generate` writes them; its result is committed, so that building the library needs no code generator.
#![allow(missing_docs, rust_2018_idioms, clippy::all)]

include!("proto/onnx.rs");
