//! Training of HetConv networks: everything around the gradient.
//!
//! * [`Dataset`] holds a training and a held-out split, decoded once into memory: the built-in [`synthetic()`] textures,
//!   image folders and .zip archives, CIFAR-10/100 binary batches, IDX files. [`Dataset::open`] finds out which. [`Photos`]
//!   of any size stay in their files.
//! * [`BatchLoader`] prepares shuffled, augmented ([`Augment`]), normalised batches in a thread of its own.
//! * [`Recipe`] is optimizer, batch size and learning-rate [`Schedule`]; `paper`, `onecycle` and `finetune` are built in
//!   for every architecture. [`RunConfig`] is a run's `config.toml`.
//! * [`train`] is the loop, [`fine_tune`] the same from given weights, [`evaluate`] the measure; a run is a folder.
//! * [`Checkpoint`] is a run at one moment in one file; [`MetricsWriter`] and [`Summary`] are what it reports.
//!
//! Every random draw is a pure function of what it is for ([`stream`]): a run that is killed and resumed computes exactly
//! what an uninterrupted one does, on any number of threads.
//!
//! ```
//! use hetconv_train::{Augment, BatchLoader, Position, SyntheticOptions, TrainingBatches, synthetic};
//!
//! let data = synthetic(&SyntheticOptions { train: 64, test: 10, ..Default::default() })?;
//! let batches = TrainingBatches {
//!     batch_size: 16,
//!     augment: Augment::PAPER,
//!     seed: 1,
//!     start: Position::default(),
//!     epochs: 2,
//! };
//! let loader = BatchLoader::training(data.train.clone(), &data.train.normalisation(), batches)?;
//! for batch in loader {
//!     let batch = batch?;
//!     assert_eq!(batch.shape, [16, 32, 32, 3]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod augment;
mod checkpoint;
mod config;
mod data;
mod digest;
mod loader;
mod metrics;
mod recipe;
mod rng;
mod trainer;

pub use augment::{Augment, PixelTable, fill_batch};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointFault, EpochSums, Progress};
pub use config::{ConfigError, Device, PrunedFrom, RunConfig};
pub use data::{
    CatalogEntry, DataError, Dataset, Images, KNOWN, KnownDataset, LoadOptions, Photos, Split, SyntheticOptions, Watch,
    catalog, is_same_data, name_of, search_folders, synthetic,
};
pub use loader::{Batch, BatchLoader, LoaderError, Position, TrainingBatches, steps_per_epoch};
pub use metrics::{EpochMetrics, MetricsError, MetricsWriter, Summary, read_metrics, read_whole_metrics};
pub use recipe::{Milestones, Recipe, RecipeName, Schedule, UnknownRecipe};
pub use rng::{Purpose, below, permutation, stream, uniform};
pub use trainer::{
    Evaluation, StepReport, TrainError, TrainJob, TrainObserver, burn_device, evaluate, evaluate_with, fine_tune,
    run_files, train,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
