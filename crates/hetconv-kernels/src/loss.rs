//! Softmax cross-entropy with label smoothing, and the counts of right answers.

/// Sums over a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of the images' losses, in nats.
    pub loss: f64,
    /// Images whose label has the largest logit.
    pub top1: usize,
    /// Images whose label is among the five largest logits.
    pub top5: usize,
}

/// Cross-entropy between softmax(`logits`) `[batch, classes]` and labels smoothed by `smoothing` (the label's target is
/// 1 − s + s/classes, every other's s/classes). `grad`, if wanted, becomes the gradient of the *mean* loss by the logits.
///
/// A logit that ties with the label's counts against it when its class number is smaller. With a logit that is not a number
/// an image is wrong.
///
/// # Panics
/// If the lengths don't fit, there are no classes or a label is out of range.
pub fn softmax_cross_entropy(
    classes: usize,
    logits: &[f32],
    labels: &[u16],
    smoothing: f32,
    mut grad: Option<&mut [f32]>,
) -> LossSums {
    assert_eq!(logits.len(), labels.len() * classes, "logits are not [{}, {classes}]", labels.len());
    assert!(grad.as_ref().is_none_or(|grad| grad.len() == logits.len()), "gradient length");
    let mut sums = LossSums::default();
    let (off, on) = (f64::from(smoothing) / classes as f64, 1.0 - f64::from(smoothing));
    for (image, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let label = usize::from(label);
        assert!(label < classes, "label {label} with {classes} classes");
        let largest = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let exp: Vec<f64> = row.iter().map(|&v| f64::from(v - largest).exp()).collect();
        let total: f64 = exp.iter().sum();
        let log_total = total.ln();
        let log_probability = |class: usize| f64::from(row[class] - largest) - log_total;
        sums.loss -= on * log_probability(label);
        // A class that is impossible costs nothing where it has no share.
        if off > 0.0 {
            sums.loss -= (0..classes).map(log_probability).sum::<f64>() * off;
        }
        let better = |class: &usize| row[*class] > row[label] || (row[*class] == row[label] && *class < label);
        let is_known = row.iter().all(|logit| !logit.is_nan());
        let rank = if is_known { (0..classes).filter(better).count() } else { usize::MAX };
        sums.top1 += usize::from(rank == 0);
        sums.top5 += usize::from(rank < 5);
        if let Some(grad) = &mut grad {
            for (class, slot) in grad[image * classes..][..classes].iter_mut().enumerate() {
                let target = off + if class == label { on } else { 0.0 };
                *slot = ((exp[class] / total - target) / labels.len() as f64) as f32;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let logits = [0.3f32, -1.2, 2.0, 0.7, 0.1, -0.4, -0.2, 0.4, 1.1];
        let labels = [2u16, 0, 1];
        let loss = |logits: &[f32]| softmax_cross_entropy(3, logits, &labels, 0.1, None).loss / 3.0;
        let mut grad = [0.0; 9];
        let sums = softmax_cross_entropy(3, &logits, &labels, 0.1, Some(&mut grad));
        assert_eq!((sums.top1, sums.top5), (2, 3));
        for i in 0..9 {
            let (mut up, mut down) = (logits, logits);
            up[i] += 1e-2;
            down[i] -= 1e-2;
            let numeric = (loss(&up) - loss(&down)) / 2e-2;
            assert!((numeric - f64::from(grad[i])).abs() < 1e-4, "{numeric} {}", grad[i]);
        }
    }

    #[test]
    fn five_guesses_are_five() {
        let logits: [f32; 8] = std::array::from_fn(|class| -(class as f32));
        let of = |label| softmax_cross_entropy(8, &logits, &[label], 0.0, None);
        assert_eq!(std::array::from_fn(|label| of(label as u16).top1), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(std::array::from_fn(|label| of(label as u16).top5), [1, 1, 1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn impossible_classes_and_no_numbers() {
        let of = |logits: &[f32], label| softmax_cross_entropy(2, logits, &[label], 0.0, None);
        assert_eq!(of(&[0.0, f32::NEG_INFINITY], 0), LossSums { loss: 0.0, top1: 1, top5: 1 });
        assert_eq!(of(&[0.0, f32::NEG_INFINITY], 1).loss, f64::INFINITY);
        let found = of(&[f32::NAN, 1.0], 1);
        assert!(found.loss.is_nan() && (found.top1, found.top5) == (0, 0), "{found:?}");
    }

    #[test]
    fn uniform_logits_lose_the_logarithm_of_the_classes() {
        let sums = softmax_cross_entropy(10, &[0.0; 10], &[7], 0.1, None);
        assert!((sums.loss - 10f64.ln()).abs() < 1e-12);
        assert_eq!((sums.top1, sums.top5), (0, 0));
    }
}
