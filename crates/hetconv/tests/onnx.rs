//! ONNX files and conversion on the command line.

mod command;

use std::fs;
use std::path::Path;

use command::{failure, hetconv, json, json_and_messages, stderr};
use hetconv::core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv::graph::{Graph, GraphBuilder, ModelFile, Normalisation, Weights, zoo};
use hetconv::onnx::proto::{ModelProto, NodeProto, StringStringEntryProto};
use hetconv::onnx::{ExportOptions, export};
use prost::Message;

fn save(graph: Graph, path: &Path) -> ModelFile {
    let weights = Weights::init(&graph, 1).unwrap();
    let channels = graph.input_shape().unwrap()[0];
    let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(channels) };
    match path.extension().unwrap().to_str() {
        Some("onnx") => fs::write(path, export(&model, &ExportOptions::default()).unwrap().bytes).unwrap(),
        _ => model.save(path).unwrap(),
    }
    model
}

/// A folder with a small network as `net.safetensors` and `net.onnx`.
fn networks() -> tempfile::TempDir {
    let here = tempfile::tempdir().unwrap();
    let graph = zoo::build(&"small-cifar".parse().unwrap(), 10).unwrap();
    save(graph.clone(), &here.path().join("net.safetensors"));
    save(graph, &here.path().join("net.onnx"));
    here
}

fn write_npy(path: &Path, shape: &str, data: &[f32]) {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(std::iter::repeat_n(' ', 117 - header.len()));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

fn read_npy(path: &Path) -> Vec<f32> {
    fs::read(path).unwrap()[128..].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * i % 1009) as f32 / 504.0) - 1.0).collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-4 * largest), "{found:?} {expected:?}");
}

/// What a network makes of noise.
fn result(folder: &Path, file: &str) -> Vec<f32> {
    write_npy(&folder.join("x.npy"), "(2, 3, 32, 32)", &noise(2 * 3072));
    json(folder, &["run", file, "--input", "x.npy", "--output", "y.npy"]);
    read_npy(&folder.join("y.npy"))
}

#[test]
fn both_kinds_of_file_are_converted_alike() {
    let here = networks();
    let mut results = Vec::new();
    for kind in ["safetensors", "onnx"] {
        let (from, to) = (format!("net.{kind}"), format!("p4.{kind}"));
        let done = json(here.path(), &["convert", &from, "-p", "4", "-o", &to]);
        assert_eq!((&done["file"], &done["model"]), (&to.clone().into(), &from.into()));
        let layers = done["layers"].as_array().unwrap();
        let parts: Vec<Option<u64>> = layers.iter().map(|layer| layer["parts"].as_u64()).collect();
        assert_eq!(parts, [None, Some(4), Some(4), Some(4)], "{kind}");
        assert_eq!(layers[0]["kept"], "first");
        let [before, after] = ["before", "after"].map(|when| done[when]["macs"].as_u64().unwrap());
        let percent = done["macs_reduction_percent"].as_f64().unwrap();
        assert!((percent - 100.0 * (1.0 - after as f64 / before as f64)).abs() < 1e-9 && percent > 50.0);
        let [summary, expected] = [&to, "small-cifar_p4"].map(|model| json(here.path(), &["summary", model]));
        for key in ["macs", "stages", "macs_standard"] {
            assert_eq!(summary[key], expected[key], "{kind}: {key}");
        }
        results.push(result(here.path(), &to));
    }
    assert_close(&results[1], &results[0]);
    let table =
        String::from_utf8(hetconv(here.path(), &["convert", "net.onnx", "-p", "4", "--dry-run"]).stdout).unwrap();
    assert!(table.contains("3 of 4 convolutions") && table.contains("the first convolution"), "{table}");
}

