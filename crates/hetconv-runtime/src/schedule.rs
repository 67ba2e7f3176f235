//! In which pieces a batch is computed, and where its values stand.
//!
//! Layers whose activations are large and whose weights are small run on a few images at a time, one layer after another
//! on one thread, so that what one layer writes is still near when the next one reads it. Such a group begins and ends
//! where a single value is alive. All other layers run on the whole batch, and their threads share the weights' reads.

use std::ops::Range;

use hetconv_kernels::cache;

use crate::Plan;
use crate::memory::{Life, largest_alive, place};
use crate::step::{Kind, Value};

/// The order of computation for one batch size.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub groups: Vec<Group>,
    /// Where each value stands in the memory of all images; empty for those inside of groups.
    pub places: Vec<Range<usize>>,
    pub arena_len: usize,
    /// All values of that memory that are alive at once, at most.
    pub alive_len: usize,
}

/// Steps that follow each other.
#[derive(Debug)]
pub(crate) struct Group {
    pub steps: Range<usize>,
    /// How they run on a few images at a time, if they do.
    pub chunk: Option<Chunk>,
}

/// A few images at a time.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub images: usize,
    /// The value of all images that is read, if it is not the network's inputs.
    pub source: Option<usize>,
    /// The value of all images that is written, by the last step.
    pub target: usize,
    /// Where the values between stand in a thread's own memory.
    pub places: Vec<Range<usize>>,
    pub arena_len: usize,
}

/// Values of activations that are to be near at once: five eighths of a core's second-level cache.
const NEAR: usize = cache::SECOND / 8 * 5;
/// Values of packed weights of any layer, at most, for a segment to run on a few images at a time.
const NEAR_WEIGHTS: usize = cache::SECOND / 16 * 11;
/// Chunks there are at least.
const CHUNKS: usize = 8;

/// Values are placed at cache lines.
fn room(value: &Value, images: usize) -> usize {
    (value.len() * images).next_multiple_of(16)
}

/// The first step that writes each value, and the last that reads it.
fn spans(plan: &Plan) -> Vec<Range<usize>> {
    let mut spans = vec![Range { start: usize::MAX, end: 0 }; plan.values.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        let span = &mut spans[step.output];
        *span = span.start.min(index)..index;
        step.operands.iter().for_each(|&operand| spans[operand].end = index);
    }
    spans
}

impl Schedule {
    /// For so many images; `None` if their values are more than any memory has.
    pub fn new(plan: &Plan, images: usize) -> Option<Self> {
        let all: usize = plan.values.iter().map(Value::len).sum();
        all.checked_mul(images).filter(|&all| all <= isize::MAX as usize / 64)?;
        let spans = spans(plan);
        let groups = groups(plan, &spans, images);
        let mut lives: Vec<Life> = Vec::with_capacity(plan.values.len());
        for (value, span) in plan.values.iter().zip(&spans) {
            // Outputs have memory of their own.
            let is_output = matches!(plan.steps[span.start].kind, Kind::Output { .. });
            let mut life =
                Life { from: span.start, to: span.end, len: if is_output { 0 } else { room(value, images) } };
            for group in groups.iter().filter(|group| group.chunk.is_some()) {
                let inside = group.steps.contains(&life.from) && group.steps.contains(&life.to);
                if inside {
                    life.len = 0;
                } else if group.steps.contains(&life.to) {
                    life.to = group.steps.end - 1;
                } else if group.steps.contains(&life.from) {
                    life.from = group.steps.start;
                }
            }
            lives.push(life);
        }
        let (places, arena_len) = place(&lives);
        Some(Self { groups, places, arena_len, alive_len: largest_alive(&lives) })
    }
}

/// Steps between points where the last result alone is alive.
fn segments(plan: &Plan, spans: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    let mut start = 0;
    let mut written = vec![0; plan.values.len()];
    plan.steps.iter().enumerate().for_each(|(index, step)| written[step.output] = index);
    for (index, step) in plan.steps.iter().enumerate() {
        let alive = |&value: &usize| spans[value].start <= index && spans[value].end > index;
        let cut = (0..spans.len()).filter(alive).all(|value| value == step.output && written[value] == index);
        if cut || index + 1 == plan.steps.len() {
            segments.push(start..index + 1);
            start = index + 1;
        }
    }
    segments
}

fn groups(plan: &Plan, spans: &[Range<usize>], images: usize) -> Vec<Group> {
    let mut groups: Vec<(Range<usize>, Option<usize>)> = Vec::new();
    for segment in segments(plan, spans) {
        let together = chunk_images(plan, spans, &segment, images);
        match groups.last_mut() {
            Some((steps, before)) if before.is_some() == together.is_some() => {
                steps.end = segment.end;
                *before = before.zip(together).map(|(before, together)| before.min(together));
            }
            _ => groups.push((segment, together)),
        }
    }
    let group = |(steps, together): (Range<usize>, Option<usize>)| Group {
        chunk: together.map(|together| chunk(plan, spans, &steps, together)),
        steps,
    };
    groups.into_iter().map(group).collect()
}

/// Images of a chunk, if a segment is to run on a few at a time.
fn chunk_images(plan: &Plan, spans: &[Range<usize>], segment: &Range<usize>, images: usize) -> Option<usize> {
    let steps = &plan.steps[segment.clone()];
    let weights = steps.iter().map(|step| match &step.kind {
        Kind::Conv(prepared) => prepared.packed_len(),
        _ => 0,
    });
    let ends = steps.iter().any(|step| matches!(step.kind, Kind::Output { .. }));
    let read_later = spans[steps[steps.len() - 1].output].end >= segment.end;
    if ends || !read_later || weights.max().unwrap_or(0) > NEAR_WEIGHTS {
        return None;
    }
    let in_segment = |span: &Range<usize>| span.start < segment.end && span.end >= segment.start;
    let lives: Vec<Life> = plan
        .values
        .iter()
        .zip(spans)
        .filter(|(_, span)| in_segment(span))
        .map(|(value, span)| Life { from: span.start, to: span.end, len: value.len() })
        .collect();
    let together = (NEAR / largest_alive(&lives).max(1)).max(1);
    (images.div_ceil(together) >= CHUNKS).then_some(together)
}

fn chunk(plan: &Plan, spans: &[Range<usize>], steps: &Range<usize>, images: usize) -> Chunk {
    let life = |(value, span): (&Value, &Range<usize>)| {
        let inside = steps.contains(&span.start) && steps.contains(&span.end);
        Life { from: span.start, to: span.end, len: if inside { room(value, images) } else { 0 } }
    };
    let lives: Vec<Life> = plan.values.iter().zip(spans).map(life).collect();
    let (places, arena_len) = place(&lives);
    let target = plan.steps[steps.end - 1].output;
    let outside = |&value: &usize| spans[value].start < steps.start;
    let source = plan.steps[steps.clone()].iter().flat_map(|step| &step.operands).copied().find(outside);
    Chunk { images, source, target, places, arena_len }
}
