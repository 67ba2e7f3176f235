//! How long networks take in the inference runtime, measured in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hetconv::graph::{Graph, Weights};
use hetconv::kernels::measure::has_memory;
use hetconv::runtime::{Options, Plan, Session, Team};
use hetconv::train::{Purpose, stream, uniform};

use super::progress::StepProgress;

/// Images in a batch when a time per image is asked for.
pub const BATCH: usize = 64;

/// Rounds in which every network runs once, at least and at most, and the time after which there is no further one.
const LEAST_ROUNDS: usize = 9;
const MOST_ROUNDS: usize = 400;
const ENOUGH: Duration = Duration::from_millis(600);

/// Milliseconds of every measured run of each network, a batch at a time. The networks take turns, so that whatever else
/// the machine does hits them alike.
fn inference<'a>(
    networks: impl IntoIterator<Item = (&'a Graph, &'a Weights)>,
    options: &Options,
) -> Result<Vec<Vec<f64>>> {
    let team = Arc::new(Team::new(rayon::current_num_threads()));
    let mut sessions = Vec::new();
    for (graph, weights) in networks {
        let plan = Arc::new(Plan::compile(graph, weights, options)?);
        let image_len: usize = plan.input_shapes().map(|shape| shape.iter().product::<usize>()).sum();
        sessions.push((Session::with_team(&plan, options.batch, &team)?, noise_images(options.batch, image_len)?));
    }
    let runs = sessions.iter_mut().map(|(session, images)| {
        move || -> Result<()> {
            session.run(images)?;
            Ok(())
        }
    });
    in_turn(runs.collect())
}

/// Median milliseconds per image of each network.
pub fn per_image<'a>(networks: impl IntoIterator<Item = (&'a Graph, &'a Weights)>, batch: usize) -> Result<Vec<f64>> {
    let times = inference(networks, &Options { batch, ..Options::default() })?;
    Ok(times.iter().map(|times| median(times) / batch as f64).collect())
}

/// Numbers that look like normalised pixels.
pub fn noise() -> impl Iterator<Item = f32> {
    let mut rng = stream(0, 0, 0, Purpose::Permutation);
    std::iter::repeat_with(move || 2.0 * uniform(&mut rng) - 1.0)
}

/// A batch of them, if there is memory for it.
pub fn noise_images(images: usize, image_len: usize) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    let len = images.checked_mul(image_len);
    let len = len.filter(|&len| has_memory(len) && numbers.try_reserve_exact(len).is_ok());
    let len = len.with_context(|| format!("there is no memory for a batch of {images} images"))?;
    numbers.extend(noise().take(len));
    Ok(numbers)
}

/// How often work is measured.
#[derive(Clone, Copy)]
pub struct Repeat {
    /// So often, if somebody said so.
    pub asked: Option<usize>,
    /// Else for so long, at least ten times and at most as often as this.
    pub enough: Duration,
    pub most: usize,
}

/// Milliseconds of every measured repetition of some work, which measures itself, after three that warm up.
pub fn repeated(name: &str, repeat: Repeat, mut work: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    const WARM_UP: usize = 3;
    const LEAST: usize = 10;
    let mut progress = StepProgress::new(name, "steps");
    // What is left is not known before one has been measured.
    let mut expected = repeat.asked.unwrap_or(repeat.most);
    for done in 0..WARM_UP {
        progress.at(done, WARM_UP + expected);
        let ms = work()?;
        let in_time = (repeat.enough.as_secs_f64() * 1e3 / ms.max(f64::MIN_POSITIVE)) as usize;
        expected = repeat.asked.unwrap_or(in_time.clamp(LEAST, repeat.most));
    }
    let started = Instant::now();
    let mut times = Vec::new();
    while match repeat.asked {
        Some(asked) => times.len() < asked,
        None => times.len() < LEAST || (started.elapsed() < repeat.enough && times.len() < repeat.most),
    } {
        let done = WARM_UP + times.len();
        progress.at(done, done.max(WARM_UP + expected));
        times.push(work()?);
    }
    Ok(times)
}

/// Milliseconds of every measured run of some pieces of work that take turns.
pub fn in_turn(mut work: Vec<impl FnMut() -> Result<()>>) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::new(); work.len()];
    let enough = ENOUGH * work.len() as u32;
    let mut progress = StepProgress::new("measuring", "rounds");
    let mut started = Instant::now();
    for round in 0..=MOST_ROUNDS {
        if round > LEAST_ROUNDS && started.elapsed() > enough {
            break;
        }
        progress.at(round, MOST_ROUNDS);
        for (work, times) in work.iter_mut().zip(&mut times) {
            let began = Instant::now();
            work()?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        // The first round warms caches and memory up.
        if round == 0 {
            times.iter_mut().for_each(Vec::clear);
            started = Instant::now();
        }
    }
    Ok(times)
}

/// The median.
pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    super::benchmark::percentile(&sorted, 0.5)
}
