//! The threads that the kernels run on, beside those of PyTorch.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::error;

/// The pool of this process. A forked process has none of its parent's threads, so it makes its own.
struct Pool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn pool(threads: usize) -> PyResult<Arc<ThreadPool>> {
    let process = std::process::id();
    let mut last = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = last.as_ref()
        && (found.process, found.threads) == (process, threads)
    {
        return Ok(found.pool.clone());
    }
    let pool = Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().map_err(error)?);
    let old = last.replace(Pool { process, threads, pool: pool.clone() });
    if old.as_ref().is_some_and(|old| old.process != process) {
        // Dropping it would tell threads to stop that are not there.
        mem::forget(old);
    }
    Ok(pool)
}

/// Runs on so many threads, with the interpreter's lock released.
pub fn run<T: Send>(py: Python<'_>, threads: usize, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let pool = pool(threads.max(1))?;
    Ok(py.detach(|| pool.install(work)))
}

/// Tells where OpenMP's `GOMP_parallel` is.
#[pyfunction]
pub fn use_openmp(_address: usize) {}
