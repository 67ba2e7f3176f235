//! `hetconv benchmark`: what is measured, by itself and against this machine's peak.

mod inference;
mod kernels;
mod layers;
mod training;

use anyhow::Result;
use hetconv::kernels::Isa;
use hetconv::kernels::measure::cpu_name;
use hetconv::runtime::Options;
use hetconv::units::{count, milliseconds};
use serde::Serialize;

use super::checks::peak_memory_mib;
use super::images::ImageSize;
use super::model;
use super::output::Output;
use super::usage::bad_usage;

/// Measure a network, its training or single kernels against the peak of this machine
#[derive(clap::Args)]
#[command(after_help = "\
--model alone measures inference of whole batches, from images in memory to results in memory; the layers' algorithms are \
chosen by a fixed cost, among those without Winograd's with --exact, by timed trials with --tune. --layers adds every layer's \
time and its limit: the time of its executed MACs at the peak or of reading its weights from memory, whichever is longer.

--kernels measures forward, grad-input and grad-weight of single layers, from one activation to the other; weights are \
packed beforehand, as a training step does once for all images. --training measures whole steps on random images:
forward, backward and optimizer. Executed MACs leave out taps that fall on padding; fractions of the peak count those. \
The peak is that of all threads, measured just before.

Examples:
  hetconv benchmark --model resnet34_p4
  hetconv benchmark --model runs/p4/model.safetensors --batch 64 --exact
  hetconv benchmark --model resnet50_p4 --layers
  hetconv benchmark --kernels --threads 1
  hetconv benchmark --kernels --shapes m256 --parts 1,4 --format json
  hetconv benchmark --training --model vgg16-cifar_p4 --batch 128")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct Args {
    /// Measure the kernels of single layers
    #[arg(long, group = "what", conflicts_with_all = ["training", "model"])]
    kernels: bool,

    /// Measure whole training steps
    #[arg(long, group = "what", requires = "model")]
    training: bool,

    /// The network: a name (see `hetconv list`), a model file or an ONNX file
    #[arg(long, value_name = "NAME or FILE", group = "what", value_parser = model::name_argument())]
    model: Option<String>,

    /// Images in a batch [default: 1, in training 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "kernels")]
    batch: Option<u32>,

    #[command(flatten)]
    image_size: ImageSize,

    /// Leave out Winograd's algorithm, whose results differ by rounding
    #[arg(long, conflicts_with_all = ["kernels", "training"])]
    exact: bool,

    /// Choose the layers' algorithms by timed trials
    #[arg(long, conflicts_with_all = ["kernels", "training", "exact"])]
    tune: bool,

    /// Add the time of every layer, and how far it is from what the machine allows
    #[arg(long, conflicts_with_all = ["kernels", "training"])]
    layers: bool,

    /// Steps or batches to measure, after three to warm up [default: some seconds' worth, at least 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "kernels")]
    steps: Option<u32>,

    /// Measure the layers whose shape or kernel contains this [default: all]
    #[arg(long, value_name = "TEXT", conflicts_with = "model")]
    shapes: Option<String>,

    /// Parts of HetConv layers; 1 is the standard convolution
    #[arg(long, value_name = "P,…", value_delimiter = ',', default_value = "1,2,4,8,32", conflicts_with = "model")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    parts: Vec<u32>,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    let steps = args.steps.map(|steps| steps as usize);
    let batch = |usual: u32| args.batch.unwrap_or(usual) as usize;
    let size = args.image_size.get();
    if args.image_size.is_given() && args.kernels {
        bad_usage!("--image-size is for networks; --shapes chooses among the layers of --kernels");
    }
    match &args.model {
        Some(model) if args.training => training::run(model, size, batch(128), steps, output),
        Some(model) => {
            let options = Options { batch: batch(1), exact: args.exact, tune: args.tune, ..Options::default() };
            inference::run(model, size, options, steps, args.layers, output)
        }
        None => kernels::run(args.shapes.as_deref().unwrap_or_default(), &args.parts, output),
    }
}

/// A network's measured time, as JSON has it.
#[derive(Serialize)]
struct Benchmark {
    model: String,
    batch: usize,
    steps: usize,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    images_per_second: f64,
    gmacs_per_second: f64,
    macs: u64,
    executed_macs: u64,
    fma_peak_gflops: f64,
    fraction_of_peak: f64,
    peak_memory_mib: Option<f64>,
    threads: usize,
    isa: &'static str,
    cpu: String,
}

impl Benchmark {
    /// From the milliseconds of every step, and the MACs of one: all of them, and those executed.
    fn new(
        model: String,
        batch: usize,
        mut times: Vec<f64>,
        [macs, executed_macs]: [u64; 2],
        fma_peak_gflops: f64,
        isa: Isa,
    ) -> Self {
        times.sort_by(f64::total_cmp);
        let median_ms = percentile(&times, 0.5);
        let per_second = 1e3 / median_ms;
        Self {
            model,
            batch,
            steps: times.len(),
            median_ms,
            p10_ms: percentile(&times, 0.1),
            p90_ms: percentile(&times, 0.9),
            images_per_second: batch as f64 * per_second,
            gmacs_per_second: macs as f64 * per_second / 1e9,
            macs,
            executed_macs,
            fma_peak_gflops,
            fraction_of_peak: 2.0 * executed_macs as f64 * per_second / (fma_peak_gflops * 1e9),
            peak_memory_mib: peak_memory_mib(),
            threads: rayon::current_num_threads(),
            isa: isa.name(),
            cpu: cpu_name(),
        }
    }

    /// For people: time per `what`, of so many `steps`.
    fn text(&self, what: &str, steps: &str) -> String {
        let memory = self.peak_memory_mib.map_or(String::new(), |mib| format!(", {mib:.0} MiB at most"));
        format!(
            "{}, batch {}: {} {what} (10th to 90th percentile {} to {}, {} {steps})\n\
             {:.0} images/s, {:.1} GMAC/s of {} MACs ({} executed), {:.1} % of the FMA peak of {:.0} GFLOP/s{memory}\n\
             {} threads, {}, {}",
            self.model,
            self.batch,
            milliseconds(self.median_ms),
            milliseconds(self.p10_ms),
            milliseconds(self.p90_ms),
            self.steps,
            self.images_per_second,
            self.gmacs_per_second,
            count(self.macs),
            count(self.executed_macs),
            100.0 * self.fraction_of_peak,
            self.fma_peak_gflops,
            self.threads,
            self.isa,
            self.cpu,
        )
    }
}

/// The value below which this share of sorted values lies, between neighbours in proportion.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let times = [1.0, 2.0, 3.0, 4.0, 10.0];
        assert_eq!(percentile(&times, 0.5), 3.0);
        assert!((percentile(&times, 0.9) - 7.6).abs() < 1e-12);
        assert_eq!(percentile(&[5.0], 0.1), 5.0);
    }
}
