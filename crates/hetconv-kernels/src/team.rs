//! Threads that share short pieces of work.
//!
//! A layer of a small network takes some ten microseconds, about as long as it takes to wake a sleeping thread. So the
//! workers of a [`Team`] spin for a moment before they sleep, and whoever comes late is not waited for: the work is cut
//! into parts that do not depend on the number of threads, and the caller computes them all if nobody helps.
//!
//! Each thread begins with a stretch of neighbouring parts of its own, the same one in every piece of work: what it wrote in
//! one layer is then in its own core's cache when it reads the next. Whoever is done takes parts from the others' ends.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;

use crate::parallel::Band;

/// The caller and some workers.
///
/// ```
/// use hetconv_kernels::Team;
/// let team = Team::new(2);
/// let mut squares = vec![0.0; 1000];
/// let mut scratch = vec![(); team.threads()];
/// team.chunks(&mut squares, 100, &mut scratch, |first, chunk, ()| {
///     for (i, square) in chunk.iter_mut().enumerate() {
///         *square = ((first * 100 + i) as f32).powi(2);
///     }
/// });
/// assert_eq!(squares[30], 900.0);
/// ```
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while parts are computed.
    busy: Mutex<()>,
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish()
    }
}

/// What all parts are computed by: `work(part, thread)`.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// State of the current work in one number: whether workers may still join, how many have, and which work it is.
const OPEN: usize = 1;
const JOINED: usize = 2;
const NUMBER: usize = 1 << 16;
/// More threads than that are not worth while; there is room for them between [`JOINED`] and [`NUMBER`].
const MAX_THREADS: usize = 1 << 10;

/// Looks at the state before a worker sleeps: some 50 µs.
const SPINS: usize = 2_000;

struct Shared {
    state: AtomicUsize,
    /// Valid while the state is open or workers have joined.
    work: UnsafeCell<Option<*const Work<'static>>>,
    stretches: Box<[Stretch]>,
    /// What a part panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

/// The parts that are left of a thread's stretch: the first of them, and how many, in one number. A line of the cache for
/// each.
#[derive(Default)]
#[repr(align(64))]
struct Stretch(AtomicU64);

impl Stretch {
    /// Bits that hold the number of parts.
    const BITS: u32 = 32;

    fn set(&self, parts: Range<usize>) {
        self.0.store((parts.start as u64) << Self::BITS | parts.len() as u64, Ordering::Relaxed);
    }

