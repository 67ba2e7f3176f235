//! A table of the paper as text, as a section of a page and as drawings.

use anyhow::Result;
use hetconv::report::{self, Cell, Drawing, Part, Row, Variant, charts};
use hetconv::units::{count, duration, milliseconds};

use super::Entry;
use super::paper::{Network, Source, Table};
use super::results::{Measurements, Results};
use super::tables::{Filled, Line, compact, filled};
use crate::cli::output::table;

/// A table of the paper with what there is.
pub fn entry(spec: &Table, results: &Results, measured: &Measurements) -> Result<Entry> {
    let filled = filled(spec, results, measured)?;
    let variants: Vec<Variant> = filled.iter().filter_map(|filled| filled.variant.clone()).collect();
    let lines: Vec<Line> = filled.into_iter().map(|Filled { line, .. }| line).collect();
    let mut notes = vec![spec.about.to_owned(), about_runs(&lines), about_times(spec, measured)];
    notes.extend(sources(spec).map(|source| format!("[{}] {}", source.number(), source.text())));
    notes.retain(|note| !note.is_empty());
    let (text, page_table) = tables(&lines);
    let origins = compact(lines.iter().map(|line| line.files.as_str()));
    let shown = (text, Part::Table(page_table));
    Entry::new([spec.name, spec.title], &lines, shown, notes, drawings(&variants), &origins)
}

fn sources(spec: &Table) -> impl Iterator<Item = Source> + '_ {
    let all = || spec.rows.iter().flat_map(|row| row.published);
    Source::ALL.into_iter().filter(move |source| all().any(|published| published.source == *source))
}

/// The data, recipe and further settings of a row's runs, if it has any.
fn setting(line: &Line) -> String {
    let more = if line.more_settings.is_empty() { String::new() } else { format!(", {}", line.more_settings) };
    if line.seeds == 0 { String::new() } else { format!("{}, {} recipe{more}", line.data, line.recipe) }
}

/// The data and recipes that there are.
fn settings(lines: &[Line]) -> Vec<String> {
    let mut settings: Vec<String> = lines.iter().map(setting).filter(|setting| !setting.is_empty()).collect();
    settings.sort();
    settings.dedup();
    settings
}

