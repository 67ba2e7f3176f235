//! `hetconv benchmark`: what is measured, by itself and against this machine's peak.

mod kernels;
mod training;

use anyhow::Result;

use super::output::Output;

/// Measure kernels or training steps against the peak of this machine
#[derive(clap::Args)]
#[command(after_help = "\
--kernels measures forward, grad-input and grad-weight of single layers, from one activation to the other; weights are
packed beforehand, as a training step does once for all images. --training measures whole steps on random images:
forward, backward and optimizer. Executed MACs leave out taps that fall on padding; fractions of the peak count those.
The peak is that of all threads, measured just before.

Examples:
  hetconv benchmark --kernels --threads 1
  hetconv benchmark --kernels --shapes 256x --parts 1,4 --format json
  hetconv benchmark --training --model vgg16-cifar_p4 --batch 128")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Args {
    /// Measure the kernels of single layers
    #[arg(long, group = "what")]
    kernels: bool,

    /// Measure whole training steps
    #[arg(long, group = "what", requires = "model")]
    training: bool,

    /// The network: a name (see `hetconv list`) or a model file
    #[arg(long, value_name = "NAME or FILE", conflicts_with = "kernels")]
    model: Option<String>,

    /// Images in a batch
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with = "kernels")]
    batch: u32,

    /// Steps to measure, after three to warm up [default: 5 seconds' worth, from 10 to 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "kernels")]
    steps: Option<u32>,

    /// Measure the layers whose shape or kernel contains this [default: all]
    #[arg(long, value_name = "TEXT", conflicts_with = "training")]
    shapes: Option<String>,

    /// Parts of HetConv layers; 1 is the standard convolution
    #[arg(long, value_name = "P,…", value_delimiter = ',', default_value = "1,2,4,8,32", conflicts_with = "training")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    parts: Vec<u32>,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    match &args.model {
        Some(model) => training::run(model, args.batch as usize, args.steps.map(|steps| steps as usize), output),
        None => kernels::run(args.shapes.as_deref().unwrap_or_default(), &args.parts, output),
    }
}

/// The value below which this share of sorted values lies, between neighbours in proportion.
fn percentile(sorted: &[f64], share: f64) -> f64 {
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
