//! Recipes: optimizer, batch size, label smoothing and learning-rate schedule.
//!
//! Three are built in for every architecture. `paper` is the paper's for VGG-16 and MobileNet and He et al.'s for ResNets;
//! `onecycle` is a short one: the rate rises linearly to its peak over the first quarter of all steps and then falls as
//! a cosine; `finetune` is Li et al.'s for a network that has been pruned: the paper's at a small constant rate. Weight
//! decay pulls on the kernels of convolutions and linear layers only; published runs that also decay biases and
//! batch-norm differ from this by little.
//!
//! The network of a file, which has learned already and may be any, learns as ResNets on ImageNet do, in batches of 64 and
//! at a quarter of their rates.

use hetconv_burn::{DecayScope, SgdConfig};
use hetconv_graph::zoo::{Architecture, Family, Images};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// How a network is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The number of epochs if nobody says otherwise.
    pub epochs: u64,
    /// Images in a batch.
    pub batch_size: usize,
    /// How much of each target's probability is spread evenly over all classes, from 0 to 1.
    pub label_smoothing: f64,
    /// How gradients change weights.
    pub optimizer: SgdConfig,
    /// The learning rate over time.
    pub schedule: Schedule,
}

/// The learning rate as a function of the step.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// A constant rate that is multiplied by a factor at every milestone.
    Steps {
        /// The first rate.
        initial: f64,
        /// What it is multiplied by.
        factor: f64,
        /// When.
        milestones: Milestones,
    },
    /// Linear warm-up to a peak, then half a cosine down to 0.
    OneCycle {
        /// The highest rate.
        peak: f64,
        /// The part of all steps that the way up takes, from 0 to 1.
        warmup_fraction: f64,
    },
}

/// When a stepwise schedule changes the rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Milestones {
    /// After every so many epochs.
    EveryEpochs(u64),
    /// At these steps of the run, counted from 0, whatever the epochs.
    Iterations(Vec<u64>),
}

impl Milestones {
    fn passed(&self, step: u64, steps_per_epoch: u64) -> u64 {
        match self {
            Milestones::EveryEpochs(every) => (step / steps_per_epoch.max(1)).checked_div(*every).unwrap_or(0),
            Milestones::Iterations(steps) => steps.iter().filter(|&&at| at <= step).count() as u64,
        }
    }
}

impl Schedule {
    /// The learning rate of a step of the run, counted from 0.
    ///
    /// # Examples
    /// ```
    /// use hetconv_train::{Milestones, Schedule};
    ///
    /// let schedule = Schedule::Steps { initial: 0.1, factor: 0.1, milestones: Milestones::EveryEpochs(50) };
    /// assert_eq!(schedule.lr(49 * 390, 390, 200 * 390), 0.1);
    /// assert!((schedule.lr(50 * 390, 390, 200 * 390) - 0.01).abs() < 1e-12);
    /// ```
    pub fn lr(&self, step: u64, steps_per_epoch: u64, total_steps: u64) -> f64 {
        match self {
            Schedule::Steps { initial, factor, milestones } => {
                (0..milestones.passed(step, steps_per_epoch)).fold(*initial, |rate, _| rate * factor)
            }
            // A single step is not the last one only, but the first as well.
            Schedule::OneCycle { peak, .. } if total_steps <= 1 => *peak,
            Schedule::OneCycle { peak, warmup_fraction } => {
                let warmup = (warmup_fraction * total_steps as f64).round();
                // The first step already learns, and the last one, total − 1, ends at 0.
                let now = step as f64 + 1.0;
                if now <= warmup {
                    return peak * now / warmup;
                }
                let way = ((now - warmup) / (total_steps as f64 - warmup).max(1.0)).min(1.0);
                peak * 0.5 * (1.0 + (PI * way).cos())
            }
        }
    }

    /// Whether a run of so many steps ends before the first milestone: it would learn at the initial rate alone.
    pub fn is_too_long_for(&self, steps_per_epoch: u64, total_steps: u64) -> bool {
        match self {
            Schedule::Steps { factor, milestones, .. } => {
                *factor != 1.0 && milestones.passed(total_steps.saturating_sub(1), steps_per_epoch) == 0
            }
            Schedule::OneCycle { .. } => false,
        }
    }

    /// The highest rate: the initial one or the peak.
    pub fn peak(&self) -> f64 {
        match self {
            Schedule::Steps { initial, .. } => *initial,
            Schedule::OneCycle { peak, .. } => *peak,
        }
    }

    /// The same course with another highest rate.
    #[must_use]
    pub fn with_peak(mut self, rate: f64) -> Self {
        match &mut self {
            Schedule::Steps { initial, .. } => *initial = rate,
            Schedule::OneCycle { peak, .. } => *peak = rate,
        }
        self
    }
}

/// The built-in recipes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipeName {
    /// As in the paper, per architecture; long.
    Paper,
    /// Warm-up and cosine; short.
    OneCycle,
    /// A small constant rate, for a network that has learned already.
    FineTune,
}

