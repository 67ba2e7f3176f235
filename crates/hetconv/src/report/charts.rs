//! The charts of trained networks.

use super::{Axis, Bars, Chart, Epoch, Form, Series, Variant};
use crate::units;

/// All charts of some networks, those without a point left out when they are drawn.
pub fn charts(variants: &[Variant]) -> Vec<Chart> {
    vec![
        accuracy_against_macs(variants),
        accuracy_against_time(variants),
        accuracy_against_training_time(variants),
        training_loss(variants),
        held_out_loss(variants),
    ]
}

/// Accuracy in per cent against MACs for one image.
pub fn accuracy_against_macs(variants: &[Variant]) -> Chart {
    let (size, unit) = match most(variants.iter().map(|variant| variant.macs as f64)) {
        most if most >= 2e9 => (1e9, "billions"),
        most if most >= 2e6 => (1e6, "millions"),
        _ => (1e3, "thousands"),
    };
    Chart {
        title: "Accuracy against MACs".into(),
        caption: format!("Up and to the left is better.{}", whiskers(variants)),
        x: Axis::from_zero(format!("MACs per image ({unit})")),
        y: Axis::percent(ACCURACY),
        form: Form::Scatter,
        series: scatter(variants, |variant| Some(variant.macs as f64 / size)),
    }
}

/// Accuracy in per cent against measured milliseconds for one image.
pub fn accuracy_against_time(variants: &[Variant]) -> Chart {
    Chart {
        title: "Accuracy against measured time".into(),
        caption: format!("Inference. Up and to the left is better.{}", whiskers(variants)),
        x: Axis::from_zero("time per image (ms)"),
        y: Axis::percent(ACCURACY),
        form: Form::Scatter,
        series: scatter(variants, |variant| variant.ms_per_image),
    }
}

/// Accuracy in per cent against the time trained so far.
pub fn accuracy_against_training_time(variants: &[Variant]) -> Chart {
    let means: Vec<Vec<Epoch>> = variants.iter().map(Variant::mean_epochs).collect();
    let (size, unit) = match most(means.iter().flatten().map(|epoch| epoch.seconds)) {
        most if most >= 7_200.0 => (3_600.0, "hours"),
        most if most >= 180.0 => (60.0, "minutes"),
        _ => (1.0, "seconds"),
    };
    Chart {
        title: "Accuracy against training time".into(),
        caption: format!(
            "One marker per epoch; a curve that stands further left learned faster.{}",
            over_seeds(variants)
        ),
        x: Axis::from_zero(format!("training time ({unit})")),
        y: Axis::percent(ACCURACY),
        form: Form::Curves,
        series: curves(variants, |_, epoch| [epoch.seconds / size, epoch.eval_top1]),
    }
}

/// Loss on the training images, epoch by epoch.
pub fn training_loss(variants: &[Variant]) -> Chart {
    Chart {
        title: "Training loss".into(),
        caption: format!(
            "Mean over the batches of each epoch, as trained: with augmentation and smoothing.{}",
            over_seeds(variants)
        ),
        x: Axis::from_zero("epoch"),
        y: Axis::around("loss"),
        form: Form::Curves,
        series: curves(variants, |i, epoch| [i as f64, epoch.train_loss]),
    }
}

/// Loss on the held-out images, epoch by epoch.
pub fn held_out_loss(variants: &[Variant]) -> Chart {
    Chart {
        title: "Held-out loss".into(),
        caption: format!("Cross-entropy on images the network never learned from.{}", over_seeds(variants)),
        x: Axis::from_zero("epoch"),
        y: Axis::around("loss"),
        form: Form::Curves,
        series: curves(variants, |i, epoch| [i as f64, epoch.eval_loss]),
    }
}

