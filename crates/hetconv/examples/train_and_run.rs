//! A network trained for a few steps, stored in one file, and run without Burn.

use std::error::Error;
use std::sync::Arc;

use burn::tensor::Device;
use hetconv::burn::{GraphModule, Sgd, SgdConfig};
use hetconv::graph::{ModelFile, Normalisation, Weights, zoo};
use hetconv::runtime::{Options, Plan, Session};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let graph = zoo::build(&"small-cifar_p4".parse()?, 10)?;
    let mut network = GraphModule::new(&graph, &Weights::init(&graph, 1)?, &Device::flex())?;
    let mut optimizer = Sgd::new(SgdConfig::default());
    for step in 0..4 {
        // Images as batch, height, width, channels.
        let images = vec![0.5; 8 * 32 * 32 * 3];
        let labels: Vec<u16> = (0..8).collect();
        let found = network.step(images, 8, &labels, 0.1)?;
        println!("step {step}: loss {:.3}", found.loss);
        optimizer.step(&mut network, found.gradients, 0.05);
    }

    let path = std::env::temp_dir().join(format!("hetconv-example-{}.safetensors", std::process::id()));
    let normalisation = Normalisation::identity(3);
    ModelFile { graph, weights: network.weights(), classes: Vec::new(), normalisation }.save(&path)?;

    let model = ModelFile::load(&path)?;
    std::fs::remove_file(&path)?;
    let plan = Arc::new(Plan::compile(&model.graph, &model.weights, &Options::default())?);
    let mut session = Session::new(&plan, 1)?;
    // Here images are batch, channels, height, width.
    let logits = session.run(&vec![0.5; 3 * 32 * 32])?;
    println!("logits {logits:.2?}");
    Ok(())
}
