//! Values inside a network.

use std::sync::Arc;

use hetconv_graph::{Graph, ValueId, WeightTensor, Weights};
use hetconv_runtime::{Options, Plan, Session, Team};

use crate::CalibrateError;

/// Who gets computed values: the number of the first image, how many there are, and each value.
type Found<'a> = dyn FnMut(usize, usize, &[&[f32]]) + 'a;

/// The images that a network is calibrated on, `[images, channels, height, width]`.
pub(crate) struct Images<'a> {
    values: &'a [f32],
    /// Values of one image.
    image: usize,
    batch: usize,
}

impl<'a> Images<'a> {
    pub fn new(graph: &Graph, values: &'a [f32], batch: usize) -> Result<Self, CalibrateError> {
        let inputs: Vec<[usize; 3]> = graph.inputs().map(|(_, shape)| shape).collect();
        let &[shape] = inputs.as_slice() else { return Err(CalibrateError::Inputs(inputs.len())) };
        let image = shape.iter().product::<usize>();
        if values.is_empty() || !values.len().is_multiple_of(image) {
            return Err(CalibrateError::Images { found: values.len(), image });
        }
        Ok(Self { values, image, batch: batch.max(1) })
    }

    pub fn count(&self) -> usize {
        self.values.len() / self.image
    }

    /// Computes some values of a network, batch by batch; `found` gets each as `[images, channels, height,
    /// width]`.
    pub fn run(
        &self,
        graph: &Graph,
        weights: &Weights,
        values: &[ValueId],
        found: &mut Found<'_>,
    ) -> Result<(), CalibrateError> {
        let (graph, weights) = up_to(graph, weights, values);
        // Winograd's rounding would be fitted, too.
        let plan =
            Plan::compile_owned(&graph, weights, &Options { batch: self.batch, exact: true, ..Options::default() })?;
        let plan = Arc::new(plan);
        let team = Arc::new(Team::new(rayon::current_num_threads()));
        let mut session: Option<Session> = None;
        for (index, images) in self.values.chunks(self.batch * self.image).enumerate() {
            let count = images.len() / self.image;
            let session = match session.take() {
                Some(kept) if kept.batch() == count => session.insert(kept),
                _ => session.insert(Session::with_team(&plan, count, &team)?),
            };
            session.run_all(&[images])?;
            let outputs: Vec<&[f32]> = (0..values.len()).map(|number| session.output(number)).collect();
            found(index * self.batch, count, &outputs);
        }
        Ok(())
    }
}

/// The part of a network that computes some of its values, and its weights.
fn up_to(graph: &Graph, weights: &Weights, values: &[ValueId]) -> (Graph, Weights) {
    let part = graph.up_to(values);
    let specs = part.weight_specs().unwrap_or_default();
    let tensor = |name: String| Some((name.clone(), weights.get(&name)?.clone()));
    let weights: Vec<(String, WeightTensor)> = specs.into_iter().filter_map(|spec| tensor(spec.name)).collect();
    (part, weights.into_iter().collect())
}
