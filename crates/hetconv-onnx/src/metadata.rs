//! What an ONNX file says about a model beyond its graph, in `metadata_props`.
//!
//! * `hetconv.layers`: JSON, the HetConv layers by name with their patterns as stored in the file.
//! * `hetconv.classes`: JSON, the class names.
//! * `hetconv.normalisation`: JSON, mean and standard deviation of every input channel.

use std::collections::BTreeMap;

use hetconv_core::HetPattern;
use hetconv_graph::{ModelFile, Normalisation, Shape};

use prost::Message;
use prost::bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::OnnxError;
use crate::export::SIZE_LIMIT;
use crate::proto::tensor_shape_proto::dimension::Value::DimValue;
use crate::proto::type_proto::Value::TensorType;
use crate::proto::{ModelProto, StringStringEntryProto};
use crate::wire::{self, fields};

const LAYERS: &str = "hetconv.layers";
const CLASSES: &str = "hetconv.classes";
const NORMALISATION: &str = "hetconv.normalisation";

/// The field number of a model's entries.
const MODEL_METADATA: u32 = 14;

/// The same ONNX file, saying that images are normalised like this before the network sees them. All else keeps its bytes.
///
/// # Errors
/// A file that is none, a mean or deviation that cannot be used, images of another number of channels, or a file that would be larger than an ONNX file can be.
///
/// ```
/// use hetconv_graph::{ModelFile, Normalisation, Weights, zoo};
/// let graph = zoo::build(&"small-cifar".parse()?, 10)?;
/// let weights = Weights::init(&graph, 1)?;
/// let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
/// let silent = hetconv_onnx::ExportOptions { states_normalisation: false, ..Default::default() };
/// let normalisation = Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] };
/// let bytes = hetconv_onnx::state_normalisation(&hetconv_onnx::export(&model, &silent)?.bytes, &normalisation)?;
/// let imported = hetconv_onnx::import(&bytes, None, &Default::default())?;
/// assert!(imported.states_normalisation && imported.model.normalisation == normalisation);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn state_normalisation(bytes: &[u8], normalisation: &Normalisation) -> Result<Vec<u8>, OnnxError> {
    let bytes = Bytes::copy_from_slice(bytes);
    check_channels(&ModelProto::decode(bytes.clone())?, normalisation)?;
    state(&bytes, NORMALISATION, serde_json::to_string(normalisation))
}

/// The same ONNX file, saying what its classes are called, in the order of its outputs. All else keeps its bytes. Whoever reads
/// the file checks that there are as many.
///
/// # Errors
/// A file that is none, or one that would be larger than an ONNX file can be.
///
/// ```
/// use hetconv_graph::{ModelFile, Normalisation, Weights, zoo};
/// let graph = zoo::build(&"small-cifar".parse()?, 2)?;
/// let weights = Weights::init(&graph, 1)?;
/// let model = ModelFile { graph, weights, classes: vec![], normalisation: Normalisation::identity(3) };
/// let bytes = hetconv_onnx::state_classes(&hetconv_onnx::export(&model, &Default::default())?.bytes, &["cat".into(), "dog".into()])?;
/// assert_eq!(hetconv_onnx::import(&bytes, None, &Default::default())?.model.classes, ["cat", "dog"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn state_classes(bytes: &[u8], classes: &[String]) -> Result<Vec<u8>, OnnxError> {
    let bytes = Bytes::copy_from_slice(bytes);
    ModelProto::decode(bytes.clone())?;
    state(&bytes, CLASSES, serde_json::to_string(classes))
}

/// A file with this entry instead of any earlier one.
fn state(bytes: &Bytes, key: &str, value: serde_json::Result<String>) -> Result<Vec<u8>, OnnxError> {
    let mut model = Vec::with_capacity(bytes.len());
    for field in fields(bytes)? {
        let is_earlier =
            field.tag == MODEL_METADATA && StringStringEntryProto::decode(field.payload()?.clone())?.key() == key;
        if !is_earlier {
            model.extend_from_slice(&field.bytes);
        }
    }
    if let Some(entry) = entry(key, value) {
        wire::put(MODEL_METADATA, &entry, &mut model);
    }
    match model.len() {
        bytes if bytes > SIZE_LIMIT => Err(OnnxError::TooLarge { bytes, limit: SIZE_LIMIT }),
        _ => Ok(model),
    }
}

/// Whether there is a number for each channel of the images, as far as the file says how many these have.
fn check_channels(model: &ModelProto, normalisation: &Normalisation) -> Result<(), OnnxError> {
    let graph = model.graph.as_ref().ok_or(OnnxError::NoGraph)?;
    if !normalisation.fits(normalisation.mean.len()) {
        let reason = "a finite mean and a positive deviation of each channel are needed".to_owned();
        return Err(OnnxError::Metadata { key: NORMALISATION, reason });
    }
    let is_given = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
    let Some(images) = graph.input.iter().find(|input| !is_given(input.name())) else { return Ok(()) };
    let Some(TensorType(tensor)) = images.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else { return Ok(()) };
    let channels = tensor.shape.as_ref().and_then(|shape| shape.dim.get(1)).and_then(|dim| dim.value.as_ref());
    match channels {
        Some(&DimValue(channels)) if !usize::try_from(channels).is_ok_and(|channels| normalisation.fits(channels)) => {
            let reason = format!("a mean and a positive deviation are needed for each of its {channels} channels");
            Err(OnnxError::Input { input: images.name().to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// An entry, if its value could be written.
fn entry(key: &str, value: serde_json::Result<String>) -> Option<StringStringEntryProto> {
    Some(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.ok()?) })
}

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
    entries.into_iter().filter_map(|(key, value)| entry(key, value)).collect()
}

/// What a file says about itself.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub layers: BTreeMap<String, HetPattern>,
    /// Empty if they are not stated.
    pub classes: Vec<String>,
    pub normalisation: Option<Normalisation>,
}

impl Metadata {
    /// The entries of a file.
    pub fn read(model: &ModelProto) -> Result<Self, OnnxError> {
        let entry = |key: &str| model.metadata_props.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
        Ok(Self {
            layers: entry(LAYERS).map(layers).unwrap_or_default(),
            classes: entry(CLASSES).map(|json| parsed(CLASSES, json)).transpose()?.unwrap_or_default(),
            normalisation: entry(NORMALISATION).map(|json| parsed(NORMALISATION, json)).transpose()?,
        })
    }

    /// Whether they are about a network of images of so many channels with such a result.
    pub fn check(&self, channels: usize, output: Shape) -> Result<(), OnnxError> {
        let names = self.classes.len();
        if let Shape::Features(outputs) = output
            && ![0, outputs].contains(&names)
        {
            return Err(fault(CLASSES, format!("{names} class names for {outputs} outputs")));
        }
        match &self.normalisation {
            Some(normalisation) if !normalisation.fits(channels) => Err(fault(
                NORMALISATION,
                format!("a mean and a positive deviation are needed for each of {channels} channels"),
            )),
            _ => Ok(()),
        }
    }
}

fn fault(key: &'static str, reason: String) -> OnnxError {
    OnnxError::Metadata { key, reason }
}

fn parsed<T: DeserializeOwned>(key: &'static str, json: &str) -> Result<T, OnnxError> {
    serde_json::from_str(json).map_err(|error| fault(key, error.to_string()))
}

/// The patterns of layers. The weights have to bear them out, so that what makes no sense is merely left out. They are
/// stored as two sizes and P but held as a class per channel and filter, so those that claim sizes out of all
/// proportion are left out as well.
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
