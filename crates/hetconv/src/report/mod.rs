//! The report: one HTML page that needs nothing but itself.
//!
//! [`Report::page`] is a pure function from numbers to text. Whatever was trained, and by whatever, becomes a [`Report`]
//! first; nothing in here reads a file or a clock. A [`Page`] is made of [`Table`]s and [`Drawing`]s, and those of
//! [`Chart`]s, [`Bars`] and [`filter_bank`]s, which other pages are made of as well.

mod bank;
mod bars;
mod chart;
pub mod charts;
mod drawing;
mod html;
mod page;
mod svg;
mod table;

use hetconv_core::HetPattern;
use hetconv_graph::{ConvKind, Graph, GraphError, Op};

use crate::units;
pub use bank::filter_bank;
pub use bars::Bars;
pub use chart::{Axis, Chart, Form, Series};
pub use drawing::Drawing;
pub use page::{Page, Part, Section};
pub use table::{Cell, Row, Table};

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
    /// Name and MACs of every layer that has any.
    pub layers: Vec<(String, u64)>,
    /// Pattern and kernel height of the first HetConv layer, if there is one.
    pub pattern: Option<(HetPattern, usize)>,
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
    /// What a network costs, without a time and without runs.
    ///
    /// # Errors
    /// A graph that is not a network.
    pub fn of_graph(label: impl Into<String>, graph: &Graph) -> Result<Self, GraphError> {
        let cost = graph.cost()?;
        let pattern = graph.nodes.iter().find_map(|node| match &node.op {
            Op::Conv2d { kind: ConvKind::Het(pattern), geometry, .. } => Some((pattern.clone(), geometry.kernel[0])),
            _ => None,
        });
        let layers = cost.layers.into_iter().filter(|layer| layer.macs > 0).map(|layer| (layer.name, layer.macs));
        Ok(Self {
            label: label.into(),
            params: cost.params,
            macs: cost.macs,
            stages: cost.stages,
            layers: layers.collect(),
            pattern,
            ..Self::default()
        })
    }

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

    /// Training time in seconds, the mean over the seeds; nothing if it is not known of all runs, whose seconds are not
    /// finite then.
    pub fn seconds(&self) -> Option<f64> {
        units::mean(self.runs.iter().map(|run| run.seconds)).filter(|seconds| seconds.is_finite())
    }

    /// The same, with training times that are not known.
    #[must_use]
    pub fn without_training_times(mut self) -> Self {
        for run in &mut self.runs {
            run.seconds = f64::NAN;
            run.epochs.iter_mut().for_each(|epoch| epoch.seconds = f64::NAN);
        }
        self
    }

    /// `84.1 %`, or `84.1 ± 0.3 %` with several seeds.
    pub fn top1_text(&self) -> String {
        match (self.top1(), self.top1_spread()) {
            (Some(mean), Some(spread)) => format!("{mean:.1} ± {spread:.1} %"),
            (Some(mean), None) => format!("{mean:.1} %"),
            _ => "–".to_owned(),
        }
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
        let section = |heading: &str, parts| Section { heading: heading.into(), parts };
        let mut sections = vec![
            section("In short", self.in_short()),
            section("Table", vec![Part::Table(table(&self.variants))]),
            section("Charts", drawn(charts::charts(&self.variants).into_iter().map(Chart::draw))),
            section("Layer by layer", self.layers()),
            section("The layer itself", drawn([self.bank()])),
            section("How to read this", vec![Part::Definitions(reading())]),
        ];
        if !self.setup.is_empty() {
            sections.push(section("Setup", vec![Part::Definitions(self.setup.clone())]));
        }
        Page { title: self.title.clone(), lead: self.subtitle.clone(), sections }.html()
    }

    /// What the numbers say, in sentences.
    fn in_short(&self) -> Vec<Part> {
        let Some((reference, top1)) = self.reference.and_then(|i| self.variants.get(i)).and_then(with_top1) else {
            return Vec::new();
        };
        let others = self.variants.iter().filter(|variant| !std::ptr::eq(*variant, reference));
        let sentences: Vec<_> = others.filter_map(with_top1).map(|v| sentence(v, (reference, top1))).collect();
        if sentences.is_empty() { Vec::new() } else { vec![Part::List(sentences)] }
    }

    /// The network that the reference became with the convolution all this is about, or with another.
    fn after(&self) -> Option<&Variant> {
        let others = || self.variants.iter().enumerate().filter(|(i, _)| Some(*i) != self.reference).map(|(_, v)| v);
        others().find(|variant| variant.pattern.is_some()).or_else(|| others().next())
    }

    fn layers(&self) -> Vec<Part> {
        let before = self.reference.and_then(|i| self.variants.get(i));
        let Some((before, after)) = before.zip(self.after()) else { return Vec::new() };
        drawn([charts::layers_before_and_after(before, after).draw()])
    }

    fn bank(&self) -> Option<Drawing> {
        let (pattern, kernel) = self.after()?.pattern.as_ref()?;
        Some(filter_bank(pattern, *kernel, 16))
    }
}