impl fmt::Display for RecipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecipeName::Paper => "paper",
            RecipeName::OneCycle => "onecycle",
            RecipeName::FineTune => "finetune",
        })
    }
}

/// No recipe of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown recipe {0:?}; there are \"paper\", \"onecycle\" and \"finetune\"")]
pub struct UnknownRecipe(String);

impl FromStr for RecipeName {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        match name {
            "paper" => Ok(RecipeName::Paper),
            "onecycle" => Ok(RecipeName::OneCycle),
            "finetune" => Ok(RecipeName::FineTune),
            _ => Err(UnknownRecipe(name.to_owned())),
        }
    }
}

impl Recipe {
    /// A built-in recipe for an architecture.
    pub fn named(name: RecipeName, architecture: &Architecture) -> Self {
        Self::of_kind(name, architecture.family, architecture.images)
    }

    /// A built-in recipe for training the network of a file further.
    pub fn further(name: RecipeName) -> Self {
        let own = Self::of_kind(name, Family::ResNet, Images::ImageNet);
        let peak = own.schedule.peak() / 4.0;
        Self { batch_size: own.batch_size / 4, schedule: own.schedule.with_peak(peak), ..own }
    }

    fn of_kind(name: RecipeName, family: Family, images: Images) -> Self {
        match name {
            RecipeName::Paper => Self::paper(family, images),
            RecipeName::OneCycle => Self::onecycle(family, images),
            RecipeName::FineTune => Self::finetune(family, images),
        }
    }

    /// The paper's recipe; He et al.'s for ResNets.
    fn paper(family: Family, images: Images) -> Self {
        let (weight_decay, milestones, epochs) = match (images, family) {
            (Images::ImageNet, _) => (1e-4, Milestones::EveryEpochs(30), 90),
            (Images::Cifar, Family::ResNet) => (1e-4, Milestones::Iterations(vec![32_000, 48_000]), 164),
            (Images::Cifar, Family::Vgg | Family::MobileNet) => (5e-4, Milestones::EveryEpochs(50), 200),
        };
        Self {
            epochs,
            batch_size: batch_size(images),
            label_smoothing: 0.0,
            optimizer: SgdConfig { momentum: 0.9, nesterov: false, weight_decay, decay: DecayScope::Kernels },
            schedule: Schedule::Steps { initial: 0.1, factor: 0.1, milestones },
        }
    }

    /// Li et al.'s recipe after pruning: as `paper`, but at a constant rate of 0.001 for 40 epochs, for ImageNet
    /// 20.
    fn finetune(family: Family, images: Images) -> Self {
        let never = Milestones::Iterations(Vec::new());
        Self {
            epochs: if images == Images::ImageNet { 20 } else { 40 },
            schedule: Schedule::Steps { initial: 0.001, factor: 1.0, milestones: never },
            ..Self::paper(family, images)
        }
    }

    /// The short recipe: Nesterov momentum 0.9, weight decay 5·10⁻⁴, label smoothing 0.1.
    fn onecycle(family: Family, images: Images) -> Self {
        let peak = match (images, family) {
            (Images::Cifar, Family::Vgg) => 0.2,
            _ => 0.4,
        };
        Self {
            epochs: 10,
            batch_size: batch_size(images),
            label_smoothing: 0.1,
            optimizer: SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, decay: DecayScope::Kernels },
            schedule: Schedule::OneCycle { peak, warmup_fraction: 0.25 },
        }
    }
}

fn batch_size(images: Images) -> usize {
    match images {
        Images::Cifar => 128,
        Images::ImageNet => 256,
    }
}

#[cfg(test)]
mod tests {
    use super::RecipeName::{FineTune, OneCycle, Paper};
    use super::*;
    use hetconv_graph::zoo;

    fn named(recipe: RecipeName, architecture: &str) -> Recipe {
        Recipe::named(recipe, zoo::architecture(architecture).unwrap())
    }

