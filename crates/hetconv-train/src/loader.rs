//! Batches prepared by a thread of their own while the network computes.
//!
//! A loader that borrowed the compute threads would only disturb them. From memory a batch is filled in a few milliseconds
//! at most, a small part of a training step, by the thread alone. A photo takes some 2 ms to decode and scale, where
//! training one of ImageNet's networks on it takes dozens of times as long on one thread; so one decoder for four compute
//! threads is ahead of them. At most a few batches are ever in memory. What a batch holds is a function of seed, epoch and
//! step.

use crate::augment::{Augment, PixelTable, fill_batch};
use crate::data::{DataError, Source, Split};
use crate::rng::permutation;
use hetconv_graph::Normalisation;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// How many finished batches wait at most.
const WAITING: usize = 2;
/// How many compute threads one decoder serves.
const COMPUTE_PER_DECODER: usize = 4;

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

impl Batch {
    /// The images of these indices, varied as seed, epoch and index say.
    fn new(
        split: &Split,
        indices: &[u32],
        augment: &Augment,
        table: &PixelTable,
        seed: u64,
        position: Position,
    ) -> Result<Self, LoaderError> {
        let [height, width, channels] = split.shape();
        let mut images = vec![0.0; indices.len() * height * width * channels];
        fill_batch(split, indices, augment, table, seed, position.epoch, &mut images)?;
        let labels = indices.iter().map(|&i| split.labels()[i as usize]).collect();
        Ok(Self { position, shape: [indices.len(), height, width, channels], images, labels })
    }
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
    #[error(
        "a finite mean and a positive deviation are needed for each of the images' {channels} channels; there are {means} \
         means and {deviations} deviations"
    )]
    Normalisation {
        /// Channels of the images.
        channels: usize,
        /// Means of the normalisation.
        means: usize,
        /// Standard deviations of the normalisation.
        deviations: usize,
    },
    /// The system gave no thread.
    #[error("cannot start the loader's threads: {0}")]
    Thread(#[from] std::io::Error),
    /// An image that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
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

/// A batch, or why there are no more.
type Prepared = Result<Batch, LoaderError>;

/// An iterator over batches that a thread prepares ahead of time. Dropping it ends the thread.
#[derive(Debug)]
pub struct BatchLoader {
    batches: Option<Receiver<Prepared>>,
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
        Self::decode(split.clone(), move |ready| {
            for epoch in start.epoch..epochs {
                let order = permutation(seed, epoch, split.len() as u32);
                let first = if epoch == start.epoch { start.step } else { 0 };
                for step in first..steps as u64 {
                    let indices = &order[step as usize * batch_size..][..batch_size];
                    let batch = Batch::new(&split, indices, &augment, &table, seed, Position { epoch, step });
                    if !send(ready, batch) {
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
        Self::decode(split.clone(), move |ready| {
            let order: Vec<u32> = (0..split.len() as u32).collect();
            for (step, indices) in (0..).zip(order.chunks(batch_size)) {
                let batch = Batch::new(&split, indices, &Augment::NONE, &table, 0, Position { epoch: 0, step });
                if !send(ready, batch) {
                    return;
                }
            }
        })
    }

    /// Starts the thread, and decoders if images are in files.
    fn decode(
        split: Arc<Split>,
        run: impl FnOnce(&SyncSender<Prepared>) + Send + 'static,
    ) -> Result<Self, LoaderError> {
        if let Source::Memory(_) = split.source() {
            return Self::spawn(move |ready| run(&ready));
        }
        let threads = rayon::current_num_threads().div_ceil(COMPUTE_PER_DECODER);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("decoder {i}"));
        let pool = pool.build().map_err(std::io::Error::other)?;
        Self::spawn(move |ready| pool.install(|| run(&ready)))
    }

    /// Starts the thread; when nobody wants batches any more, sending one fails and `run` is to end.
    fn spawn(run: impl FnOnce(SyncSender<Prepared>) + Send + 'static) -> Result<Self, LoaderError> {
        let (ready, batches) = sync_channel(WAITING);
        let thread = Builder::new().name("batch loader".into()).spawn(move || run(ready))?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }
}

/// Hands a batch over, or its fault; says whether another is wanted.
fn send(ready: &SyncSender<Prepared>, batch: Prepared) -> bool {
    let goes_on = batch.is_ok();
    ready.send(batch).is_ok() && goes_on
}

/// How many training batches an epoch has; what is left is dropped.
pub fn steps_per_epoch(samples: usize, batch_size: usize) -> usize {
    samples.checked_div(batch_size).unwrap_or(0)
}

fn table(split: &Split, normalisation: &Normalisation, batch_size: usize) -> Result<PixelTable, LoaderError> {
    let [_, _, channels] = split.shape();
    if batch_size == 0 {
        return Err(LoaderError::EmptyBatch);
    }
    if !normalisation.fits(channels) {
        let [means, deviations] = [&normalisation.mean, &normalisation.std].map(Vec::len);
        return Err(LoaderError::Normalisation { channels, means, deviations });
    }
    Ok(PixelTable::new(normalisation))
}

impl Iterator for BatchLoader {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(Ok(batch)) = self.batches.as_ref().map(Receiver::recv) {
            return Some(batch);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Images;

    /// Ten 2×2 images of one channel, image `i` all `10·i`, of class `i`.
    fn split() -> Arc<Split> {
        let pixels = (0..10u8).flat_map(|i| [10 * i; 4]).collect();
        Arc::new(Split::new(Images::new([2, 2, 1], pixels).unwrap(), (0..10).collect()).unwrap())
    }

    fn identity() -> Normalisation {
        Normalisation { mean: vec![0.0], std: vec![1.0 / 255.0] }
    }

    fn batches(start: Position) -> TrainingBatches {
        TrainingBatches {
            batch_size: 3,
            augment: Augment { part: false, pad: 1, flip: true, cutout: 0 },
            seed: 4,
            start,
            epochs: 3,
        }
    }

    fn train(start: Position) -> Vec<Batch> {
        BatchLoader::training(split(), &identity(), batches(start)).unwrap().map(Result::unwrap).collect()
    }

    /// A batch of image 1.
    fn one() -> Batch {
        Batch::new(&split(), &[1], &Augment::NONE, &PixelTable::new(&identity()), 0, Position::default()).unwrap()
    }

    #[test]
    fn epochs_are_shuffled_and_lose_only_the_remainder() {
        let all = train(Position::default());
        assert_eq!(all.len(), 9);
        let epoch = |epoch: u64| -> Vec<u16> {
            all.iter().filter(|b| b.position.epoch == epoch).flat_map(|b| b.labels.clone()).collect()
        };
        for e in 0..3 {
            let order: Vec<u16> = permutation(4, e, 10).into_iter().take(9).map(|i| i as u16).collect();
            assert_eq!(epoch(e), order);
        }
        assert_ne!(epoch(0), epoch(1));
        for batch in &all {
            assert_eq!(batch.shape, [3, 2, 2, 1]);
            for (image, &label) in batch.images.chunks_exact(4).zip(&batch.labels) {
                let value = f32::from(label) * 10.0;
                assert!(image.iter().all(|&v| v == 0.0 || (v - value).abs() < 1e-3), "{image:?} {label}");
            }
        }
    }

    #[test]
    fn from_any_position_a_loader_goes_on_as_if_never_interrupted() {
        let all = train(Position::default());
        for (n, batch) in all.iter().enumerate() {
            assert_eq!(train(batch.position), all[n..]);
        }
        assert_eq!(train(Position { epoch: 3, step: 0 }), []);
        // The position after an epoch's last step is the beginning of the next.
        assert_eq!(train(Position { epoch: 0, step: 3 }), all[3..]);
    }

    #[test]
    fn evaluation_keeps_order_pixels_and_remainder() {
        let all: Vec<Batch> = BatchLoader::evaluation(split(), &identity(), 4).unwrap().map(Result::unwrap).collect();
        assert_eq!(all.iter().map(|batch| batch.shape[0]).collect::<Vec<_>>(), [4, 4, 2]);
        assert_eq!(all.iter().flat_map(|batch| batch.labels.clone()).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        for (i, value) in all.iter().flat_map(|batch| batch.images.clone()).enumerate() {
            assert!((value - (i / 4 * 10) as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn impossible_loaders_are_refused() {
        let with = |batch_size| {
            let batches = TrainingBatches { batch_size, ..batches(Position::default()) };
            BatchLoader::training(split(), &identity(), batches).map(drop)
        };
        assert!(matches!(with(0), Err(LoaderError::EmptyBatch)));
        assert!(matches!(with(11), Err(LoaderError::TooFewSamples { samples: 10, batch_size: 11 })));
        let three = Normalisation { mean: vec![0.0; 3], std: vec![1.0; 3] };
        let result = BatchLoader::evaluation(split(), &three, 4).map(drop);
        assert!(matches!(result, Err(LoaderError::Normalisation { channels: 1, means: 3, deviations: 3 })));
        let flat = Normalisation { mean: vec![0.0], std: vec![0.0] };
        let result = BatchLoader::evaluation(split(), &flat, 4).map(drop);
        assert!(matches!(result, Err(LoaderError::Normalisation { .. })));
    }

    #[test]
    fn a_panic_in_the_thread_becomes_one_error() {
        let mut loader = BatchLoader::spawn(|ready| {
            ready.send(Ok(one())).unwrap();
            panic!("the disk is on fire");
        })
        .unwrap();
        assert_eq!(loader.next().unwrap().unwrap().labels, [1]);
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("the disk is on fire"), "{error}");
        assert!(loader.next().is_none());
    }

    #[test]
    fn dropping_a_loader_ends_its_thread() {
        let alive = Arc::new(());
        let theirs = alive.clone();
        let mut loader = BatchLoader::spawn(move |ready| {
            let _theirs = theirs;
            while ready.send(Ok(one())).is_ok() {}
        })
        .unwrap();
        loader.next().unwrap().unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
