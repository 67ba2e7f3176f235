//! `hetconv reproduce`: the paper's tables and figures, the published figures beside ours.

mod figures;
mod layers;
mod measure;
mod paper;
pub mod results;
mod show;
mod tables;
mod train;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hetconv::graph::nearest;
use hetconv::kernels::Isa;
use hetconv::kernels::measure::cpu_name;
use hetconv::report::{self, Drawing, Page, Part, Section};
use serde::Serialize;

use super::files;
use super::output::Output;
use super::train::Settings;
use super::usage::bad_usage;
use measure::{Subject, TRAINING_BATCH, Wanted};
use paper::{Network, TABLES, Table};
use results::{Results, What};
use train::Order;

/// Set the paper's tables and figures beside what this program counts, measures and trains
#[derive(clap::Args)]
#[command(after_help = "\
Parameters, MACs and stages are counted from the networks. Accuracies come from finished runs in folders below --runs and \
from RESULTS/runs.csv; times from OUT/measurements.csv and RESULTS/measurements.csv. OUT/NAME.csv and the page say \
where the figures of each row stand; a row that has no run says so. --run trains what is missing, with --epochs, --seeds \
and --time as limits, and goes on with what was interrupted; --measure measures times on this machine. Writes \
OUT/NAME.csv and OUT/NAME-*.svg.

Examples:
  hetconv reproduce all --html paper.html
  hetconv reproduce table5 fig4 fig5 --measure
  hetconv reproduce table1 --run --data cifar10 --epochs 10 --time 90
  hetconv reproduce fig3 --bank 16,8,4")]
pub struct Args {
    /// table1 to table7, fig3, fig4, fig5, or all
    #[arg(required = true, value_name = "NAME")]
    items: Vec<String>,

    /// The folder of runs: where they are found, and where --run puts them
    #[arg(long, value_name = "DIR", default_value = "runs/reproduce")]
    runs: PathBuf,

    /// A folder with runs.csv, epochs.csv and measurements.csv [default: docs/results, if it is there]
    #[arg(long, value_name = "RESULTS")]
    results: Option<PathBuf>,

    /// Where tables, drawings and measurements go
    #[arg(long, value_name = "OUT", default_value = "reproduced")]
    out: PathBuf,

    /// Train what is missing, and go on with what was interrupted
    #[arg(long)]
    run: bool,

    /// Measure times on this machine
    #[arg(long)]
    measure: bool,

    /// Train no longer than so many minutes
    #[arg(long, value_name = "MINUTES", requires = "run")]
    time: Option<f64>,

    /// The data set of what is trained [default: cifar10]
    #[arg(long, value_name = "PATH", requires = "run")]
    data: Option<String>,

    /// Seeds of what is trained [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "run")]
    seeds: Vec<u64>,

    #[command(flatten)]
    settings: Settings,

    /// Channels, filters and parts of figure 3 [default: 16,8,4]
    #[arg(long, value_name = "M,N,P", value_delimiter = ',')]
    bank: Vec<usize>,

    /// Write everything into one HTML page as well
    #[arg(long, value_name = "PAGE")]
    html: Option<PathBuf>,
}

/// Where results lie in this project.
const RESULTS: &str = "docs/results";

const FIGURES: [&str; 3] = ["fig3", "fig4", "fig5"];

/// A table or figure, ready for all that is made of it.
pub struct Entry {
    name: &'static str,
    text: String,
    json: serde_json::Value,
    csv: String,
    section: Section,
    drawings: Vec<(String, Drawing)>,
}

