//! `config.toml`: everything that decides what a run computes.

use crate::digest::digest;
use crate::recipe::{Recipe, RecipeName};
use hetconv_graph::zoo::{self, Architecture};
use hetconv_graph::{Graph, ModelName, NameError, Normalisation, atomic_write, pruned_name};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where a run computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor, with this project's kernels.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU through Vulkan.
    Vulkan,
    /// An Apple GPU.
    Metal,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::Vulkan => "vulkan",
            Device::Metal => "metal",
        })
    }
}

/// A run's settings, all of them filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The network's name, such as `vgg16-cifar_p4`; any name if it is the one of a file.
    pub model: String,
    /// The data set, as [`crate::Dataset::open`] takes it.
    pub data: String,
    /// The recipe that the settings below complete.
    pub recipe: RecipeName,
    /// Number of epochs.
    pub epochs: u64,
    /// Images in a batch.
    pub batch_size: usize,
    /// The recipe's highest learning rate.
    pub lr: f64,
    /// Seed of weights, order and augmentation; at most 2⁶³ − 1, the largest integer of TOML.
    pub seed: u64,
    /// Batches whose gradients make one step.
    #[serde(default = "one")]
    pub accumulate: u64,
    /// Only so many training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// See image files as squares of so many pixels a side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Hold out so many percent of images without a test split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<u8>,
    /// Blank a random square of so many pixels a side in every training image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutout: Option<usize>,
    /// Judge and keep the exponential moving average of the weights, of which so much stays in every step
    /// ([`hetconv_burn::WeightAverage`]), instead of the last step's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Never mirror training images.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_flip: bool,
    /// Steps between checkpoints, besides those after every epoch and after ten minutes without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Where to compute.
    #[serde(default)]
    pub device: Device,
    /// The model file or ONNX file whose network and weights the run begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How images are normalised, if not as the file says that the run begins with. A table, like what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
    /// What the network was made from, if it is a pruned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PrunedFrom>,
}

/// What a pruned network was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedFrom {
    /// The model file of the whole network.
    pub file: String,
    /// The share of every layer's filters to remove.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The MACs for one image to come down to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macs: Option<u64>,
}

fn one() -> u64 {
    1
}

fn architecture(name: &ModelName) -> &'static Architecture {
    zoo::architecture(&name.architecture).expect("a name that was read is one of the zoo's")
}

/// Why a configuration could not be read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{} is malformed: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        fault: String,
    },
    /// A setting that no run can have.
    #[error("{setting} = {value}: {accepted}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
}

impl RunConfig {
    /// The recipe's own settings for a network and a data set; seed 0, on the processor.
    ///
    /// # Errors
    /// A name that means no network.
    ///
    /// # Examples
    /// ```
    /// use hetconv_train::{RecipeName, RunConfig};
    ///
    /// let config = RunConfig::new("resnet20_p4", "cifar10", RecipeName::OneCycle)?;
    /// assert_eq!((config.batch_size, config.lr), (128, 0.4));
    /// # Ok::<(), hetconv_graph::NameError>(())
    /// ```
    pub fn new(model: &str, data: &str, recipe: RecipeName) -> Result<Self, NameError> {
        let name: ModelName = model.parse()?;
        Ok(Self::with(model, data, recipe, &Recipe::named(recipe, architecture(&name))))
    }

    /// The same for a run that begins with the network of a file, whatever its name: a recipe's own settings are then
    /// those of [`Recipe::further`], and rates a 33rd of its where no batch-norm keeps a step from going too far.
    pub fn from_file(file: &str, graph: &Graph, data: &str, recipe: RecipeName) -> Self {
        let own = Self::with(&graph.name, data, recipe, &Recipe::further(recipe));
        Self { from: Some(file.to_owned()), ..own.at_rate_for(graph) }
    }

