//! Why a run ends early.

use std::path::PathBuf;

use hetconv_burn::{ModuleError, VelocityError};
use hetconv_graph::{FileError, GraphError, NameError};
use hetconv_kernels::IsaError;

use crate::checkpoint::CheckpointError;
use crate::config::{ConfigError, Device};
use crate::loader::LoaderError;
use crate::metrics::MetricsError;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The loss or a weight is not finite any more.
    #[error("training diverged: {what} in epoch {epoch}, step {step}; {kept}")]
    Diverged {
        /// The epoch, from 1 as in `metrics.csv`.
        epoch: u64,
        /// The step of the epoch, from 1.
        step: u64,
        /// What is not finite.
        what: String,
        /// Which checkpoint is left.
        kept: String,
    },
    /// A folder that holds a run already.
    #[error("{} already holds a run; resume it if its checkpoints are there, or choose another folder", .0.display())]
    Occupied(PathBuf),
    /// A file that is no run's, where a run would write its own.
    #[error("{} is no file of a run and would be replaced; choose another folder", .0.display())]
    Foreign(PathBuf),
    /// A checkpoint of other settings.
    #[error("{}: the checkpoint was made with other settings than these; resume with its own config.toml", .0.display())]
    OtherSettings(PathBuf),
    /// A checkpoint of a run on other images or classes.
    #[error("{}: the checkpoint was made on other images or classes than {data} has now", checkpoint.display())]
    OtherData {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The data set.
        data: String,
    },
    /// A run that another process is at work on.
    #[error("another process is at work on the run in {}", .0.display())]
    Busy(PathBuf),
    /// A network and data that do not belong together.
    #[error("network {model} takes {network}, the data set {data} has {found}")]
    DoesNotFit {
        /// The network.
        model: String,
        /// The data set.
        data: String,
        /// What the network takes.
        network: String,
        /// What the data set has.
        found: String,
    },
    /// An image of a class that the network does not know.
    #[error("label {label} is out of range, the network tells {classes} classes apart")]
    Label {
        /// The label.
        label: u16,
        /// The network's classes.
        classes: usize,
    },
    /// [`TrainObserver::stops`](super::TrainObserver::stops) said so; the newest checkpoint is of this moment.
    #[error("stopped after {epochs} whole epochs")]
    Stopped {
        /// Epochs that were finished.
        epochs: u64,
    },
    /// A device this build has no support for.
    #[error("this build cannot compute on {0}; build with --features {0}")]
    Device(Device),
    /// The folder or its lock cannot be made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings name a network that does not exist.
    #[error(transparent)]
    Name(#[from] NameError),
    /// See [`LoaderError`].
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// See [`CheckpointError`].
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// See [`MetricsError`].
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// See [`GraphError`].
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// See [`ModuleError`].
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// See [`VelocityError`].
    #[error(transparent)]
    Velocity(#[from] VelocityError),
    /// See [`FileError`].
    #[error(transparent)]
    File(#[from] FileError),
    /// See [`IsaError`].
    #[error(transparent)]
    Isa(#[from] IsaError),
}
