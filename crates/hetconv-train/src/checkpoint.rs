//! Checkpoints: everything a run needs to go on as if nothing had happened, in one file.
//!
//! `step-00000123.safetensors` holds the tensors `weights/NAME`, `velocity/NAME` and, if the run averages its weights,
//! `average/NAME`, and one metadata key, `hetconv-checkpoint`, with JSON: format version, the model's description as in a
//! model file, the position, the sums of the epoch so far and digests of the run's settings and images. A file is written beside
//! its place, synced and renamed, so that whatever happens the last good one stays; the newest two are kept.

use crate::digest::digest_parts;
use crate::loader::Position;
use hetconv_graph::{FileFault, ModelFile, WeightTensor, Weights, atomic_write};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The metadata key.
const KEY: &str = "hetconv-checkpoint";
/// The metadata key of a model file.
const MODEL_KEY: &str = "hetconv";
/// The version this code writes and reads.
const FORMAT: u64 = 1;
/// How many checkpoints are kept.
const KEPT: usize = 2;

/// A run at one moment, between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The network with its weights, classes and normalisation.
    pub model: ModelFile,
    /// The optimizer's velocity of each weight tensor, under the same names; one that is missing is zero.
    pub velocity: Weights,
    /// The moving average of the weights, if the run keeps one.
    pub average: Option<Weights>,
    /// How far the run has come.
    pub progress: Progress,
    /// [`crate::RunConfig::digest`] of the run's settings.
    pub config_digest: String,
    /// [`crate::Split::digest`] of the training and of the held-out images; older files have none.
    pub images: Option<[String; 2]>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The step to do next.
    pub position: Position,
    /// Steps done in all epochs.
    pub steps: u64,
    /// Sums over the batches of this epoch so far.
    pub sums: EpochSums,
    /// Seconds of training in the epochs before this one.
    pub seconds: f64,
}

/// What an epoch's line of metrics is made of, summed over its batches; kept in checkpoints bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochSums {
    /// Losses, summed over images.
    pub loss: f64,
    /// Images whose most probable class was the right one.
    pub correct: u64,
    /// Images seen.
    pub images: u64,
    /// Seconds of training.
    pub seconds: f64,
}

