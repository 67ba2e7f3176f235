//! Writes a model file as ONNX: `export MODEL.safetensors OUT.onnx [--style standard|dense|function] [--opset N]
//! [--keep-batch-norm]`.

use std::error::Error;
use std::path::Path;

use hetconv_graph::{ModelFile, atomic_write};
use hetconv_onnx::{ExportOptions, Style, export};

const USAGE: &str = "usage: export MODEL.safetensors OUT.onnx [--style standard|dense|function] [--opset N] \
                     [--keep-batch-norm]";

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = ExportOptions::default();
    let mut paths = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--style" => {
                options.style = match arguments.next().as_deref() {
                    Some("standard") => Style::Standard,
                    Some("dense") => Style::Dense,
                    Some("function") => Style::Function,
                    _ => return Err(USAGE.into()),
                }
            }
            "--opset" => options.opset = Some(arguments.next().ok_or(USAGE)?.parse()?),
            "--keep-batch-norm" => options.fold_batch_norm = false,
            _ => paths.push(argument),
        }
    }
    let [model, onnx] = paths.as_slice() else { return Err(USAGE.into()) };
    let exported = export(&ModelFile::load(Path::new(model))?, &options)?;
    atomic_write(Path::new(onnx), |file| file.write_all(&exported.bytes))?;
    Ok(())
}
