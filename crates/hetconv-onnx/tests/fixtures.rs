//! The files of `fixtures`: what ONNX Runtime computed from them, the graph they are read as computes, too.

#[path = "../../hetconv-graph/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::run;
use hetconv_graph::{ConvKind, Op};
use hetconv_onnx::proto::ModelProto;
use hetconv_onnx::{ExportOptions, ImportOptions, Imported, export, import, import_file};
use prost::Message;
use serde_json::Value;

fn files() -> BTreeMap<String, PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let onnx = paths.filter(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    onnx.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect()
}

/// What a fixture says about itself.
fn expected(path: &Path) -> Value {
    let model = ModelProto::decode(std::fs::read(path).unwrap().as_slice()).unwrap();
    let entry = model.metadata_props.iter().find(|entry| entry.key() == "expected").unwrap();
    serde_json::from_str(entry.value()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn read(path: &Path) -> Imported {
    let open_size =
        expected(path)["size"].as_array().map(|size| [0, 1].map(|axis| size[axis].as_u64().unwrap() as usize));
    import_file(path, &ImportOptions { image_size: open_size, ..ImportOptions::default() })
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn results_are_those_of_onnx_runtime() {
    let files = files();
    assert!(files.len() >= 43);
    for (name, path) in files {
        let (model, expected) = (read(&path).model, expected(&path));
        let results = run(&model.graph, &model.weights, &numbers(&expected["input"]), None);
        let output = numbers(&expected["output"]);
        let largest = output.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        assert_eq!(results[0].len(), output.len(), "{name}");
        for (index, (a, b)) in results[0].iter().zip(&output).enumerate() {
            assert!((a - b).abs() <= 3e-6 * largest, "{name}: output {index} is {a}, not {b}");
        }
    }
}

#[test]
fn what_is_written_of_them_computes_the_same() {
    for (name, path) in files() {
        let (model, expected) = (read(&path).model, expected(&path));
        let written = export(&model, &ExportOptions::default()).unwrap().bytes;
        for node in &ModelProto::decode(written.as_slice()).unwrap().graph.unwrap().node {
            let of = |name: &str| node.attribute.iter().find(|attribute| attribute.name() == name);
            let (Some(pads), Some(kernel)) = (of("pads"), of("kernel_shape")) else { continue };
            // Engines refuse poolings with more.
            let fits = pads.ints.iter().zip(kernel.ints.iter().cycle()).all(|(pads, kernel)| pads < kernel);
            assert!(fits || node.op_type() == "Conv", "{name}: {node:?}");
        }
        let again = import(&written, None, &ImportOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let image = numbers(&expected["input"]);
        let [before, after] = [&model, &again.model].map(|model| run(&model.graph, &model.weights, &image, None));
        let largest = before[0].iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        assert_eq!(before[0].len(), after[0].len(), "{name}");
        for (index, (a, b)) in before[0].iter().zip(&after[0]).enumerate() {
            assert!((a - b).abs() <= 3e-6 * largest, "{name}: output {index} became {b} from {a}");
        }
    }
}

/// Whatever is cut off or added before a convolution, it costs what it cost in the file.
#[test]
fn convolutions_keep_their_kernels() {
    let mut kept = 0;
    for (name, path) in files() {
        let file = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap().graph.unwrap();
        let graph = read(&path).model.graph;
        for node in file.node.iter().filter(|node| node.op_type() == "Conv") {
            let weight = file.initializer.iter().find(|tensor| tensor.name() == node.input[1]);
            // Some have weights that other nodes make, or are part of a HetConv layer.
            let (Some(weight), Some(id)) = (weight, graph.find(node.name())) else { continue };
            let Op::Conv2d { geometry, kind: ConvKind::Standard | ConvKind::Grouped(_), .. } = &graph.nodes[id].op
            else {
                continue;
            };
            assert_eq!(weight.dims[2..], geometry.kernel.map(|side| side as i64), "{name}: {}", node.name());
            kept += 1;
        }
    }
    assert!(kept >= 28, "{kept}");
}

#[test]
fn hetconv_is_recognised_whoever_wrote_it() {
    let mut layers = 0;
    for (name, path) in files() {
        let (imported, expected) = (read(&path), expected(&path));
        let graph = &imported.model.graph;
        let classes = |node: &hetconv_graph::Node| match &node.op {
            Op::Conv2d { kind: ConvKind::Het(pattern), .. } => Some(serde_json::json!([node.name, pattern.classes()])),
            _ => None,
        };
        let found: Vec<Value> = graph.nodes.iter().filter_map(classes).collect();
        assert_eq!(Value::Array(found), expected["het"], "{name}");
        assert_eq!(imported.het_layers.len(), expected["het"].as_array().unwrap().len());
        layers += imported.het_layers.len();
        if let Some(macs) = expected["macs"].as_u64() {
            assert_eq!(graph.cost().unwrap().macs, macs, "{name}");
            // Nothing is left of the gathers, sums and other convolutions.
            assert_eq!(graph.nodes.len(), 2, "{name}: {graph:?}");
        }
    }
    assert_eq!(layers, 15);
}
