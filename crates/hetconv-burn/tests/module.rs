//! Whole networks: forward against a plain interpreter, gradients against finite differences of it in float64.

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Numbers, assert_close, cross_entropy, run, weights64, wide};
use hetconv_burn::{
    DecayScope, GraphModule, Implementation, ModuleError, Sgd, SgdConfig, VelocityError, WeightAverage,
};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{Activation, Graph, GraphBuilder, GraphError, Op, Weights};
use hetconv_kernels::{Algorithm, Conv, ConvSpec, ConvWeights, Direction, Isa};

fn both() -> [Implementation; 2] {
    [Implementation::Kernels(Isa::selected().expect("an instruction set")), Implementation::Composed]
}

fn het(channels: usize, filters: usize, parts: usize) -> ConvKind {
    ConvKind::Het(HetPattern::shifted(channels, filters, parts).expect("a legal pattern"))
}

/// Residual blocks of different P, the second with a batch-norm on its shortcut too.
fn residual() -> Graph {
    let same = Conv2dGeometry::same(3, 1);
    let mut b = GraphBuilder::new("residual");
    let x = b.input("image", [3, 6, 6]);
    let x = b.conv_bn_relu("stem", x, 16, same.clone());
    let block = |b: &mut GraphBuilder, x: usize, name: &str, parts: usize| {
        let y = b.conv(format!("{name}.a"), x, 16, same.clone(), het(16, 16, parts), false);
        let y = b.batch_norm(format!("{name}.a.bn"), y);
        let y = b.relu(format!("{name}.a.relu"), y);
        let y = b.conv(format!("{name}.b"), y, 16, same.clone(), het(16, 16, 2 * parts), false);
        b.batch_norm(format!("{name}.b.bn"), y)
    };
    let y = block(&mut b, x, "one", 2);
    let x = b.add("one.add", &[x, y]);
    let x = b.relu("one.relu", x);
    let y = block(&mut b, x, "two", 4);
    let shortcut = b.conv_bn("two.shortcut", x, 16, Conv2dGeometry::same(1, 1));
    let x = b.add("two.add", &[y, shortcut]);
    let x = b.relu("two.relu", x);
    let y = block(&mut b, x, "three", 3);
    // A sum without a ReLU, read twice.
    let x = b.add("three.add", &[y, x]);
    let x = b.add("three.twice", &[x, x]);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 5, true);
    b.finish([x]).expect("a graph")
}

