//! The report: one HTML page that needs nothing but itself.
//!
//! [`Report::page`] is a pure function from numbers to text. Whatever was trained, and by whatever, becomes a [`Report`]
//! first; nothing in here reads a file or a clock.

mod chart;
mod html;

use std::fmt::Write;

use crate::units;
use chart::{Axis, Chart, Form, Series};
use html::escape;

/// What a page tells: networks that were trained by one recipe, side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// One sentence below it.
    pub subtitle: String,
    /// What is true of every run, as pairs of a name and a value: data set, epochs, recipe, CPU and so on.
    pub setup: Vec<(String, String)>,
    /// The networks, in the order of the table.
    pub variants: Vec<Variant>,
    /// The index of the network that the others are compared with in words.
    pub reference: Option<usize>,
}

/// One network and its runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// Its name in table and charts, such as `p4`.
    pub label: String,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates for one image, what the paper calls FLOPs.
    pub macs: u64,
    /// By how much that is less than the standard network's, in per cent.
    pub macs_reduction_percent: Option<f64>,
    /// Convolutions that have to run one after another.
    pub stages: u64,
    /// Measured inference time for one image, in milliseconds.
    pub ms_per_image: Option<f64>,
    /// One run for each seed.
    pub runs: Vec<Run>,
}

/// One training run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The seed of weights and data order.
    pub seed: u64,
    /// Accuracy on the held-out split at the end, in per cent.
    pub top1: f64,
    /// Training time, in seconds.
    pub seconds: f64,
    /// What each epoch ended with.
    pub epochs: Vec<Epoch>,
}

/// The end of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Epoch {
    /// Training time since the run began, in seconds.
    pub seconds: f64,
    /// Mean loss over the training batches of the epoch.
    pub train_loss: f64,
    /// Loss on the held-out split.
    pub eval_loss: f64,
    /// Accuracy on the held-out split, in per cent.
    pub eval_top1: f64,
}

impl Variant {
    /// Accuracy at the end in per cent: the mean over the seeds, or nothing without a run.
    pub fn top1(&self) -> Option<f64> {
        units::mean(self.runs.iter().map(|run| run.top1))
    }

    /// Smallest and largest accuracy over the seeds in per cent, if there is more than one.
    pub fn top1_range(&self) -> Option<[f64; 2]> {
        let fold = |[low, high]: [f64; 2], run: &Run| [low.min(run.top1), high.max(run.top1)];
        (self.runs.len() > 1).then(|| self.runs.iter().fold([f64::INFINITY, f64::NEG_INFINITY], fold))
    }

    /// Half the distance between the smallest and the largest accuracy, in percentage points.
    pub fn top1_spread(&self) -> Option<f64> {
        self.top1_range().map(|[low, high]| (high - low) / 2.0)
    }

    /// Training time in seconds, the mean over the seeds.
    pub fn seconds(&self) -> Option<f64> {
        units::mean(self.runs.iter().map(|run| run.seconds))
    }

