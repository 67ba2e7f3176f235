//! `hetconv benchmark --model … --layers`: where the time goes, and how much of it the machine would need at least.

use anyhow::Result;
use hetconv::kernels::measure;
use hetconv::runtime::Session;
use serde::Serialize;

use super::percentile;
use crate::cli::output::table;

/// One step of a network, as JSON has it.
#[derive(Serialize)]
pub struct Layer {
    name: String,
    /// `None` of what is no layer, such as a pooling.
    algorithm: Option<String>,
    median_ms: f64,
    executed_macs: u64,
    packed_bytes: usize,
    limit_ms: f64,
    fraction_of_limit: f64,
}

/// Times every step, some runs over.
pub fn measure(session: &mut Session, inputs: &[&[f32]], runs: usize, fma_peak_gflops: f64) -> Result<Vec<Layer>> {
    let bandwidth = measure::read_bandwidth();
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        times.push(session.time_steps(inputs)?);
    }
    let batch = session.batch() as u64;
    let of_step = |(index, (name, layer)): (usize, (&str, Option<&hetconv::runtime::Layer>))| {
        let mut times: Vec<f64> = times.iter().map(|times| times[index].as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let median_ms = percentile(&times, 0.5);
        let executed_macs = layer.map_or(0, |layer| layer.executed_macs as u64 * batch);
        let packed_bytes = layer.map_or(0, |layer| layer.packed_bytes);
        let computing = 2.0 * executed_macs as f64 / (fma_peak_gflops * 1e6);
        let limit_ms = computing.max(packed_bytes as f64 / (bandwidth * 1e6));
        Layer {
            name: name.to_owned(),
            algorithm: layer.map(|layer| layer.algorithm.to_string()),
            median_ms,
            executed_macs,
            packed_bytes,
            limit_ms,
            fraction_of_limit: limit_ms / median_ms,
        }
    };
    Ok(session.plan().steps().enumerate().map(of_step).collect())
}

pub fn text(layers: &[Layer]) -> String {
    let heads = ["layer", "algorithm", "ms", "executed MACs", "weights", "limit ms", "of the limit"];
    let mut table = table(&heads, &heads[..2]);
    let total = |of: fn(&Layer) -> f64| layers.iter().map(of).sum::<f64>();
    for layer in layers {
        let mut row =
            vec![layer.name.clone(), layer.algorithm.clone().unwrap_or_default(), format!("{:.3}", layer.median_ms)];
        if layer.algorithm.is_some() {
            row.extend([
                hetconv::units::count(layer.executed_macs),
                format!("{:.2} MiB", layer.packed_bytes as f64 / 1048576.0),
                format!("{:.3}", layer.limit_ms),
                format!("{:.0} %", 100.0 * layer.fraction_of_limit),
            ]);
        }
        table.add_row(row);
    }
    let (time, limit) = (total(|layer| layer.median_ms), total(|layer| layer.limit_ms));
    format!("{table}\nAll steps {time:.3} ms, their limits {limit:.3} ms: {:.0} %", 100.0 * limit / time)
}