#[test]
fn options_of_convert() {
    let here = networks();
    let convert = |more: &[&str]| {
        let done =
            json(here.path(), &[&["convert", "net.safetensors", "-p", "4", "-o", "new.safetensors"], more].concat());
        let parts = done["layers"].as_array().unwrap().iter().map(|layer| layer["parts"].as_u64().unwrap_or(0));
        parts.collect::<Vec<_>>()
    };
    assert_eq!(convert(&["--parts", "^conv[34]$=8", "--parts", "conv=2"]), [0, 2, 8, 8]);
    assert_eq!(convert(&["--exclude", "3$", "--arrangement", "shifted"]), [0, 4, 0, 4]);
    // A blocked P divides the three channels of an image.
    assert_eq!(convert(&["--keep-first=false", "--arrangement", "shifted"]), [3, 4, 4, 4]);
    assert_eq!(convert(&["--keep-first"]), [0, 4, 4, 4]);
    let replaced = ["convert", "net.safetensors", "-p", "4", "-o", "./net.safetensors"];
    assert!(failure(here.path(), 2, &replaced).contains("would be replaced"));
    let lost = ["convert", "net.safetensors", "-p", "4", "-o", "no/where/p4.safetensors", "--calibrate", "synthetic"];
    assert!(failure(here.path(), 2, &lost).contains("there is no folder no/where"));
    // However a layer was given its P: none of 3 divides 16 channels, and no layer has a thousand.
    for (more, layers) in [
        (&["--parts", "conv3=3"][..], "in 1 layers than was asked for, which does not divide"),
        (&["--parts", "conv3=1000", "--arrangement", "shifted"], "in 1 layers than was asked for, which is more"),
    ] {
        let output = hetconv(here.path(), &[&["convert", "net.safetensors", "-p", "2", "--dry-run"], more].concat());
        assert!(output.status.success() && stderr(&output).contains(layers), "{}", stderr(&output));
    }
    let misspelt = ["convert", "net.safetensors", "-p", "4", "--dry-run", "--exclude", "cnov", "--parts", "conv2=2"];
    let said = stderr(&hetconv(here.path(), &misspelt));
    assert!(said.contains("--exclude cnov matches no") && !said.contains("--parts"), "{said}");
    let bytes = |more: &[&str]| {
        convert(more);
        fs::read(here.path().join("new.safetensors")).unwrap()
    };
    let random = bytes(&["--init", "random", "--seed", "3"]);
    assert!(random == bytes(&["--init", "random", "--seed", "3"]) && random != bytes(&["--init", "random"]));
    fs::remove_file(here.path().join("new.safetensors")).unwrap();
    assert_eq!(convert(&["--dry-run"]), [0, 4, 4, 4]);
    assert!(!here.path().join("new.safetensors").exists());
}