    /// `84.1 %`, or `84.1 ± 0.3 %` with several seeds.
    pub fn top1_text(&self) -> String {
        match (self.top1(), self.top1_spread()) {
            (Some(mean), Some(spread)) => format!("{mean:.1} ± {spread:.1} %"),
            (Some(mean), None) => format!("{mean:.1} %"),
            _ => "–".to_owned(),
        }
    }

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

impl Report {
    /// The page.
    ///
    /// ```
    /// use hetconv::report::{Report, Run, Variant};
    /// let run = Run { seed: 1, top1: 84.1, seconds: 40.0, epochs: Vec::new() };
    /// let p4 = Variant { label: "p4".into(), macs: 1_280_000, runs: vec![run], ..Default::default() };
    /// let page = Report { title: "A network".into(), variants: vec![p4], ..Default::default() }.page();
    /// assert!(page.starts_with("<!doctype html>") && page.contains("84.1 %"));
    /// ```
    pub fn page(&self) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            include_str!("page.css")
        );
        if !self.subtitle.is_empty() {
            let _ = writeln!(page, "<p class=\"lead\">{}</p>", escape(&self.subtitle));
        }
        self.in_short(&mut page);
        self.table(&mut page);
        let charts: String = self.charts().into_iter().map(Chart::draw).collect();
        if !charts.is_empty() {
            let _ = write!(page, "<section>\n<h2>Charts</h2>\n<div class=\"charts\">\n{charts}</div>\n</section>\n");
        }
        self.reading(&mut page);
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }

    /// What the numbers say, in sentences.
    fn in_short(&self, page: &mut String) {
        let Some((reference, top1)) = self.reference.and_then(|i| self.variants.get(i)).and_then(with_top1) else {
            return;
        };
        let others = self.variants.iter().filter(|variant| !std::ptr::eq(*variant, reference));
        let sentences: Vec<String> = others.filter_map(with_top1).map(|v| sentence(v, (reference, top1))).collect();
        if sentences.is_empty() {
            return;
        }
        let _ = writeln!(page, "<section>\n<h2>In short</h2>\n<ul>");
        for sentence in sentences {
            let _ = writeln!(page, "<li>{sentence}</li>");
        }
        page.push_str("</ul>\n</section>\n");
    }

    fn table(&self, page: &mut String) {
        page.push_str("<section>\n<h2>Table</h2>\n<div class=\"scroll\">\n<table>\n<thead><tr>");
        for head in
            ["Variant", "Params", "MACs", "FLOPs", "Fewer MACs", "Stages", "Top-1", "Time per image", "Training time"]
        {
            let _ = write!(page, "<th scope=\"col\">{head}</th>");
        }
        page.push_str("</tr></thead>\n<tbody>\n");
        for (slot, variant) in self.variants.iter().enumerate() {
            let _ = write!(
                page,
                "<tr><th scope=\"row\"><svg class=\"s{}\" viewBox=\"-8 -8 16 16\" aria-hidden=\"true\">\
                 <path class=\"marker\" d=\"{}\"/></svg>{}</th>",
                slot % 8,
                chart::shape(slot),
                escape(&variant.label)
            );
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
            for cell in [
                units::count(variant.params),
                units::count(variant.macs),
                units::count(variant.macs.saturating_mul(2)),
                or_dash(
                    variant
                        .macs_reduction_percent
                        .filter(|&percent| percent != 0.0)
                        .map(|percent| format!("{percent:.2} %")),
                ),
                variant.stages.to_string(),
                variant.top1_text(),
                or_dash(variant.ms_per_image.map(units::milliseconds)),
                or_dash(variant.seconds().map(units::duration)),
            ] {
                let _ = write!(page, "<td>{cell}</td>");
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n</table>\n</div>\n</section>\n");
    }

    fn charts(&self) -> Vec<Chart<'_>> {
        let epochs: Vec<Vec<Epoch>> = self.variants.iter().map(Variant::mean_epochs).collect();
        let several = self.variants.iter().any(|variant| variant.runs.len() > 1);
        let seeds = if several { " Means over the seeds." } else { "" };
        let curves = |point: &dyn Fn(usize, &Epoch) -> [f64; 2]| {
            let series = self.variants.iter().zip(&epochs).enumerate().map(|(slot, (variant, epochs))| Series {
                label: &variant.label,
                slot,
                points: epochs.iter().enumerate().map(|(i, epoch)| point(i + 1, epoch)).collect(),
                spread: None,
            });
            series.collect::<Vec<_>>()
        };
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let (macs_size, macs_unit) = match most(&mut self.variants.iter().map(|variant| variant.macs as f64)) {
            most if most >= 2e9 => (1e9, "billions"),
            most if most >= 2e6 => (1e6, "millions"),
            _ => (1e3, "thousands"),
        };
        let (time_size, time_unit) = match most(&mut epochs.iter().flatten().map(|epoch| epoch.seconds)) {
            most if most >= 7_200.0 => (3_600.0, "hours"),
            most if most >= 180.0 => (60.0, "minutes"),
            _ => (1.0, "seconds"),
        };
        let against_macs = self.variants.iter().enumerate().map(|(slot, variant)| Series {
            label: &variant.label,
            slot,
            points: variant.top1().map(|top1| [variant.macs as f64 / macs_size, top1]).into_iter().collect(),
            spread: variant.top1_range(),
        });
        let accuracy = || Axis { label: "top-1 accuracy (%)".into(), from_zero: false, limits: [0.0, 100.0] };
        let from_zero = |label: String| Axis { label, from_zero: true, limits: [0.0, f64::INFINITY] };
        let loss = || Axis { label: "loss".into(), from_zero: false, limits: [f64::NEG_INFINITY, f64::INFINITY] };
        let whiskers = if several { " Whiskers reach from the worst seed to the best." } else { "" };
        vec![
            Chart {
                title: "Accuracy against MACs",
                caption: format!("Up and to the left is better.{whiskers}"),
                x: from_zero(format!("MACs per image ({macs_unit})")),
                y: accuracy(),
                form: Form::Scatter,
                series: against_macs.collect(),
            },
            Chart {
                title: "Accuracy against training time",
                caption: format!("One marker per epoch; a curve that stands further left learned faster.{seeds}"),
                x: from_zero(format!("training time ({time_unit})")),
                y: accuracy(),
                form: Form::Curves,
                series: curves(&|_, epoch| [epoch.seconds / time_size, epoch.eval_top1]),
            },
            Chart {
                title: "Training loss",
                caption: format!(
                    "Mean over the batches of each epoch, as trained: with augmentation and smoothing.{seeds}"
                ),
                x: from_zero("epoch".into()),
                y: loss(),
                form: Form::Curves,
                series: curves(&|i, epoch| [i as f64, epoch.train_loss]),
            },
            Chart {
                title: "Held-out loss",
                caption: format!("Cross-entropy on images the network never learned from.{seeds}"),
                x: from_zero("epoch".into()),
                y: loss(),
                form: Form::Curves,
                series: curves(&|i, epoch| [i as f64, epoch.eval_loss]),
            },
        ]
    }

    fn reading(&self, page: &mut String) {
        page.push_str(
            "<section>\n<h2>How to read this</h2>\n<dl>\n\
             <dt>MACs</dt><dd>Multiply-accumulates of convolutions and linear layers for one image: what the HetConv paper \
             calls FLOPs. FLOPs here are 2 · MACs.</dd>\n\
             <dt>Stages</dt><dd>Convolutions that have to run one after another, the paper’s latency. HetConv takes one, as \
             does the convolution it replaces; a grouped or depthwise one followed by a pointwise one takes two.</dd>\n\
             <dt>Top-1</dt><dd>Share of the held-out images whose class is guessed right, after the last epoch; the mean \
             over the seeds, ± half of the range.</dd>\n\
             <dt>Time per image</dt><dd>A forward pass over a batch in evaluation, the median of several, divided by the \
             number of images in it.</dd>\n\
             </dl>\n</section>\n",
        );
        if !self.setup.is_empty() {
            page.push_str("<section>\n<h2>Setup</h2>\n<dl>\n");
            for (name, value) in &self.setup {
                let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
            }
            page.push_str("</dl>\n</section>\n");
        }
    }
}

