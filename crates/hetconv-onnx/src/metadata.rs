//! What an ONNX file says about a model beyond its graph, in `metadata_props`.
//!
//! * `hetconv.layers`: JSON, the HetConv layers by name with their patterns as stored in the file.
//! * `hetconv.classes`: JSON, the class names.
//! * `hetconv.normalisation`: JSON, mean and standard deviation of every input channel.

use std::collections::BTreeMap;

use hetconv_core::HetPattern;
use hetconv_graph::ModelFile;

use crate::proto::StringStringEntryProto;

const LAYERS: &str = "hetconv.layers";
const CLASSES: &str = "hetconv.classes";
const NORMALISATION: &str = "hetconv.normalisation";

/// The entries for a model with these HetConv layers.
pub(crate) fn write(model: &ModelFile, layers: &BTreeMap<String, HetPattern>) -> Vec<StringStringEntryProto> {
    let entries = [
        (LAYERS, serde_json::to_string(layers)),
        (CLASSES, serde_json::to_string(&model.classes)),
        (NORMALISATION, serde_json::to_string(&model.normalisation)),
    ];
    let entry = |(key, value): (&str, serde_json::Result<String>)| {
        Some(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.ok()?) })
    };
    entries.into_iter().filter_map(entry).collect()
}
