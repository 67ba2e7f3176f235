//! A calibrated network is nearer to the original than a projected one.

use std::collections::BTreeMap;
use std::sync::Arc;

use hetconv_calibrate::{CalibrateError, Options, calibrate};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{
    ConvertOptions, Graph, GraphBuilder, HetLayer, Init, ModelFile, Normalisation, Weights, convert, zoo,
};
use hetconv_runtime::{Plan, Session};

/// Smooth images, `[images, 3, 32, 32]`, none like another.
fn images(count: usize, seed: usize) -> Vec<f32> {
    let value = |at: usize| {
        let (image, channel, y, x) = (at / 3072 + 97 * seed, at / 1024 % 3, at / 32 % 32, at % 32);
        let wave = |k: usize| {
            let [a, b, c] = [1, 2, 3].map(|i| ((image * 7 + k * 13 + channel * 5) * i % 31) as f32 / 31.0);
            (a * 1.3 * x as f32 + (b - 0.5) * 1.7 * y as f32 + 6.0 * c).sin()
        };
        (0..4).map(wave).sum::<f32>() / 2.0
    };
    (0..count * 3072).map(value).collect()
}

fn outputs(graph: &Graph, weights: &Weights, images: &[f32]) -> Vec<f32> {
    let plan = Arc::new(Plan::compile(graph, weights, &Default::default()).unwrap());
    let mut session = Session::new(&plan, images.len() / 3072).unwrap();
    session.run(images).unwrap().to_vec()
}

fn model(name: &str) -> ModelFile {
    let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
    let weights = Weights::init(&graph, 3).unwrap();
    ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) }
}

/// Patterns of all layers that are converted.
fn patterns(model: &ModelFile, options: &ConvertOptions) -> BTreeMap<String, HetPattern> {
    let (_, report) = convert(model, options).unwrap();
    let pattern = |name: &str, m, n| (name.to_owned(), options.pattern(name, m, n).unwrap());
    report.converted().map(|layer| pattern(&layer.name, layer.in_channels, layer.out_channels)).collect()
}

fn calibrated(model: &ModelFile, options: &ConvertOptions, how: &Options) -> BTreeMap<String, HetLayer> {
    let patterns = patterns(model, options);
    calibrate(&model.graph, &model.weights, &patterns, &images(48, 0), how, &mut |_, _| ()).unwrap()
}

/// Squared difference from the original network on images it was not calibrated on, as a share of the outputs' variance.
fn error(model: &ModelFile, converted: &ModelFile) -> f64 {
    let images = images(16, 1);
    let expected = outputs(&model.graph, &model.weights, &images);
    let found = outputs(&converted.graph, &converted.weights, &images);
    let squared = |x: f32| f64::from(x) * f64::from(x);
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let difference: f64 = expected.iter().zip(&found).map(|(a, b)| squared(a - b)).sum();
    difference / expected.iter().map(|&x| squared(x - mean)).sum::<f64>()
}

#[test]
fn calibration_beats_projection() {
    for name in ["small-cifar", "resnet20"] {
        let model = model(name);
        let options = ConvertOptions::new(4);
        let projected = error(&model, &convert(&model, &options).unwrap().0);
        let with = |how: &Options| {
            let init = Init::Layers(Arc::new(calibrated(&model, &options, how)));
            error(&model, &convert(&model, &ConvertOptions { init, ..options.clone() }).unwrap().0)
        };
        let fitted = with(&Options { assign: false, ..Options::default() });
        let assigned = with(&Options::default());
        println!("{name}: projected {projected:.4}, fitted {fitted:.4}, with classes assigned {assigned:.4}");
        assert!(fitted < 0.5 * projected && assigned < 0.5 * projected, "{name}");
    }
}

