//! The model file: round trip, determinism, and every way its bytes can lie.

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{distinct_weights, random_graph};
use hetconv_graph::{Fault, FileFault, GraphError, ModelFile, Normalisation, WeightError, zoo};
use proptest::prelude::*;
use serde_json::{Value, json};

fn model() -> ModelFile {
    // P = 3 leaves spare ring slots, since it divides no layer's channels.
    let graph = zoo::build(&"small-cifar_p3".parse().unwrap(), 4).unwrap();
    let weights = distinct_weights(&graph, 5);
    let classes = ["ant", "bee", "cat", "dog"].map(str::to_owned).to_vec();
    let normalisation = Normalisation { mean: vec![0.49, 0.48, 0.45], std: vec![0.2, 0.21, 0.22] };
    ModelFile { graph, weights, classes, normalisation }
}

fn fault(bytes: &[u8]) -> FileFault {
    ModelFile::from_bytes(bytes).expect_err("the bytes were accepted")
}

/// The file's header as JSON, and its data.
fn take_apart(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn put_together(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// The file with its header changed.
fn with_header(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut header, data) = take_apart(&model().to_bytes().unwrap());
    change(&mut header);
    put_together(&header, &data)
}

/// The file with its description changed.
fn with_description(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    with_header(|header| {
        let entry = &mut header["__metadata__"]["hetconv"];
        let mut description: Value = serde_json::from_str(entry.as_str().unwrap()).unwrap();
        change(&mut description);
        *entry = Value::String(description.to_string());
    })
}

/// The node of this name in a description.
fn node<'a>(description: &'a mut Value, name: &str) -> &'a mut Value {
    let nodes = description["graph"]["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().find(|node| node["name"] == name).unwrap()
}

/// What the node of this name computes.
fn op<'a>(description: &'a mut Value, name: &str) -> &'a mut Value {
    let op = &mut node(description, name)["op"];
    assert!(op.is_object());
    op
}

#[test]
fn unchanged_parts_make_a_file_again() {
    // The helpers of this file do no harm: what the tests below reject is rejected for what they change.
    assert_eq!(ModelFile::from_bytes(&with_description(|_| ())).unwrap(), model());
}

#[test]
fn saved_and_loaded_it_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    model().save(&path).unwrap();
    assert_eq!(ModelFile::load(&path).unwrap(), model());
    assert_eq!(std::fs::read(&path).unwrap(), model().to_bytes().unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn there_is_one_metadata_key_and_any_reader_opens_it() {
    let bytes = model().to_bytes().unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let keys: Vec<&String> = header.metadata().as_ref().unwrap().keys().collect();
    assert_eq!(keys, ["hetconv"]);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("conv2.center").unwrap().shape(), [32, 16]);
    assert_eq!(tensors.len(), model().weights.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_graph_survives_the_file(seed: u64) {
        let graph = random_graph(seed);
        let weights = distinct_weights(&graph, seed);
        let channels = graph.input_shape().unwrap()[0];
        let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(channels) };
        let bytes = model.to_bytes().unwrap();
        prop_assert_eq!(&ModelFile::from_bytes(&bytes).unwrap(), &model);
        prop_assert_eq!(model.to_bytes().unwrap(), bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(at in 0usize..20_000, byte: u8) {
        let mut bytes = model().to_bytes().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = ModelFile::from_bytes(&bytes);
    }
}

#[test]
fn truncated_anywhere() {
    let bytes = model().to_bytes().unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1, bytes.len() - 1] {
        assert!(matches!(fault(&bytes[..length]), FileFault::Container(_)), "{length}");
    }
}

#[test]
fn a_header_length_that_lies() {
    let bytes = model().to_bytes().unwrap();
    for length in [0, 1, bytes.len() as u64, 1 << 40, u64::MAX] {
        let mut bytes = bytes.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(fault(&bytes), FileFault::Container(_)), "{length}");
    }
}

#[test]
fn header_json_that_does_not_parse() {
    let mut bytes = model().to_bytes().unwrap();
    bytes[8] = b'[';
    assert!(matches!(fault(&bytes), FileFault::Container(_)));
}

#[test]
fn bytes_after_the_tensors() {
    let mut bytes = model().to_bytes().unwrap();
    bytes.extend([0; 4]);
    assert!(matches!(fault(&bytes), FileFault::Container(_)));
}

#[test]
fn offsets_that_lie() {
    for offsets in [json!([0, u64::MAX]), json!([4, 0]), json!([1u64 << 40, 1u64 << 41]), json!([-4, 0]), json!([0, 4])]
    {
        let bytes = with_header(|header| header["conv2.center"]["data_offsets"] = offsets.clone());
        assert!(matches!(fault(&bytes), FileFault::Container(_)), "{offsets}");
    }
}

