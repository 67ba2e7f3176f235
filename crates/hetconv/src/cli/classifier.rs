//! A network that says which class an image is of, in the runtime.

use std::sync::Arc;

use anyhow::{Result, bail};
use hetconv::graph::{Graph, Weights};
use hetconv::runtime::{Options, Plan, Session, Team};

/// Gives logits for images.
pub struct Classifier {
    plan: Arc<Plan>,
    team: Arc<Team>,
    /// For the batch size of the last call.
    session: Option<Session>,
    classes: usize,
}

impl Classifier {
    /// Of a network and its weights, for so many images at a time.
    pub fn new(graph: &Graph, weights: Weights, batch: usize, exact: bool) -> Result<Self> {
        let mut graph = graph.clone();
        let hetconv::graph::Classifier { logits, classes, .. } = graph.classifier()?;
        graph.outputs = vec![logits];
        let plan = Plan::compile_owned(&graph, weights, &Options { batch, exact, ..Options::default() })?;
        let team = Arc::new(Team::new(rayon::current_num_threads()));
        Ok(Self { plan: Arc::new(plan), team, session: None, classes })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits `[images, classes]` of images `[images, height, width, channels]`.
    pub fn logits(&mut self, pixels: &[f32], images: usize) -> Result<Vec<f32>> {
        let session = match self.session.take() {
            Some(session) if session.batch() == images => session,
            _ => Session::with_team(&self.plan, images, &self.team)?,
        };
        let session = self.session.insert(session);
        let channels = self.plan.input_shapes().next().map_or(1, |[channels, ..]| channels);
        let logits = session.run(&planes(pixels, images, channels))?;
        if let Some(value) = logits.iter().find(|value| !value.is_finite()) {
            bail!("{} gives {value} for an image: its weights or the normalisation are too large", self.plan.name());
        }
        Ok(logits.to_vec())
    }
}

/// `[images, pixels, channels]` → `[images, channels, pixels]`.
pub fn planes(values: &[f32], images: usize, channels: usize) -> Vec<f32> {
    let of_image = |image: &[f32]| -> Vec<f32> {
        (0..channels).flat_map(|channel| image.iter().skip(channel).step_by(channels).copied()).collect()
    };
    values.chunks_exact((values.len() / images.max(1)).max(1)).flat_map(of_image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_hold_a_channel_each() {
        assert_eq!(planes(&[1., 2., 3., 4., 5., 6., 7., 8.], 2, 2), [1., 3., 2., 4., 5., 7., 6., 8.]);
    }
}
