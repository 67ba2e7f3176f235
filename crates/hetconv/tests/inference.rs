//! The runtime computes what the training side evaluates.
#![allow(missing_docs)]

use std::sync::Arc;

use burn::tensor::Device;
use hetconv::burn::GraphModule;
use hetconv::graph::{Graph, Op, Weights, zoo};
use hetconv::runtime::{Options, Plan, Session};

/// Numbers in -1..1, none like the other.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Fresh weights, but with batch-norms that are nobody's defaults.
fn weights(graph: &Graph) -> Weights {
    let (mut weights, mut next) = (Weights::init(graph, 3).unwrap(), numbers(5));
    for (name, tensor) in weights.iter_mut() {
        let (node, suffix) = name.rsplit_once('.').unwrap();
        let is_norm = || matches!(graph.nodes[graph.find(node).unwrap()].op, Op::BatchNorm { .. });
        let centre = match suffix {
            "running_var" => 1.0,
            // Small enough for the values of deep networks not to grow.
            "weight" if is_norm() => 0.7,
            "running_mean" | "bias" => 0.0,
            _ => continue,
        };
        tensor.data.iter_mut().for_each(|value| *value = centre + 0.3 * next());
    }
    weights
}

#[test]
fn the_runtime_agrees_with_the_training_side() {
    const IMAGES: usize = 2;
    let mut compared = 0;
    let of = |known: &zoo::Architecture| {
        ["", "_p4", "_p32_se", "_gwc4_pwc"].map(|variant| format!("{}{variant}", known.name))
    };
    for name in zoo::architectures().iter().flat_map(of) {
        let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
        // Networks for large images are as deep on small ones; VGG-16's linear layers take large ones only.
        let [channels, height, _] = graph.input_shape().unwrap();
        let size = height.min(64);
        let Ok(graph) = graph.with_input([channels, size, size]) else { continue };
        compared += 1;
        let weights = weights(&graph);
        let mut next = numbers(7);
        let images: Vec<f32> = (0..IMAGES * channels * size * size).map(|_| next()).collect();
        let pixels = size * size;
        let by_pixel = |i: usize| {
            let (image, pixel, channel) = (i / (pixels * channels), i / channels % pixels, i % channels);
            images[(image * channels + channel) * pixels + pixel]
        };

        let network = GraphModule::new(&graph, &weights, &Device::flex()).unwrap();
        let uploaded = network.upload_images((0..images.len()).map(by_pixel).collect(), IMAGES).unwrap();
        let want: Vec<f32> = network.logits(uploaded).unwrap().into_data().iter::<f32>().collect();
        let largest = want.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
        assert!(largest.is_normal(), "{name}");
        for (exact, tolerance) in [(true, 1e-4), (false, 1e-3)] {
            let options = Options { batch: IMAGES, exact, ..Options::default() };
            let plan = Arc::new(Plan::compile(&graph, &weights, &options).unwrap());
            let mut session = Session::new(&plan, IMAGES).unwrap();
            let got = session.run(&images).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                let error = (got - want).abs() / largest;
                assert!(error < tolerance, "{name}, exact {exact}: {got}, not {want}");
            }
        }
    }
    assert_eq!(compared, 4 * (zoo::architectures().len() - 1));
}