#[test]
fn a_shape_that_lies() {
    for shape in [json!([32, 17]), json!([u64::MAX, u64::MAX]), json!([])] {
        let bytes = with_header(|header| header["conv2.center"]["shape"] = shape.clone());
        assert!(matches!(fault(&bytes), FileFault::Container(_)), "{shape}");
    }
}

#[test]
fn another_element_type() {
    let bytes = with_header(|header| header["conv2.center"]["dtype"] = json!("I32"));
    let fault = fault(&bytes);
    assert!(matches!(&fault, FileFault::Dtype { name, .. } if name == "conv2.center"));
    assert_eq!(fault.to_string(), "tensor `conv2.center` holds I32, but only F32 is supported");
}

#[test]
fn a_safetensors_file_of_something_else() {
    let bytes = with_header(|header| {
        header.as_object_mut().unwrap().remove("__metadata__");
    });
    assert!(matches!(fault(&bytes), FileFault::NoMetadata));
    let bytes = with_header(|header| header["__metadata__"] = json!({"format": "pt"}));
    assert!(matches!(fault(&bytes), FileFault::NoMetadata));
}

#[test]
fn a_description_that_does_not_parse() {
    for text in ["", "{", "[1, 2", "{\"format\": 1}", "null extra"] {
        let bytes = with_header(|header| header["__metadata__"]["hetconv"] = json!(text));
        assert!(matches!(fault(&bytes), FileFault::Metadata(_)), "{text}");
    }
    let bytes = with_description(|description| description["surprise"] = json!(1));
    assert!(matches!(fault(&bytes), FileFault::Metadata(_)));
}

#[test]
fn an_unknown_format_version() {
    for version in [json!(0), json!(2), json!("1"), json!(1.5), Value::Null] {
        let bytes = with_description(|description| description["format"] = version.clone());
        assert!(matches!(fault(&bytes), FileFault::Version { .. }), "{version}");
    }
    let bytes = with_description(|description| {
        // What a later version might look like.
        *description = json!({"format": 2, "networks": []});
    });
    assert_eq!(fault(&bytes).to_string(), "format version 2 is not supported; this version reads 1");
}

#[test]
fn an_unknown_operator() {
    let bytes = with_description(|description| op(description, "conv1.relu")["op"] = json!("attention"));
    assert!(matches!(fault(&bytes), FileFault::Metadata(_)));
}

#[test]
fn a_graph_that_is_none() {
    let bytes = with_description(|description| node(description, "conv2")["inputs"] = json!([99]));
    assert!(matches!(fault(&bytes), FileFault::Graph(GraphError::Node { .. })));
    let bytes = with_description(|description| description["graph"]["outputs"] = json!([1000]));
    assert!(matches!(fault(&bytes), FileFault::Graph(GraphError::Output { output: 1000, .. })));
}

#[test]
fn a_graph_that_does_not_fit_its_tensors() {
    let bytes = with_description(|description| op(description, "conv2")["bias"] = json!(true));
    assert!(matches!(fault(&bytes), FileFault::Weights(WeightError::Missing { name }) if name == "conv2.bias"));
    let bytes = with_description(|description| op(description, "classifier")["bias"] = json!(false));
    assert!(matches!(fault(&bytes), FileFault::Weights(WeightError::Unexpected { name }) if name == "classifier.bias"));
    let bytes = with_description(|description| {
        op(description, "conv1")["geometry"]["kernel"] = json!([5, 5]);
        op(description, "conv1")["geometry"]["padding"] = json!([2, 2, 2, 2]);
    });
    assert!(matches!(fault(&bytes), FileFault::Weights(WeightError::Shape { name, .. }) if name == "conv1.weight"));
}

#[test]
fn spare_slots_that_are_not_zero() {
    // Channels 16, P = 3: class 1 has 5 channels, so slot 5 of filter 1 is spare.
    for value in [1.0, -0.0, f32::NAN] {
        let mut model = model();
        model.weights.get_mut("conv2.ring").unwrap().data[(6 + 5) * 8 + 3] = value;
        let unchecked = unchecked_bytes(&model);
        let fault = fault(&unchecked);
        let FileFault::Weights(WeightError::SpareSlot { name, filter, slot, .. }) = &fault else {
            panic!("{fault}");
        };
        assert_eq!((name.as_str(), *filter, *slot), ("conv2.ring", 1, 5));
        assert!(model.to_bytes().is_err());
    }
}