    /// The same for a run of a network that is pruned: a recipe's own settings are those of the network's name, or of
    /// [`Recipe::further`] if that means none of the zoo's; rates are as in [`RunConfig::from_file`].
    pub fn of_pruned(pruned: PrunedFrom, whole: &Graph, data: &str, recipe: RecipeName) -> Self {
        let name = pruned_name(&whole.name);
        let own = Self::with(&name, data, recipe, &Self::recipe_of_pruned(&name, recipe));
        Self { pruned: Some(pruned), ..own.at_rate_for(whole) }
    }

    fn at_rate_for(self, graph: &Graph) -> Self {
        let lr = if graph.has_batch_norm() { self.lr } else { self.lr * 0.03 };
        Self { lr, ..self }
    }

    fn recipe_of_pruned(model: &str, recipe: RecipeName) -> Recipe {
        match model.parse() {
            Ok(name) => Recipe::named(recipe, architecture(&name)),
            Err(_) => Recipe::further(recipe),
        }
    }

    fn with(model: &str, data: &str, recipe: RecipeName, own: &Recipe) -> Self {
        Self {
            model: model.to_owned(),
            data: data.to_owned(),
            recipe,
            epochs: own.epochs,
            batch_size: own.batch_size,
            lr: own.schedule.peak(),
            seed: 0,
            accumulate: 1,
            limit_train: None,
            image_size: None,
            hold_out: None,
            cutout: None,
            ema: None,
            no_flip: false,
            checkpoint_every: None,
            device: Device::Cpu,
            from: None,
            normalisation: None,
            pruned: None,
        }
    }

    /// The recipe with the settings of its own.
    ///
    /// # Errors
    /// A name that means no network, unless the network is a file's or was made from one.
    pub fn own_recipe(&self) -> Result<Recipe, NameError> {
        Ok(match (&self.from, &self.pruned) {
            (Some(_), _) => Recipe::further(self.recipe),
            (None, Some(_)) => Self::recipe_of_pruned(&self.model, self.recipe),
            (None, None) => Recipe::named(self.recipe, architecture(&self.model.parse()?)),
        })
    }

    /// The recipe with this run's epochs, batch size and learning rate.
    ///
    /// # Errors
    /// As of [`RunConfig::own_recipe`].
    pub fn complete_recipe(&self) -> Result<Recipe, NameError> {
        let own = self.own_recipe()?;
        let schedule = own.schedule.with_peak(self.lr);
        Ok(Recipe { epochs: self.epochs, batch_size: self.batch_size, schedule, ..own })
    }

