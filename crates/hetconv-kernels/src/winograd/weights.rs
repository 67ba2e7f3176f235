//! A layer's weights in the transformed domain.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::transforms::weight_points;
use super::{IN, POINTS};
use crate::aligned::{Aligned, Shared};
use crate::cache::LINE;
use crate::conv::{ConvSpec, ConvWeights};
use crate::isa::Isa;
use crate::pack::{Block, Classes, Direction, Layout, pack};
use crate::simd::{Simd, Task};
use crate::walk::Walk;

/// A layer's weights in the transformed domain.
#[derive(Debug)]
pub(crate) struct Weights {
    pub layout: Layout,
    /// HetConv's centre taps of channels outside each block's range, `[block, input, stride]`.
    pub centers: Shared,
    /// What is left for the direct domain of each block: those centre taps.
    pub(super) walks: Vec<Walk>,
    /// `[block, point, input of the block's range, stride]`.
    pub transformed: Shared,
    /// Where each block starts in `transformed` and in `centers`.
    starts: Vec<[usize; 2]>,
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

/// Values of all transformed weights.
pub(crate) fn weights_len(layout: &Layout) -> usize {
    layout.blocks.iter().map(|block| POINTS * point_len(block)).sum()
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
        let mut starts = Vec::with_capacity(layout.blocks.len());
        let mut walks = Vec::with_capacity(layout.blocks.len());
        let (mut len, mut centers_len) = (0, 0);
        for block in &layout.blocks {
            starts.push([len, centers_len]);
            len += POINTS * point_len(block);
            let mut walk = Walk::default();
            for part in outside(block, center) {
                walk.read(block.stride, 0, &part, centers_len);
                centers_len += part.len() * block.stride;
            }
            walks.push(walk);
        }
        let mut centers = Aligned::zeroed(centers_len);
        let mut rest_of_centers = &mut centers[..];
        let fill = |mut rest: &mut [MaybeUninit<f32>]| {
            let mut work = Vec::with_capacity(layout.blocks.len());
            for block in &layout.blocks {
                let (out, others) = rest.split_at_mut(POINTS * point_len(block));
                let of_centers = outside(block, center).map(|part| part.len() * block.stride);
                work.push((block, out, of_centers.map(|len| rest_of_centers.split_off_mut(..len).unwrap_or_default())));
                rest = others;
            }
            work.into_par_iter().for_each(|(block, out, of_centers)| {
                for (part, out) in outside(block, center).iter().zip(of_centers) {
                    let first = center.map_or(0, |center| block.taps[center]) + part.start * block.stride;
                    out.copy_from_slice(&packed[first..][..out.len()]);
                }
                let flip = direction == Direction::GradInput;
                isa.run(TransformWeights { block, center, flip, packed: &packed, out });
            });
        };
        // SAFETY: every point of every block is written, and the line behind it.
        let transformed = unsafe { Aligned::fresh(len, fill) };
        Self { layout, centers: centers.into(), walks, transformed: transformed.into(), starts }
    }

    /// Number of weights, zeros of the layout included.
    pub fn len(&self) -> usize {
        self.centers.len() + self.transformed.len()
    }

    /// A block's weights of one point, `[input, stride]`.
    #[inline(always)]
    pub fn of_point(&self, index: usize, point: usize) -> &[f32] {
        let block = &self.layout.blocks[index];
        let from = self.starts[index][0] + point * point_len(block);
        &self.transformed[from..from + block.range().len() * block.stride]
    }

    /// A block's centre taps of channels outside its range.
    pub fn centers(&self, index: usize) -> &[f32] {
        let end = self.starts.get(index + 1).map_or(self.centers.len(), |starts| starts[1]);
        &self.centers[self.starts[index][1]..end]
    }

    /// What a part of these blocks reads first.
    pub fn first(&self, blocks: &Range<usize>) -> &[f32] {
        if blocks.is_empty() { &[] } else { self.of_point(blocks.start, 0) }
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
