//! Figures 3, 4 and 5.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use hetconv::core::equations::Layer;
use hetconv::core::{HetPattern, PatternError};
use hetconv::report::{Axis, Cell, Chart, Form as ChartForm, Part, Row, Series, Table, filter_bank};
use hetconv::units::{count, milliseconds};
use serde::Serialize;

use super::Entry;
use super::layers::{Form, REPEATED, Shape, chain, trainable_chain};
use super::measure::{Subject, Wanted};
use super::results::{Measurement, Measurements, What};
use super::tables::compact;
use crate::cli::output::table;
use crate::cli::usage::bad_usage;

/// The most channels and filters that can be told apart in a drawing.
const MOST_DRAWN: usize = 64;

/// A kernel of figure 3.
#[derive(Serialize)]
struct Kernel {
    filter: usize,
    channel: usize,
    /// Taps on a side.
    kernel: usize,
}

/// Figure 3: the filter bank.
pub fn filters([channels, filters, parts]: [usize; 3]) -> Result<Entry> {
    if channels > MOST_DRAWN || filters > MOST_DRAWN {
        bad_usage!("--bank {channels},{filters},{parts}: at most {MOST_DRAWN} channels and filters can be drawn");
    }
    let pattern = match HetPattern::shifted(channels, filters, parts) {
        Ok(pattern) => pattern,
        Err(error @ (PatternError::NoParts | PatternError::MoreThanChannels { .. } | PatternError::Size { .. })) => {
            bad_usage!("--bank {channels},{filters},{parts}: {error}")
        }
        Err(error) => return Err(error.into()),
    };
    let size = |f, c| if pattern.is_spatial(f, c) { 3 } else { 1 };
    let kernels: Vec<Kernel> = (0..filters)
        .flat_map(|filter| (0..channels).map(move |channel| (filter, channel)))
        .map(|(filter, channel)| Kernel { filter, channel, kernel: size(filter, channel) })
        .collect();
    let rows = kernels.chunks(channels).map(|row| {
        row.iter().map(|kernel| if kernel.kernel > 1 { "■ " } else { "· " }).collect::<String>().trim_end().to_owned()
    });
    let text =
        format!("channels →, filters ↓; ■ a 3×3 kernel, · a 1×1 kernel\n\n{}", rows.collect::<Vec<_>>().join("\n"));
    let about = format!(
        "M = {channels} channels, N = {filters} filters, P = {parts}: of its {channels} kernels a filter keeps one in \
         {parts} 3×3, one channel further from filter to filter."
    );
    let drawing = filter_bank(&pattern, 3, MOST_DRAWN);
    let part = Part::Text("Drawn from the pattern that the kernels compute.".into());
    let names = ["fig3", "The filter bank of a HetConv layer"];
    Entry::new(names, &kernels, (text, part), vec![about], vec![("bank".to_owned(), drawing)], "")
}

/// The layers of figure 4, and the one of figure 5.
const SHAPES: [Shape; 2] = [Shape { channels: 64, size: 56 }, Shape { channels: 256, size: 14 }];
const BATCH_OF_SPEEDUP: usize = 8;

/// A layer of figure 4.
#[derive(Serialize)]
struct Latency {
    layer: String,
    form: String,
    /// Channels between its two convolutions, where they could be chosen.
    width: Option<usize>,
    macs: u64,
    /// Against the HetConv layer that it is compared with.
    macs_ratio: f64,
    stages: u64,
    ms: Option<f64>,
    ms_ratio: Option<f64>,
    files: String,
}

/// HetConv layers, each with what else can be made of about as many MACs; below the first the standard layer.
fn contests(shape: Shape) -> Result<Vec<Vec<Form>>> {
    let contest = |parts: usize, others: &[Form]| {
        let het = Form::Het { parts };
        let macs = chain(het, shape, 1)?.cost()?.macs;
        let others = others.iter().map(|other| other.with_macs(shape, macs));
        std::iter::once(Ok(het)).chain(others).collect::<Result<Vec<Form>>>()
    };
    let (grouped, inception) =
        (Form::GroupPointwise { groups: 4, width: 0 }, Form::Inception { branches: 4, width: 0 });
    Ok(vec![
        contest(4, &[Form::Standard, grouped, inception])?,
        contest(shape.channels, &[Form::DepthwisePointwise, Form::Xception])?,
    ])
}

/// What figure 4 needs measured.
pub fn wanted_latencies() -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for shape in SHAPES {
        for form in contests(shape)?.into_iter().flatten() {
            let subject = Subject::Own(chain(form, shape, REPEATED)?);
            wanted.push(Wanted { what: What::Inference, subject, batch: 1 });
        }
    }
    Ok(wanted)
}

