//! How far long work has come: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hetconv::train::{EpochMetrics, StepReport, TrainObserver};
use hetconv::units::{duration, grouped, rate};
use indicatif::{ProgressBar, ProgressStyle};

use super::interrupt;
use super::output::{printable, say};

/// Time between two plain lines.
const EVERY: Duration = Duration::from_secs(20);

/// A bar with a line of text, or only the line.
struct Bar {
    name: String,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Bar {
    /// The name stands before everything said.
    fn new(name: impl Into<String>) -> Self {
        let name = printable(&name.into());
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix}  {bar:24}  {percent:>3} %  {msg}");
            // A template that did not parse would leave the default style.
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─");
            ProgressBar::new(0).with_style(style).with_prefix(name.clone())
        });
        Self { name, bar, said: Instant::now() }
    }

    fn advance(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Shows the text beside the bar; without one, prints it if the last line is some time ago.
    fn show(&mut self, text: String) {
        match &self.bar {
            Some(bar) => bar.set_message(printable(&text)),
            None if self.said.elapsed() >= EVERY => self.say(&text),
            None => {}
        }
    }

    /// Prints a line that stays.
    fn say(&mut self, text: &str) {
        self.said = Instant::now();
        let line = format!("{}  {text}", self.name);
        match &self.bar {
            Some(bar) => bar.println(printable(&line)),
            None => say(&line),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// The time that is left if `done` of `total` took so many seconds.
fn left(done: u64, total: u64, seconds: f64) -> String {
    match done {
        0 => "?".to_owned(),
        _ => duration(seconds / done as f64 * total.saturating_sub(done) as f64),
    }
}

/// Shows work on a known number of things, such as images, until it is dropped.
pub struct StepProgress {
    bar: Bar,
    things: &'static str,
    started: Instant,
}

impl StepProgress {
    /// Work of this name on these things.
    pub fn new(name: impl Into<String>, things: &'static str) -> Self {
        Self { bar: Bar::new(name), things, started: Instant::now() }
    }

    /// So many of so many are done.
    pub fn at(&mut self, done: usize, total: usize) {
        let (done, total) = (done as u64, total as u64);
        self.bar.advance(done, total);
        self.bar.show(steps(done, total, self.things, self.started.elapsed().as_secs_f64()));
    }
}

fn steps(done: u64, total: u64, things: &str, seconds: f64) -> String {
    let rate = rate(done as f64 / seconds.max(f64::MIN_POSITIVE));
    let left = left(done, total, seconds);
    format!("{} of {} {things}  {rate} {things}/s  {left} left", grouped(done), grouped(total))
}

/// Shows a training run, until it is dropped, and stops it if the process is asked to end.
pub struct TrainingProgress {
    bar: Bar,
    /// Where this process began, which after resuming is not the first step.
    started: Option<(Instant, u64)>,
    /// When the last step was made, after which an evaluation may have begun.
    stepped: Instant,
}

impl TrainingProgress {
    /// The name stands before everything said.
    pub fn new(name: impl Into<String>) -> Self {
        interrupt::notice();
        Self { bar: Bar::new(name), started: None, stepped: Instant::now() }
    }
}

impl TrainObserver for TrainingProgress {
    fn step(&mut self, report: &StepReport) {
        let total = report.epochs * report.steps_per_epoch;
        let done = report.epoch * report.steps_per_epoch + report.step;
        self.stepped = Instant::now();
        let (started, first) = *self.started.get_or_insert((Instant::now(), done));
        self.bar.advance(done, total);
        self.bar.show(format!(
            "epoch {}/{}  step {}/{}  loss {:.3}  top-1 {:.1} %  {} images/s  {} left",
            report.epoch + 1,
            report.epochs,
            report.step,
            report.steps_per_epoch,
            report.loss,
            100.0 * report.top1,
            rate(report.images_per_second),
            left(done - first, total - first, started.elapsed().as_secs_f64()),
        ));
    }

    fn evaluation(&mut self, done: usize, images: usize) {
        let text = steps(done as u64, images as u64, "images", self.stepped.elapsed().as_secs_f64());
        self.bar.show(format!("evaluation  {text}"));
    }

    fn epoch(&mut self, metrics: &EpochMetrics) {
        self.bar.say(&format!(
            "epoch {:>2}  train loss {:.3}  top-1 {:.1} %   held-out loss {:.3}  top-1 {:.1} %   {} images/s  {}",
            metrics.epoch,
            metrics.train_loss,
            100.0 * metrics.train_top1,
            metrics.eval_loss,
            100.0 * metrics.eval_top1,
            rate(metrics.images_per_second),
            duration(metrics.seconds),
        ));
    }

    fn stops(&mut self) -> bool {
        interrupt::is_asked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_a_rate_and_the_time_left() {
        assert_eq!(steps(1_024, 4_096, "images", 2.0), "1,024 of 4,096 images  512 images/s  6.0 s left");
        assert_eq!(steps(3, 20, "layers", 2.0), "3 of 20 layers  1.5 layers/s  11.3 s left");
        assert!(steps(0, 20, "layers", 0.0).ends_with("? left"));
        assert!(steps(20, 20, "layers", 9.0).ends_with("0.0 s left"));
    }
}
