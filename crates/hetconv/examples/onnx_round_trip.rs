//! A network as ONNX, somebody's ONNX file with HetConv in it, and back.

use std::error::Error;

use hetconv::graph::{ModelFile, Normalisation, Weights, zoo};
use hetconv::onnx::{ConvertOptions, ExportOptions, ImportOptions, convert, export, import};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let graph = zoo::build(&"small-cifar".parse()?, 10)?;
    let weights = Weights::init(&graph, 1)?;
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
    let onnx = export(&model, &ExportOptions::default())?;

    // Any ONNX file will do here; P = 4.
    let converted = convert(&onnx.bytes, None, &ConvertOptions::new(4))?;
    println!("{:?} MACs became {:?}", converted.report.before.macs, converted.report.after.macs);

    // HetConv is recognised in the standard operators that it is written with.
    let imported = import(&converted.bytes, None, &ImportOptions::default())?;
    assert_eq!(imported.het_layers, ["conv2", "conv3", "conv4"]);
    Ok(())
}