/// Every operator that `residual` lacks.
fn everything() -> Graph {
    let mut b = GraphBuilder::new("everything");
    let image = b.input("image", [4, 9, 8]);
    let stem = b.conv("stem", image, 12, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
    let x = b.activation("stem.swish", stem, Activation::HardSwish);
    let window = Conv2dGeometry { kernel: [3, 2], stride: [2, 2], padding: [1, 0, 1, 1], dilation: [1, 1] };
    let max = b.max_pool("max", x, window.clone());
    let avg = b.push("avg", Op::AvgPool { geometry: window.clone(), count_padding: false }, [x]);
    let padded = b.push("avg.padded", Op::AvgPool { geometry: window, count_padding: true }, [x]);
    let x = b.concat("concat", &[max, avg, padded]);
    let shifted = Conv2dGeometry { kernel: [3, 3], stride: [1, 1], padding: [2, 1, 0, 1], dilation: [1, 2] };
    let pattern = HetPattern::assigned((0..36).map(|c| c * c % 5).collect(), (0..10).map(|f| f % 4).collect());
    let x = b.conv("het", x, 10, shifted, ConvKind::Het(pattern.expect("a legal pattern")), true);
    let x = b.batch_norm("het.bn", x);
    let x = b.activation("het.silu", x, Activation::Silu);
    let x = b.conv("grouped", x, 20, Conv2dGeometry::same(3, 1), ConvKind::Grouped(5), false);
    let x = b.depthwise_bn_relu("depthwise", x, Conv2dGeometry::same(3, 2));
    let y = b.global_avg_pool("se.pool", x);
    let y = b.conv("se.reduce", y, 6, Conv2dGeometry::same(1, 1), ConvKind::Standard, true);
    let y = b.activation("se.relu6", y, Activation::Relu6);
    let y = b.conv("se.expand", y, 20, Conv2dGeometry::same(1, 1), ConvKind::Standard, true);
    let y = b.activation("se.gate", y, Activation::HardSigmoid);
    let x = b.mul("se.scale", [y, x]);
    let x = b.relu("se.relu", x);
    let x = b.mul("square", [x, x]);
    let x = b.relu("square.relu", x);
    let channels = (0..24u32).map(|c| (c % 5 != 0).then_some((c * 7) % 20)).collect();
    let short = b.push("shortcut", Op::Gather { channels, stride: 2 }, [x]);
    let y = b.conv("last", x, 24, Conv2dGeometry::same(3, 2), het(20, 24, 4), false);
    let x = b.add("sum", &[y, short]);
    let x = b.activation("sigmoid", x, Activation::Sigmoid);
    let x = b.flatten("flatten", x);
    let x = b.linear("hidden", x, 8, false);
    let x = b.batch_norm("hidden.bn", x);
    let x = b.relu("hidden.relu", x);
    let x = b.linear("fc", x, 6, true);
    let x = b.push("softmax", Op::Softmax, [x]);
    b.finish([x]).expect("a graph")
}

/// Random weights, with batch-norm parameters that are nobody's defaults.
fn random_weights(graph: &Graph, seed: u64) -> Weights {
    let mut numbers = Numbers(seed);
    let mut weights = Weights::init(graph, seed).expect("weights");
    for (name, tensor) in weights.iter_mut() {
        let norm = ["running_mean", "running_var", "bias"].iter().any(|suffix| name.ends_with(suffix))
            || name.ends_with("bn.weight");
        if norm {
            let variance = name.ends_with("running_var") || name.ends_with("bn.weight");
            let center = if variance { 1.0 } else { 0.0 };
            tensor.data.iter_mut().for_each(|value| *value = center + 0.4 * numbers.next());
        }
    }
    weights
}

fn images(graph: &Graph, batch: usize, seed: u64) -> Vec<f32> {
    let [c, h, w] = graph.input_shape().expect("an input");
    Numbers(seed).vec(batch * c * h * w)
}

#[test]
fn evaluation_sums_directly_unless_asked_to_be_fast() {
    let (same, isa) = (Conv2dGeometry::same(3, 1), Isa::selected().expect("an instruction set"));
    let mut b = GraphBuilder::new("wide");
    let x = b.input("image", [64, 16, 16]);
    let x = b.conv("conv", x, 64, same.clone(), ConvKind::Standard, false);
    let x = b.flatten("flatten", x);
    let graph = b.finish([x]).expect("a graph");
    let (weights, images) = (random_weights(&graph, 5), images(&graph, 1, 6));
    let logits = |network: &GraphModule| -> Vec<f32> {
        let images = network.upload_images(images.clone(), 1).expect("images");
        network.logits(images).expect("logits").into_data().iter::<f32>().collect()
    };
    let network = GraphModule::new(&graph, &weights, &Device::flex()).expect("a network");
    let exact = logits(&network);
    let conv = Conv::new(ConvSpec::natural(64, 64, same, ConvKind::Standard), [16, 16]).expect("a convolution");
    let of = |algorithm| {
        let dense = &weights.get("conv.weight").expect("a weight").data;
        let packed = conv.pack(isa, Direction::Forward, algorithm, ConvWeights::Dense(dense));
        let mut y = vec![0.0; 64 * 16 * 16];
        conv.forward(1, &images, &packed, None, &mut y);
        // Features are numbered channel by channel.
        (0..y.len()).map(|i| y[i % 256 * 64 + i / 256]).collect::<Vec<f32>>()
    };
    assert_eq!(exact, of(Algorithm::Direct));
    let network = network.with_fast_evaluation(true);
    let fast = logits(&network);
    assert_eq!(fast, of(conv.fastest(isa, Direction::Forward)));
    assert_close("fast", &fast, &wide(&exact), 1e-4);
    assert_eq!(logits(&network.with_fast_evaluation(false)), exact);
    assert_ne!(of(Algorithm::Direct), of(Algorithm::Winograd), "the two can be told apart");
}

#[test]
fn evaluation_equals_the_plain_interpreter() {
    for graph in [residual(), everything()] {
        let weights = random_weights(&graph, 3);
        let images = images(&graph, 3, 4);
        for implementation in both() {
            let network =
                GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
            for (wanted, softmax) in
                [(graph.outputs[0], true), (graph.classifier().expect("a classifier").logits, false)]
            {
                let want = run(&graph, &mut weights64(&weights), &wide(&images), false, wanted).concat();
                let x = network.upload_images(images.clone(), 3).expect("images").autodiff().require_grad();
                let y = if softmax { network.forward(x) } else { network.logits(x) }.expect("a result");
                assert!(!y.is_autodiff(), "evaluation keeps no graph");
                let got: Vec<f32> = y.into_data().iter::<f32>().collect();
                assert_close(&format!("{} {implementation:?}", graph.name), &got, &want, 2e-5);
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for graph in [residual(), everything()] {
        let weights = random_weights(&graph, 5);
        let (batch, labels) = (4, [0, 2, 4, 1]);
        let images = images(&graph, batch, 6);
        let loss = |weights: &Weights, name: &str, index: usize, delta: f64| {
            let mut weights = weights64(weights);
            weights.get_mut(name).expect("a weight")[index] += delta;
            let logits =
                run(&graph, &mut weights, &wide(&images), true, graph.classifier().expect("a classifier").logits);
            cross_entropy(&logits, &labels, 0.1)
        };
        let gradients = both().map(|implementation| {
            let mut network =
                GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
            let step = network.step(images.clone(), batch, &labels, 0.1).expect("a step");
            assert!((step.loss - loss(&weights, "fc.bias", 0, 0.0)).abs() < 1e-5, "{} loss", graph.name);
            (implementation, step.gradients)
        });
        let specs = graph.weight_specs().expect("a graph");
        let trainable = || specs.iter().filter(|spec| spec.role.trainable());
        let mut numbers = Numbers(7);
        let mut compared = 0;
        for spec in trainable() {
            for _ in 0..3 {
                let index = numbers.below(spec.elements());
                let slope = |h: f64| {
                    let (up, down) = (loss(&weights, &spec.name, index, h), loss(&weights, &spec.name, index, -h));
                    (up - down) / (2.0 * h)
                };
                let (want, wider) = (slope(1e-6), slope(4e-6));
                // A kink of ReLU or max-pooling lies within the step.
                if (want - wider).abs() > 1e-6 {
                    continue;
                }
                compared += 1;
                for (implementation, gradients) in &gradients {
                    let gradient = gradients.get(&spec.name).unwrap_or_else(|| panic!("gradient of {}", spec.name));
                    assert_eq!(gradient.len(), spec.elements());
                    let got = f64::from(gradient[index]);
                    let what = format!("{} {implementation:?} {}[{index}]", graph.name, spec.name);
                    assert!((got - want).abs() < 2e-5 + 1e-3 * want.abs(), "{what}: {got}, expected {want}");
                }
            }
        }
        assert!(compared > 2 * trainable().count(), "{compared} comparisons");
    }
}

#[test]
fn gradients_of_two_parts_make_those_of_the_whole() {
    // Without batch-norm, an image's gradient does not depend on its neighbours.
    let mut b = GraphBuilder::new("plain");
    let x = b.input("image", [3, 6, 6]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
    let x = b.activation("stem.silu", x, Activation::Silu);
    let x = b.conv("het", x, 12, Conv2dGeometry::same(3, 2), het(8, 12, 4), true);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 5, true);
    let graph = b.finish([x]).expect("a graph");
    let weights = random_weights(&graph, 14);
    let (images, labels) = (images(&graph, 6, 15), [0, 1, 2, 3, 4, 0]);
    for implementation in both() {
        let mut network =
            GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
        let mut gradients = |part: std::ops::Range<usize>| {
            let pixels = images[part.start * 108..part.end * 108].to_vec();
            network.step(pixels, part.len(), &labels[part], 0.1).expect("a step").gradients
        };
        let whole = gradients(0..6);
        let first = gradients(0..2);
        let other = gradients(2..6);
        // Means over 2 and 4 images, weighted so that every image of the 6 counts the same.
        let sum = first.scaled(1.0 / 3.0).plus(other.scaled(2.0 / 3.0));
        assert_eq!(
            sum.iter().count(),
            graph.weight_specs().expect("a graph").iter().filter(|spec| spec.role.trainable()).count()
        );
        for ((name, got), (other, want)) in sum.iter().zip(whole.iter()) {
            assert_eq!(name, other);
            assert!(want.iter().any(|value| value.abs() > 1e-3), "{name} has no gradient to speak of");
            assert_close(&format!("{implementation:?} {name}"), &got, &wide(&want), 1e-6);
        }
    }
}

#[test]
#[should_panic(expected = "different networks")]
fn gradients_of_different_networks_do_not_add() {
    let gradients = |graph: Graph| {
        let weights = random_weights(&graph, 16);
        let mut network = GraphModule::new(&graph, &weights, &Device::flex()).expect("a network");
        network.step(images(&graph, 2, 17), 2, &[0, 1], 0.0).expect("a step").gradients
    };
    let _ = gradients(residual()).plus(gradients(everything()));
}

#[test]
fn running_statistics_move_as_in_pytorch() {
    for graph in [residual(), everything()] {
        let weights = random_weights(&graph, 8);
        let images = images(&graph, 4, 9);
        let mut want = weights64(&weights);
        run(&graph, &mut want, &wide(&images), true, graph.outputs[0]);
        for implementation in both() {
            let mut network =
                GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
            let x = network.upload_images(images.clone(), 4).expect("images");
            network.forward_training(x).expect("a pass");
            for (name, tensor) in network.weights().iter() {
                assert_close(&format!("{} {implementation:?} {name}", graph.name), &tensor.data, &want[name], 1e-5);
            }
        }
    }
}

#[test]
fn kernels_and_composed_train_alike() {
    let graph = everything();
    let weights = random_weights(&graph, 10);
    let config = SgdConfig { nesterov: true, decay: DecayScope::Kernels, ..SgdConfig::default() };
    let trained = both().map(|implementation| {
        let mut network =
            GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
        let mut optimizer = Sgd::new(config);
        for seed in 0..3 {
            let step = network.step(images(&graph, 4, seed), 4, &[1, 3, 5, 0], 0.0).expect("a step");
            optimizer.step(&mut network, step.gradients, 0.02);
        }
        let velocities: Vec<(String, Vec<f32>)> = optimizer.export().map(|(n, _, v)| (n.to_owned(), v)).collect();
        (network.weights(), velocities)
    });
    let [(kernels, velocities), (composed, composed_velocities)] = trained;
    for ((name, got), (_, want)) in kernels.iter().zip(composed.iter()) {
        assert_close(name, &got.data, &wide(&want.data), 2e-4);
        let untouched = weights.get(name).expect("a weight").data == got.data;
        assert!(!untouched, "{name} was not trained");
    }
    for ((name, got), (_, want)) in velocities.iter().zip(&composed_velocities) {
        assert_close(name, got, &wide(want), 2e-3);
    }
}

#[test]
fn training_is_reproducible_and_resumable() {
    let graph = residual();
    let weights = random_weights(&graph, 11);
    let config = SgdConfig::default();
    let train = |network: &mut GraphModule, optimizer: &mut Sgd, seeds: std::ops::Range<u64>| {
        for seed in seeds {
            let step = network.step(images(&graph, 5, seed), 5, &[0, 1, 2, 3, 4], 0.1).expect("a step");
            optimizer.step(network, step.gradients, 0.05);
        }
    };
    let bits = |weights: &Weights| -> Vec<u32> {
        weights.iter().flat_map(|(_, tensor)| tensor.data.iter().map(|v| v.to_bits())).collect()
    };
    let new = |weights: &Weights| GraphModule::new(&graph, weights, &Device::flex()).expect("a network");
    let (mut whole, mut optimizer) = (new(&weights), Sgd::new(config));
    train(&mut whole, &mut optimizer, 0..4);
    let (mut first, mut optimizer) = (new(&weights), Sgd::new(config));
    train(&mut first, &mut optimizer, 0..2);
    let (mut second, mut resumed) = (new(&first.weights()), Sgd::new(config));
    for (name, shape, data) in optimizer.export() {
        resumed.import(&second, name, shape, data).expect("a velocity");
    }
    train(&mut second, &mut resumed, 2..4);
    assert_eq!(bits(&whole.weights()), bits(&second.weights()));
    let mut loaded = new(&weights);
    loaded.load_weights(&whole.weights()).expect("weights");
    assert_eq!(bits(&loaded.weights()), bits(&whole.weights()));
}

#[test]
fn sgd_is_pytorchs() {
    let mut b = GraphBuilder::new("linear");
    let x = b.input("image", [2, 1, 1]);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 2, true);
    let graph = b.finish([x]).expect("a graph");
    for implementation in both() {
        for nesterov in [false, true] {
            let weights = random_weights(&graph, 12);
            let mut network =
                GraphModule::with_implementation(&graph, &weights, &Device::flex(), implementation).expect("a network");
            let config = SgdConfig { momentum: 0.8, nesterov, weight_decay: 0.1, decay: DecayScope::Kernels };
            let mut optimizer = Sgd::new(config);
            let mut want = weights64(&weights);
            let mut velocity = common::Numbers64::new();
            for seed in 0..3 {
                let step = network.step(images(&graph, 3, seed), 3, &[0, 1, 1], 0.0).expect("a step");
                for (name, gradient) in step.gradients.iter() {
                    let decay = if name == "fc.weight" { 0.1 } else { 0.0 };
                    let velocity = velocity.entry(name.to_owned()).or_insert_with(|| vec![0.0; gradient.len()]);
                    for ((w, v), g) in want.get_mut(name).expect("a weight").iter_mut().zip(velocity).zip(gradient) {
                        let g = f64::from(g) + decay * *w;
                        *v = 0.8 * *v + g;
                        *w -= 0.3 * if nesterov { g + 0.8 * *v } else { *v };
                    }
                }
                optimizer.step(&mut network, step.gradients, 0.3);
            }
            for (name, tensor) in network.weights().iter() {
                assert_close(&format!("{implementation:?} {name}"), &tensor.data, &want[name], 1e-5);
            }
        }
    }
}

#[test]
fn windows_that_would_need_tables_beyond_measure() {
    let geometry = Conv2dGeometry { kernel: [31; 2], stride: [1; 2], padding: [60; 4], dilation: [2; 2] };
    let mut b = GraphBuilder::new("wide");
    let x = b.input("image", [1, 61, 61]);
    let x = b.conv("wide", x, 4364, geometry, ConvKind::Standard, false);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("classifier", x, 2, true);
    let graph = b.finish([x]).expect("a graph");
    let weights = Weights::init(&graph, 1).expect("weights");
    let windows = ModuleError::Windows { node: "wide".to_owned(), filters: 4364 };
    assert_eq!(GraphModule::new(&graph, &weights, &Device::flex()).err(), Some(windows));
}

#[test]
fn wrong_batches_are_errors_and_change_nothing() {
    let graph = residual();
    let weights = random_weights(&graph, 13);
    let mut network = GraphModule::new(&graph, &weights, &Device::flex()).expect("a network");
    let good = images(&graph, 2, 1);
    let short = good[1..].to_vec();
    assert!(matches!(network.step(short, 2, &[0, 1], 0.0), Err(ModuleError::Images { .. })));
    assert!(matches!(network.step(Vec::new(), 0, &[], 0.0), Err(ModuleError::Images { .. })));
    assert_eq!(network.step(good.clone(), 2, &[0], 0.0).err(), Some(ModuleError::Labels { labels: 1, batch: 2 }));
    assert_eq!(
        network.step(good, 2, &[0, 5], 0.0).err(),
        Some(ModuleError::LabelRange { image: 1, label: 5, classes: 5 })
    );
    // Its batch-norm of features would see one value of each.
    let everything = everything();
    let mut of_features =
        GraphModule::new(&everything, &random_weights(&everything, 3), &Device::flex()).expect("a network");
    let before = of_features.weights();
    let alone = of_features.step(images(&everything, 1, 2), 1, &[0], 0.0);
    assert_eq!(alone.err(), Some(ModuleError::SingleValue { node: "hidden.bn".to_owned() }));
    assert_eq!(of_features.weights(), before);
    let transposed = Tensor::<4>::from_data(TensorData::new(vec![0.0f32; 108], [1, 3, 6, 6]), &Device::flex());
    assert!(matches!(network.forward(transposed), Err(ModuleError::Images { .. })));
    assert_eq!(network.weights(), weights);
    let mut lacking = weights.clone();
    lacking.remove("fc.bias");
    assert!(matches!(GraphModule::new(&graph, &lacking, &Device::flex()), Err(ModuleError::Weights(_))));
    assert!(matches!(network.load_weights(&lacking), Err(ModuleError::Weights(_))));
    let mut optimizer = Sgd::new(SgdConfig::default());
    let unknown = optimizer.import(&network, "stem.bn.running_mean", &[16], vec![0.0; 16]);
    assert_eq!(unknown, Err(VelocityError::Unexpected("stem.bn.running_mean".to_owned())));
    let shape = optimizer.import(&network, "fc.bias", &[5], vec![0.0; 4]);
    assert!(matches!(shape, Err(VelocityError::Shape { elements: 4, .. })));
}

#[test]
fn networks_without_one_input_and_one_row_of_features_are_errors() {
    let mut b = GraphBuilder::new("image");
    let x = b.input("image", [3, 4, 4]);
    let graph = b.finish([x]).expect("a graph");
    let new = |graph: &Graph| GraphModule::new(graph, &Weights::init(graph, 1).expect("weights"), &Device::flex());
    let refused = |graph| match new(graph) {
        Err(ModuleError::Graph(GraphError::NoClassifier { inputs, outputs, .. })) => (inputs, outputs),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&graph), (1, "an image of 3×4×4".to_owned()));
    let mut b = GraphBuilder::new("two");
    let x = b.input("a", [3, 1, 1]);
    let y = b.input("b", [3, 1, 1]);
    let x = b.add("sum", &[x, y]);
    let x = b.flatten("flatten", x);
    let graph = b.finish([x]).expect("a graph");
    assert_eq!(refused(&graph).0, 2);
}

#[test]
fn a_weight_average_is_the_mean_by_hand_on_both_implementations() {
    const DECAY: f64 = 0.8;
    let graph = residual();
    let weights = [1, 2, 3, 4].map(|seed| Weights::init(&graph, seed).expect("weights"));
    // What the first ones were does not count.
    let parts = [0.0, DECAY * DECAY, DECAY, 1.0];
    for implementation in both() {
        let network = GraphModule::with_implementation(&graph, &weights[0], &Device::flex(), implementation);
        let mut network = network.expect("a network");
        let mut average = WeightAverage::new(&network, DECAY);
        assert_eq!(average.network().weights(), weights[0]);
        let mut steps = Vec::new();
        for next in &weights[1..] {
            network.load_weights(next).expect("weights of the network");
            average.update(&network);
            steps.push(average.network().weights());
        }
        let found = average.network().weights();
        assert_eq!(network.weights(), weights[3], "the network stays as it is");
        for (name, found) in found.iter() {
            for (i, &found) in found.data.iter().enumerate() {
                let of = |weights: &Weights| f64::from(weights.get(name).expect("the same weights").data[i]);
                let sum: f64 = weights.iter().zip(parts).map(|(weights, part)| part * of(weights)).sum();
                let expected = sum / parts.iter().sum::<f64>();
                assert!((f64::from(found) - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
            }
        }
        let mut resumed = WeightAverage::resumed(&network, DECAY, &steps[1], 2).expect("weights of the network");
        resumed.update(&network);
        assert_eq!(resumed.network().weights(), found);
    }
}