#[test]
fn what_hetconv_can_do_is_found() {
    // The convolution is a HetConv layer in disguise: the channels of its classes lie apart.
    let (m, n) = (12, 8);
    let hidden = HetPattern::assigned(vec![0, 1, 1, 0, 2, 3, 2, 2, 3, 0, 1, 3], vec![0, 0, 1, 1, 2, 2, 3, 3]).unwrap();
    let build = |kind: ConvKind| {
        let mut b = GraphBuilder::new("disguised");
        let x = b.input("input", [3, 32, 32]);
        let x = b.conv("stem", x, m, Conv2dGeometry::same(3, 2), ConvKind::Standard, false);
        let x = b.relu("relu", x);
        let x = b.conv("layer", x, n, Conv2dGeometry::same(3, 1), kind, true);
        let x = b.global_avg_pool("pool", x);
        let x = b.flatten("flatten", x);
        b.finish([x]).unwrap()
    };
    let (het, standard) = (build(ConvKind::Het(hidden.clone())), build(ConvKind::Standard));
    let mut weights = Weights::init(&het, 5).unwrap();
    let center = weights.remove("layer.center").unwrap().data;
    let ring = weights.remove("layer.ring").unwrap().data;
    let (slots, width) = (hidden.ring_slots(), hidden.max_spatial());
    let mut dense = vec![0.0; n * m * 9];
    for (f, c) in (0..n).flat_map(|f| (0..m).map(move |c| (f, c))) {
        for t in 0..9 {
            dense[(f * m + c) * 9 + t] = match t {
                4 => center[f * m + c],
                _ if hidden.is_spatial(f, c) => ring[(f * width + slots[c]) * 8 + t - usize::from(t > 4)],
                _ => 0.0,
            };
        }
    }
    weights.insert("layer.weight", hetconv_graph::WeightTensor { shape: vec![n, m, 3, 3], data: dense });
    let model = ModelFile { graph: standard, weights, classes: vec![], normalisation: Normalisation::identity(3) };
    let layers = calibrated(&model, &ConvertOptions::new(4), &Options::default());
    let found = &layers["layer"].pattern;
    for (f, c) in (0..n).flat_map(|f| (0..m).map(move |c| (f, c))) {
        assert_eq!(found.is_spatial(f, c), hidden.is_spatial(f, c), "filter {f}, channel {c}");
    }
    let options = ConvertOptions { init: Init::Layers(Arc::new(layers)), ..ConvertOptions::new(4) };
    assert!(error(&model, &convert(&model, &options).unwrap().0) < 1e-6);
}

#[test]
fn the_same_whatever_the_threads() {
    let model = model("small-cifar");
    let (options, how) = (ConvertOptions::new(2), Options::default());
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| calibrated(&model, &options, &how))
    };
    assert!(on(1) == on(3));
}

#[test]
fn what_cannot_be_calibrated_says_so() {
    let model = model("small-cifar");
    let pattern = |m, n| HetPattern::blocked(m, n, 2).unwrap();
    let images = images(2, 0);
    let attempt = |name: &str, pattern: HetPattern, images: &[f32]| {
        let patterns = BTreeMap::from([(name.to_owned(), pattern)]);
        calibrate(&model.graph, &model.weights, &patterns, images, &Options::default(), &mut |_, _| ()).unwrap_err()
    };
    assert!(
        matches!(attempt("nobody", pattern(2, 2), &images), CalibrateError::Layer { layer, .. } if layer == "nobody")
    );
    assert!(matches!(attempt("conv2", pattern(2, 2), &images), CalibrateError::Layer { .. }));
    let [m, n] = {
        let layer = model.weights.get("conv2.weight").unwrap();
        [layer.shape[1], layer.shape[0]]
    };
    assert!(matches!(attempt("conv2", pattern(m, n), &images[1..]), CalibrateError::Images { .. }));
    assert!(matches!(attempt("conv2", pattern(m, n), &[]), CalibrateError::Images { .. }));
    let mut broken = images.clone();
    broken[7] = f32::NAN;
    assert!(
        matches!(attempt("conv2", pattern(m, n), &broken), CalibrateError::NotFinite { layer } if layer == "conv2")
    );
}
