//! How far a run has come: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hetconv::train::{EpochMetrics, StepReport, TrainObserver};
use hetconv::units::duration;
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const EVERY: Duration = Duration::from_secs(20);

/// Shows a training run.
pub struct TrainingProgress {
    name: String,
    bar: Option<ProgressBar>,
    /// Where this process began, which after resuming is not the first step.
    started: Option<(Instant, u64)>,
    said: Instant,
}

impl TrainingProgress {
    /// The name stands before everything said.
    pub fn new(name: impl Into<String>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix}  {bar:24}  {percent:>3} %  {msg}");
            // A template that did not parse would leave the default style.
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"))
        });
        let name = name.into();
        if let Some(bar) = &bar {
            bar.set_prefix(name.clone());
        }
        Self { name, bar, started: None, said: Instant::now() }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl TrainObserver for TrainingProgress {
    fn step(&mut self, report: &StepReport) {
        let total = report.epochs * report.steps_per_epoch;
        let done = report.epoch * report.steps_per_epoch + report.step;
        let (started, first) = *self.started.get_or_insert((Instant::now(), done));
        let left = match done - first {
            0 => "?".to_owned(),
            here => duration(started.elapsed().as_secs_f64() / here as f64 * (total - done) as f64),
        };
        let state = format!(
            "epoch {}/{}  loss {:.3}  top-1 {:.1} %  {:.0} images/s  {left} left",
            report.epoch + 1,
            report.epochs,
            report.loss,
            100.0 * report.top1,
            report.images_per_second,
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_message(state);
                bar.set_position(done);
            }
            None if self.said.elapsed() >= EVERY => {
                self.said = Instant::now();
                eprintln!("{}  step {}/{}  {state}", self.name, report.step, report.steps_per_epoch);
            }
            None => {}
        }
    }

    fn epoch(&mut self, metrics: &EpochMetrics) {
        self.said = Instant::now();
        self.say(&format!(
            "{}  epoch {:>2}  train loss {:.3}  top-1 {:.1} %   held-out loss {:.3}  top-1 {:.1} %   {:.0} images/s  {}",
            self.name,
            metrics.epoch,
            metrics.train_loss,
            100.0 * metrics.train_top1,
            metrics.eval_loss,
            100.0 * metrics.eval_top1,
            metrics.images_per_second,
            duration(metrics.seconds),
        ));
    }
}

impl Drop for TrainingProgress {
    fn drop(&mut self) {
        self.finish();
    }
}