/// The bytes of a model that `to_bytes` would refuse.
fn unchecked_bytes(model: &ModelFile) -> Vec<u8> {
    let description = json!({
        "format": 1, "graph": model.graph, "classes": model.classes, "normalisation": model.normalisation,
    });
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = model
        .weights
        .iter()
        .map(|(name, t)| (name, t.shape.clone(), t.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let metadata = HashMap::from([("hetconv".to_owned(), description.to_string())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn more_parts_than_channels() {
    let bytes = with_description(|description| {
        op(description, "conv2")["kind"]["het"]["arrangement"] = json!({"shifted": {"parts": 17}});
    });
    let fault = fault(&bytes);
    assert!(matches!(fault, FileFault::Metadata(_)));
    assert!(fault.to_string().contains("P = 17 is more than the layer's 16 input channels"), "{fault}");
}

#[test]
fn a_pattern_larger_than_the_file() {
    for (channels, filters) in [(1 << 24, 1 << 24), (u64::MAX, 2), (1 << 24, 1)] {
        let bytes = with_description(|description| {
            let pattern = &mut op(description, "conv2")["kind"]["het"];
            pattern["in_channels"] = json!(channels);
            pattern["out_channels"] = json!(filters);
        });
        assert!(matches!(fault(&bytes), FileFault::Claims { .. }), "{channels} {filters}");
    }
}

#[test]
fn a_pattern_that_is_written_as_a_list() {
    // The same numbers without their names, which a reader by position would take.
    let size = 1 << 24;
    let pattern = json!([size, size, {"shifted": {"parts": 1}}]);
    let claims: [fn(&mut Value, Value); 3] = [
        |description, pattern| op(description, "conv2")["kind"]["het"] = pattern,
        |description, pattern| {
            op(description, "conv2")["kind"]["het"] = pattern;
            let node = description["graph"]["nodes"][1].take();
            description["graph"]["nodes"][1] = json!([node["name"], node["op"], node["inputs"]]);
        },
        |description, pattern| {
            op(description, "conv2")["kind"]["het"] = pattern;
            let graph = description["graph"].take();
            description["graph"] = json!([graph["name"], graph["nodes"], graph["outputs"]]);
        },
    ];
    for claim in claims {
        let bytes = with_description(|description| claim(description, pattern.clone()));
        let fault = fault(&bytes);
        assert!(matches!(fault, FileFault::Metadata(_)), "{fault}");
    }
}

#[test]
fn images_larger_than_the_memory() {
    for shape in [[3, 1 << 20, 1 << 20], [3, 1 << 14, 1 << 14], [1 << 40, 1, 1], [usize::MAX, usize::MAX, usize::MAX]] {
        let bytes = with_description(|description| op(description, "input")["shape"] = json!(shape));
        let fault = fault(&bytes);
        let FileFault::Graph(GraphError::Node { node, fault: Fault::Size(_) }) = &fault else {
            panic!("{shape:?}: {fault}");
        };
        assert_eq!(node, "input");
    }
}

#[test]
fn taps_that_take_no_bytes_in_the_file() {
    // No channel has a filter's class, so that the ring is empty whatever the window.
    let bytes = with_description(|description| {
        let conv = op(description, "conv2");
        let classes = json!({"channels": vec![0; 16], "filters": vec![1; 32]});
        conv["kind"]["het"]["arrangement"] = json!({ "assigned": classes });
        conv["geometry"]["kernel"] = json!([65_535, 65_535]);
        conv["geometry"]["padding"] = json!([32_767, 32_767, 32_767, 32_767]);
    });
    let fault = fault(&bytes);
    let FileFault::Graph(GraphError::Node { node, fault: Fault::Taps { .. } }) = &fault else { panic!("{fault}") };
    assert_eq!(node, "conv2");
}

#[test]
fn class_names_that_do_not_match() {
    let bytes = with_description(|description| description["classes"] = json!(["ant"]));
    assert!(matches!(fault(&bytes), FileFault::Classes { found: 1, outputs: 4 }));
}

#[test]
fn a_normalisation_that_cannot_be_applied() {
    for (key, value) in [("mean", json!([0.5])), ("std", json!([0.2, 0.0, 0.2])), ("std", json!([0.2, -1.0, 0.2]))] {
        let bytes = with_description(|description| description["normalisation"][key] = value.clone());
        assert!(matches!(fault(&bytes), FileFault::Normalisation { channels: 3 }), "{key} {value}");
    }
    let mut model = model();
    model.normalisation.mean[0] = f32::NAN;
    assert!(matches!(model.to_bytes(), Err(FileFault::Normalisation { channels: 3 })));
}

#[test]
fn errors_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.safetensors");
    std::fs::write(&path, b"not a model").unwrap();
    let error = ModelFile::load(&path).unwrap_err();
    assert_eq!(error.path, path);
    assert!(error.to_string().contains("broken.safetensors: not a safetensors file"), "{error}");
    let error = ModelFile::load(Path::new("/no/such/file")).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/file: "), "{error}");
}

#[test]
fn a_model_that_does_not_fit_together_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    model().save(&path).unwrap();
    let mut broken = model();
    broken.weights.remove("conv1.weight");
    assert!(broken.save(&path).is_err());
    assert_eq!(ModelFile::load(&path).unwrap(), model());
}
