//! How long networks take in the inference runtime, measured in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hetconv::graph::{Graph, Weights};
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
        let len: usize = plan.input_shapes().map(|shape| options.batch * shape.iter().product::<usize>()).sum();
        sessions.push((Session::with_team(&plan, options.batch, &team)?, noise(len)));
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
pub fn noise(len: usize) -> Vec<f32> {
    let mut rng = stream(0, 0, 0, Purpose::Permutation);
    (0..len).map(|_| 2.0 * uniform(&mut rng) - 1.0).collect()
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
