//! The memory of one batch size, and the running of a plan in it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hetconv_kernels::measure::has_memory;
use hetconv_kernels::{Aligned, Prepared, PreparedBatch, Residual, Team};

use crate::schedule::{Chunk, Schedule};
use crate::step::{Kind, Step};
use crate::{Plan, RunError};

/// Runs a plan on batches of one size. Nothing is allocated after it is made.
#[derive(Debug)]
pub struct Session {
    plan: Arc<Plan>,
    team: Arc<Team>,
    batch: usize,
    schedule: Schedule,
    arena: Aligned,
    workers: Vec<Worker>,
    outputs: Vec<Aligned>,
    clock: Option<Clock>,
}

/// The time of every step, in nanoseconds.
#[derive(Debug)]
struct Clock(Vec<AtomicU64>);

impl Clock {
    /// Runs a step of this number.
    fn time(clock: Option<&Self>, step: usize, run: impl FnOnce()) {
        let Some(clock) = clock else { return run() };
        let started = Instant::now();
        run();
        clock.0[step].fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Runs steps that several threads go through with images of their own: what these took together, step by step,
    /// becomes shares of the time that passed.
    fn share(clock: Option<&Self>, steps: Range<usize>, run: impl FnOnce()) {
        let Some(clock) = clock else { return run() };
        let started = Instant::now();
        run();
        let passed = started.elapsed().as_nanos();
        let times = &clock.0[steps];
        let read = |time: &AtomicU64| u128::from(time.load(Ordering::Relaxed));
        let together = times.iter().map(read).sum::<u128>().max(1);
        times.iter().for_each(|time| time.store((read(time) * passed / together) as u64, Ordering::Relaxed));
    }
}

/// What one thread works in.
#[derive(Debug)]
struct Worker {
    scratch: Aligned,
    /// Values of a few images.
    arena: Aligned,
}

impl AsMut<[f32]> for Worker {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.scratch
    }
}

/// The values that are not being written.
struct Others<'a> {
    before: &'a [f32],
    after: &'a [f32],
    /// Where `after` begins.
    offset: usize,
}

impl<'a> Others<'a> {
    /// Splits a memory into the value that is written and all others.
    fn split(memory: &'a mut [f32], written: &Range<usize>) -> (&'a mut [f32], Self) {
        let (before, rest) = memory.split_at_mut(written.start);
        let (target, after) = rest.split_at_mut(written.len());
        (target, Self { before, after, offset: written.end })
    }

    fn get(&self, place: &Range<usize>, len: usize) -> &'a [f32] {
        match place.start.checked_sub(self.offset) {
            Some(start) => &self.after[start..][..len],
            None => &self.before[place.start..][..len],
        }
    }
}

impl Session {
    /// A session for batches of so many images, on all cores.
    ///
    /// # Errors
    /// A batch of no images, or of more than there is memory for.
    pub fn new(plan: &Arc<Plan>, batch: usize) -> Result<Self, RunError> {
        Self::with_team(plan, batch, Team::global())
    }

    /// A session that computes on the threads of a team. Sessions may share a team: while it computes for one, others do
    /// without.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_team(plan: &Arc<Plan>, batch: usize, team: &Arc<Team>) -> Result<Self, RunError> {
        if batch == 0 {
            return Err(RunError::EmptyBatch);
        }
        let schedule = Schedule::new(plan, batch).ok_or(RunError::TooLarge(batch))?;
        let scratch = schedule.groups.iter().flat_map(|group| {
            let images = group.chunk.as_ref().map_or(batch, |chunk| chunk.images);
            plan.steps[group.steps.clone()].iter().map(move |step| match &step.kind {
                Kind::Conv(prepared) => prepared.scratch_len(images),
                _ => 0,
            })
        });
        let scratch = scratch.max().unwrap_or(0);
        let own = schedule.groups.iter().filter_map(|group| group.chunk.as_ref().map(|chunk| chunk.arena_len));
        let own = own.max().unwrap_or(0);
        let of_outputs: usize = plan.output_shapes().map(|shape| batch * shape.elements()).sum();
        let of_workers = scratch.saturating_add(own).saturating_mul(team.threads());
        if !has_memory(of_workers.saturating_add(schedule.arena_len).saturating_add(of_outputs)) {
            return Err(RunError::TooLarge(batch));
        }
        let zeroed = |len: usize| Aligned::try_zeroed(len).ok_or(RunError::TooLarge(batch));
        let worker = |_| Ok(Worker { scratch: zeroed(scratch)?, arena: zeroed(own)? });
        let workers = (0..team.threads()).map(worker).collect::<Result<_, RunError>>()?;
        let outputs = plan.outputs.iter().map(|output| zeroed(batch * output.shape.elements()));
        let outputs = outputs.collect::<Result<_, _>>()?;
        let arena = zeroed(schedule.arena_len)?;
        Ok(Self {
            plan: Arc::clone(plan),
            team: Arc::clone(team),
            batch,
            schedule,
            arena,
            workers,
            outputs,
            clock: None,
        })
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Images of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Bytes of the memory for activations, those of each thread left out, and the bytes of all activations alive at once
    /// where there are most of them. Where images are worked on a few at a time, only what lies between is counted.
    pub fn arena_bytes(&self) -> [usize; 2] {
        [4 * self.schedule.arena_len, 4 * self.schedule.alive_len]
    }

