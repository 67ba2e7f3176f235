//! What an ONNX file says about a model beyond its graph, in `metadata_props`.
//!
//! * `hetconv.layers`: JSON, the HetConv layers by name with their patterns as stored in the file.
//! * `hetconv.classes`: JSON, the class names.
//! * `hetconv.normalisation`: JSON, mean and standard deviation of every input channel.

use std::collections::BTreeMap;

use hetconv_core::HetPattern;
use hetconv_graph::{ModelFile, Normalisation};

use crate::proto::{ModelProto, StringStringEntryProto};

const LAYERS: &str = "hetconv.layers";
const CLASSES: &str = "hetconv.classes";
const NORMALISATION: &str = "hetconv.normalisation";

/// The entries for a model with these HetConv layers, with its normalisation or without.
pub(crate) fn write(
    model: &ModelFile,
    layers: &BTreeMap<String, HetPattern>,
    states_normalisation: bool,
) -> Vec<StringStringEntryProto> {
    let mut entries = vec![(LAYERS, serde_json::to_string(layers)), (CLASSES, serde_json::to_string(&model.classes))];
    if states_normalisation {
        entries.push((NORMALISATION, serde_json::to_string(&model.normalisation)));
    }
    let entry = |(key, value): (&str, serde_json::Result<String>)| {
        Some(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.ok()?) })
    };
    entries.into_iter().filter_map(entry).collect()
}

/// What a file says about itself, as far as it can be read.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub layers: BTreeMap<String, HetPattern>,
    pub classes: Option<Vec<String>>,
    pub normalisation: Option<Normalisation>,
}

impl Metadata {
    /// The entries of a file; one that makes no sense counts as missing.
    pub fn read(model: &ModelProto) -> Self {
        let entry = |key: &str| model.metadata_props.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
        Self {
            layers: entry(LAYERS).map(layers).unwrap_or_default(),
            classes: entry(CLASSES).and_then(|json| serde_json::from_str(json).ok()),
            normalisation: entry(NORMALISATION).and_then(|json| serde_json::from_str(json).ok()),
        }
    }
}

/// The patterns of layers. They are stored as two sizes and P but held as a class per channel and filter, so those that
/// claim sizes out of all proportion are left out.
fn layers(json: &str) -> BTreeMap<String, HetPattern> {
    const MOST_CHANNELS: u64 = 1 << 20;
    let stated: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let mut claimed = 0_u64;
    let mut small = |pattern: &serde_json::Value| {
        let size = |key: &str| pattern.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        claimed = claimed.saturating_add(size("in_channels")).saturating_add(size("out_channels"));
        claimed <= MOST_CHANNELS
    };
    let plausible = stated.into_iter().filter(|(_, pattern)| small(pattern));
    plausible.filter_map(|(name, pattern)| Some((name, serde_json::from_value(pattern).ok()?))).collect()
}