/// Figure 4: stages and latency of one layer in several forms.
pub fn latencies(measurements: &Measurements) -> Result<Entry> {
    let mut lines: Vec<Latency> = Vec::new();
    let mut used = Vec::new();
    for shape in SHAPES {
        for contest in contests(shape)? {
            let first = lines.len();
            for form in contest {
                let graph = chain(form, shape, REPEATED)?;
                let cost = graph.cost()?;
                let found = measurements.get(What::Inference, &graph.name, 1);
                used.extend(found);
                let macs = cost.macs / REPEATED as u64;
                let ms = found.map(|(found, _)| found.median_ms / REPEATED as f64);
                let (het_macs, het_ms) = lines.get(first).map_or((macs, ms), |line| (line.macs, line.ms));
                lines.push(Latency {
                    layer: format!("{0} to {0} channels at {1}×{1}", shape.channels, shape.size),
                    form: form.name(),
                    width: form.width(),
                    macs,
                    macs_ratio: macs as f64 / het_macs as f64,
                    stages: cost.stages / REPEATED as u64,
                    ms,
                    ms_ratio: ms.zip(het_ms).map(|(ms, het)| ms / het),
                    files: found.map_or(String::new(), |(_, origin)| origin.clone()),
                });
            }
        }
    }
    let heads = ["layer", "form", "width", "MACs", "× HetConv", "stages", "latency", "× HetConv's"];
    let cells = |line: &Latency| {
        [
            Cell::prose(line.form.clone()),
            Cell::optional(line.width.map(|width| width as f64), |width| format!("{width:.0}")),
            Cell::number(line.macs as f64, count(line.macs)),
            Cell::number(line.macs_ratio, format!("{:.2}", line.macs_ratio)),
            Cell::number(line.stages as f64, line.stages.to_string()),
            match line.ms {
                Some(ms) => Cell::number(ms, milliseconds(ms)),
                None => Cell { text: "not measured".into(), ..Cell::default() },
            },
            Cell::optional(line.ms_ratio, |ratio| format!("{ratio:.2}")),
        ]
    };
    let (text, page_table) =
        tables(&heads, &["layer", "form"], lines.iter().map(|line| (&line.layer, cells(line), &line.files)));
    let notes = vec![
        "Each form stands below the HetConv layer with about as many MACs (but for the standard layer, which has more); \
         widths between two convolutions are chosen to make them equal. Ratios are against that HetConv layer."
            .to_owned(),
        measured(&used, "latency", "in the inference runtime, one image at a time, of a chain of 8 layers"),
    ];
    let drawings = SHAPES.iter().filter_map(|shape| {
        let layer = format!("{0} to {0} channels at {1}×{1}", shape.channels, shape.size);
        let own = lines.iter().filter(|line| line.layer == layer).enumerate();
        let series = own.map(|(slot, line)| Series {
            label: format!("{} ({})", line.form, line.stages),
            slot,
            points: line.ms.map(|ms| [line.macs as f64 / 1e6, ms]).into_iter().collect(),
            spread: None,
        });
        let chart = Chart {
            title: format!("Latency of one layer, {layer}"),
            caption: "Down and to the left is better; stages in brackets.".into(),
            x: Axis::from_zero("MACs (millions)"),
            y: Axis::from_zero("latency (ms)"),
            form: ChartForm::Scatter,
            series: series.collect(),
        };
        Some((format!("latency-{}", shape.channels), chart.draw()?))
    });
    let origins = compact(lines.iter().map(|line| line.files.as_str()));
    let names = ["fig4", "Stages and latency of one layer"];
    Entry::new(names, &lines, (text, Part::Table(page_table)), notes, drawings.collect(), &origins)
}

/// A number of parts of figure 5.
#[derive(Serialize)]
struct Speedup {
    parts: usize,
    /// Equation 5: the standard layer's MACs over these.
    theory: f64,
    forward: Option<f64>,
    /// Without Winograd's algorithm, in HetConv and in the standard layer.
    exact_forward: Option<f64>,
    training_step: Option<f64>,
    files: String,
}

/// What a curve shows of a number of parts.
type Column = fn(&Speedup) -> Option<f64>;

/// How each of the measured columns is measured.
const WAYS: [What; 3] = [What::Inference, What::ExactInference, What::TrainingStep];

fn speedup_shape() -> Shape {
    SHAPES[1]
}

fn speedup_parts() -> Vec<usize> {
    let channels = speedup_shape().channels;
    std::iter::successors(Some(1), |parts| Some(2 * parts)).take_while(|&parts| parts <= channels).collect()
}

fn speedup_network(what: What, parts: usize) -> Result<Wanted> {
    let form = if parts == 1 { Form::Standard } else { Form::Het { parts } };
    let graph = match what {
        What::TrainingStep => trainable_chain(form, speedup_shape(), REPEATED)?,
        What::Inference | What::ExactInference => chain(form, speedup_shape(), REPEATED)?,
    };
    Ok(Wanted { what, subject: Subject::Own(graph), batch: BATCH_OF_SPEEDUP })
}

/// What figure 5 needs measured.
pub fn wanted_speedups() -> Result<Vec<Wanted>> {
    let pairs = WAYS.into_iter().flat_map(|what| speedup_parts().into_iter().map(move |parts| (what, parts)));
    pairs.map(|(what, parts)| speedup_network(what, parts)).collect()
}

