//! Results against a plain interpreter in float64, on every instruction set.
#![allow(missing_docs)]

#[path = "../../hetconv-graph/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{distinct_weights, random_graph, random_image};
use hetconv_graph::{Graph, ModelName, Op, Weights, zoo};
use hetconv_runtime::{Isa, Options, Plan, Session, Team};

/// Largest error relative to the largest output, over all outputs and images.
fn error(graph: &Graph, weights: &Weights, options: &Options, batch: usize, want: &[Vec<Vec<f64>>]) -> f64 {
    let plan = Arc::new(Plan::compile(graph, weights, options).unwrap());
    let mut session = Session::with_team(&plan, batch, &Arc::new(Team::new(3))).unwrap();
    let len: usize = graph.input_shape().unwrap().iter().product();
    let images = (0..batch).flat_map(|image| random_image(len, image as u64));
    let images: Vec<f32> = images.map(|x| x as f32).collect();
    // The second run must not see the first one's values.
    session.run(&vec![f32::NAN; images.len()]).unwrap();
    session.run(&images).unwrap();
    let mut worst: f64 = 0.0;
    for output in 0..graph.outputs.len() {
        let got = session.output(output);
        let largest = want.iter().flat_map(|image| &image[output]).fold(1e-9f64, |a, b| a.max(b.abs()));
        let len = want[0][output].len();
        assert_eq!(got.len(), batch * len);
        for (image, got) in got.chunks_exact(len).enumerate() {
            for (&got, &want) in got.iter().zip(&want[image][output]) {
                let error = (f64::from(got) - want).abs() / largest;
                assert!(error.is_finite(), "{}: {got}, expected {want}", graph.name);
                worst = worst.max(error);
            }
        }
    }
    worst
}

/// What the interpreter has for three images.
fn wanted(graph: &Graph, weights: &Weights, images: usize) -> Vec<Vec<Vec<f64>>> {
    let len: usize = graph.input_shape().unwrap().iter().product();
    // As the runtime gets them, rounded.
    let image = |image| random_image(len, image as u64).into_iter().map(|x| f64::from(x as f32)).collect::<Vec<_>>();
    (0..images).map(|index| common::run(graph, weights, &image(index), None)).collect()
}

fn check(graph: &Graph, weights: &Weights, batches: &[usize]) {
    let images = batches.iter().copied().max().unwrap_or(1);
    let want = wanted(graph, weights, images);
    for isa in Isa::available() {
        for &batch in batches {
            for (exact, tolerance) in [(true, 1e-4), (false, 1e-3)] {
                let options = Options { isa: Some(isa), batch, exact, tune: false };
                let found = error(graph, weights, &options, batch, &want[..batch]);
                assert!(found < tolerance, "{}, batch {batch}, {isa:?}, exact {exact}: {found:.1e}", graph.name);
            }
        }
    }
}

#[test]
fn random_graphs() {
    for seed in 0..60 {
        let graph = random_graph(seed);
        check(&graph, &distinct_weights(&graph, seed), &[1, 3]);
    }
}

#[test]
fn networks_of_the_zoo() {
    // Smaller images keep the interpreter quick; what the layers are does not depend on them.
    let variants = ["", "_p2", "_p4", "_p8", "_p32", "_pc", "_gwc4_pwc", "_dwc_pwc", "_p4_se"];
    let names = ["small-cifar", "resnet20"].iter().flat_map(|name| variants.map(|variant| format!("{name}{variant}")));
    for name in names.chain(["mobilenet-cifar_p32".to_owned()]) {
        let graph = zoo::build(&name.parse::<ModelName>().unwrap(), 10).unwrap();
        let graph = graph.with_input([3, 8, 8]).unwrap();
        check(&graph, &distinct_weights(&graph, 7), &[1, 2]);
    }
}

#[test]
fn every_number_of_pixels_and_many_images() {
    // Chunks of images, and Winograd's pieces that hang over.
    for [height, width] in [[7, 9], [4, 4], [5, 2], [13, 6]] {
        let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
        let Ok(graph) = graph.with_input([3, height, width]) else { continue };
        check(&graph, &distinct_weights(&graph, 3), &[19]);
    }
}

#[test]
fn the_same_bits_whatever_the_threads_and_sessions() {
    let graph = zoo::build(&"resnet20_p4_se".parse().unwrap(), 10).unwrap();
    let weights = distinct_weights(&graph, 5);
    for batch in [1, 2, 40] {
        let plan = Arc::new(Plan::compile(&graph, &weights, &Options { batch, ..Options::default() }).unwrap());
        let images: Vec<f32> = random_image(batch * 3 * 32 * 32, 9).into_iter().map(|x| x as f32).collect();
        let run = |threads: usize| {
            let mut session = Session::with_team(&plan, batch, &Arc::new(Team::new(threads))).unwrap();
            session.run(&images).unwrap().to_vec()
        };
        let want = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == want, "{threads} threads, batch {batch}");
        }
        // Sessions on several threads over one plan and one team.
        let team = Arc::new(Team::new(2));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let mut session = Session::with_team(&plan, batch, &team).unwrap();
                        assert!(session.run(&images).unwrap() == want);
                    }
                });
            }
        });
    }
}

#[test]
fn memory_is_little_more_than_what_is_alive_at_once() {
    for name in ["vgg16-cifar_p4", "resnet20", "resnet56_p2", "mobilenet-cifar_p32", "resnet34_p4", "resnet50_p4"] {
        let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
        let plan = Plan::compile(&graph, &Weights::init(&graph, 1).unwrap(), &Options::default()).unwrap();
        for batch in [1, 64] {
            let [arena, alive] = plan.arena_bytes(batch);
            assert!(arena as f64 <= 1.1 * alive as f64, "{name}, batch {batch}: {arena} for {alive}");
        }
        // Two values of the largest layer, or three where a shortcut is alive beside them.
        let shapes = graph.shapes().unwrap();
        let largest = 4 * shapes.iter().map(|shape| shape.elements()).max().unwrap();
        let [arena, _] = plan.arena_bytes(1);
        assert!(arena >= largest && arena <= 3 * largest, "{name}: {arena} for values up to {largest}");
    }
}

#[test]
fn every_layer_is_named_with_its_algorithm() {
    let graph = zoo::build(&"vgg16-cifar_p4".parse().unwrap(), 10).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    let layers = graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv2d { .. } | Op::Linear { .. }));
    let names: Vec<&str> = layers.map(|node| node.name.as_str()).collect();
    for exact in [false, true] {
        let plan = Plan::compile(&graph, &weights, &Options { exact, ..Options::default() }).unwrap();
        let found: Vec<&str> = plan.layers().iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(found, names);
        assert_eq!(plan.layers().iter().any(|layer| layer.algorithm == "winograd"), !exact);
        assert!(plan.packed_bytes() > 0);
    }
}