/// Those drawings that there are, side by side.
pub fn drawn(drawings: impl IntoIterator<Item = Option<Drawing>>) -> Vec<Part> {
    let drawings: Vec<Drawing> = drawings.into_iter().flatten().collect();
    if drawings.is_empty() { Vec::new() } else { vec![Part::Drawings(drawings)] }
}

/// The networks as rows.
fn table(variants: &[Variant]) -> Table {
    let heads =
        ["Variant", "Params", "MACs", "FLOPs", "Fewer MACs", "Stages", "Top-1", "Time per image", "Training time"];
    let count = |n: u64| Cell::number(n as f64, units::count(n));
    let row = |(slot, variant): (usize, &Variant)| Row {
        slot: Some(slot),
        label: variant.label.clone(),
        cells: vec![
            count(variant.params),
            count(variant.macs),
            count(variant.macs.saturating_mul(2)),
            Cell::optional(variant.macs_reduction_percent.filter(|&percent| percent != 0.0), |percent| {
                format!("{percent:.2} %")
            }),
            Cell::number(variant.stages as f64, variant.stages.to_string()),
            Cell::optional(variant.top1(), |_| variant.top1_text()),
            Cell::optional(variant.ms_per_image, units::milliseconds),
            Cell::optional(variant.seconds(), units::duration),
        ],
    };
    Table { heads: heads.map(str::to_owned).into(), rows: variants.iter().enumerate().map(row).collect() }
}

/// What the words of a page mean.
pub fn reading() -> Vec<(String, String)> {
    let meanings = [
        (
            "MACs",
            "Multiply-accumulates of convolutions and linear layers for one image: what the HetConv paper calls FLOPs. \
             FLOPs here are 2 · MACs.",
        ),
        (
            "Stages",
            "Convolutions that have to run one after another, the paper’s latency. HetConv takes one, as does the \
             convolution it replaces; a grouped or depthwise one followed by a pointwise one takes two.",
        ),
        (
            "Top-1",
            "Share of the held-out images whose class is guessed right, after the last epoch; the mean over the seeds, \
             ± half of the range.",
        ),
        (
            "Time per image",
            "A forward pass over a batch in the inference runtime, the median of several, divided by the number of images \
             in it.",
        ),
    ];
    meanings.map(|(name, meaning)| (name.to_owned(), meaning.to_owned())).into()
}

fn with_top1(variant: &Variant) -> Option<(&Variant, f64)> {
    variant.top1().map(|top1| (variant, top1))
}

/// One network beside the reference, in words; the accuracy is each one's.
fn sentence((variant, top1): (&Variant, f64), (reference, reference_top1): (&Variant, f64)) -> (String, String) {
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
    let beside = format!(" beside {}: {macs}, {stages}{time}, {accuracy} ({top1:.1} %).", reference.label);
    (variant.label.clone(), beside)
}

fn plural(n: u64, noun: &str) -> String {
    if n == 1 { noun.to_owned() } else { format!("{noun}s") }
}
