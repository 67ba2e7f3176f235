//! Generates `src/proto/onnx.rs` from `proto/onnx.proto`: `cargo run` in this folder.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let messages = protox::compile(["onnx.proto"], [library.join("proto")])?;
    prost_build::Config::new()
        // Weights are slices of the file's own bytes, not copies.
        .bytes([".onnx.TensorProto.raw_data"])
        // The definition's comments are prose in another markup; the definition is where to read them.
        .disable_comments(["."])
        .out_dir(library.join("src/proto"))
        .compile_fds(messages)?;
    Ok(())
}