/// What all runs of a table share, and how to get those that are missing.
fn about_runs(lines: &[Line]) -> String {
    let settings = settings(lines);
    let runs = if settings.is_empty() { String::new() } else { format!("Runs: {}.", settings.join("; ")) };
    let has_spread = lines.iter().any(|line| line.top1_spread.is_some());
    let spread = if has_spread { "± is half of the range over the seeds." } else { "" };
    let is_missing = lines.iter().any(|line| line.status.starts_with("no run") || line.status.contains("epochs done"));
    let missing = if is_missing { "Rows without a run are trained, and pruned, by --run." } else { "" };
    let said = [runs.as_str(), spread, missing];
    said.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// On what the times of a table were measured, if any were.
fn about_times(spec: &Table, measured: &Measurements) -> String {
    let names = spec.rows.iter().filter_map(|row| match row.network {
        Network::Named(name) => Some(name),
        Network::Pruned { .. } | Network::Elsewhere(_) => None,
    });
    let names: Vec<&str> = names.collect();
    let Some(machine) = measured.made_on(&names) else { return String::new() };
    let training = if spec.is_trained { " Training is a run's steps at the measured time of one." } else { "" };
    format!("Times measured on {machine}.{training}")
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

fn top1(line: &Line) -> Option<String> {
    line.top1.map(|top1| match line.top1_spread {
        Some(spread) => format!("{:.2} ± {:.2} %", percent(top1), percent(spread)),
        None => format!("{:.2} %", percent(top1)),
    })
}

fn to_goal(line: &Line) -> Cell {
    let text = match (line.standard_top1, line.epochs_to_standard_top1, line.seconds_to_standard_top1) {
        (None, ..) => String::new(),
        (Some(_), None, _) => "not reached".to_owned(),
        (Some(_), Some(1), None) => "1 epoch".to_owned(),
        (Some(_), Some(epochs), None) => format!("{epochs} epochs"),
        (Some(_), Some(1), Some(seconds)) => format!("{} (1 epoch)", duration(seconds)),
        (Some(_), Some(epochs), Some(seconds)) => format!("{} ({epochs} epochs)", duration(seconds)),
    };
    Cell { text, value: line.seconds_to_standard_top1, is_prose: false }
}

fn reduction(percent: f64) -> String {
    if percent == 0.0 { "–".to_owned() } else { format!("{percent:.1} %") }
}

/// A column of a table: its head, what stands in it, and whether that is words.
struct Column {
    head: &'static str,
    cell: fn(&Line) -> Cell,
    is_words: bool,
}

const fn numbers(head: &'static str, cell: fn(&Line) -> Cell) -> Column {
    Column { head, cell, is_words: false }
}

const fn words(head: &'static str, cell: fn(&Line) -> Cell) -> Column {
    Column { head, cell, is_words: true }
}

/// A column that stands only where rows differ in it.
const SETTING: &str = "data and recipe";

/// The columns behind the network's name; those in which nothing stands are left out.
const COLUMNS: [Column; 13] = [
    numbers("MACs", |line| Cell::optional(line.macs.map(|n| n as f64), |n| count(n as u64))),
    numbers("fewer", |line| Cell::optional(line.macs_reduction_percent, reduction)),
    numbers("params", |line| Cell::optional(line.params.map(|n| n as f64), |n| count(n as u64))),
    numbers("stages", |line| Cell::optional(line.stages.map(|n| n as f64), |n| n.to_string())),
    numbers("ms, batch 1", |line| Cell::optional(line.ms_batch_1, milliseconds)),
    numbers("ms/image, batch 64", |line| Cell::optional(line.ms_per_image_batch_64, milliseconds)),
    numbers("top-1", |line| Cell {
        text: top1(line).unwrap_or_else(|| line.status.clone()),
        value: line.top1,
        is_prose: false,
    }),
    numbers("seeds × epochs", |line| {
        Cell::optional(line.epochs.map(|n| n as f64), |epochs| format!("{} × {epochs}", line.seeds))
    }),
    numbers("training MACs", |line| Cell::optional(line.training_macs.map(|n| n as f64), |n| count(n as u64))),
    numbers("training", |line| Cell::optional(line.training_seconds, duration)),
    numbers("to standard's top-1", to_goal),
    words(SETTING, |line| Cell::prose(setting(line))),
    words("published", |line| Cell::prose(line.published.clone())),
];

/// The table for the terminal and for a page, which has room for where figures stand as well.
fn tables(lines: &[Line]) -> (String, report::Table) {
    let has_settings = settings(lines).len() > 1;
    let stands = |column: &&Column| {
        (has_settings || column.head != SETTING)
            && lines
                .iter()
                .map(column.cell)
                .any(|cell| cell.value.is_some() || !["", "–"].contains(&cell.text.as_str()))
    };
    let columns: Vec<&Column> = COLUMNS.iter().filter(stands).collect();
    let heads: Vec<&str> = std::iter::once("network").chain(columns.iter().map(|column| column.head)).collect();
    let left: Vec<&str> = columns.iter().filter(|column| column.is_words).map(|column| column.head).collect();
    let mut text = table(&heads, &[&["network"], left.as_slice()].concat());
    let has_files = lines.iter().any(|line| !line.files.is_empty());
    let heads = heads.into_iter().chain(has_files.then_some("from"));
    let mut page = report::Table { heads: heads.map(str::to_owned).collect(), rows: Vec::new() };
    let mut slot = 0;
    for line in lines {
        let mut cells: Vec<Cell> = columns.iter().map(|column| (column.cell)(line)).collect();
        text.add_row(std::iter::once(line.network.clone()).chain(cells.iter().map(|cell| cell.text.clone())));
        if has_files {
            cells.push(Cell::prose(line.files.clone()));
        }
        // Rows that are networks here are what charts show, in the same order.
        let is_drawn = line.macs.is_some();
        page.rows.push(Row { slot: is_drawn.then_some(slot), label: line.network.clone(), cells });
        slot += usize::from(is_drawn);
    }
    (text.to_string(), page)
}

fn drawings(variants: &[Variant]) -> Vec<(String, Drawing)> {
    let all: [(&str, Option<Drawing>); 5] = [
        ("accuracy-macs", charts::accuracy_against_macs(variants).draw()),
        ("accuracy-time", charts::accuracy_against_time(variants).draw()),
        ("accuracy-training", charts::accuracy_against_training_time(variants).draw()),
        ("held-out-loss", charts::held_out_loss(variants).draw()),
        ("layers", before_and_after(variants)),
    ];
    all.into_iter().filter_map(|(name, drawing)| Some((name.to_owned(), drawing?))).collect()
}

/// The table's first network and the first that is the same with HetConv.
fn before_and_after(variants: &[Variant]) -> Option<Drawing> {
    let before = variants.first()?;
    let after = variants.iter().find(|variant| variant.pattern.is_some())?;
    charts::layers_before_and_after(before, after).draw()
}