    /// Takes a part from the front, or from the end.
    fn take(&self, front: bool) -> Option<usize> {
        let mask = (1 << Self::BITS) - 1;
        let less = |left: u64| match left & mask {
            0 => None,
            _ if front => Some(left - 1 + (1 << Self::BITS)),
            _ => Some(left - 1),
        };
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        let (first, count) = (left >> Self::BITS, left & mask);
        let part = if front { first } else { first + count - 1 };
        Some(part as usize)
    }
}

// SAFETY: `work` is written by the thread that holds `Team::busy` while the state is closed and nobody has joined, and
// read by threads that have joined; the state's ordering lies between. It points to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Team {
    /// A team of so many threads, the caller included: at least one, at most 1,024, and fewer where the system has none to
    /// give.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            stretches: (0..threads.clamp(1, MAX_THREADS)).map(|_| Stretch::default()).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let start = |thread: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("team {thread}")).spawn(move || shared.help(thread))
        };
        // Where the system has no more threads to give, a smaller team computes the same.
        let workers = (1..threads.min(MAX_THREADS)).map_while(|thread| start(thread).ok()).collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// The team of this process: one thread for each core. Made when first asked for.
    pub fn global() -> &'static Arc<Team> {
        static TEAM: OnceLock<Arc<Team>> = OnceLock::new();
        TEAM.get_or_init(|| Arc::new(Team::new(std::thread::available_parallelism().map_or(1, usize::from))))
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(part, scratch)` once for every part, on all threads, each with a scratch of its own, and returns when
    /// all are done. A team that is busy with another caller's work does not help.
    ///
    /// # Panics
    /// With the panic of a part, when no thread computes any more, or if there are fewer scratches than threads.
    pub fn each<T: Send>(&self, parts: usize, scratch: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        assert!(scratch.len() >= self.threads(), "a scratch for every thread");
        let scratch = Shares(scratch.as_mut_ptr());
        self.run(parts, &|part, thread| {
            // SAFETY: there are as many scratches as threads, and each thread takes one part at a time.
            work(part, unsafe { &mut *scratch.at(thread) });
        });
    }

    /// Calls `work(index, chunk, scratch)` for every chunk of `len` values; see [`Team::each`].
    ///
    /// # Panics
    /// As [`Team::each`], or if `len` is 0.
    pub fn chunks<T: Send>(
        &self,
        values: &mut [f32],
        len: usize,
        scratch: &mut [T],
        work: impl Fn(usize, &mut [f32], &mut T) + Sync,
    ) {
        assert!(len > 0, "chunks of no values");
        let all = values.len();
        let values = Shares(values.as_mut_ptr());
        self.each(all.div_ceil(len), scratch, |index, scratch| {
            let first = index * len;
            // SAFETY: chunks lie within the values and do not overlap, and each part is computed once.
            let chunk = unsafe { std::slice::from_raw_parts_mut(values.at(first), len.min(all - first)) };
            work(index, chunk, scratch);
        });
    }

    /// The stretch of parts that a thread begins with.
    fn stretch(&self, thread: usize, parts: usize) -> Range<usize> {
        Band { index: thread, count: self.shared.stretches.len() }.of(parts)
    }

    /// The first part of a thread's stretch.
    pub(crate) fn first(&self, thread: usize, parts: usize) -> usize {
        self.stretch(thread, parts).start.min(parts.saturating_sub(1))
    }

    /// The thread whose stretch ends with a part, if there is one.
    pub(crate) fn last_of(&self, part: usize, parts: usize) -> Option<usize> {
        (0..self.shared.stretches.len()).find(|&thread| self.stretch(thread, parts).end == part + 1)
    }

    /// Calls `work(part, thread)` once for every part.
    pub(crate) fn run(&self, parts: usize, work: &Work<'_>) {
        let alone = || (0..parts).for_each(|part| work(part, 0));
        if parts <= 1 || self.workers.is_empty() {
            return alone();
        }
        let guard = match self.busy.try_lock() {
            Ok(guard) => guard,
            // A part that panicked left nothing behind.
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return alone(),
        };
        assert!(parts <= u32::MAX as usize, "more parts than can be numbered");
        let shared = &*self.shared;
        for (thread, stretch) in shared.stretches.iter().enumerate() {
            stretch.set(self.stretch(thread, parts));
        }
        // SAFETY: the state is closed and nobody has joined, so nobody reads. The lifetime is forgotten until the state is
        // closed again, below.
        unsafe {
            *shared.work.get() = Some(std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work));
        }
        let number = shared.state.load(Ordering::Relaxed) / NUMBER;
        shared.state.store(number.wrapping_add(1).wrapping_mul(NUMBER) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.lock.lock());
            shared.wake.notify_all();
        }
        shared.compute(work, 0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while !shared.state.load(Ordering::Acquire).is_multiple_of(NUMBER) {
            looks += 1;
            // Where there are fewer cores than threads, the other one may need this one's.
            if looks < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // Workers catch every panic.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn help(&self, thread: usize) {
        let mut last = 0;
        while let Some(state) = self.wait(last) {
            last = state / NUMBER;
            if self.state.compare_exchange(state, state + JOINED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // Somebody else joined, or it is over: look again.
                last = last.wrapping_sub(1);
                continue;
            }
            // SAFETY: having joined, the work is valid until this worker leaves.
            if let Some(work) = unsafe { *self.work.get() } {
                // SAFETY: as above.
                self.compute(unsafe { &*work }, thread);
            }
            self.state.fetch_sub(JOINED, Ordering::AcqRel);
        }
    }

    /// Takes parts until there are none left: its own in their order, then the others' from behind.
    fn compute(&self, work: &Work<'_>, thread: usize) {
        let threads = self.stretches.len();
        for ahead in 0..threads {
            let stretch = &self.stretches[(thread + ahead) % threads];
            while let Some(part) = stretch.take(ahead == 0) {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(part, thread))) {
                    let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                    match &*first {
                        None => *first = Some(panic),
                        // One that panics when it is dropped would leave workers with work that is gone.
                        Some(_) => std::mem::forget(panic),
                    }
                }
            }
        }
    }

    /// The state once it is open with a number other than `last`; `None` when the team ends.
    fn wait(&self, last: usize) -> Option<usize> {
        let ready = || {
            let state = self.state.load(Ordering::SeqCst);
            (state & OPEN != 0 && state / NUMBER != last).then_some(state)
        };
        loop {
            for _ in 0..SPINS {
                if let Some(state) = ready() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // Whoever opens the state after this look sees a sleeper, and wakes it once this thread has let the lock go.
            let stop = self.stop.load(Ordering::SeqCst);
            if !stop && ready().is_none() {
                drop(self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(guard);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if stop || self.stop.load(Ordering::SeqCst) {
                return None;
            }
        }
    }
}

/// Values of which threads take different ones.
struct Shares<T>(*mut T);

// SAFETY: threads take different values, by the word of whoever calls `at`.
unsafe impl<T: Send> Sync for Shares<T> {}

impl<T> Shares<T> {
    /// # Safety
    /// The index lies within the values, and nobody else uses that one.
    unsafe fn at(&self, index: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_part_is_computed_once_whatever_the_threads() {
        for threads in [0, 1, 2, 3, 17] {
            let team = Team::new(threads);
            assert_eq!(team.threads(), threads.max(1));
            for round in 0..300 {
                let parts = round % 23;
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                let mut scratch = vec![0usize; team.threads()];
                team.each(parts, &mut scratch, |part, own| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                    *own += 1;
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                assert_eq!(scratch.iter().sum::<usize>(), parts);
                if round % 100 == 99 {
                    // Long enough for workers to sleep.
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
        }
    }

    #[test]
    fn workers_help() {
        let team = Team::new(2);
        // A part that waits for another cannot end on one thread.
        let arrived = AtomicUsize::new(0);
        team.each(2, &mut [(); 2], |_, ()| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn panics_come_back_and_leave_the_team_usable() {
        let team = Team::new(3);
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.each(50, &mut [(); 3], |part, ()| assert!(part != 17, "seventeen"));
            }));
            let message = caught.unwrap_err();
            assert!(message.downcast_ref::<&str>().is_some_and(|message| message.contains("seventeen")));
            let done = AtomicUsize::new(0);
            team.each(50, &mut [(); 3], |_, ()| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.load(Ordering::Relaxed), 50);
        }
    }

    #[test]
    fn a_busy_team_lets_callers_compute_alone() {
        let team = Team::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.each(7, &mut [(); 2], |_, ()| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 7);
        // From within a part as well.
        team.each(3, &mut [(); 2], |_, ()| {
            team.each(5, &mut [(); 2], |_, ()| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 7 + 15);
    }
}
