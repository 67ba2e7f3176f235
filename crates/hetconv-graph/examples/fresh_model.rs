//! Writes a model file with fresh weights: `fresh_model NAME FILE`, such as `fresh_model resnet20_p4 model.safetensors`.

use std::error::Error;
use std::path::Path;

use hetconv_graph::{ModelFile, ModelName, Normalisation, Weights, zoo};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, path] = arguments.as_slice() else { return Err("usage: fresh_model NAME FILE".into()) };
    let name: ModelName = name.parse()?;
    let graph = zoo::build(&name, name.usual_classes())?;
    let weights = Weights::init(&graph, 0)?;
    let channels = graph.input_shape().map_or(0, |[channels, ..]| channels);
    let normalisation = Normalisation::identity(channels);
    ModelFile { graph, weights, classes: Vec::new(), normalisation }.save(Path::new(path))?;
    Ok(())
}
