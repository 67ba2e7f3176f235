//! Trains a small HetConv network on a device of Burn: `flex` (the default), or `wgpu`, `vulkan`, `metal`, `cuda` with the
//! feature of that name.
//!
//! The images are noise with a coloured square, and the class is the square's colour; the loss falls from ln 10 towards 0.

use std::error::Error;
use std::time::Instant;

use burn::tensor::Device;
use hetconv_burn::{GraphModule, Sgd, SgdConfig};
use hetconv_graph::{ModelName, Weights, zoo};

const BATCH: usize = 64;
const STEPS: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let device = device(&std::env::args().nth(1).unwrap_or_else(|| "flex".to_owned()))?;
    let graph = zoo::build(&"small-cifar_p4".parse::<ModelName>()?, 10)?;
    let weights = Weights::init(&graph, 1)?;
    let mut network = GraphModule::new(&graph, &weights, &device)?;
    let mut optimizer = Sgd::new(SgdConfig::default());
    println!("{} on {device:?}, computed by {:?}", graph.name, network.implementation());
    let start = Instant::now();
    for step in 0..STEPS {
        let (images, labels) = batch(step as u64);
        let output = network.step(images, BATCH, &labels, 0.0)?;
        optimizer.step(&mut network, output.gradients, 0.05);
        if step % 5 == 0 || step + 1 == STEPS {
            let (seconds, right) = (start.elapsed().as_secs_f64(), output.top1);
            println!("step {step:2}: loss {:.3}, {right} of {BATCH} right, {seconds:.1} s", output.loss);
        }
    }
    Ok(())
}

fn device(name: &str) -> Result<Device, String> {
    match name {
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(Default::default())),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(Default::default())),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(Default::default())),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        _ => Err(format!("no device `{name}` in this build; `--features {name}` may switch it on")),
    }
}

/// NHWC images and their labels, a function of the seed.
fn batch(seed: u64) -> (Vec<f32>, Vec<u16>) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let (mut images, mut labels) = (Vec::with_capacity(BATCH * 32 * 32 * 3), Vec::with_capacity(BATCH));
    for _ in 0..BATCH {
        let class = (random() * 10.0) as u16;
        let (top, left) = ((random() * 20.0) as usize, (random() * 20.0) as usize);
        let angle = f32::from(class) * std::f32::consts::TAU / 10.0;
        for pixel in 0..32 * 32 {
            let inside = (top..top + 12).contains(&(pixel / 32)) && (left..left + 12).contains(&(pixel % 32));
            for channel in 0..3 {
                let color = (angle + channel as f32 * std::f32::consts::TAU / 3.0).cos();
                images.push(random() - 0.5 + if inside { color } else { 0.0 });
            }
        }
        labels.push(class);
    }
    (images, labels)
}
