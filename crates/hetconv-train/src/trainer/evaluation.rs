//! How well a network does on a split.

use std::sync::Arc;
use std::time::Instant;

use hetconv_burn::GraphModule;
use hetconv_graph::Normalisation;
use hetconv_kernels::loss::softmax_cross_entropy;

use super::TrainError;
use crate::data::{Split, Watch};
use crate::loader::{Batch, BatchLoader};

/// How well a network does on a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Share of images whose label has the largest logit.
    pub top1: f64,
    /// Share of images whose label is among the five largest logits.
    pub top5: f64,
    /// Number of images.
    pub images: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// Measures a network on a split, in batches of `batch` images; `watch` is told how many images are done.
///
/// # Errors
/// Images or labels that do not fit the network, or a loader that failed.
pub fn evaluate(
    network: &GraphModule,
    split: &Arc<Split>,
    normalisation: &Normalisation,
    batch: usize,
    watch: Watch<'_>,
) -> Result<Evaluation, TrainError> {
    evaluate_with(network.classes(), split, normalisation, batch, watch, |pixels, images| {
        logits(network, pixels, images)
    })
}

/// The logits of so many images.
pub(super) fn logits(network: &GraphModule, pixels: Vec<f32>, images: usize) -> Result<Vec<f32>, TrainError> {
    let logits = network.logits(network.upload_images(pixels, images)?)?;
    Ok(logits.into_data().iter::<f32>().collect())
}

/// As [`evaluate`], of whatever gives the logits `[images, classes]` of so many images `[images, height, width, channels]`.
///
/// # Errors
/// Labels of other classes, and what `logits` or the loading of images reports.
///
/// # Panics
/// If there are not as many logits.
pub fn evaluate_with<E: From<TrainError>>(
    classes: usize,
    split: &Arc<Split>,
    normalisation: &Normalisation,
    batch: usize,
    watch: Watch<'_>,
    mut logits: impl FnMut(Vec<f32>, usize) -> Result<Vec<f32>, E>,
) -> Result<Evaluation, E> {
    let start = Instant::now();
    if let Some(&label) = split.labels().iter().find(|&&label| usize::from(label) >= classes) {
        return Err(TrainError::Label { label, classes }.into());
    }
    let mut loader = BatchLoader::evaluation(split.clone(), normalisation, batch).map_err(TrainError::from)?;
    let (mut loss, mut top1, mut top5, mut images) = (0.0, 0, 0, 0);
    while let Some(Batch { images: pixels, labels, .. }) = loader.next().transpose().map_err(TrainError::from)? {
        let logits = logits(pixels, labels.len())?;
        let sums = softmax_cross_entropy(classes, &logits, &labels, 0.0, None);
        loss += sums.loss;
        top1 += sums.top1;
        top5 += sums.top5;
        images += labels.len();
        watch(images, split.len());
    }
    let share = |count: usize| count as f64 / images.max(1) as f64;
    Ok(Evaluation {
        loss: loss / images.max(1) as f64,
        top1: share(top1),
        top5: share(top5),
        images,
        seconds: start.elapsed().as_secs_f64(),
    })
}