impl Entry {
    /// From its lines, its table as text and as part of a page, what is to be said about it, its drawings, and the files and
    /// lines that its figures come from.
    fn new<T: Serialize>(
        [name, title]: [&'static str; 2],
        lines: &[T],
        (text, part): (String, Part),
        notes: Vec<String>,
        drawings: Vec<(String, Drawing)>,
        origins: &str,
    ) -> Result<Self> {
        let heading = format!("{}: {title}", name.replace("table", "Table ").replace("fig", "Figure "));
        let from = if origins.is_empty() { String::new() } else { format!("\nFrom    {origins}") };
        let mut parts = vec![part];
        parts.extend(notes.iter().cloned().map(Part::Text));
        parts.extend(report::drawn(drawings.iter().map(|(_, drawing)| Some(drawing.clone()))));
        Ok(Self {
            name,
            text: format!("{heading}\n\n{text}\n\n{}{from}", notes.join("\n")),
            json: serde_json::to_value(lines)?,
            csv: files::csv_text(lines)?,
            section: Section { heading, parts },
            drawings,
        })
    }
}

/// What was made, as JSON has it.
#[derive(Serialize)]
struct Reproduced {
    name: &'static str,
    rows: serde_json::Value,
    files: Vec<PathBuf>,
    #[serde(skip)]
    text: String,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let items = items(&args.items)?;
    args.html.iter().try_for_each(|page| files::is_page_or_new(page))?;
    let bank = match args.bank.as_slice() {
        [] => [16, 8, 4],
        _ if !items.contains(&"fig3") => bad_usage!("--bank is what fig3 draws, which is not asked for"),
        &[channels, filters, parts] => [channels, filters, parts],
        _ => bad_usage!("--bank needs three numbers: channels, filters and parts, such as 16,8,4"),
    };
    let time = match args.time {
        Some(minutes) if !(0.0..1e6).contains(&minutes) => {
            bad_usage!("--time {minutes}: a number of minutes is needed")
        }
        time => time.map(|minutes| Duration::from_secs_f64(60.0 * minutes)),
    };
    let tables: Vec<&Table> = TABLES.iter().filter(|table| items.contains(&table.name)).collect();
    if args.run {
        if !tables.iter().any(|table| table.is_trained) {
            let trained: Vec<&str> = TABLES.iter().filter(|table| table.is_trained).map(|table| table.name).collect();
            bad_usage!("--run trains the networks of {}, none of which is asked for", trained.join(", "));
        }
        let Args { settings, runs: folder, .. } = args;
        let data = args.data.as_deref().unwrap_or("cifar10");
        let seeds = if args.seeds.is_empty() { &[0] } else { &args.seeds[..] };
        train::missing(&tables, &Order { data, settings, seeds, folder, time }, &read(args)?)?;
    } else if args.settings != Settings::default() {
        bad_usage!("settings of training, such as --epochs, need --run");
    }
    if args.measure {
        let command = format!("hetconv reproduce {} --measure", items.join(" "));
        let wanted = wanted(&tables, &items)?;
        if wanted.is_empty() {
            bad_usage!("--measure takes times, of which {} has none", items.join(", "));
        }
        measure::measure(&wanted, &command, |found| results::add_measurements(&args.out, found))?;
    }
    if items != ["fig3"] && args.results.is_none() && !Path::new(RESULTS).is_dir() {
        tracing::warn!(
            "there is no {RESULTS} here, so that only what was made here is shown; --results names a folder"
        );
    }
    let results = read(args)?;
    let (machine, isa, threads) = (cpu_name(), Isa::selected()?.name(), rayon::current_num_threads());
    let mut entries = Vec::new();
    for &item in &items {
        let table = TABLES.iter().find(|table| table.name == item);
        let measured = results.measurements.alike(&wanted(table.as_slice(), &[item])?, (&machine, isa, threads));
        entries.push(match (item, table) {
            (_, Some(table)) => show::entry(table, &results, &measured)?,
            ("fig4", _) => figures::latencies(&measured)?,
            ("fig5", _) => figures::speedups(&measured)?,
            _ => figures::filters(bank)?,
        });
    }
    let reproduced = entries.iter().map(|entry| write(args, entry)).collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.html {
        files::write_text(path, &page(entries).html())?;
    }
    output.result(&reproduced, |reproduced| {
        let page = args.html.iter().map(|page| format!("Page    {}", page.display()));
        let texts = reproduced.iter().map(|entry| entry.text.clone());
        let files = format!("Files   {}", args.out.display());
        texts.chain([files]).chain(page).collect::<Vec<_>>().join("\n\n")
    })
}

/// The names asked for, each once, in the paper's order.
fn items(asked: &[String]) -> Result<Vec<&'static str>> {
    let known: Vec<&str> = TABLES.iter().map(|table| table.name).chain(FIGURES).collect();
    if let Some(item) = asked.iter().find(|item| *item != "all" && !known.contains(&item.as_str())) {
        let like = nearest(item, known.iter().copied());
        let meant = like.map(|like| format!("; did you mean `{like}`?")).unwrap_or_default();
        bad_usage!("there is no `{item}`, only {} and all{meant}", known.join(", "));
    }
    Ok(known.into_iter().filter(|known| asked.iter().any(|item| item == "all" || item == known)).collect())
}

fn read(args: &Args) -> Result<Results> {
    let given = args.results.as_deref();
    if let Some(folder) = given.filter(|folder| !folder.is_dir()) {
        bad_usage!("--results {}: there is no such folder", folder.display());
    }
    let results = given.unwrap_or(Path::new(RESULTS));
    Results::read(&args.runs, &[&args.out, results])
}

/// What the tables and figures asked for need measured, each network once.
fn wanted(tables: &[&Table], items: &[&str]) -> Result<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for table in tables {
        for row in table.rows {
            let Network::Named(name) = row.network else { continue };
            let graph = tables::network(name)?;
            let mut add = |what, batch| {
                let is_known =
                    |known: &Wanted| (known.what, known.batch) == (what, batch) && known.subject.name() == name;
                if !wanted.iter().any(is_known) {
                    wanted.push(Wanted { what, subject: Subject::OfZoo(name, graph.clone()), batch });
                }
            };
            table.batches.iter().for_each(|&batch| add(What::Inference, batch));
            if table.is_trained {
                add(What::TrainingStep, TRAINING_BATCH);
            }
        }
    }
    if items.contains(&"fig4") {
        wanted.extend(figures::wanted_latencies()?);
    }
    if items.contains(&"fig5") {
        wanted.extend(figures::wanted_speedups()?);
    }
    Ok(wanted)
}

/// Writes the files of an entry.
fn write(args: &Args, entry: &Entry) -> Result<Reproduced> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let csv = args.out.join(format!("{}.csv", entry.name));
    files::write_text(&csv, &entry.csv)?;
    let mut written = vec![csv];
    for (name, drawing) in &entry.drawings {
        let path = args.out.join(format!("{}-{name}.svg", entry.name));
        files::write_text(&path, &drawing.file())?;
        written.push(path);
    }
    Ok(Reproduced { name: entry.name, rows: entry.json.clone(), files: written, text: entry.text.clone() })
}

fn page(entries: Vec<Entry>) -> Page {
    let mut sections: Vec<Section> = entries.into_iter().map(|entry| entry.section).collect();
    let reading = Part::Definitions(report::reading());
    sections.push(Section { heading: "How to read this".into(), parts: vec![reading] });
    Page {
        title: "HetConv: the paper and this program".into(),
        lead:
            "Published figures beside those that this program counted, measured and trained. Each row says where its \
               figures stand."
                .into(),
        sections,
    }
}