/// What every layer costs in one network and in another that was made from it. A layer that took several in its place,
/// named after it, is their sum.
pub fn layers_before_and_after(before: &Variant, after: &Variant) -> Bars {
    // The layer itself, or the one of the longest name that this one's goes on from.
    let row_of = |part: &str| {
        let belongs = |row: &&str| part.strip_prefix(*row).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        before.layers.iter().map(|(row, _)| row.as_str()).filter(belongs).max_by_key(|row| row.len())
    };
    let of =
        |name: &str| after.layers.iter().filter(|(part, _)| row_of(part) == Some(name)).map(|(_, macs)| macs).sum();
    Bars {
        title: format!("MACs of every layer: {} and {}", before.label, after.label),
        caption: "Behind each pair stands what is left of the layer's MACs.".into(),
        names: [before.label.clone(), after.label.clone()],
        rows: before.layers.iter().map(|(name, macs)| (name.clone(), [*macs, of(name)])).collect(),
    }
}

const ACCURACY: &str = "top-1 accuracy (%)";

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

fn have_several_seeds(variants: &[Variant]) -> bool {
    variants.iter().any(|variant| variant.runs.len() > 1)
}

fn whiskers(variants: &[Variant]) -> &'static str {
    if have_several_seeds(variants) { " Whiskers reach from the worst seed to the best." } else { "" }
}

fn over_seeds(variants: &[Variant]) -> &'static str {
    if have_several_seeds(variants) { " Means over the seeds." } else { "" }
}

/// One point a network, if it has an accuracy and an x.
fn scatter(variants: &[Variant], x: impl Fn(&Variant) -> Option<f64>) -> Vec<Series> {
    let series = |(slot, variant): (usize, &Variant)| Series {
        label: variant.label.clone(),
        slot,
        points: x(variant).zip(variant.top1()).map(|(x, top1)| [x, top1]).into_iter().collect(),
        spread: variant.top1_range(),
    };
    variants.iter().enumerate().map(series).collect()
}

/// One curve a network, of the means over its seeds; epochs count from 1.
fn curves(variants: &[Variant], point: impl Fn(usize, &Epoch) -> [f64; 2]) -> Vec<Series> {
    let series = |(slot, variant): (usize, &Variant)| Series {
        label: variant.label.clone(),
        slot,
        points: variant.mean_epochs().iter().enumerate().map(|(i, epoch)| point(i + 1, epoch)).collect(),
        spread: None,
    };
    variants.iter().enumerate().map(series).collect()
}

impl Variant {
    /// The mean over the seeds of the epochs that all of them have.
    fn mean_epochs(&self) -> Vec<Epoch> {
        let shared = self.runs.iter().map(|run| run.epochs.len()).min().unwrap_or(0);
        let mean = |i: usize, value: fn(&Epoch) -> f64| {
            units::mean(self.runs.iter().map(|run| value(&run.epochs[i]))).unwrap_or(f64::NAN)
        };
        let epoch = |i| Epoch {
            seconds: mean(i, |epoch| epoch.seconds),
            train_loss: mean(i, |epoch| epoch.train_loss),
            eval_loss: mean(i, |epoch| epoch.eval_loss),
            eval_top1: mean(i, |epoch| epoch.eval_top1),
        };
        (0..shared).map(epoch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_is_counted_once() {
        let of = |layers: &[(&str, u64)]| {
            let layers = layers.iter().map(|&(name, macs)| (name.to_owned(), macs)).collect();
            Variant { layers, ..Variant::default() }
        };
        let standard = of(&[("conv1", 900), ("conv1.se.reduce", 20), ("conv10", 500)]);
        let split = of(&[("conv1.gwc", 200), ("conv1.pwc", 100), ("conv1.se.reduce", 20), ("conv10", 300)]);
        let rows = layers_before_and_after(&standard, &split).rows;
        let expected = [("conv1", [900, 300]), ("conv1.se.reduce", [20, 20]), ("conv10", [500, 300])];
        assert_eq!(rows, expected.map(|(name, macs)| (name.to_owned(), macs)));
    }
}
