//! Results against a plain interpreter in float64, on every instruction set.
#![allow(missing_docs)]

#[path = "../../hetconv-graph/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{distinct_weights, random_graph, random_image};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{Graph, GraphBuilder, ModelName, Op, WeightSpec, WeightTensor, Weights, zoo};
use hetconv_runtime::{Algorithm, Isa, Options, Plan, Session, Team};

/// Largest error relative to the largest output, over all outputs and images, which are those of `want` over and over.
fn error(graph: &Graph, weights: &Weights, options: &Options, batch: usize, want: &[Vec<Vec<f64>>]) -> f64 {
    let plan = Arc::new(Plan::compile(graph, weights, options).unwrap());
    let mut session = Session::with_team(&plan, batch, &Arc::new(Team::new(3))).unwrap();
    let len: usize = graph.input_shape().unwrap().iter().product();
    let images = (0..batch).flat_map(|image| random_image(len, (image % want.len()) as u64));
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
        for (want, got) in want.iter().cycle().zip(got.chunks_exact(len)) {
            for (&got, &want) in got.iter().zip(&want[output]) {
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
    /// Of more images than that, the interpreter would take too long.
    const DISTINCT: usize = 5;
    let images = batches.iter().copied().max().unwrap_or(1);
    let want = wanted(graph, weights, images.min(DISTINCT));
    for isa in Isa::available() {
        for &batch in batches {
            for (exact, tolerance) in [(true, 1e-4), (false, 1e-3)] {
                let options = Options { isa: Some(isa), batch, exact, tune: false };
                let found = error(graph, weights, &options, batch, &want[..batch.min(DISTINCT)]);
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
fn random_graphs_of_so_many_images_that_only_a_few_at_a_time_stay_near() {
    for seed in 0..8 {
        let graph = random_graph(seed);
        check(&graph, &distinct_weights(&graph, seed), &[9001]);
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
    for [height, width] in [[7, 9], [4, 4], [5, 4], [13, 6]] {
        let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
        let graph = graph.with_input([3, height, width]).unwrap();
        check(&graph, &distinct_weights(&graph, 3), &[19]);
    }
}

#[test]
fn timed_trials_change_the_algorithms_alone() {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
    let graph = graph.with_input([3, 16, 16]).unwrap();
    let weights = distinct_weights(&graph, 4);
    let want = wanted(&graph, &weights, 2);
    for isa in Isa::available() {
        let options = Options { isa: Some(isa), batch: 2, exact: false, tune: true };
        let found = error(&graph, &weights, &options, 2, &want);
        assert!(found < 1e-3, "{isa:?}: {found:.1e}");
    }
}

#[test]
fn weights_that_are_given_away_and_steps_that_are_timed_give_the_same_bits() {
    let graph = zoo::build(&"resnet20_p4".parse().unwrap(), 10).unwrap();
    let weights = distinct_weights(&graph, 4);
    let images: Vec<f32> = random_image(9 * 3 * 32 * 32, 9).into_iter().map(|x| x as f32).collect();
    let options = Options { batch: 9, ..Options::default() };
    let plan = Arc::new(Plan::compile(&graph, &weights, &options).unwrap());
    let mut session = Session::new(&plan, 9).unwrap();
    let want = session.run(&images).unwrap().to_vec();
    assert!(want.iter().any(|&x| x != want[0]));

    let owned = Arc::new(Plan::compile_owned(&graph, weights, &options).unwrap());
    assert!(Session::new(&owned, 9).unwrap().run(&images).unwrap() == want);

    session.run(&vec![0.0; images.len()]).unwrap();
    let times = session.time_steps(&[&images]).unwrap();
    assert!(session.output(0) == want);
    assert_eq!(times.len(), plan.steps().count());
    assert!(times.iter().any(|time| !time.is_zero()), "{times:?}");
}

/// Images in two halves of their channels, which are joined first, are the same images.
#[test]
fn networks_of_two_inputs() {
    let layers = |b: &mut GraphBuilder, x| {
        let het = ConvKind::Het(HetPattern::shifted(6, 8, 3).unwrap());
        let x = b.conv("conv", x, 8, Conv2dGeometry::same(3, 1), het, true);
        let features = b.global_avg_pool("mean", x);
        let features = b.flatten("features", features);
        [x, features]
    };
    let mut b = GraphBuilder::new("two");
    let (left, right) = (b.input("left", [2, 7, 5]), b.input("right", [4, 7, 5]));
    let joined = b.concat("joined", &[left, right]);
    let outputs = layers(&mut b, joined);
    let two = b.finish(outputs).unwrap();
    let mut b = GraphBuilder::new("one");
    let whole = b.input("whole", [6, 7, 5]);
    let outputs = layers(&mut b, whole);
    let one = b.finish(outputs).unwrap();

    let weights = distinct_weights(&one, 2);
    const IMAGES: usize = 3;
    let images: Vec<f32> = random_image(IMAGES * 6 * 35, 1).into_iter().map(|x| x as f32).collect();
    let part = |channels: std::ops::Range<usize>| -> Vec<f32> {
        images.chunks_exact(6 * 35).flat_map(|image| &image[channels.start * 35..channels.end * 35]).copied().collect()
    };
    let run = |graph: &Graph, inputs: &[&[f32]]| {
        let plan = Arc::new(Plan::compile(graph, &weights, &Options::default()).unwrap());
        let mut session = Session::with_team(&plan, IMAGES, &Arc::new(Team::new(2))).unwrap();
        session.run_all(inputs).unwrap();
        [0, 1].map(|output| session.output(output).to_vec())
    };
    let want = run(&one, &[&images]);
    let found = run(&two, &[&part(0..2), &part(2..6)]);
    for (found, want) in found.iter().zip(&want) {
        assert_eq!(found.len(), want.len());
        let largest = want.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(found.iter().zip(want).all(|(found, want)| (found - want).abs() <= 1e-5 * largest));
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
fn a_thousand_sessions_over_one_plan() {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
    let weights = distinct_weights(&graph, 5);
    let plan = Arc::new(Plan::compile(&graph, &weights, &Options::default()).unwrap());
    let images: Vec<f32> = random_image(3 * 32 * 32, 9).into_iter().map(|x| x as f32).collect();
    let team = Arc::new(Team::new(2));
    let session = || Session::with_team(&plan, 1, &team).unwrap().run(&images).unwrap().to_vec();
    let want = session();
    assert!(want.iter().any(|&x| x != want[0]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..500).for_each(|_| assert!(session() == want)));
        }
    });
}

#[test]
fn every_other_pixel_is_picked_once() {
    let mut b = GraphBuilder::new("wide");
    let x = b.input("image", [3, 7, 6]);
    let x = b.conv_bn_relu("stem", x, 1024, Conv2dGeometry::same(1, 1));
    let mut sums = Vec::new();
    for (stride, kind) in [(2, ConvKind::Standard), (3, ConvKind::Grouped(4))] {
        let geometry = Conv2dGeometry::square(1, stride, 0, 1);
        let y = b.conv(format!("a{stride}"), x, 40, geometry.clone(), kind.clone(), true);
        let z = b.conv(format!("b{stride}"), x, 24, geometry, kind, false);
        let y = b.concat(format!("concat{stride}"), &[y, z]);
        sums.push(b.global_avg_pool(format!("pool{stride}"), y));
    }
    // One that takes in a sum, and one with another stride in its rows.
    let left = b.conv("left", x, 64, Conv2dGeometry::same(3, 2), ConvKind::Standard, true);
    let right = b.conv("right", x, 64, Conv2dGeometry::square(1, 2, 0, 1), ConvKind::Standard, true);
    let y = b.add("shortcut", &[left, right]);
    sums.push(b.global_avg_pool("shortcut.pool", y));
    let uneven = Conv2dGeometry { stride: [1, 2], ..Conv2dGeometry::same(1, 1) };
    let y = b.conv("uneven", x, 64, uneven, ConvKind::Standard, true);
    sums.push(b.global_avg_pool("uneven.pool", y));
    let sum = b.add("sum", &sums);
    let graph = b.finish([sum]).unwrap();
    let weights = distinct_weights(&graph, 3);
    // Few images at a time as well.
    check(&graph, &weights, &[1, 5, 24]);
    let plan = Plan::compile(&graph, &weights, &Options::default()).unwrap();
    let steps: Vec<&str> = plan.steps().map(|(name, _)| name).collect();
    let count = |name: &str| steps.iter().filter(|step| **step == name).count();
    for stride in 2..=3 {
        assert_eq!([count(&format!("a{stride}")), count(&format!("b{stride}"))], [2, 1], "{steps:?}");
    }
}

#[test]
fn every_other_pixel_in_another_order() {
    for channels in [64, 1024] {
        let mut b = GraphBuilder::new("orders");
        let x = b.input("image", [3, 8, 7]);
        let x = b.conv_bn_relu("stem", x, channels, Conv2dGeometry::same(1, 1));
        // Neither takes the order of the other: one of them reads a selection.
        let het = ConvKind::Het(HetPattern::shifted(channels, 32, 4).unwrap());
        let y = b.conv("het", x, 32, Conv2dGeometry::same(3, 2), het, true);
        let z = b.conv("every other", x, 32, Conv2dGeometry::square(1, 2, 0, 1), ConvKind::Grouped(2), true);
        let sum = b.add("sum", &[y, z]);
        let graph = b.finish([sum]).unwrap();
        check(&graph, &distinct_weights(&graph, 3), &[1, 3]);
    }
}

#[test]
fn pixels_that_share_a_set_lie_apart() {
    let pointwise = |stride| Conv2dGeometry::square(1, stride, 0, 1);
    let build = |last: &dyn Fn(&mut GraphBuilder, usize) -> usize| {
        let mut b = GraphBuilder::new("residual");
        let x = b.input("image", [3, 7, 6]);
        // Written by Winograd's algorithm where it is allowed.
        let x = b.conv("stem", x, 1024, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
        let mut x = b.relu("stem.relu", x);
        for block in 0..2 {
            let y = b.conv_bn_relu(&format!("{block}.narrow"), x, 20, pointwise(1));
            let y = b.conv(format!("{block}.wide"), y, 1024, pointwise(1), ConvKind::Standard, true);
            let sum = b.add(format!("{block}.sum"), &[x, y]);
            x = b.relu(format!("{block}.relu"), sum);
        }
        let x = last(&mut b, x);
        b.finish([x]).unwrap()
    };
    let every_other = |b: &mut GraphBuilder, x| {
        let x = b.conv("every other", x, 9, pointwise(2), ConvKind::Standard, true);
        b.global_avg_pool("pool", x)
    };
    let pooled = |b: &mut GraphBuilder, x| b.global_avg_pool("pool", x);
    // Not where somebody reads it otherwise.
    let wide = |b: &mut GraphBuilder, x| b.conv("last", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
    for last in [&every_other as &dyn Fn(&mut GraphBuilder, usize) -> usize, &pooled, &wide] {
        let graph = build(last);
        check(&graph, &distinct_weights(&graph, 3), &[1, 2]);
    }
}

#[test]
fn convolutions_write_where_a_concatenation_would_copy_them() {
    let het = |m, n| ConvKind::Het(HetPattern::shifted(m, n, 4).unwrap());
    let mut b = GraphBuilder::new("inception");
    let x = b.input("image", [3, 9, 8]);
    let x = b.conv_bn_relu("stem", x, 32, Conv2dGeometry::same(3, 1));
    let mut branches = vec![b.conv_bn_relu("narrow", x, 20, Conv2dGeometry::same(1, 1))];
    for (name, geometry) in [("wide", Conv2dGeometry::same(3, 1)), ("dilated", Conv2dGeometry::square(3, 1, 2, 2))] {
        branches.push(b.conv(name, x, 48, geometry, het(32, 48), true));
    }
    branches.push(b.max_pool("pool", x, Conv2dGeometry::same(3, 1)));
    // One that is read twice, and one after which a sum stands.
    let twice = b.conv("twice", x, 32, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    branches.push(twice);
    let other = b.conv("other", x, 32, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    branches.push(b.add("sum", &[other, twice]));
    let x = b.concat("concat", &branches);
    let left = b.conv("left", x, 16, Conv2dGeometry::same(1, 1), ConvKind::Standard, true);
    let right = b.conv("right", x, 16, Conv2dGeometry::same(3, 2), ConvKind::Standard, true);
    let right = b.global_avg_pool("right.pool", right);
    let left = b.global_avg_pool("left.pool", left);
    let x = b.concat("last", &[left, right]);
    let y = b.conv("a", x, 8, Conv2dGeometry::same(1, 1), ConvKind::Standard, true);
    let z = b.conv("b", x, 8, Conv2dGeometry::same(1, 1), ConvKind::Standard, true);
    let x = b.concat("no step", &[y, z]);
    let graph = b.finish([x]).unwrap();
    let weights = distinct_weights(&graph, 3);
    check(&graph, &weights, &[1, 3, 83]);
    let plan = Plan::compile(&graph, &weights, &Options::default()).unwrap();
    let steps: Vec<&str> = plan.steps().map(|(name, _)| name).collect();
    assert_eq!(steps.iter().filter(|name| **name == "concat").count(), 1);
    // Only the output's own step is named so.
    assert_eq!(steps.iter().filter(|name| **name == "no step").count(), 1);
}

#[test]
fn sums_stand_where_their_residual_stood() {
    let het = ConvKind::Het(HetPattern::shifted(32, 32, 4).unwrap());
    let kinds = [(1, ConvKind::Standard), (3, het), (3, ConvKind::Grouped(32))];
    let mut b = GraphBuilder::new("sums");
    let x = b.input("image", [3, 7, 8]);
    let mut x = b.conv_bn_relu("stem", x, 32, Conv2dGeometry::same(3, 1));
    for (number, (kernel, kind)) in kinds.iter().enumerate() {
        let y = b.conv_bn_relu(&format!("first{number}"), x, 32, Conv2dGeometry::same(3, 1));
        let y = b.conv(format!("second{number}"), y, 32, Conv2dGeometry::same(*kernel, 1), kind.clone(), true);
        x = b.add(format!("sum{number}"), &[y, x]);
        x = b.relu(format!("relu{number}"), x);
    }
    let blocks = b.clone().finish([x]).unwrap();
    // Two values of all blocks together, and what the network reads and writes is smaller.
    let plan = Arc::new(Plan::compile(&blocks, &distinct_weights(&blocks, 3), &Options::default()).unwrap());
    assert_eq!(Session::new(&plan, 1).unwrap().arena_bytes(), [2 * 4 * 32 * 56; 2]);

    // One that is read later, one that the convolution reads, too, and one of which a part is added later.
    let y = b.conv("a", x, 32, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let later = b.add("later", &[y, x]);
    let y = b.conv("b", x, 32, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let both = b.add("both", &[y, x]);
    let y = b.conv("c", later, 32, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let x = b.add("last", &[y, both]);
    let graph = b.finish([x, both]).unwrap();
    for graph in [&blocks, &graph] {
        check(graph, &distinct_weights(graph, 3), &[1, 3]);
    }
    // So large that a thread takes them one by one.
    check(&blocks.with_input([3, 29, 30]).unwrap(), &distinct_weights(&blocks, 3), &[8]);
}

/// Zeros, but for variances, which are ones.
fn plain_weights(graph: &Graph) -> Weights {
    let tensor = |spec: WeightSpec| {
        let value = if spec.name.ends_with("running_var") { 1.0 } else { 0.0 };
        let data = vec![value; spec.elements()];
        (spec.name, WeightTensor { shape: spec.shape, data })
    };
    graph.weight_specs().unwrap().into_iter().map(tensor).collect()
}

#[test]
fn memory_is_little_more_than_what_is_alive_at_once() {
    let named =
        |of: &zoo::Architecture| ["", "_p4", "_p8_se", "_dwc_pwc"].map(|variant| format!("{}{variant}", of.name));
    for name in zoo::architectures().iter().flat_map(named) {
        let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
        let plan = Arc::new(Plan::compile(&graph, &plain_weights(&graph), &Options::default()).unwrap());
        for batch in [1, 64] {
            let [arena, alive] = Session::new(&plan, batch).unwrap().arena_bytes();
            assert!(arena as f64 <= 1.1 * alive as f64, "{name}, batch {batch}: {arena} for {alive}");
        }
        // Two values of the largest layer, or three where a shortcut is alive beside them, and gates of a few channels.
        let shapes = graph.shapes().unwrap();
        let largest = 4 * shapes.iter().map(|shape| shape.elements()).max().unwrap();
        let [arena, _] = Session::new(&plan, 1).unwrap().arena_bytes();
        assert!(arena >= largest && arena <= 3 * largest + largest / 8, "{name}: {arena} for values up to {largest}");
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
        assert_eq!(plan.layers().iter().any(|layer| layer.algorithm == Algorithm::Winograd), !exact);
        assert!(plan.packed_bytes() > 0);
    }
}