    /// Checks that the settings are possible.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |possible: bool, setting, value: String, accepted| {
            if possible { Ok(()) } else { Err(ConfigError::Setting { setting, value, accepted }) }
        };
        // Steps are numbered in 64 bits.
        let epochs = (1..=u64::from(u32::MAX)).contains(&self.epochs);
        check(epochs, "epochs", self.epochs.to_string(), "at least 1 is needed, and at most 4294967295 are possible")?;
        check(self.batch_size >= 1, "batch_size", self.batch_size.to_string(), "at least 1 is needed")?;
        check(self.accumulate >= 1, "accumulate", self.accumulate.to_string(), "at least 1 is needed")?;
        let lr = self.lr.is_finite() && self.lr > 0.0;
        check(lr, "lr", self.lr.to_string(), "a positive number is needed")?;
        let ema = self.ema.is_none_or(|decay| decay > 0.0 && decay < 1.0);
        check(ema, "ema", format!("{:?}", self.ema.unwrap_or_default()), "a number between 0 and 1 is needed")?;
        let is_plain = !self.model.chars().any(char::is_control);
        check(is_plain, "model", format!("{:?}", self.model), "a name without control characters is needed")?;
        if let Some(normalisation) = &self.normalisation {
            let value = || format!("{:?} and {:?}", normalisation.mean, normalisation.std);
            check(self.from.is_some(), "normalisation", value(), "only a run that begins with a file has one")?;
            let fits = normalisation.fits(normalisation.mean.len());
            check(fits, "normalisation", value(), "a finite mean and a positive std of each channel are needed")?;
        }
        let is_one = self.from.is_none() || self.pruned.is_none();
        check(is_one, "from", format!("{:?}", self.from), "a pruned network's file is that of `pruned`")?;
        check(i64::try_from(self.seed).is_ok(), "seed", self.seed.to_string(), "at most 2^63 - 1 is possible")?;
        let counts = [
            ("checkpoint_every", self.checkpoint_every),
            ("limit_train", self.limit_train.map(|n| n as u64)),
            ("cutout", self.cutout.map(|n| n as u64)),
        ];
        for (setting, count) in counts {
            check(count != Some(0), setting, "0".into(), "at least 1 is needed")?;
        }
        Ok(())
    }

    /// SHA-256, in hexadecimal, of all settings that change what the run computes: two runs with the same digest, on the
    /// same data and begun with the same file, end with the same weights. How often checkpoints are made is left out.
    pub fn digest(&self) -> String {
        let relevant = Self { checkpoint_every: None, ..self.clone() };
        // The derived form of a struct of plain fields cannot fail to be JSON.
        digest(serde_json::to_string(&relevant).unwrap_or_default())
    }

    /// Reads and checks a `config.toml`.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown or missing setting, or one that is not possible.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        let malformed = |e: toml::de::Error| ConfigError::Malformed { path: path.to_owned(), fault: e.to_string() };
        let config: Self = toml::from_str(&text).map_err(malformed)?;
        config.validate()?;
        Ok(config)
    }

    /// Writes a `config.toml`, whole or not at all.
    ///
    /// # Errors
    /// Settings that are not possible, or a file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        self.validate()?;
        toml::to_string(self)
            .map_err(io::Error::other)
            .and_then(|text| atomic_write(path, |file| file.write_all(text.as_bytes())))
            .map_err(|source| ConfigError::Io { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use hetconv_graph::{Activation, Op};

    use super::*;

    fn config() -> RunConfig {
        RunConfig {
            seed: 12,
            limit_train: Some(1000),
            checkpoint_every: Some(50),
            lr: 0.123,
            ..RunConfig::new("resnet56_p4", "cifar10", RecipeName::Paper).unwrap()
        }
    }

    #[test]
    fn a_file_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        config().save(&path).unwrap();
        assert_eq!(RunConfig::load(&path).unwrap(), config());
        let recipe = RunConfig::load(&path).unwrap().complete_recipe().unwrap();
        assert_eq!((recipe.schedule.peak(), recipe.epochs, recipe.optimizer.weight_decay), (0.123, 164, 1e-4));

        let further = further();
        further.save(&path).unwrap();
        assert_eq!(RunConfig::load(&path).unwrap(), further);
        assert_eq!((further.own_recipe().unwrap(), further.batch_size), (Recipe::further(RecipeName::OneCycle), 64));
        let pruned = PrunedFrom { file: "whole.safetensors".into(), ratio: Some(0.5), macs: None };
        let pruned = RunConfig { pruned: Some(pruned), ..config() };
        pruned.save(&path).unwrap();
        assert_eq!(RunConfig::load(&path).unwrap(), pruned);
    }

    /// Of a run that begins with a file of somebody's.
    fn further() -> RunConfig {
        let normalisation = Normalisation { mean: vec![0.485, 0.456], std: vec![0.25, 1.0] };
        let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
        let config = RunConfig::from_file("cheaper.onnx", &graph, "photos.zip", RecipeName::OneCycle);
        RunConfig { normalisation: Some(normalisation), ..config }
    }

    #[test]
    fn without_batch_norms_steps_are_small() {
        let mut graph = zoo::build(&"small-cifar".parse().unwrap(), 10).unwrap();
        let of = |graph: &Graph| RunConfig::from_file("a.onnx", graph, "photos.zip", RecipeName::OneCycle);
        let with = of(&graph);
        for node in &mut graph.nodes {
            if let Op::BatchNorm { .. } = node.op {
                node.op = Op::Activation { function: Activation::Relu };
            }
        }
        assert!(with.lr == 0.1 && !graph.has_batch_norm());
        assert_eq!(of(&graph), RunConfig { lr: with.lr * 0.03, ..with });
    }

    #[test]
    fn a_pruned_network_may_have_any_name() {
        let from = || PrunedFrom { file: "cheaper.safetensors".into(), ratio: Some(0.5), macs: None };
        let mut graph = zoo::build(&"vgg16-cifar".parse().unwrap(), 10).unwrap();
        let of = |graph: &Graph| RunConfig::of_pruned(from(), graph, "photos.zip", RecipeName::OneCycle);
        let of_zoo = RunConfig::new("vgg16-cifar", "photos.zip", RecipeName::OneCycle).unwrap();
        assert_eq!(of(&graph).model, "vgg16-cifar_pruned");
        assert_eq!(of(&graph).own_recipe().unwrap(), of_zoo.own_recipe().unwrap());
        assert_eq!((of(&graph).batch_size, of(&graph).lr), (of_zoo.batch_size, of_zoo.lr));
        // Without batch-norms its rate is low, too.
        for node in &mut graph.nodes {
            if let Op::BatchNorm { .. } = node.op {
                node.op = Op::Activation { function: Activation::Relu };
            }
        }
        assert_eq!(of(&graph).lr, of_zoo.lr * 0.03);
        graph.name = "my-network".into();
        assert_eq!(of(&graph).own_recipe().unwrap(), Recipe::further(RecipeName::OneCycle));
    }

    #[test]
    fn what_a_run_begins_with_fits() {
        let fault = |config: RunConfig| config.validate().unwrap_err().to_string();
        assert_eq!(further().validate().map_err(|error| error.to_string()), Ok(()));
        assert!(fault(RunConfig { from: None, ..further() }).contains("begins with a file"));
        let infinite = Normalisation { mean: vec![0.0], std: vec![f32::NAN] };
        assert!(fault(RunConfig { normalisation: Some(infinite), ..further() }).contains("positive std"));
        let pruned = PrunedFrom { file: "whole.safetensors".into(), ratio: Some(0.5), macs: None };
        assert!(fault(RunConfig { pruned: Some(pruned), ..further() }).contains("pruned"));
        assert!(fault(RunConfig { model: "a\u{1b}[31m".into(), ..further() }).contains("control characters"));
    }

    #[test]
    fn unknown_and_impossible_settings_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        config().save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let fault = |text: &str| {
            std::fs::write(&path, text).unwrap();
            RunConfig::load(&path).unwrap_err().to_string()
        };
        assert!(fault(&format!("speed = 3\n{text}")).contains("speed"));
        assert!(fault(&text.replace("epochs = 164\n", "")).contains("epochs"));
        assert!(fault(&text.replace("epochs = 164", "epochs = 0")).contains("epochs = 0"));
        assert!(fault(&text.replace("lr = 0.123", "lr = -1.0")).contains("lr = -1"));
        assert!(fault(&text.replace("limit_train = 1000", "limit_train = 0")).contains("limit_train = 0"));
        for ema in [0.0, 1.0, f64::NAN] {
            let error = RunConfig { ema: Some(ema), ..config() }.validate().unwrap_err().to_string();
            assert!(error.contains("between 0 and 1"), "{error}");
        }
        assert!(RunConfig { seed: u64::MAX, ..config() }.save(&path).unwrap_err().to_string().contains("seed"));
    }

    #[test]
    fn the_digest_is_of_what_matters() {
        let digest = config().digest();
        assert_eq!(digest.len(), 64);
        assert_eq!(RunConfig { checkpoint_every: None, ..config() }.digest(), digest);
        assert_ne!(RunConfig { seed: 13, ..config() }.digest(), digest);
        assert_ne!(RunConfig { ema: Some(0.99), ..config() }.digest(), digest);
        assert_ne!(RunConfig { lr: 0.124, ..config() }.digest(), digest);
        let others = [
            RunConfig { from: Some("other.onnx".into()), ..further() },
            RunConfig { normalisation: None, ..further() },
            config(),
        ];
        assert!(others.iter().all(|other| other.digest() != further().digest()));
    }
}
