//! The threads that the kernels run on, beside those of PyTorch.
//!
//! PyTorch's OpenMP threads spin for some milliseconds after each of its operators, in wait for the next one; on all cores at
//! once with the kernels' threads, everything takes longer. So the kernels run within a parallel region of OpenMP in which its
//! threads sleep. They wake for the end of the region, and are where PyTorch's next operator wants them.

use std::any::Any;
use std::ffi::{c_uint, c_void};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

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
    Ok(py.detach(|| while_openmp_sleeps(threads, || pool.install(work))))
}

/// Address of `GOMP_parallel` in the OpenMP library of PyTorch; 0 if it is not known.
static GOMP_PARALLEL: AtomicUsize = AtomicUsize::new(0);
/// The process that was told so. A forked one has none of OpenMP's threads, and would wait for them.
static OPENMP_PROCESS: AtomicU32 = AtomicU32::new(0);

/// `GOMP_parallel(region, data, threads, flags)`: runs `region(data)` on so many threads, the caller among them.
type GompParallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Tells where PyTorch's OpenMP has its `GOMP_parallel`.
///
/// # Safety
/// The address is that function's.
#[pyfunction]
pub fn use_openmp(address: usize) {
    OPENMP_PROCESS.store(std::process::id(), Ordering::Relaxed);
    GOMP_PARALLEL.store(address, Ordering::Relaxed);
}

/// A parallel region with one thread that works and others that sleep meanwhile.
struct Region<F, T> {
    caller: ThreadId,
    work: Mutex<Option<F>>,
    result: Mutex<Option<Result<T, Box<dyn Any + Send>>>>,
    done: Condvar,
}

impl<F: FnOnce() -> T + Send, T: Send> Region<F, T> {
    /// What each thread of the region does.
    ///
    /// # Safety
    /// `data` is a `Region<F, T>` that outlives the region.
    unsafe extern "C" fn enter(data: *mut c_void) {
        // SAFETY: the caller's.
        let region = unsafe { &*data.cast::<Self>() };
        let result = || region.result.lock().unwrap_or_else(PoisonError::into_inner);
        if thread::current().id() != region.caller {
            drop(region.done.wait_while(result(), |result| result.is_none()));
            return;
        }
        let work = region.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        // No panic may cross OpenMP's frames.
        let computed = work.map(|work| catch_unwind(AssertUnwindSafe(work)));
        *result() = computed;
        region.done.notify_all();
    }
}

fn while_openmp_sleeps<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let address = GOMP_PARALLEL.load(Ordering::Relaxed);
    if address == 0 || threads < 2 || OPENMP_PROCESS.load(Ordering::Relaxed) != std::process::id() {
        return work();
    }
    run_region(address, threads, work)
}

fn run_region<T: Send, F: FnOnce() -> T + Send>(address: usize, threads: usize, work: F) -> T {
    let mut region = Region {
        caller: thread::current().id(),
        work: Mutex::new(Some(work)),
        result: Mutex::new(None),
        done: Condvar::new(),
    };
    // SAFETY: whoever gave the address vouches for it. The region is over, on all threads, when the call returns.
    unsafe {
        let gomp_parallel = mem::transmute::<*const (), GompParallel>(address as *const ());
        gomp_parallel(Region::<F, T>::enter, (&raw mut region).cast(), threads as c_uint, 0);
    }
    match region.result.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(Ok(result)) => result,
        Some(Err(panic)) => resume_unwind(panic),
        None => unreachable!("the calling thread is one of the region's"),
    }
}