/// A checkpoint that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct CheckpointError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: CheckpointFault,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointFault {
    /// The file system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a safetensors file: truncated, or a header that lies.
    #[error("not a safetensors file: {0}")]
    Container(#[from] SafeTensorError),
    /// A safetensors file of something else.
    #[error("no `{KEY}` entry in the metadata: not a checkpoint")]
    NoMetadata,
    /// Metadata that is not what it should be.
    #[error("the `{KEY}` metadata is malformed: {0}")]
    Metadata(#[from] serde_json::Error),
    /// A file from another version.
    #[error("checkpoint format {found} is not supported; this version reads {FORMAT}")]
    Version {
        /// The version it states.
        found: String,
    },
    /// A model that does not fit together.
    #[error("its model: {0}")]
    Model(#[from] FileFault),
    /// Other tensors than those that were written.
    #[error("its tensors are not those that were written")]
    Damaged,
    /// A tensor that is no weight, velocity or average, or not of 32-bit floats.
    #[error("tensor `{name}` does not belong into a checkpoint")]
    Stray {
        /// The tensor.
        name: String,
    },
    /// A velocity without its weight, or of another shape.
    #[error("velocity `{name}` of shape {found:?} belongs to no weight of that shape")]
    Velocity {
        /// The weight's name.
        name: String,
        /// The velocity's shape.
        found: Vec<usize>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    format: u64,
    model: Value,
    progress: Progress,
    config_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<[String; 2]>,
    /// SHA-256 of all tensors; older files have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensors: Option<String>,
}

/// SHA-256, in hexadecimal, of tensors: their names in order, and their bytes.
fn digest<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let tensors: BTreeMap<&str, &[u8]> = tensors.collect();
    digest_parts(tensors.iter().flat_map(|(name, bytes)| [name.as_bytes(), *bytes]))
}

impl Checkpoint {
    /// Writes the checkpoint into a folder, which is made if need be, and removes all older ones but the newest.
    ///
    /// # Errors
    /// A model that does not fit together, or what the file system reports; older checkpoints are then all still there. One
    /// that cannot be removed is no error, but a warning.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let path = folder.join(format!("step-{:08}.safetensors", self.progress.steps));
        let write = || {
            fs::create_dir_all(folder)?;
            let bytes = self.to_bytes()?;
            atomic_write(&path, |file| file.write_all(&bytes))?;
            Ok(())
        };
        write().map_err(|fault| CheckpointError { path: path.clone(), fault })?;
        // Later ones than this can only be unreadable ones that were passed over; they are not in the way.
        let older = list(folder)?.into_iter().filter(|&(steps, _)| steps <= self.progress.steps);
        for (_, old) in older.skip(KEPT) {
            match fs::remove_file(&old) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!("{} cannot be removed: {error}", old.display());
                }
                _ => {}
            }
        }
        Ok(path)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// Whatever is wrong with the file, naming it.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let read = || Self::from_bytes(&fs::read(path)?);
        read().map_err(|fault| CheckpointError { path: path.to_owned(), fault })
    }

    /// The newest checkpoint of a folder that can be read; `None` if there is none or no folder. One that cannot be
    /// read is passed over with a warning that names it.
    ///
    /// # Errors
    /// A folder that cannot be read, or the fault of the newest checkpoint if none can be read.
    pub fn latest(folder: &Path) -> Result<Option<(PathBuf, Self)>, CheckpointError> {
        let mut newest_fault = None;
        for (_, path) in list(folder)? {
            match Self::load(&path) {
                Ok(checkpoint) => return Ok(Some((path, checkpoint))),
                Err(error) => {
                    tracing::warn!("passing over an unreadable checkpoint: {error}");
                    newest_fault.get_or_insert(error);
                }
            }
        }
        newest_fault.map_or(Ok(None), Err)
    }

    /// The network as it would be judged at that moment: with the average of its weights, if the run keeps one.
    pub fn judged(self) -> ModelFile {
        match self.average {
            Some(average) => ModelFile { weights: average, ..self.model },
            None => self.model,
        }
    }

    /// The bytes of the checkpoint's file; the same checkpoint always gives the same.
    ///
    /// # Errors
    /// A model or velocities that do not fit together.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointFault> {
        let model_bytes = self.model.to_bytes()?;
        self.check()?;
        let description = metadata(&model_bytes, MODEL_KEY)?;
        let model_tensors = SafeTensors::deserialize(&model_bytes)?;
        let mut views: Vec<(String, TensorView<'_>)> =
            model_tensors.iter().map(|(name, view)| (format!("weights/{name}"), view)).collect();
        let ModelFile { graph, classes, normalisation, .. } = &self.model;
        let average = self.average.as_ref().map(|weights| ModelFile {
            graph: graph.clone(),
            weights: weights.clone(),
            classes: classes.clone(),
            normalisation: normalisation.clone(),
        });
        let average_bytes = average.map(|average| average.to_bytes()).transpose()?;
        if let Some(bytes) = &average_bytes {
            let tensors = SafeTensors::deserialize(bytes)?;
            views.extend(tensors.iter().map(|(name, view)| (format!("average/{name}"), view)));
        }
        let bytes: Vec<(String, &[usize], Vec<u8>)> = self
            .velocity
            .iter()
            .map(|(name, tensor)| {
                let bytes = tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect();
                (format!("velocity/{name}"), tensor.shape.as_slice(), bytes)
            })
            .collect();
        for (name, shape, bytes) in &bytes {
            views.push((name.clone(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?));
        }
        let metadata = serde_json::to_string(&Metadata {
            format: FORMAT,
            model: serde_json::from_str(&description)?,
            progress: self.progress,
            config_digest: self.config_digest.clone(),
            images: self.images.clone(),
            tensors: Some(digest(views.iter().map(|(name, view)| (name.as_str(), view.data())))),
        })?;
        Ok(safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), metadata)])))?)
    }

    /// The checkpoint in the bytes of a file.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointFault> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let mut metadata: Value = serde_json::from_str(&metadata(bytes, KEY)?)?;
        match metadata.get("format") {
            Some(format) if format.as_u64() == Some(FORMAT) => {}
            found => return Err(CheckpointFault::Version { found: found.map_or("missing".into(), Value::to_string) }),
        }
        // What was written before the seed was left to the settings, whose digest has it.
        if let Some(progress) = metadata.get_mut("progress").and_then(Value::as_object_mut) {
            progress.remove("seed");
        }
        let Metadata { model, progress, config_digest, images, tensors: stated, .. } =
            serde_json::from_value(metadata)?;
        let all = tensors.iter();
        if stated.is_some_and(|stated| stated != digest(all.map(|(name, view)| (name, view.data())))) {
            return Err(CheckpointFault::Damaged);
        }

        let (mut weights, mut average, mut velocity) = (Vec::new(), Vec::new(), Vec::new());
        for (name, view) in tensors.iter() {
            if let Some(name) = name.strip_prefix("weights/") {
                weights.push((name, view));
            } else if let Some(name) = name.strip_prefix("average/") {
                average.push((name, view));
            } else if let Some(name) = name.strip_prefix("velocity/").filter(|_| view.dtype() == Dtype::F32) {
                let (values, _) = view.data().as_chunks();
                let data = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                velocity.push((name.to_owned(), WeightTensor { shape: view.shape().to_vec(), data }));
            } else {
                return Err(CheckpointFault::Stray { name: name.to_owned() });
            }
        }
        // Put together as model files, so that what makes a model believable is written down in one place.
        let description = HashMap::from([(MODEL_KEY.to_owned(), model.to_string())]);
        let model_of = |tensors: Vec<(&str, TensorView<'_>)>| -> Result<ModelFile, CheckpointFault> {
            Ok(ModelFile::from_bytes(&safetensors::serialize(tensors, Some(description.clone()))?)?)
        };
        let model = model_of(weights)?;
        let average = if average.is_empty() { None } else { Some(model_of(average)?.weights) };
        let checkpoint =
            Self { model, velocity: velocity.into_iter().collect(), average, progress, config_digest, images };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<(), CheckpointFault> {
        for (name, tensor) in self.velocity.iter() {
            if self.model.weights.get(name).is_none_or(|weight| weight.shape != tensor.shape) {
                let (name, found) = (name.to_owned(), tensor.shape.clone());
                return Err(CheckpointFault::Velocity { name, found });
            }
        }
        Ok(())
    }
}

