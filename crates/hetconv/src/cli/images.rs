//! How images become what a network takes, where its file leaves that open.

use anyhow::Result;
use hetconv::graph::Normalisation;

use super::model::Size;
use super::usage::bad_usage;

/// The size a network sees images in.
#[derive(clap::Args)]
pub struct ImageSize {
    /// See images as squares of so many pixels a side: an ONNX file that leaves their size open, or a network of ours at
    /// another than its own
    #[arg(long = "image-size", value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    side: Option<u32>,
}

impl ImageSize {
    /// The size, the network's own if none was given.
    pub fn get(&self) -> Size {
        self.side.map_or(Size::Own, |side| Size::Exactly([side as usize; 2]))
    }

    /// Whether one was given.
    pub fn is_given(&self) -> bool {
        self.side.is_some()
    }
}

/// How pixels are normalised.
#[derive(clap::Args)]
pub struct Normalise {
    /// Mean of each channel, of pixels from 0 to 1; a file may say itself how images are normalised
    #[arg(long, value_name = "M,…", value_delimiter = ',', requires = "std", allow_hyphen_values = true)]
    pub mean: Vec<f32>,

    /// Standard deviation of each channel
    #[arg(long, value_name = "S,…", value_delimiter = ',', requires = "mean")]
    pub std: Vec<f32>,
}

impl Normalise {
    /// Whether it was said.
    pub fn is_given(&self) -> bool {
        !self.mean.is_empty()
    }

    /// What was given, or else what the file has, for images of so many channels; `is_stated` tells whether it says so
    /// itself.
    pub fn or(&self, file: &Normalisation, is_stated: bool, channels: usize) -> Result<Normalisation> {
        Ok(or_stated(self.given(channels)?, file, is_stated))
    }

    /// What was given, for images of so many channels.
    pub fn given(&self, channels: usize) -> Result<Option<Normalisation>> {
        if !self.is_given() {
            return Ok(None);
        }
        let given = Normalisation { mean: self.mean.clone(), std: self.std.clone() };
        if !given.fits(channels) {
            let [mean, std] = [&self.mean, &self.std].map(|numbers| join(numbers));
            bad_usage!(
                "--mean {mean} --std {std}: a finite number for each of the {channels} channels is needed, std more than 0"
            );
        }
        if given.mean.iter().any(|mean| mean.abs() > 1.5) {
            let mean = join(&given.mean);
            tracing::warn!(
                "--mean {mean}: pixels are numbers from 0 to 1; what is given for 0 to 255 has to be divided by 255"
            );
        }
        Ok(Some(given))
    }
}

/// What was given, or else what a file has, with a warning if it does not say so itself.
pub fn or_stated(given: Option<Normalisation>, file: &Normalisation, is_stated: bool) -> Normalisation {
    if given.is_none() && !is_stated {
        tracing::warn!(
            "the file does not say how pixels are normalised, so they are numbers from 0 to 1; --mean and --std say \
             otherwise"
        );
    }
    given.unwrap_or_else(|| file.clone())
}

/// Numbers as `--mean` takes them.
pub fn join(numbers: &[f32]) -> String {
    numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(",")
}