    fn rates(recipe: &Recipe, steps_per_epoch: u64, steps: &[u64]) -> Vec<f64> {
        let total = recipe.epochs * steps_per_epoch;
        steps.iter().map(|&step| recipe.schedule.lr(step, steps_per_epoch, total)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9 * b.max(1e-3)), "{found:?} {expected:?}");
    }

    #[test]
    fn papers_recipes() {
        let vgg = named(Paper, "vgg16-cifar");
        assert_eq!((vgg.batch_size, vgg.epochs, vgg.label_smoothing), (128, 200, 0.0));
        let sgd = SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 5e-4, decay: DecayScope::Kernels };
        assert_eq!(vgg.optimizer, sgd);
        let at = [0, 50 * 390 - 1, 50 * 390, 100 * 390, 199 * 390];
        assert_close(&rates(&vgg, 390, &at), &[0.1, 0.1, 0.01, 0.001, 0.0001]);
        assert_eq!(named(Paper, "mobilenet-cifar"), vgg);

        for name in ["resnet20", "resnet56"] {
            let resnet = named(Paper, name);
            assert_eq!((resnet.batch_size, resnet.epochs, resnet.label_smoothing), (128, 164, 0.0));
            assert_eq!(resnet.optimizer, SgdConfig { weight_decay: 1e-4, ..sgd });
            assert_close(&rates(&resnet, 390, &[31_999, 32_000, 47_999, 48_000]), &[0.1, 0.01, 0.01, 0.001]);
        }
        for name in ["resnet34", "resnet50"] {
            let resnet = named(Paper, name);
            assert_eq!((resnet.batch_size, resnet.epochs, resnet.label_smoothing), (256, 90, 0.0));
            assert_eq!(resnet.optimizer, SgdConfig { weight_decay: 1e-4, ..sgd });
            let at = [0, 30 * 5000 - 1, 30 * 5000, 60 * 5000];
            assert_close(&rates(&resnet, 5000, &at), &[0.1, 0.1, 0.01, 0.001]);
        }
    }

    #[test]
    fn a_run_may_be_too_short_for_a_recipe() {
        let short = |recipe: Recipe, epochs: u64| recipe.schedule.is_too_long_for(390, 390 * epochs);
        assert!(short(named(Paper, "vgg16-cifar"), 50) && !short(named(Paper, "vgg16-cifar"), 51));
        assert!(short(named(Paper, "resnet20"), 82) && !short(named(Paper, "resnet20"), 83));
        assert!(!short(named(FineTune, "vgg16-cifar"), 1) && !short(named(OneCycle, "vgg16-cifar"), 1));
    }

    #[test]
    fn onecycle_rises_linearly_and_falls_as_a_cosine() {
        let recipe = named(OneCycle, "resnet20");
        assert_eq!((recipe.batch_size, recipe.epochs, recipe.label_smoothing), (128, 10, 0.1));
        let sgd = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, decay: DecayScope::Kernels };
        assert_eq!(recipe.optimizer, sgd);
        let recipe = Recipe { epochs: 1, ..recipe };
        // 100 steps: 25 up, 75 down; halfway down is half the peak.
        assert_close(&rates(&recipe, 100, &[0, 4, 24, 99]), &[0.016, 0.08, 0.4, 0.0]);
        let schedule = Schedule::OneCycle { peak: 1.0, warmup_fraction: 0.2 };
        assert_close(&[schedule.lr(59, 10, 100), schedule.lr(99, 10, 100)], &[0.5, 0.0]);
        assert_eq!(named(OneCycle, "vgg16-cifar").schedule.peak(), 0.2);
        assert_eq!(named(OneCycle, "small-cifar").schedule.peak(), 0.2);
        assert_eq!(recipe.schedule.with_peak(0.3).peak(), 0.3);
        let none = Schedule::OneCycle { peak: 1.0, warmup_fraction: 0.0 };
        assert!(none.lr(5, 0, 0).is_finite());
        assert_eq!(none.lr(0, 1, 1), 1.0, "a single step learns");
    }

    #[test]
    fn fine_tuning_is_the_papers_at_one_small_rate() {
        let recipe = named(FineTune, "vgg16-cifar");
        assert_eq!((recipe.epochs, recipe.batch_size, recipe.optimizer.weight_decay), (40, 128, 5e-4));
        assert_close(&rates(&recipe, 390, &[0, 39 * 390]), &[0.001, 0.001]);
        assert_eq!((named(FineTune, "resnet56").epochs, named(FineTune, "resnet34").epochs), (40, 20));
    }

    #[test]
    fn the_network_of_a_file_learns_as_a_resnet_in_small_batches() {
        for (name, rate, epochs) in [(Paper, 0.025, 90), (OneCycle, 0.1, 10), (FineTune, 0.00025, 20)] {
            let recipe = Recipe::further(name);
            assert_eq!((recipe.schedule.peak(), recipe.epochs, recipe.batch_size), (rate, epochs, 64));
            assert_eq!(recipe.optimizer, named(name, "resnet50").optimizer);
        }
    }

    #[test]
    fn milestones_may_be_listed() {
        let milestones = Milestones::Iterations(vec![2, 3]);
        let schedule = Schedule::Steps { initial: 1.0, factor: 0.5, milestones };
        let found: Vec<f64> = (0..5).map(|step| schedule.lr(step, 7, 35)).collect();
        assert_eq!(found, [1.0, 1.0, 0.5, 0.25, 0.25]);
        let never = Schedule::Steps { initial: 1.0, factor: 0.5, milestones: Milestones::EveryEpochs(0) };
        assert_eq!(never.lr(100, 0, 100), 1.0);
    }

    #[test]
    fn recipes_have_names() {
        for name in [Paper, OneCycle, FineTune] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert!("fast".parse::<RecipeName>().unwrap_err().to_string().contains("onecycle"));
    }
}