/// The text under a metadata key.
fn metadata(bytes: &[u8], key: &str) -> Result<String, CheckpointFault> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    header.metadata().as_ref().and_then(|entries| entries.get(key)).cloned().ok_or(CheckpointFault::NoMetadata)
}

/// The checkpoints in a folder with their steps, newest first.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let fault = |e: io::Error| CheckpointError { path: folder.to_owned(), fault: e.into() };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fault)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(fault)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let steps = name.and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
        if let Some(steps) = steps {
            found.push((steps, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetconv_graph::{Normalisation, zoo};

    fn checkpoint(steps: u64) -> Checkpoint {
        let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 3).unwrap();
        let weights = Weights::init(&graph, steps).unwrap();
        // Any numbers that differ from the weights.
        let mut velocity = weights.clone();
        velocity.iter_mut().for_each(|(_, tensor)| tensor.data.iter_mut().for_each(|v| *v = *v / 3.0 + 0.01));
        let normalisation = Normalisation { mean: vec![0.1, 1.0 / 3.0, 0.7], std: vec![0.2, 0.25, 0.3] };
        Checkpoint {
            model: ModelFile { graph, weights, classes: vec!["a".into(), "b".into(), "c".into()], normalisation },
            velocity,
            average: None,
            progress: Progress {
                position: Position { epoch: 2, step: 17 },
                steps,
                sums: EpochSums { loss: 0.1 + 0.2, correct: 1234, images: 2176, seconds: 1.0 / 3.0 },
                seconds: 17.123_456_789_012_345,
            },
            config_digest: "abc".into(),
            images: Some(["def".into(), "ghi".into()]),
        }
    }

    /// The bytes of a safetensors file with these tensors of one float each and this metadata.
    fn file(tensors: &[&str], key: &str, json: &str) -> Vec<u8> {
        let views = tensors.iter().map(|name| (*name, TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
        safetensors::serialize(views, Some(HashMap::from([(key.to_owned(), json.to_owned())]))).unwrap()
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let saved = checkpoint(123);
        let path = saved.save(&folder.path().join("checkpoints")).unwrap();
        assert_eq!(path.file_name().unwrap(), "step-00000123.safetensors");
        let loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded, saved);
        assert_eq!(loaded.progress.sums.loss.to_bits(), saved.progress.sums.loss.to_bits());
        assert_eq!(loaded.to_bytes().unwrap(), saved.to_bytes().unwrap());
    }

    #[test]
    fn an_average_of_the_weights_comes_back() {
        let saved = Checkpoint { average: Some(checkpoint(124).model.weights), ..checkpoint(123) };
        let bytes = saved.to_bytes().unwrap();
        assert_eq!(Checkpoint::from_bytes(&bytes).unwrap(), saved);
        let mut broken = saved;
        broken.average.as_mut().unwrap().remove("conv1.weight").unwrap();
        assert!(matches!(broken.to_bytes(), Err(CheckpointFault::Model(_))));
    }

    #[test]
    fn the_newest_two_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::latest(&folder.path().join("none")).unwrap(), None);
        for steps in [1, 2, 10, 100] {
            checkpoint(steps).save(folder.path()).unwrap();
        }
        let steps: Vec<u64> = list(folder.path()).unwrap().into_iter().map(|(steps, _)| steps).collect();
        assert_eq!(steps, [100, 10]);
        assert_eq!(Checkpoint::latest(folder.path()).unwrap().unwrap().1, checkpoint(100));
    }

    #[test]
    fn an_unreadable_newest_one_is_passed_over_and_does_not_displace_good_ones() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(5).save(folder.path()).unwrap();
        fs::write(folder.path().join("step-00000009.safetensors"), b"torn").unwrap();
        fs::write(folder.path().join("step-00000008.safetensors"), b"torn").unwrap();
        assert_eq!(Checkpoint::latest(folder.path()).unwrap().unwrap().1.progress.steps, 5);
        checkpoint(6).save(folder.path()).unwrap();
        assert_eq!(Checkpoint::latest(folder.path()).unwrap().unwrap().1.progress.steps, 6);

        let only_bad = tempfile::tempdir().unwrap();
        fs::write(only_bad.path().join("step-00000009.safetensors"), b"torn").unwrap();
        let error = Checkpoint::latest(only_bad.path()).unwrap_err().to_string();
        assert!(error.contains("step-00000009.safetensors"), "{error}");
    }

    #[test]
    fn a_writer_that_fails_half_way_leaves_the_old_file_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = checkpoint(5).save(folder.path()).unwrap();
        let bytes = checkpoint(6).to_bytes().unwrap();
        let result = atomic_write(&path, |file| {
            file.write_all(&bytes[..bytes.len() / 2])?;
            Err(io::Error::other("disk full"))
        });
        assert!(result.is_err());
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(5));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written stays");
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_names_its_file_and_leaves_others() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(5).save(folder.path()).unwrap();
        let mut broken = checkpoint(6);
        broken.model.weights.remove("conv1.weight").unwrap();
        let error = broken.save(folder.path()).unwrap_err().to_string();
        assert!(error.contains("step-00000006") && error.contains("missing"), "{error}");
        assert_eq!(Checkpoint::latest(folder.path()).unwrap().unwrap().1, checkpoint(5));
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let bytes = checkpoint(1).to_bytes().unwrap();
        for length in [0, 4, 8, 100, 4000, bytes.len() / 2, bytes.len() - 1] {
            let fault = Checkpoint::from_bytes(&bytes[..length]).unwrap_err();
            assert!(matches!(fault, CheckpointFault::Container(_)), "{length}: {fault}");
        }
    }

    #[test]
    fn a_lying_header_length_is_an_error() {
        for length in [u64::MAX, 1 << 40, 1 << 20, 3] {
            let mut bytes = checkpoint(1).to_bytes().unwrap();
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(Checkpoint::from_bytes(&bytes), Err(CheckpointFault::Container(_))), "{length}");
        }
    }

    #[test]
    fn a_bit_that_changed_is_noticed() {
        let bytes = checkpoint(7).to_bytes().unwrap();
        let tensors = bytes.len() - 8 - u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        for behind in [1, tensors / 3, tensors / 2, tensors] {
            let mut bytes = bytes.clone();
            let at = bytes.len() - behind;
            bytes[at] ^= 1;
            assert!(matches!(Checkpoint::from_bytes(&bytes), Err(CheckpointFault::Damaged)), "{behind} from the end");
        }
    }

    #[test]
    fn a_model_file_is_no_checkpoint() {
        let bytes = checkpoint(1).model.to_bytes().unwrap();
        assert!(matches!(Checkpoint::from_bytes(&bytes), Err(CheckpointFault::NoMetadata)));
    }

    #[test]
    fn metadata_of_another_version_or_none_at_all() {
        let fault = |json| Checkpoint::from_bytes(&file(&[], KEY, json)).unwrap_err();
        assert!(matches!(fault("{\"format\": 2, \"novel\": 1}"), CheckpointFault::Version { found } if found == "2"));
        assert!(matches!(fault("{}"), CheckpointFault::Version { found } if found == "missing"));
        assert!(matches!(fault("{\"format\": 1}"), CheckpointFault::Metadata(_)));
        assert!(matches!(fault("not json"), CheckpointFault::Metadata(_)));
    }

    /// A checkpoint's bytes after its parts have been tampered with.
    fn tampered(change: impl FnOnce(&mut Vec<(String, TensorView<'_>)>, &mut Value)) -> CheckpointFault {
        let bytes = checkpoint(1).to_bytes().unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut views: Vec<_> = tensors.iter().map(|(name, view)| (name.to_owned(), view)).collect();
        let mut json: Value = serde_json::from_str(&metadata(&bytes, KEY).unwrap()).unwrap();
        change(&mut views, &mut json);
        json["tensors"] = digest(views.iter().map(|(name, view)| (name.as_str(), view.data()))).into();
        let description = HashMap::from([(KEY.to_owned(), json.to_string())]);
        Checkpoint::from_bytes(&safetensors::serialize(views, Some(description)).unwrap()).unwrap_err()
    }

    #[test]
    fn tensors_that_do_not_fit_the_graph() {
        let missing = tampered(|tensors, _| tensors.retain(|(name, _)| name != "weights/conv1.weight"));
        assert!(missing.to_string().contains("conv1.weight"), "{missing}");
        let renamed = tampered(|tensors, _| tensors[0].0 = "something".into());
        assert!(matches!(renamed, CheckpointFault::Stray { ref name } if name == "something"), "{renamed}");
        let orphan = tampered(|tensors, _| {
            tensors.push(("velocity/nobody".into(), TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
        });
        assert!(matches!(orphan, CheckpointFault::Velocity { ref name, .. } if name == "nobody"), "{orphan}");
        let partial = tampered(|tensors, _| {
            let (_, weight) = tensors.iter().find(|(name, _)| name == "weights/conv1.weight").unwrap().clone();
            tensors.push(("average/conv1.weight".into(), weight));
        });
        assert!(matches!(partial, CheckpointFault::Model(_)), "{partial}");
    }

    #[test]
    fn a_seed_of_earlier_days_is_passed_over() {
        let bytes = checkpoint(1).to_bytes().unwrap();
        let json = metadata(&bytes, KEY).unwrap().replace("\"progress\":{", "\"progress\":{\"seed\":7,");
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let old = safetensors::serialize(tensors.iter(), Some(HashMap::from([(KEY.to_owned(), json)]))).unwrap();
        assert!(old.len() > bytes.len());
        assert_eq!(Checkpoint::from_bytes(&old).unwrap(), checkpoint(1));
    }

    #[test]
    fn a_position_that_is_none() {
        let fault = tampered(|_, json| json["progress"]["position"]["epoch"] = Value::from(-1));
        assert!(matches!(fault, CheckpointFault::Metadata(_)), "{fault}");
    }
}