    /// Bytes of all threads' own memory.
    pub fn scratch_bytes(&self) -> usize {
        self.workers.iter().map(|worker| 4 * (worker.scratch.len() + worker.arena.len())).sum()
    }

    /// Runs a network of one input, `[images, channels, height, width]`, and returns its first output, laid out alike with
    /// channels in their natural order.
    ///
    /// # Errors
    /// An input of the wrong length, or a network of several inputs.
    pub fn run(&mut self, input: &[f32]) -> Result<&[f32], RunError> {
        self.run_all(&[input])?;
        Ok(self.output(0))
    }

    /// Runs the network and returns the time of each of [`Plan::steps`]. Where several threads go through several steps with
    /// different images, each step is given its share of the time that passed.
    ///
    /// # Errors
    /// As [`Session::run_all`].
    pub fn time_steps(&mut self, inputs: &[&[f32]]) -> Result<Vec<Duration>, RunError> {
        self.clock = Some(Clock(self.plan.steps.iter().map(|_| AtomicU64::new(0)).collect()));
        let ran = self.run_all(inputs);
        let clock = self.clock.take();
        ran?;
        let time = |nanoseconds: AtomicU64| Duration::from_nanos(nanoseconds.into_inner());
        Ok(clock.into_iter().flat_map(|clock| clock.0).map(time).collect())
    }

    /// Runs the network; its results are [`Session::output`]s.
    ///
    /// # Errors
    /// Inputs of the wrong number or length.
    pub fn run_all(&mut self, inputs: &[&[f32]]) -> Result<(), RunError> {
        let Self { plan, team, batch, schedule, arena, workers, outputs, clock } = self;
        let (plan, batch, clock) = (&**plan, *batch, clock.as_ref());
        if inputs.len() != plan.inputs.len() {
            return Err(RunError::Inputs { expected: plan.inputs.len(), found: inputs.len() });
        }
        for (input, values) in plan.inputs.iter().zip(inputs) {
            let expected = batch * input.shape.iter().product::<usize>();
            if values.len() != expected {
                return Err(RunError::Length { input: input.name.clone(), expected, found: values.len() });
            }
        }
        for group in &schedule.groups {
            if let Some(chunk) = &group.chunk {
                let (target, others) = Others::split(arena, &schedule.places[chunk.target]);
                let target_len = plan.values[chunk.target].len();
                let source = chunk.source.map(|source| {
                    let len = plan.values[source].len();
                    (others.get(&schedule.places[source], batch * len), len)
                });
                let (steps, in_place) = (group.steps.clone(), &schedule.in_place[..]);
                let few = Few { plan, steps, in_place, chunk, inputs, source, clock };
                let (target, len) = (&mut target[..batch * target_len], chunk.images * target_len);
                Clock::share(clock, group.steps.clone(), || {
                    team.chunks(target, len, workers, |index, target, own| {
                        few.run(index * chunk.images, target.len() / target_len, target, own);
                    });
                });
                continue;
            }
            for index in group.steps.clone() {
                let step = &plan.steps[index];
                let output = if let Kind::Output { number, .. } = step.kind { Some(number) } else { None };
                let place = if output.is_some() { 0..0 } else { schedule.places[step.output].clone() };
                let (stored, others) = Others::split(arena, &place);
                let target = match output {
                    Some(number) => &mut outputs[number][..],
                    None => &mut stored[..batch * plan.values[step.output].len()],
                };
                let read = |side: usize| read(plan, step, inputs, &schedule.places, &others, batch, side);
                let next = plan.steps[index + 1..group.steps.end].iter().find_map(|step| match &step.kind {
                    Kind::Conv(prepared) => Some(&**prepared),
                    _ => None,
                });
                let whole = Whole { plan, step, in_place: schedule.in_place[index], images: batch, read, target };
                Clock::time(clock, index, || whole.run(team, workers, next));
            }
        }
        Ok(())
    }

