//! The inference runtime.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hetconv_graph::Shape;
use hetconv_runtime::{Options, Plan, Session, Team};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

use crate::ALLOCATOR;
use crate::error::error;
use crate::memory::{values, values_mut};
use crate::model::open;
use crate::threads::run;

/// Sessions that are kept for the next run, of whatever batch size.
const KEPT: usize = 4;

/// A compiled network, and sessions that wait for their next run.
#[pyclass(frozen)]
pub struct Runtime {
    plan: Arc<Plan>,
    team: Arc<Team>,
    idle: Mutex<Vec<Session>>,
    classes: Vec<String>,
    normalisation: Option<(Vec<f32>, Vec<f32>)>,
}

#[pymethods]
impl Runtime {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        batch: usize,
        exact: bool,
        threads: Option<usize>,
        image_size: Option<[usize; 2]>,
    ) -> PyResult<Self> {
        // Weights are packed on threads that a forked process has as well.
        let packing = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        run(py, packing, || {
            let (description, weights) = open(&path, image_size)?;
            let options = Options { batch, exact, ..Options::default() };
            // Weights that are packed go back to the system, one layer after another.
            let _pause = ALLOCATOR.pause();
            let plan = Plan::compile_owned(&description.graph, weights, &options)
                .map_err(|fault| error(format!("{}: {fault}", path.display())))?;
            Ok(Self {
                plan: Arc::new(plan),
                team: threads.map_or_else(|| Team::global().clone(), |threads| Arc::new(Team::new(threads))),
                idle: Mutex::default(),
                classes: description.classes,
                normalisation: description.normalisation.map(|stated| (stated.mean, stated.std)),
            })
        })?
    }

    #[getter]
    fn name(&self) -> &str {
        self.plan.name()
    }

    #[getter]
    fn input_names(&self) -> Vec<&str> {
        self.plan.input_names().collect()
    }

    #[getter]
    fn input_shapes(&self) -> Vec<[usize; 3]> {
        self.plan.input_shapes().collect()
    }

    #[getter]
    fn output_shapes(&self) -> Vec<Vec<usize>> {
        let shape = |shape| match shape {
            Shape::Image { channels, height, width } => vec![channels, height, width],
            Shape::Features(features) => vec![features],
        };
        self.plan.output_shapes().map(shape).collect()
    }

    #[getter]
    fn output_names(&self) -> Vec<&str> {
        self.plan.output_names().collect()
    }

    #[getter]
    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    #[getter]
    fn normalisation(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.normalisation.clone()
    }

    /// Runs the network on arrays of `batch` images, and writes the results into others.
    fn run(
        &self,
        py: Python<'_>,
        batch: usize,
        inputs: Vec<PyBuffer<f32>>,
        outputs: Vec<PyBuffer<f32>>,
    ) -> PyResult<()> {
        let shapes: Vec<Shape> = self.plan.output_shapes().collect();
        if outputs.len() != shapes.len() {
            return Err(error(format!("{} arrays for {} outputs", outputs.len(), shapes.len())));
        }
        let contiguous = |buffer: &PyBuffer<f32>| buffer.is_c_contiguous();
        if !inputs.iter().chain(&outputs).all(contiguous) {
            return Err(error("arrays have to be contiguous, in C's order"));
        }
        for (buffer, shape) in outputs.iter().zip(&shapes) {
            if buffer.readonly() || buffer.item_count() != batch * shape.elements() {
                return Err(error("an output array that cannot be written, or of the wrong size"));
            }
        }
        let place = |buffer: &PyBuffer<f32>| (buffer.buf_ptr() as usize, buffer.item_count());
        let (sources, targets): (Vec<_>, Vec<_>) =
            (inputs.iter().map(place).collect(), outputs.iter().map(place).collect());
        py.detach(|| {
            let mut session = self.session(batch)?;
            // SAFETY: the buffers are contiguous `f32`, and held until the end of this method. That another thread does not
            // write an array while it is read is its owner's to see to, as everywhere in Python.
            let inputs: Vec<&[f32]> = sources.iter().map(|&(at, len)| unsafe { values(at, len) }).collect();
            session.run_all(&inputs).map_err(error)?;
            for (number, &(at, len)) in targets.iter().enumerate() {
                // SAFETY: as above; an output is an array that was made for it.
                unsafe { values_mut(at, len) }.copy_from_slice(session.output(number));
            }
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() == KEPT {
                idle.remove(0);
            }
            idle.push(session);
            Ok(())
        })
    }
}

impl Runtime {
    /// A session for so many images that nobody else has at the moment.
    fn session(&self, batch: usize) -> PyResult<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = idle.iter().rposition(|session| session.batch() == batch) {
            return Ok(idle.remove(found));
        }
        drop(idle);
        Session::with_team(&self.plan, batch, &self.team).map_err(error)
    }
}
