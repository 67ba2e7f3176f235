//! Batches prepared by a thread of their own while the network computes.
//!
//! The thread works alone: filling a batch of 128 CIFAR images takes well under a millisecond, and a loader that
//! borrowed the compute threads would only disturb them. What a batch holds is a function of seed, epoch and step.

use crate::augment::{Augment, PixelTable, fill_batch};
use crate::data::{Normalisation, Split};
use crate::rng::permutation;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

/// How many finished batches wait at most.
const WAITING: usize = 2;

/// A place in a run: the epoch, and the step within it, both from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// The step within the epoch.
    pub step: u64,
}

/// Images and labels of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Where in the run it belongs.
    pub position: Position,
    /// Batch, height, width, channels.
    pub shape: [usize; 4],
    /// Normalised pixels of that shape (NHWC).
    pub images: Vec<f32>,
    /// The class of each image.
    pub labels: Vec<u16>,
}

/// What can go wrong with a loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// A batch of no images.
    #[error("batch size 0; at least 1 is needed")]
    EmptyBatch,
    /// Not even one full training batch.
    #[error("{samples} training images do not fill one batch of {batch_size}; make batches smaller")]
    TooFewSamples {
        /// Training images.
        samples: usize,
        /// Images in a batch.
        batch_size: usize,
    },
    /// A normalisation that does not fit the images.
    #[error("the normalisation is for {found} channels, the images have {expected}")]
    Channels {
        /// Channels of the images.
        expected: usize,
        /// Channels of the normalisation.
        found: usize,
    },
    /// The system gave no thread.
    #[error("cannot start the loader's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The loader's thread died.
    #[error("the loader's thread failed: {0}")]
    Failed(String),
}

/// What a training loader yields.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingBatches {
    /// Images in a batch; what is left at the end of an epoch is dropped.
    pub batch_size: usize,
    /// How images are varied.
    pub augment: Augment,
    /// Seed of order and variation.
    pub seed: u64,
    /// The first batch to yield.
    pub start: Position,
    /// The epoch before which to end.
    pub epochs: u64,
}

/// An iterator over batches that a thread prepares ahead of time. Dropping it ends the thread.
#[derive(Debug)]
pub struct BatchLoader {
    batches: Option<Receiver<Batch>>,
    used: Sender<Vec<f32>>,
    thread: Option<JoinHandle<()>>,
}

impl BatchLoader {
    /// Shuffled, varied batches of whole epochs, from any position of the run.
    ///
    /// # Errors
    /// See [`LoaderError`].
    pub fn training(
        split: Arc<Split>,
        normalisation: &Normalisation,
        batches: TrainingBatches,
    ) -> Result<Self, LoaderError> {
        let TrainingBatches { batch_size, augment, seed, start, epochs } = batches;
        let table = table(&split, normalisation, batch_size)?;
        let steps = steps_per_epoch(split.len(), batch_size);
        if steps == 0 {
            return Err(LoaderError::TooFewSamples { samples: split.len(), batch_size });
        }
        Self::spawn(move |mut work| {
            for epoch in start.epoch..epochs {
                let order = permutation(seed, epoch, split.len() as u32);
                let first = if epoch == start.epoch { start.step } else { 0 };
                for step in first..steps as u64 {
                    let indices = &order[step as usize * batch_size..][..batch_size];
                    let position = Position { epoch, step };
                    if !work.put(&split, indices, &augment, &table, seed, position) {
                        return;
                    }
                }
            }
        })
    }

    /// All images in order, as they are; the last batch holds what is left.
    ///
    /// # Errors
    /// See [`LoaderError`].
    pub fn evaluation(
        split: Arc<Split>,
        normalisation: &Normalisation,
        batch_size: usize,
    ) -> Result<Self, LoaderError> {
        let table = table(&split, normalisation, batch_size)?;
        Self::spawn(move |mut work| {
            let order: Vec<u32> = (0..split.len() as u32).collect();
            for (step, indices) in (0..).zip(order.chunks(batch_size)) {
                if !work.put(&split, indices, &Augment::NONE, &table, 0, Position { epoch: 0, step }) {
                    return;
                }
            }
        })
    }

    /// Gives a batch's pixels back, so that their memory is used again.
    pub fn recycle(&self, images: Vec<f32>) {
        // A loader that has finished needs no more memory.
        let _ = self.used.send(images);
    }

    fn spawn(run: impl FnOnce(Workbench) + Send + 'static) -> Result<Self, LoaderError> {
        let (ready, batches) = sync_channel(WAITING);
        let (used, spare) = channel();
        let work = Workbench { ready, spare };
        let thread = Builder::new().name("batch loader".into()).spawn(move || run(work))?;
        Ok(Self { batches: Some(batches), used, thread: Some(thread) })
    }
}

/// How many training batches an epoch has; what is left is dropped.
pub fn steps_per_epoch(samples: usize, batch_size: usize) -> usize {
    samples.checked_div(batch_size).unwrap_or(0)
}

fn table(split: &Split, normalisation: &Normalisation, batch_size: usize) -> Result<PixelTable, LoaderError> {
    let (expected, found) = (split.images().shape()[2], normalisation.mean.len());
    if batch_size == 0 {
        return Err(LoaderError::EmptyBatch);
    }
    if expected != found || found != normalisation.std.len() {
        return Err(LoaderError::Channels { expected, found });
    }
    Ok(PixelTable::new(normalisation))
}

impl Iterator for BatchLoader {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(Ok(batch)) = self.batches.as_ref().map(Receiver::recv) {
            return Some(Ok(batch));
        }
        // The thread has ended: either all is done or it panicked, which is told once.
        self.batches = None;
        let panic = self.thread.take()?.join().err()?;
        let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Some(Err(LoaderError::Failed(text.unwrap_or_else(|| "unknown reason".into()))))
    }
}

impl Drop for BatchLoader {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and it ends.
        self.batches = None;
        if self.thread.take().map(JoinHandle::join).is_some_and(|end| end.is_err()) {
            tracing::error!("the batch loader's thread had failed before it was dropped");
        }
    }
}

/// The thread's side: where batches go and where used memory comes from.
struct Workbench {
    ready: std::sync::mpsc::SyncSender<Batch>,
    spare: Receiver<Vec<f32>>,
}

impl Workbench {
    /// Prepares a batch and hands it over; false if nobody wants batches any more.
    fn put(
        &mut self,
        split: &Split,
        indices: &[u32],
        augment: &Augment,
        table: &PixelTable,
        seed: u64,
        position: Position,
    ) -> bool {
        let [height, width, channels] = split.images().shape();
        let mut images = self.spare.try_recv().unwrap_or_default();
        images.resize(indices.len() * split.images().image_len(), 0.0);
        fill_batch(split, indices, augment, table, seed, position.epoch, &mut images);
        let labels = indices.iter().map(|&i| split.labels()[i as usize]).collect();
        let shape = [indices.len(), height, width, channels];
        self.ready.send(Batch { position, shape, images, labels }).is_ok()
    }
}
