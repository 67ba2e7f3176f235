//! Softmax cross-entropy.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_kernels::loss::{LossSums, softmax_cross_entropy};

use crate::Implementation;
use crate::composed;
use crate::kernel::{Kernel, apply, tensor, values};

/// The loss of a batch, and how many of its images were told right.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Mean over the batch of −Σ q·ln softmax(logits), `[1]`; q is 1 at the label, smoothed.
    pub mean: Tensor<1>,
    /// Sum over the batch.
    pub sum: f64,
    /// Images whose largest logit is the label's.
    pub top1: usize,
    /// Images whose label is among the five largest logits.
    pub top5: usize,
}

/// Softmax cross-entropy with label smoothing: the label gets `1 − smoothing + smoothing/classes`, every other class
/// `smoothing/classes`.
///
/// # Shapes
/// * `logits`: `[batch, classes]`; `labels`: one per image, below `classes`
///
/// # Panics
/// If there is not one label for every image, or a label is not below `classes`.
pub fn cross_entropy(implementation: Implementation, logits: Tensor<2>, labels: &[u16], smoothing: f32) -> Loss {
    let [batch, classes] = logits.dims();
    assert_eq!(labels.len(), batch, "one label for every image");
    assert!(labels.iter().all(|&label| usize::from(label) < classes), "a label that is no class");
    let (mean, sums) = match implementation {
        Implementation::Kernels(_) => {
            let kernel = LossKernel { labels: labels.into(), smoothing };
            let (mean, sums) = apply(kernel, [logits.into_dispatch()]);
            (Tensor::from_dispatch(mean), sums)
        }
        Implementation::Composed => {
            let host: Vec<f32> = logits.clone().inner().into_data().iter::<f32>().collect();
            let sums = softmax_cross_entropy(classes, &host, labels, smoothing, None);
            (composed::cross_entropy(logits, labels, smoothing), sums)
        }
    };
    Loss { mean, sum: sums.loss, top1: sums.top1, top5: sums.top5 }
}

#[derive(Clone, Debug)]
struct LossKernel {
    labels: Arc<[u16]>,
    smoothing: f32,
}

impl Kernel<1> for LossKernel {
    /// The mean loss's gradient by the logits, and their shape.
    type Saved = (Vec<f32>, [usize; 2]);
    type Side = LossSums;

    fn forward(&self, [logits]: &[FlexTensor; 1]) -> (FlexTensor, LossSums, Self::Saved) {
        let shape: [usize; 2] = logits.layout().shape().dims();
        let mut grad = vec![0.0; shape[0] * shape[1]];
        let x = values(logits);
        let sums = softmax_cross_entropy(shape[1], x, &self.labels, self.smoothing, Some(&mut grad));
        let mean = (sums.loss / shape[0] as f64) as f32;
        (tensor(vec![mean], [1]), sums, (grad, shape))
    }

    fn backward(&self, saved: Self::Saved, grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let (mut by_logits, shape) = saved;
        let upstream = values(&grad)[0];
        if upstream != 1.0 {
            by_logits.iter_mut().for_each(|value| *value *= upstream);
        }
        [Some(tensor(by_logits, shape))]
    }
}