/// Figure 5: how much faster HetConv is than the standard layer, by the equations and by the clock.
pub fn speedups(measurements: &Measurements) -> Result<Entry> {
    let Shape { channels, size } = speedup_shape();
    let layer = Layer { in_channels: channels, out_channels: channels, kernel: 3, output: size };
    let mut lines = Vec::new();
    let mut used = Vec::new();
    for parts in speedup_parts() {
        let mut files: Vec<&str> = Vec::new();
        let mut measured = |what| -> Result<Option<f64>> {
            let [standard, own] = [1, parts].map(|parts| {
                let wanted = speedup_network(what, parts)?;
                anyhow::Ok(measurements.get(what, wanted.subject.name(), wanted.batch))
            });
            let Some((standard, own)) = standard?.zip(own?) else { return Ok(None) };
            used.extend([standard, own]);
            files.extend([standard.1.as_str(), own.1.as_str()]);
            Ok(Some(standard.0.median_ms / own.0.median_ms))
        };
        let [forward, exact_forward, training_step] = WAYS.map(&mut measured);
        let (forward, exact_forward, training_step) = (forward?, exact_forward?, training_step?);
        let theory = 1.0 / layer.het_ratio(parts);
        let files = compact(files.into_iter());
        lines.push(Speedup { parts, theory, forward, exact_forward, training_step, files });
    }
    let heads = ["P", "theory (equation 5)", "forward", "forward, no Winograd", "training step"];
    let times = |value: Option<f64>| match value {
        Some(value) => Cell::number(value, format!("{value:.2}×")),
        None => Cell { text: "not measured".into(), ..Cell::default() },
    };
    let cells = |line: &Speedup| [Some(line.theory), line.forward, line.exact_forward, line.training_step].map(times);
    let labels: Vec<String> = lines.iter().map(|line| line.parts.to_string()).collect();
    let rows = labels.iter().zip(&lines).map(|(label, line)| (label, cells(line), &line.files));
    let (text, page_table) = tables(&heads, &[], rows);
    let columns: [(&str, Column); 4] = [
        ("theory", |line| Some(line.theory)),
        ("forward", |line| line.forward),
        ("no Winograd", |line| line.exact_forward),
        ("training", |line| line.training_step),
    ];
    let series = columns.iter().enumerate().map(|(slot, (label, value))| Series {
        label: (*label).to_owned(),
        slot,
        points: lines.iter().filter_map(|line| Some([line.parts as f64, value(line)?])).collect(),
        spread: None,
    });
    let chart = Chart {
        title: format!("Speed-up against P, {channels} to {channels} channels at {size}×{size}"),
        caption: "Against the standard convolution computed in the same way.".into(),
        x: Axis::doublings("P"),
        y: Axis::from_zero("times as fast"),
        form: ChartForm::Curves,
        series: series.collect(),
    };
    let drawing = chart.draw().context("the equations gave no point")?;
    let notes = vec![
        format!(
            "{channels} to {channels} channels, 3×3, at {size}×{size}, {BATCH_OF_SPEEDUP} images; ratios of medians. With \
             Winograd's algorithm the standard layer is faster, so there is less to gain."
        ),
        measured(&used, "speed-up", "of a chain of 8 layers; a training step is forward, backward and optimizer"),
    ];
    let origins = compact(lines.iter().map(|line| line.files.as_str()));
    let (shown, drawings) = ((text, Part::Table(page_table)), vec![("speedup".to_owned(), drawing)]);
    Entry::new(["fig5", "Speed-up against P"], &lines, shown, notes, drawings, &origins)
}

/// How what a figure shows was measured, and on what.
fn measured(used: &[&(Measurement, String)], what: &str, how: &str) -> String {
    let place = |(line, origin): &(Measurement, String)| {
        let file = origin.rsplit_once(':').map_or(origin.as_str(), |(file, _)| file);
        format!("{}, {} threads, {}; {file}", line.machine, line.threads, line.isa)
    };
    let places: BTreeSet<String> = used.iter().map(|found| place(found)).collect();
    if places.is_empty() {
        return format!("No {what} is measured; --measure does it here, {how}.");
    }
    format!("Measured {how}: {}", places.into_iter().collect::<Vec<_>>().join("; "))
}

/// A table for the terminal and for a page, which has room for where figures stand as well.
fn tables<'a, const N: usize>(
    heads: &[&str],
    left: &[&str],
    rows: impl Iterator<Item = (&'a String, [Cell; N], &'a String)>,
) -> (String, Table) {
    let mut text = table(heads, left);
    let page_heads = heads.iter().chain(&["from"]).map(|head| (*head).to_owned());
    let mut page = Table { heads: page_heads.collect(), rows: Vec::new() };
    for (label, cells, files) in rows {
        text.add_row(std::iter::once(label.clone()).chain(cells.iter().map(|cell| cell.text.clone())));
        let cells = cells.into_iter().chain([Cell::prose(files.clone())]);
        page.rows.push(Row { slot: None, label: label.clone(), cells: cells.collect() });
    }
    (text.to_string(), page)
}
