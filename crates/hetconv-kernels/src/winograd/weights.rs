//! A layer's weights in the transformed domain.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::transforms::weight_points;
use super::{IN, OUT, POINTS};
use crate::aligned::{Aligned, Shared};
use crate::cache::{self, LINE};
use crate::conv::{ConvSpec, ConvWeights};
use crate::isa::Isa;
use crate::pack::{Block, Classes, Direction, Layout, pack};
use crate::simd::{Simd, Task};
use crate::walk::Walk;

/// A layer's weights in the transformed domain.
#[derive(Debug)]
pub(crate) struct Weights {
    pub layout: Layout,
    /// What is left for the direct domain of each block: HetConv's centre taps of channels outside its range.
    pub(super) walks: Vec<Walk>,
    /// In the order in which they are read: for each block `[point, input of its range, stride]`, then the centre taps
    /// `[input, stride]`.
    pub packed: Shared,
    extents: Vec<Extent>,
}

/// Where a block's weights are.
#[derive(Debug)]
struct Extent {
    /// All of them.
    weights: Range<usize>,
    /// How many are brought near before the block is begun.
    early: usize,
}

/// Values from one point of a block to the next; a line more than there are, so that points do not share a set of the cache.
fn point_len(block: &Block) -> usize {
    block.range().len() * block.stride + LINE
}

/// The channels of which a block has centre taps alone: those before its range, and behind it.
fn outside(block: &Block, center: Option<usize>) -> [Range<usize>; 2] {
    let range = block.range();
    match center {
        Some(_) => [0..range.start, range.end..block.center.end],
        None => [0..0, 0..0],
    }
}

/// Values of a block: those of all points, and centre taps.
fn block_len(block: &Block) -> usize {
    POINTS * point_len(block) + (block.outside() * block.stride).next_multiple_of(LINE)
}

/// Values of all weights.
pub(crate) fn weights_len(layout: &Layout) -> usize {
    layout.blocks.iter().map(block_len).sum()
}

/// How many of a block's values are brought near before it is begun, with those of `alike` blocks: as large a share as
/// finishing the results of the ones before takes of the time. What its first point reads, if `all` weights stay near.
fn early_len(block: &Block, alike: usize, all: usize) -> usize {
    /// With their sources they stay in the second level.
    const MOST: usize = cache::SECOND / 4;
    let most = if all > cache::SECOND / 2 { MOST / alike } else { 0 };
    let [finishing, multiplying] = [block.outside() * OUT * OUT, block.range().len() * POINTS];
    let share = block_len(block) * finishing / (finishing + multiplying).max(1);
    share.min(most).next_multiple_of(LINE).max(point_len(block))
}

impl Weights {
    /// Packs and transforms canonical weights.
    pub fn new(
        spec: &ConvSpec,
        classes: &Classes,
        layout: Layout,
        direction: Direction,
        isa: Isa,
        weights: ConvWeights<'_>,
    ) -> Self {
        let packed = pack(spec, classes, &layout, direction, weights);
        let center = layout.center;
        let mut extents = Vec::with_capacity(layout.blocks.len());
        let mut walks = Vec::with_capacity(layout.blocks.len());
        let (mut len, all) = (0, weights_len(&layout));
        for alike in layout.blocks.chunk_by(|block, next| block.range() == next.range()) {
            for block in alike {
                let weights = len..len + block_len(block);
                let mut centers = len + POINTS * point_len(block);
                let mut walk = Walk::default();
                for part in outside(block, center) {
                    walk.read(block.stride, 0, &part, centers);
                    centers += part.len() * block.stride;
                }
                walks.push(walk);
                len = weights.end;
                extents.push(Extent { weights, early: early_len(block, alike.len(), all) });
            }
        }
        let fill = |mut rest: &mut [MaybeUninit<f32>]| {
            let mut work = Vec::with_capacity(layout.blocks.len());
            for block in &layout.blocks {
                let (out, others) = rest.split_at_mut(block_len(block));
                work.push((block, out.split_at_mut(POINTS * point_len(block))));
                rest = others;
            }
            work.into_par_iter().for_each(|(block, (points, mut centers))| {
                let first = center.map_or(0, |center| block.taps[center]);
                for part in outside(block, center) {
                    let values = &packed[first..][part.start * block.stride..part.end * block.stride];
                    let (out, others) = centers.split_at_mut(values.len());
                    out.write_copy_of_slice(values);
                    centers = others;
                }
                centers.fill(MaybeUninit::new(0.0));
                let flip = direction == Direction::GradInput;
                isa.run(TransformWeights { block, center, flip, packed: &packed, out: points });
            });
        };
        // SAFETY: every point of every block is written, with the line behind it, and all that is behind the points.
        let packed = unsafe { Aligned::fresh(len, fill) };
        Self { layout, walks, packed: packed.into(), extents }
    }

