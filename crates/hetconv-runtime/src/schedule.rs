//! In which pieces a batch is computed, and where its values stand.
//!
//! Layers whose activations are large and whose weights are small run on a few images at a time, one layer after another
//! on one thread, so that what one layer writes is still near when the next one reads it. Such a group begins and ends
//! where a single value is alive. All other layers run on the whole batch, and their threads share the weights' reads.

use std::ops::Range;

use hetconv_kernels::cache;

use crate::Plan;
use crate::memory::{Life, largest_alive, place};
use crate::step::{Kind, Step, Value};

/// The order of computation for one batch size.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub groups: Vec<Group>,
    /// Where each value stands in the memory of all images; empty for those inside of groups.
    pub places: Vec<Range<usize>>,
    /// Whether each step adds to its second operand where that stands.
    pub in_place: Vec<bool>,
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
        let stretches = stretches(plan, &spans, images);
        let in_place = in_place(plan, &spans, &stretches);
        let homes = homes(plan, &in_place);
        let group = |Stretch { steps, together }| Group {
            chunk: together.map(|images| Chunk::new(plan, &spans, &steps, images, &homes)),
            steps,
        };
        let groups: Vec<Group> = stretches.into_iter().map(group).collect();
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
        let (places, arena_len) = place_at_home(&mut lives, &homes);
        Some(Self { groups, places, in_place, arena_len, alive_len: largest_alive(&lives) })
    }
}

/// The steps that add to their second operand where it stands: convolutions that alone read it last, where one memory holds
/// both it and the result.
fn in_place(plan: &Plan, spans: &[Range<usize>], stretches: &[Stretch]) -> Vec<bool> {
    let mut writers = vec![0; plan.values.len()];
    plan.steps.iter().for_each(|step| writers[step.output] += 1);
    // The stretch whose threads have memory of their own for what is alive in these steps alone.
    let memory = |first: usize, last: usize| {
        let inside = |stretch: &Stretch| stretch.steps.contains(&first) && stretch.steps.contains(&last);
        stretches.iter().position(|stretch| stretch.together.is_some() && inside(stretch))
    };
    let of_value = |value: usize| memory(spans[value].start, spans[value].end);
    let of_step = |(index, step): (usize, &Step)| {
        let (Kind::Conv(_), &[source, residual]) = (&step.kind, &step.operands[..]) else { return false };
        let output = step.output;
        let alone = source != residual && spans[residual].end == index && writers[output] == 1;
        let together = [of_value(residual), of_value(output)] == [memory(index, index); 2];
        alone && together && plan.values[residual] == plan.values[output]
    };
    plan.steps.iter().enumerate().map(of_step).collect()
}

/// The value in whose memory each value stands: its own, or that of the first of those that were added to.
fn homes(plan: &Plan, in_place: &[bool]) -> Vec<usize> {
    let mut homes: Vec<usize> = (0..plan.values.len()).collect();
    for (step, _) in plan.steps.iter().zip(in_place).filter(|&(_, &in_place)| in_place) {
        homes[step.output] = homes[step.operands[1]];
    }
    homes
}

/// [`place`] of values each of which lives in its home.
fn place_at_home(lives: &mut [Life], homes: &[usize]) -> (Vec<Range<usize>>, usize) {
    for (value, &home) in homes.iter().enumerate().filter(|&(value, &home)| value != home) {
        lives[home].to = lives[home].to.max(lives[value].to);
        lives[value].len = 0;
    }
    let (mut places, len) = place(lives);
    for (value, &home) in homes.iter().enumerate() {
        places[value] = places[home].clone();
    }
    (places, len)
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

/// Segments alike that follow each other.
struct Stretch {
    steps: Range<usize>,
    /// Images of a chunk, if they run on a few at a time.
    together: Option<usize>,
}

fn stretches(plan: &Plan, spans: &[Range<usize>], images: usize) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for steps in segments(plan, spans) {
        let together = chunk_images(plan, spans, &steps, images);
        match stretches.last_mut() {
            Some(last) if last.together.is_some() == together.is_some() => {
                last.steps.end = steps.end;
                last.together = last.together.min(together);
            }
            _ => stretches.push(Stretch { steps, together }),
        }
    }
    stretches
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
    // A residual and the sum in its place count twice: which are added in place is known only when this is.
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

impl Chunk {
    fn new(plan: &Plan, spans: &[Range<usize>], steps: &Range<usize>, images: usize, homes: &[usize]) -> Self {
        let target = plan.steps[steps.end - 1].output;
        let outside = |&value: &usize| spans[value].start < steps.start;
        let source = plan.steps[steps.clone()].iter().flat_map(|step| &step.operands).copied().find(outside);
        let life = |(value, span): (&Value, &Range<usize>)| {
            let inside = steps.contains(&span.start) && steps.contains(&span.end);
            Life { from: span.start, to: span.end, len: if inside { room(value, images) } else { 0 } }
        };
        let mut lives: Vec<Life> = plan.values.iter().zip(spans).map(life).collect();
        let (places, arena_len) = place_at_home(&mut lives, homes);
        Self { images, source, target, places, arena_len }
    }
}

#[cfg(test)]
mod tests {
    use hetconv_graph::{Weights, zoo};

    use super::*;
    use crate::Options;

    #[test]
    fn sums_stand_where_their_residual_stood_in_chunks_too() {
        let graph = zoo::build(&"resnet20_p4".parse().unwrap(), 10).unwrap();
        let plan = Plan::compile(&graph, &Weights::init(&graph, 1).unwrap(), &Options::default()).unwrap();
        let schedule = Schedule::new(&plan, 64).unwrap();
        let chunked = schedule.groups.iter().filter(|group| group.chunk.is_some());
        let in_place = chunked.flat_map(|group| group.steps.clone()).filter(|&step| schedule.in_place[step]).count();
        // Of the first stage's blocks, whose shortcuts change nothing and whose values are large, all.
        assert!(in_place >= 3, "{in_place}");
    }
}