    /// The results of the last run, `[images, channels, height, width]`.
    ///
    /// # Panics
    /// If the network has no such output.
    pub fn output(&self, number: usize) -> &[f32] {
        &self.outputs[number]
    }
}

/// An operand of a step, of all `images`.
fn read<'a>(
    plan: &Plan,
    step: &Step,
    inputs: &[&'a [f32]],
    places: &[Range<usize>],
    others: &Others<'a>,
    images: usize,
    side: usize,
) -> &'a [f32] {
    match step.kind {
        Kind::Input(number) => inputs[number],
        _ => {
            let value = step.operands[side];
            others.get(&places[value], images * plan.values[value].len())
        }
    }
}

/// What a convolution adds.
fn residual<'a>(step: &Step, in_place: bool, read: impl Fn(usize) -> &'a [f32]) -> Option<Residual<'a>> {
    let of_operand = || if in_place { Residual::Target } else { Residual::Values(read(1)) };
    (step.operands.len() > 1).then(of_operand)
}

/// A step of all images.
struct Whole<'a, R> {
    plan: &'a Plan,
    step: &'a Step,
    in_place: bool,
    images: usize,
    /// Its operands.
    read: R,
    target: &'a mut [f32],
}

impl<'a, R: Fn(usize) -> &'a [f32] + Sync> Whole<'a, R> {
    /// Computes it on all threads, and brings near what the next layer reads first.
    fn run(self, team: &Team, workers: &mut [Worker], next: Option<&Prepared>) {
        /// Values of a part, at least.
        const LEAST: usize = 16 << 10;
        let Self { plan, step, in_place, images, read, target } = self;
        if let Kind::Conv(prepared) = &step.kind {
            let batch = PreparedBatch { images, source: read(0), residual: residual(step, in_place, read), target };
            return prepared.run(team, workers, batch, next);
        }
        let rows = images * if step.has_rows() { plan.values[step.output].size[0] } else { 1 };
        let row_len = target.len() / rows;
        let read_len: usize = step.operands.iter().map(|&operand| images * plan.values[operand].len()).sum();
        let parts = ((target.len() + read_len) / LEAST).clamp(1, 16);
        let of_part = rows.div_ceil(parts);
        team.chunks(target, of_part * row_len, workers, |index, target, _| {
            step.compute(plan.isa, &plan.values, index * of_part, &|side| read(side), target);
        });
    }
}

/// A group's steps on a few images.
struct Few<'a> {
    plan: &'a Plan,
    steps: Range<usize>,
    /// Of every step of the plan.
    in_place: &'a [bool],
    chunk: &'a Chunk,
    inputs: &'a [&'a [f32]],
    /// What the group reads, of all images, and its length for one.
    source: Option<(&'a [f32], usize)>,
    clock: Option<&'a Clock>,
}

impl Few<'_> {
    /// Computes the target of `images` from the `first` on.
    fn run(&self, first: usize, images: usize, target: &mut [f32], worker: &mut Worker) {
        let Self { plan, ref steps, in_place, chunk, clock, .. } = *self;
        let Worker { scratch, arena } = worker;
        for index in steps.clone() {
            let step = &plan.steps[index];
            let value = step.output;
            let own = if value == chunk.target { 0..0 } else { chunk.places[value].clone() };
            let (written, others) = Others::split(arena, &own);
            let written = match value == chunk.target {
                true => &mut *target,
                false => &mut written[..images * plan.values[value].len()],
            };
            let read = |side: usize| match (step.operands.get(side), &step.kind) {
                (_, Kind::Input(number)) => {
                    let len = plan.inputs[*number].shape.iter().product::<usize>();
                    &self.inputs[*number][first * len..][..images * len]
                }
                (Some(operand), _) if Some(*operand) == chunk.source => {
                    let (source, len) = self.source.expect("what a chunk reads");
                    &source[first * len..][..images * len]
                }
                (Some(operand), _) => others.get(&chunk.places[*operand], images * plan.values[*operand].len()),
                (None, _) => unreachable!("an operand of the step"),
            };
            Clock::time(clock, index, || match &step.kind {
                Kind::Conv(prepared) => {
                    let residual = residual(step, in_place[index], read);
                    let batch = PreparedBatch { images, source: read(0), residual, target: written };
                    prepared.run_alone(scratch, batch);
                }
                _ => step.compute(plan.isa, &plan.values, 0, &read, written),
            });
        }
    }
}
