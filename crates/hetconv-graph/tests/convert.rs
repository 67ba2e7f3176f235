//! HetConv in place of the convolutions of a network with weights.

mod common;

use std::sync::Arc;

use common::{distinct_weights, random_image, run};
use hetconv_core::Conv2dGeometry;
use hetconv_graph::{
    ArrangementKind, ConvKind, ConvertError, ConvertOptions, GraphBuilder, HetLayer, Init, KeptReason, ModelFile,
    Normalisation, Op, Selection, convert, zoo,
};

fn model(name: &str) -> ModelFile {
    let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
    let weights = distinct_weights(&graph, 1);
    ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) }
}

#[test]
fn a_converted_network_is_the_zoos() {
    for (name, parts) in [("small-cifar", 4), ("resnet20", 2), ("vgg16-cifar", 8)] {
        let options = ConvertOptions { arrangement: ArrangementKind::Shifted, ..ConvertOptions::new(parts) };
        let (converted, report) = convert(&model(name), &options).unwrap();
        let expected = zoo::build(&format!("{name}_p{parts}").parse().unwrap(), 10).unwrap();
        assert_eq!(converted.graph.nodes, expected.nodes, "{name}");
        assert_eq!(
            report.after.macs,
            expected
                .cost()
                .unwrap()
                .layers
                .iter()
                .filter(|layer| layer.op == "conv2d")
                .map(|layer| layer.macs)
                .sum::<u64>()
                .into()
        );
        assert_eq!(report.layers[0].kept, Some(KeptReason::First));
        converted.to_bytes().unwrap();
    }
}

#[test]
fn projection_drops_the_other_taps_only() {
    let original = model("small-cifar");
    let (converted, _) = convert(&original, &ConvertOptions::new(4)).unwrap();
    // The same network with those taps zero.
    let mut masked = original.clone();
    for node in &converted.graph.nodes {
        let Op::Conv2d { kind: ConvKind::Het(pattern), .. } = &node.op else { continue };
        let weight = masked.weights.get_mut(&format!("{}.weight", node.name)).unwrap();
        for (at, tap) in weight.data.iter_mut().enumerate() {
            let (pair, t) = (at / 9, at % 9);
            if t != 4 && !pattern.is_spatial(pair / pattern.in_channels(), pair % pattern.in_channels()) {
                *tap = 0.0;
            }
        }
    }
    let image = random_image(3 * 32 * 32, 1);
    let outputs = [&masked, &converted].map(|model| run(&model.graph, &model.weights, &image, None).remove(0));
    let largest = outputs[0].iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    assert!(outputs[0].iter().zip(&outputs[1]).all(|(a, b)| (a - b).abs() < 1e-9 * largest));
}

#[test]
fn what_stays_says_why() {
    let mut b = GraphBuilder::new("kinds");
    let x = b.input("input", [4, 9, 9]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let x = b.conv("point", x, 8, Conv2dGeometry::same(1, 1), ConvKind::Standard, false);
    let x = b.conv("grouped", x, 8, Conv2dGeometry::same(3, 1), ConvKind::Grouped(8), false);
    let x = b.conv("even", x, 8, Conv2dGeometry::square(2, 1, 1, 1), ConvKind::Standard, false);
    let x = b.conv("seven", x, 7, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
    let x = b.conv("other", x, 14, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
    let x = b.conv("excluded", x, 14, Conv2dGeometry::same(3, 1), ConvKind::Standard, true);
    let graph = b.finish([x]).unwrap();
    let weights = distinct_weights(&graph, 1);
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(4) };
    let selection = Selection::default().excluding(|name| name == "excluded").with_parts(|name| name == "other", 7);
    let options = ConvertOptions { selection, ..ConvertOptions::new(4) };
    let (converted, report) = convert(&model, &options).unwrap();
    let found: Vec<_> = report.layers.iter().map(|l| (l.name.as_str(), l.parts, l.kept.clone())).collect();
    let expected = [
        ("stem", None, Some(KeptReason::First)),
        ("point", None, Some(KeptReason::Pointwise)),
        ("grouped", None, Some(KeptReason::Grouped(8))),
        ("even", None, Some(KeptReason::Kernel)),
        ("seven", None, Some(KeptReason::Parts { asked: 4 })),
        ("other", Some(7), None),
        ("excluded", None, Some(KeptReason::Excluded)),
    ];
    assert_eq!(found, expected);
    // Once more: there is nothing left.
    let excluding = |selection: Selection| selection.excluding(|name| name == "excluded");
    let options = ConvertOptions { selection: excluding(Selection::default()), ..ConvertOptions::new(4) };
    let error = convert(&converted, &options).unwrap_err();
    assert!(error.to_string().contains("`other`: HetConv already"), "{error}");
    let first = ConvertOptions { selection: excluding(Selection::all()), ..options };
    assert_eq!(convert(&model, &first).unwrap().1.layers[0].parts, Some(4));
    assert_eq!(convert(&model, &ConvertOptions::new(0)).unwrap_err(), ConvertError::NoParts);
}

#[test]
fn given_and_fresh_weights() {
    let original = model("small-cifar");
    let fresh = |seed| convert(&original, &ConvertOptions { init: Init::Random { seed }, ..ConvertOptions::new(4) });
    let (one, again, two) = (fresh(1).unwrap().0, fresh(1).unwrap().0, fresh(2).unwrap().0);
    assert!(one == again && one.weights != two.weights);
    assert_eq!(one.weights.get("conv1.weight").unwrap(), original.weights.get("conv1.weight").unwrap());
    let weight = original.weights.get("conv2.weight").unwrap();
    let [n, m] = [weight.shape[0], weight.shape[1]];
    let selection = Selection::default().excluding(|name| name != "conv2");
    let options = ConvertOptions { selection, ..ConvertOptions::new(4) };
    let pattern = options.pattern("conv2", m, n).unwrap();
    let mut given = HetLayer::projected(pattern, &Conv2dGeometry::same(3, 1), &weight.data);
    given.bias = Some(vec![0.5; n]);
    let with = |layer: HetLayer| {
        let init = Init::Layers(Arc::new([("conv2".to_owned(), layer)].into()));
        convert(&original, &ConvertOptions { init, ..options.clone() })
    };
    let converted = with(given.clone()).unwrap().0;
    assert_eq!(converted.weights.get("conv2.bias").unwrap().data, vec![0.5; n]);
    assert_eq!(converted.weights.get("conv2.center").unwrap().data, given.center);
    given.replaces[0] += 1.0;
    assert_eq!(with(given).unwrap_err(), ConvertError::Layer("conv2".to_owned()));
}