#[test]
fn a_converted_file_says_how_its_images_are_normalised() {
    let here = networks();
    let folder = here.path();
    let numbers = ["--mean", "0.5,0.25,0", "--std", "1,2,0.5"];
    let silent = export(
        &ModelFile::load(&folder.join("net.safetensors")).unwrap(),
        &ExportOptions { states_normalisation: false, ..ExportOptions::default() },
    );
    fs::write(folder.join("silent.onnx"), silent.unwrap().bytes).unwrap();
    for (from, to) in [("silent.onnx", "a.onnx"), ("net.onnx", "b.onnx"), ("net.safetensors", "c.safetensors")] {
        json(folder, &[&["convert", from, "-p", "4", "-o", to][..], &numbers].concat());
        let (_, said) = json_and_messages(folder, &["eval", to, "--data", "synthetic"]);
        assert!(!said.contains("--mean"), "{said}");
        // Given again they change nothing.
        let eval = |more: &[&str]| json(folder, &[&["eval", to, "--data", "synthetic"][..], more].concat());
        assert_eq!(eval(&[])["loss"], eval(&numbers)["loss"], "{to}");
        assert_ne!(eval(&[])["loss"], eval(&["--mean", "0,0,0", "--std", "1,1,1"])["loss"], "{to}");
        for wrong in [["--mean", "0.5,0.5", "--std", "1,1"], ["--mean", "0,0,0", "--std", "1,0,1"]] {
            let error = failure(folder, 2, &[&["convert", from, "-p", "4", "-o", to][..], &wrong].concat());
            assert!(error.contains("each of"), "{error}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_not_passed_on() {
    let here = networks();
    let folder = here.path();
    for (tensor, value, said) in [("conv2.weight", f32::NAN, "NaN"), ("conv2.bn.running_var", -1.0, "has no root")] {
        let mut model = ModelFile::load(&folder.join("net.safetensors")).unwrap();
        model.weights.get_mut(tensor).unwrap().data[3] = value;
        model.save(&folder.join("wrong.safetensors")).unwrap();
        for args in [
            &["export", "wrong.safetensors", "-o", "wrong.onnx"][..],
            &["export", "wrong.safetensors", "--keep-batch-norm", "-o", "wrong.onnx"],
            &["convert", "wrong.safetensors", "-p", "4", "-o", "new.safetensors"],
            &["benchmark", "--model", "wrong.safetensors"],
        ] {
            let error = failure(folder, 1, args);
            assert!(error.contains("wrong.safetensors") && error.contains("conv2") && error.contains(said), "{error}");
        }
        assert!(!folder.join("wrong.onnx").exists() && !folder.join("new.safetensors").exists());
    }
    // No exporter of this project writes such a file: a number that stands out is made none.
    let mut model = ModelFile::load(&folder.join("net.safetensors")).unwrap();
    model.weights.get_mut("conv2.weight").unwrap().data[3] = 1234.5;
    model.save(&folder.join("marked.safetensors")).unwrap();
    json(folder, &["export", "marked.safetensors", "--keep-batch-norm", "-o", "marked.onnx"]);
    let mut bytes = std::fs::read(folder.join("marked.onnx")).unwrap();
    let at: Vec<usize> = (0..bytes.len() - 3).filter(|&at| bytes[at..at + 4] == 1234.5f32.to_le_bytes()).collect();
    let &[at] = &at[..] else { panic!("marked at {at:?}") };
    bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(folder.join("wrong.onnx"), bytes).unwrap();
    let error = failure(folder, 1, &["convert", "wrong.onnx", "-p", "4", "-o", "new.onnx"]);
    assert!(error.contains("wrong.onnx") && error.contains("tensor `conv2.weight` holds inf"), "{error}");
    assert!(!folder.join("new.onnx").exists());
}

#[test]
fn an_export_names_the_layers_that_are_not_cheaper_in_it() {
    let here = tempfile::tempdir().unwrap();
    // Nine classes of 1, 2, 3, … channels and a filter each.
    let mut b = GraphBuilder::new("net");
    let x = b.input("input", [45, 4, 4]);
    let channels = (0..9_u32).flat_map(|class| vec![class; class as usize + 1]).collect();
    let uneven = ConvKind::Het(HetPattern::assigned(channels, (0..9).collect()).unwrap());
    let x = b.conv("uneven", x, 9, Conv2dGeometry::same(3, 1), uneven, false);
    let even = ConvKind::Het(HetPattern::shifted(9, 9, 3).unwrap());
    let x = b.conv("even", x, 9, Conv2dGeometry::same(3, 1), even, false);
    save(b.finish([x]).unwrap(), &here.path().join("net.safetensors"));
    for style in ["standard", "dense", "function"] {
        let export = ["export", "net.safetensors", "--style", style, "-o", "net.onnx"];
        let (done, said) = json_and_messages(here.path(), &export);
        let named = if style == "dense" { vec![] } else { vec!["uneven"] };
        assert_eq!(done["dense_layers"], serde_json::json!(named), "{style}");
        assert_eq!(said.contains("`uneven`"), style != "dense", "{style}: {said}");
        assert!(!said.contains("`even`"), "{style}: {said}");
    }
}

/// Here an average pooling with dilation, which the usual operator set does not have.
#[test]
fn what_can_be_read_can_be_exported() {
    let here = tempfile::tempdir().unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../hetconv-onnx/tests/fixtures/pools.onnx");
    write_npy(&here.path().join("x.npy"), "(1, 2, 9, 8)", &noise(144));
    json(here.path(), &["export", file, "-o", "again.onnx"]);
    let results = [file, "again.onnx"].map(|file| {
        json(here.path(), &["run", file, "--input", "x.npy", "--output", "y.npy"]);
        read_npy(&here.path().join("y.npy"))
    });
    assert_close(&results[1], &results[0]);
}

#[test]
fn what_cannot_be_converted_says_why() {
    let here = networks();
    let convert = ["convert", "net.onnx", "-p", "4", "-o", "new.onnx"];
    for file in ["net.onnx", "net.safetensors"] {
        let to = file.replace("net", "new");
        let args = ["convert", file, "-p", "4", "-o", &to, "--exclude", "conv[23]", "--parts", "conv4=1"];
        let error = failure(here.path(), 1, &args);
        for reason in ["`conv1`: the first convolution", "`conv2`, `conv3`: excluded by name", "`conv4`: no P up to 1"]
        {
            assert!(error.contains(reason), "{error}");
        }
    }
    assert!(failure(here.path(), 2, &["convert", "net.onnx", "-p", "4"]).contains("--output"));
    for (from, to) in [("net.onnx", "new.safetensors"), ("net.safetensors", "new.onnx")] {
        assert!(failure(here.path(), 2, &["convert", from, "-p", "4", "-o", to]).contains("becomes a"));
    }
    assert!(failure(here.path(), 2, &["convert", "net.onnx", "-p", "0", "-o", "new.onnx"]).contains('0'));
    assert!(failure(here.path(), 2, &[&convert[..], &["--exclude", "("]].concat()).contains("regex"));
    assert!(failure(here.path(), 2, &[&convert[..], &["--parts", "conv"]].concat()).contains("REGEX=P"));
    let random = ["--calibrate", "synthetic", "--init", "random"];
    assert!(failure(here.path(), 2, &[&convert[..], &random].concat()).contains("--init project"));
    assert!(failure(here.path(), 1, &["convert", "no.onnx", "-p", "4", "-o", "new.onnx"]).contains("no.onnx"));
    fs::write(here.path().join("broken.onnx"), [8, 255, 255]).unwrap();
    assert!(failure(here.path(), 1, &["convert", "broken.onnx", "-p", "4", "-o", "new.onnx"]).contains("broken.onnx"));
    assert!(!here.path().join("new.onnx").exists());
}

#[test]
fn calibration_is_the_same_for_both_kinds_and_any_threads() {
    let here = networks();
    let mut results = Vec::new();
    for (kind, threads) in [("safetensors", "1"), ("safetensors", "2"), ("onnx", "2")] {
        let (from, to) = (format!("net.{kind}"), format!("{kind}{threads}.{kind}"));
        let args = ["convert", &from, "-p", "4", "-o", &to, "--calibrate", "synthetic", "--calibration-images", "40"];
        let done = json(here.path(), &[&args[..], &["--threads", threads]].concat());
        assert_eq!(done["calibration_images"], 40);
        results.push(result(here.path(), &to));
    }
    assert_eq!(results[0], results[1]);
    // The exported network has its batch-norms folded, so it is fitted to other numbers of the same meaning.
    let original = result(here.path(), "net.onnx");
    let distance = |found: &[f32]| found.iter().zip(&original).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    json(here.path(), &["convert", "net.onnx", "-p", "4", "-o", "projected.onnx"]);
    let projected = distance(&result(here.path(), "projected.onnx"));
    assert!(results.iter().all(|found| distance(found) < projected));
    let wrong =
        ["convert", "net.onnx", "-p", "4", "-o", "new.onnx", "--calibrate", "synthetic", "--mean", "0", "--std", "1"];
    assert!(failure(here.path(), 2, &wrong).contains("3 channels"));
}

/// A bias that a node of its own adds stays where it is.
#[test]
fn calibration_leaves_a_separate_bias_alone() {
    let here = networks();
    let path = here.path().join("net.onnx");
    let mut model = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let at = graph.node.iter().position(|node| node.name() == "conv3").unwrap();
    let conv = &mut graph.node[at];
    let (bias, output) = (conv.input.remove(2), conv.output[0].clone());
    conv.output[0] = "without".to_owned();
    let (input, op_type) = (vec!["without".to_owned(), bias.clone()], Some("Add".to_owned()));
    graph.node.insert(at + 1, NodeProto { input, output: vec![output], op_type, ..Default::default() });
    let bias = graph.initializer.iter_mut().find(|tensor| tensor.name() == bias).unwrap();
    bias.dims.extend([1, 1]);
    // One that is far from 0, so that twice is far from once.
    let data = bias
        .raw_data
        .as_ref()
        .unwrap()
        .as_chunks()
        .0
        .iter()
        .flat_map(|&bytes| (f32::from_le_bytes(bytes) + 1.0).to_le_bytes());
    bias.raw_data = Some(data.collect::<Vec<u8>>().into());
    fs::write(&path, model.encode_to_vec()).unwrap();
    let original = result(here.path(), "net.onnx");
    let distance = |more: &[&str]| {
        json(here.path(), &[&["convert", "net.onnx", "-p", "4", "-o", "p4.onnx"], more].concat());
        let found = result(here.path(), "p4.onnx");
        found.iter().zip(&original).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
    };
    let projected = distance(&[]);
    let fitted = distance(&["--calibrate", "synthetic", "--calibration-images", "64"]);
    assert!(fitted < projected, "{fitted} {projected}");
}

#[test]
fn external_data_is_found_from_another_folder() {
    let here = networks();
    let mut model = ModelProto::decode(&*fs::read(here.path().join("net.onnx")).unwrap()).unwrap();
    let mut data = Vec::new();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let raw = tensor.raw_data.take().unwrap();
        let entries = [
            ("location", "net.data".to_owned()),
            ("offset", data.len().to_string()),
            ("length", raw.len().to_string()),
        ];
        let entry =
            |(key, value): (&str, String)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        tensor.external_data = entries.map(entry).to_vec();
        tensor.data_location = Some(1);
        data.extend(raw);
    }
    fs::create_dir(here.path().join("from")).unwrap();
    fs::create_dir(here.path().join("to")).unwrap();
    fs::write(here.path().join("from/net.onnx"), model.encode_to_vec()).unwrap();
    fs::write(here.path().join("from/net.data"), data).unwrap();
    json(here.path(), &["convert", "net.onnx", "-p", "4", "-o", "p4.onnx"]);
    let expected = result(here.path(), "p4.onnx");
    for (to, needs) in [("from/p4.onnx", &["net.data"][..]), ("to/p4.onnx", &[])] {
        let done = json(here.path(), &["convert", "from/net.onnx", "-p", "4", "-o", to]);
        assert_eq!(done["needs"], serde_json::json!(needs));
        assert_eq!(result(here.path(), to), expected, "{to}");
    }
    // The one in the same folder still reads the data there; the other needs nothing.
    fs::remove_file(here.path().join("from/net.data")).unwrap();
    assert_eq!(result(here.path(), "to/p4.onnx"), expected);
    assert!(failure(here.path(), 1, &["summary", "from/p4.onnx"]).contains("net.data"));
    assert_eq!(fs::read_dir(here.path().join("to")).unwrap().count(), 1);
}

#[test]
fn run_takes_several_inputs_by_name() {
    let here = tempfile::tempdir().unwrap();
    let mut b = GraphBuilder::new("two");
    let left = b.input("left", [2, 3, 4]);
    let right = b.input("right", [2, 3, 4]);
    let sum = b.add("sum", &[left, right]);
    let both = b.concat("both", &[left, right]);
    save(b.finish([sum, both]).unwrap(), &here.path().join("two.onnx"));
    let [l, r] = [noise(24), noise(48)[24..].to_vec()];
    write_npy(&here.path().join("l.npy"), "(1, 2, 3, 4)", &l);
    write_npy(&here.path().join("r.npy"), "(1, 2, 3, 4)", &r);
    let run = |inputs: [&'static str; 2]| {
        vec!["run", "two.onnx", "--input", inputs[0], "--input", inputs[1], "--output", "s.npy", "--output", "b.npy"]
    };
    for inputs in [["left=l.npy", "right=r.npy"], ["right=r.npy", "left=l.npy"]] {
        let found = json(here.path(), &run(inputs));
        assert_eq!(found["outputs"][1]["shape"], serde_json::json!([1, 4, 3, 4]));
        assert_eq!(read_npy(&here.path().join("b.npy")), [&l[..], &r].concat());
        let sum: Vec<f32> = l.iter().zip(&r).map(|(l, r)| l + r).collect();
        assert_eq!(read_npy(&here.path().join("s.npy")), sum);
    }
    fs::remove_file(here.path().join("s.npy")).unwrap();
    // Names, numbers and shapes that are not the network's.
    for (inputs, said) in [
        (["l.npy", "r.npy"], "left, right"),
        (["left=l.npy", "left=r.npy"], "left=FILE"),
        (["left=l.npy", "middle=r.npy"], "right=FILE"),
    ] {
        let error = failure(here.path(), 2, &run(inputs));
        assert!(error.contains(said), "{error}");
    }
    let one = ["run", "two.onnx", "--input", "left=l.npy", "--output", "s.npy", "--output", "b.npy"];
    assert!(failure(here.path(), 2, &one).contains("left, right"));
    let one = ["run", "two.onnx", "--input", "left=l.npy", "--input", "right=r.npy", "--output", "s.npy"];
    assert!(failure(here.path(), 2, &one).contains("2 outputs"));
    for (shape, len) in [("(1, 2, 4, 3)", 24), ("(2, 2, 3, 4)", 48), ("(1, 24)", 24), ("(0, 2, 3, 4)", 0)] {
        write_npy(&here.path().join("wrong.npy"), shape, &noise(len));
        let error = failure(here.path(), 2, &run(["left=l.npy", "right=wrong.npy"]));
        assert!(error.contains("(images, 2, 3, 4)") && error.contains("wrong.npy"), "{shape}: {error}");
        assert!(error.contains("\"right\""), "{shape}: {error}");
    }
    // Nothing is written over what is read, or twice.
    for (output, said) in
        [("l.npy", "l.npy is read"), ("two.onnx", "two.onnx is read"), ("./b.npy", "b.npy is named twice")]
    {
        let outputs = ["--output", output, "--output", "b.npy"];
        let inputs = ["--input", "left=l.npy", "--input", "right=r.npy"];
        let error = failure(here.path(), 2, &[&["run", "two.onnx"], &inputs[..], &outputs].concat());
        assert!(error.contains(said), "{error}");
    }
    assert!(failure(here.path(), 2, &["export", "two.onnx", "-o", "two.onnx"]).contains("two.onnx is read"));
    assert_eq!(read_npy(&here.path().join("l.npy")), l);
    assert!(!here.path().join("s.npy").exists());
}

/// Where an ONNX file leaves height and width open, they are those of the array, or what is said.
#[test]
fn an_open_image_size_is_filled_in() {
    let here = tempfile::tempdir().unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../hetconv-onnx/tests/fixtures/open_size.onnx");
    for (shape, len) in [("(1, 4, 6, 5)", 120), ("(2, 4, 9, 9)", 648)] {
        write_npy(&here.path().join("x.npy"), shape, &noise(len));
        let found = json(here.path(), &["run", file, "--input", "x.npy", "--output", "y.npy"]);
        assert_eq!(found["outputs"][0]["shape"][1], 3);
    }
    let macs = |args: &[&str]| json(here.path(), args)["macs"].as_u64().unwrap();
    let of_size = 5 * 5 * 4 * 3 * 9;
    assert_eq!(macs(&["summary", file, "--input", "1,4,10,9"]), of_size);
    assert_eq!(macs(&["benchmark", "--model", file, "--image-size", "9", "--steps", "1"]), of_size);
    json(here.path(), &["export", file, "--image-size", "9", "-o", "nine.onnx"]);
    assert_eq!(macs(&["summary", "nine.onnx"]), of_size);
    for command in [&["summary"][..], &["benchmark", "--model"]] {
        let error = failure(here.path(), 1, &[command, &[file]].concat());
        assert!(error.contains("height and width are open"), "{error}");
    }
    // A file's paddings are for the size it states, where it states one; networks of ours go by their layers.
    let error = failure(here.path(), 2, &["benchmark", "--model", "nine.onnx", "--image-size", "10"]);
    assert!(error.contains("for images of 9×9"), "{error}");
    assert_eq!(macs(&["summary", "nine.onnx", "--input", "1,4,9,9"]), of_size);
    failure(here.path(), 2, &["summary", "nine.onnx", "--input", "1,4,10,9"]);
    json(here.path(), &["export", "small-cifar", "--image-size", "48", "-o", "larger.onnx"]);
    assert_eq!(json(here.path(), &["summary", "larger.onnx"])["input"], serde_json::json!([1, 3, 48, 48]));
    assert!(failure(here.path(), 2, &["export", "vgg16", "--image-size", "32", "-o", "no.onnx"]).contains("3×32×32"));
}

/// Whatever a file calls its network, it is compared with the zoo's only if it is the zoo's.
#[test]
fn a_borrowed_name_is_not_believed() {
    let here = tempfile::tempdir().unwrap();
    let mut graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
    graph.name = "resnet20_gwc4_pwc".to_owned();
    save(graph, &here.path().join("borrowed.safetensors"));
    let [borrowed, own] =
        ["borrowed.safetensors", "small-cifar_p4"].map(|model| json(here.path(), &["summary", model]));
    assert_eq!((&borrowed["macs"], &borrowed["macs_standard"]), (&own["macs"], &own["macs_standard"]));
    // The zoo's own is known even with its batch-norms folded.
    for name in ["resnet20_gwc4_pwc", "small-cifar_p4"] {
        json(here.path(), &["export", name, "-o", "own.onnx"]);
        let [file, zoo] = ["own.onnx", name].map(|model| json(here.path(), &["summary", model]));
        assert_eq!(file["macs_standard"], zoo["macs_standard"], "{name}");
    }
}

#[test]
fn nodes_that_cannot_be_run_are_named_and_converted_all_the_same() {
    let here = networks();
    let path = here.path().join("net.onnx");
    let mut model = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let relu = graph.node.iter_mut().find(|node| node.op_type() == "Relu").unwrap();
    (relu.op_type, relu.name) = (Some("Celu".to_owned()), Some("curious".to_owned()));
    fs::write(&path, model.encode_to_vec()).unwrap();
    write_npy(&here.path().join("x.npy"), "(1, 3, 32, 32)", &noise(3072));
    let error = failure(here.path(), 1, &["run", "net.onnx", "--input", "x.npy", "--output", "y.npy"]);
    // One a line.
    assert!(error.lines().any(|line| line.trim() == "Celu `curious`: is not supported"), "{error}");
    let done = json(here.path(), &["convert", "net.onnx", "-p", "4", "-o", "p4.onnx"]);
    assert_eq!(done["layers"][1]["parts"], 4);
    let calibrate = ["convert", "net.onnx", "-p", "4", "-o", "c.onnx", "--calibrate", "synthetic"];
    assert!(failure(here.path(), 1, &calibrate).contains("Celu `curious`"));
    assert!(!here.path().join("c.onnx").exists());
}