fn with_top1(variant: &Variant) -> Option<(&Variant, f64)> {
    variant.top1().map(|top1| (variant, top1))
}

/// One network beside the reference, in words; the accuracy is each one's.
fn sentence((variant, top1): (&Variant, f64), (reference, reference_top1): (&Variant, f64)) -> String {
    let macs = match 100.0 * (1.0 - variant.macs as f64 / (reference.macs.max(1)) as f64) {
        fewer if fewer >= 0.05 => format!("{fewer:.1} % fewer MACs"),
        fewer if fewer <= -0.05 => format!("{:.1} % more MACs", -fewer),
        _ => "as many MACs".to_owned(),
    };
    let stages = match (variant.stages, reference.stages) {
        (a, b) if a > b => format!("{} more {}", a - b, plural(a - b, "stage")),
        (a, b) if a < b => format!("{} fewer {}", b - a, plural(b - a, "stage")),
        _ => "no extra stage".to_owned(),
    };
    let points = top1 - reference_top1;
    let accuracy = match points {
        _ if points.abs() < 0.05 => "as accurate".to_owned(),
        _ if points > 0.0 => format!("{points:.1} points more accurate"),
        _ => format!("{:.1} points less accurate", -points),
    };
    let time = match (variant.ms_per_image, reference.ms_per_image) {
        (Some(ours), Some(theirs)) if ours > 0.0 => format!(", {:.2}× the speed", theirs / ours),
        _ => String::new(),
    };
    let (label, other) = (escape(&variant.label), escape(&reference.label));
    format!("<strong>{label}</strong> beside {other}: {macs}, {stages}{time}, {accuracy} ({top1:.1} %).")
}

fn plural(n: u64, noun: &str) -> String {
    if n == 1 { noun.to_owned() } else { format!("{noun}s") }
}