    /// Number of weights, zeros of the layout included.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// A block's weights of one point, `[input, stride]`.
    #[inline(always)]
    pub fn of_point(&self, index: usize, point: usize) -> &[f32] {
        let block = &self.layout.blocks[index];
        let from = self.extents[index].weights.start + point * point_len(block);
        &self.packed[from..from + block.range().len() * block.stride]
    }

    /// Whether a block has products in the direct domain.
    pub fn has_centers(&self, index: usize) -> bool {
        self.walks[index].steps > 0
    }

    /// What of a block is brought near while one of its points is multiplied: what is read after that, of a block whose
    /// [`Weights::first`] came near before it was begun; of others everything from the beginning on.
    pub fn later(&self, index: usize, point: usize, begun: bool) -> &[f32] {
        let Extent { weights, early } = &self.extents[index];
        let first = if begun { *early } else { 0 };
        // Nothing is left for the last point, so that every point comes before it is read.
        let share = (weights.len() - first).div_ceil(POINTS - 1);
        let [from, to] = [point, point + 1].map(|point| (weights.start + first + point * share).min(weights.end));
        &self.packed[from..to]
    }

    /// What a part of these blocks reads first.
    pub fn first(&self, blocks: &Range<usize>) -> &[f32] {
        match blocks.is_empty() {
            true => &[],
            false => {
                let Extent { weights, early } = &self.extents[blocks.start];
                &self.packed[weights.start..][..*early]
            }
        }
    }

    /// Blocks that read the same range, and so the same transformed source.
    pub fn alike(&self, blocks: Range<usize>) -> Range<usize> {
        let layout = &self.layout.blocks;
        let range = layout[blocks.start].range();
        let run = layout[blocks.clone()].iter().take_while(|block| block.range() == range).count();
        blocks.start..blocks.start + run
    }
}

/// G·g·Gᵀ of one block's weights.
struct TransformWeights<'a> {
    block: &'a Block,
    center: Option<usize>,
    /// Whether taps are read from the last to the first.
    flip: bool,
    packed: &'a [f32],
    out: &'a mut [MaybeUninit<f32>],
}

impl Task for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, center, flip, packed, out } = self;
        let (range, point_len) = (block.range(), point_len(block));
        let taps: [&[f32]; 9] = std::array::from_fn(|at| {
            let tap = if flip { 8 - at } else { at };
            // The centre tap of HetConv holds all inputs, the others the range.
            let first = if Some(tap) == center { range.start * block.stride } else { 0 };
            &packed[block.taps[tap] + first..][..range.len() * block.stride]
        });
        assert!(out.len() == POINTS * point_len);
        for point in out.chunks_exact_mut(point_len) {
            point[point_len - LINE..].fill(MaybeUninit::new(0.0));
        }
        for at in (0..range.len() * block.stride).step_by(S::LANES) {
            // SAFETY: rows of weights are whole vectors, so one is left at `at` in every tap and every point.
            unsafe {
                // No closure: it would be a function without the instruction set's registers.
                let mut columns = [[simd.splat(0.0); IN]; 3];
                for (x, column) in columns.iter_mut().enumerate() {
                    let [first, second, third] = [x, 3 + x, 6 + x].map(|tap| taps[tap].as_ptr().wrapping_add(at));
                    *column = weight_points(simd, [simd.load(first), simd.load(second), simd.load(third)]);
                }
                for y in 0..IN {
                    let row = weight_points(simd, [columns[0][y], columns[1][y], columns[2][y]]);
                    for (x, &value) in row.iter().enumerate() {
                        simd.store(out.as_mut_ptr().cast::<f32>().add((y * IN + x) * point_len + at), value);
                    }
                }
            }
        }
    }
}
