//! What the blocks' own ranges contribute to grad-weight by Winograd's algorithm, the transpose of F(4×4, 3×3): pieces of
//! input (B) and of grad-output (A) are transformed, each point's products are summed over all pieces, and the sums
//! transformed back (Gᵀ): 36 products for a channel, a filter and 4×4 pixels, where the direct pass has 144.
//!
//! The sums of a point are a matrix product over pieces, by the same [`Tile`] as the direct pass.

// Rows and columns are indexed alike.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::GradWeight;
use super::tile::{ROWS, Tile};
use crate::aligned::Aligned;
use crate::cache::{self, LINE};
use crate::isa::Isa;
use crate::pack::{Block, Layout};
use crate::parallel::{even_ranges, parts_of_blocks};
use crate::prefetch::Prefetch;
use crate::simd::Simd;
use crate::winograd::{self, Grid, IN, OUT, POINTS, target_points, transform_source, weight_taps};

/// Outputs and inputs whose sums are worked on together: with the pieces, they stay in the caches.
const OUTPUTS: usize = 128;
const INPUTS: usize = 128;
/// Bytes of pieces that are transformed together, and how many pieces that are at least and at most.
const TOGETHER: usize = cache::HALF_SECOND_BYTES;
const PIECES: [usize; 2] = [16, 512];

/// Blocks that are worked on together: of one range, or of as many whole ranges as are narrow.
pub(super) fn groups_of_blocks(layout: &Layout) -> Vec<&[Block]> {
    let blocks = &layout.blocks;
    let mut groups = Vec::new();
    let (mut first, mut inputs, mut outputs) = (0, 0, 0);
    for (index, block) in blocks.iter().enumerate() {
        let is_alike = index > first && blocks[index - 1].range() == block.range();
        let more = if is_alike { 0 } else { block.range().len() };
        let is_full = outputs + block.stride > OUTPUTS || (!is_alike && inputs + more > INPUTS);
        if index > first && is_full {
            groups.push(&blocks[first..index]);
            (first, inputs, outputs) = (index, block.range().len(), block.stride);
        } else {
            (inputs, outputs) = (inputs + more, outputs + block.stride);
        }
    }
    groups.extend(blocks.get(first..).filter(|rest| !rest.is_empty()));
    groups
}

/// Alike blocks, each with its place among all.
fn alike(blocks: &[Block]) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    blocks.chunk_by(|one, other| one.range() == other.range()).map(move |run| {
        let first = next;
        next += run.len();
        first..next
    })
}

/// What an image of a batch costs, in whole-vector products.
pub(crate) fn cost(layout: &Layout, out_size: [usize; 2], batch: usize, isa: Isa) -> f64 {
    /// What it costs to find a piece, and to transform a vector of its input and of its grad-output.
    const PIECE: f64 = 300.0;
    const TRANSFORMS: [f64; 2] = [800.0, 750.0];
    /// What it costs to read and write a vector of sums, and to transform it back.
    const SUMS: f64 = 250.0;
    /// Products of a single vector need as many loads.
    const SINGLE: f64 = 1.15;
    let pieces = winograd::pieces(out_size) as f64;
    let pixels = (out_size[0] * out_size[1]) as f64;
    let groups = groups_of_blocks(layout);
    // Every part of the batch has sums of its own.
    let parts = parts_of_blocks(batch, groups.len(), layout.len);
    let mut sum = 0.0;
    for group in groups {
        sum += pieces * PIECE;
        for run in alike(group) {
            let range = group[run.start].range().len();
            sum += pieces * TRANSFORMS[0] * range.div_ceil(isa.lanes()) as f64;
            for block in &group[run] {
                let products = pieces * (POINTS * range) as f64 + pixels * block.outside() as f64;
                let products = if block.vectors == 1 { SINGLE * products } else { products };
                let sums = SUMS * (range * parts) as f64 / batch as f64;
                sum += block.vectors as f64 * (products + pieces * TRANSFORMS[1] + sums);
            }
        }
    }
    sum
}

/// Some blocks over some images, for one thread.
pub(super) struct Sums<'a> {
    blocks: &'a [Block],
    grid: Grid,
    channels: [usize; 2],
    /// Images of a call, and pieces that are transformed together.
    images: usize,
    together: usize,
    /// Transformed input, `[point, piece, input]`.
    inputs: Aligned,
    /// Transformed grad-output, `[point, block, piece, lane]`.
    outputs: Aligned,
    /// Places of a piece's inputs within a point, and its row of a block's grad-output.
    pairs: Vec<(u32, u32)>,
    /// Values of a pixel outside of the image.
    zeros: Aligned,
    /// Runs whose inputs are transformed together.
    sets: Vec<Vec<Run>>,
}

/// Some inputs and the blocks that read them.
struct Run {
    inputs: Range<usize>,
    blocks: Range<usize>,
    /// Where its inputs begin among those that are transformed together.
    column: usize,
    /// `[point, block, input, lane]`.
    sums: Aligned,
}

impl<'a> Sums<'a> {
    pub fn new(grad: &GradWeight<'_>, blocks: &'a [Block]) -> Self {
        let images = grad.images;
        let channels = [grad.spec.in_channels, grad.spec.out_channels];
        let padding = grad.spec.geometry.padding;
        let before = [padding[0] as isize, padding[1] as isize];
        let grid = Grid { source_size: images.in_size, target_size: images.out_size, before };
        let mut sets: Vec<Vec<Run>> = Vec::new();
        let (mut column, mut depth) = (INPUTS, LINE);
        for alike in alike(blocks) {
            let stride: usize = blocks[alike.clone()].iter().map(|block| block.stride).sum();
            for inputs in even_ranges(&blocks[alike.start].range(), INPUTS) {
                let len = inputs.len().next_multiple_of(LINE);
                if column + len > INPUTS {
                    sets.push(Vec::new());
                    column = 0;
                }
                let sums = Aligned::zeroed(POINTS * inputs.len() * stride);
                let run = Run { inputs, blocks: alike.clone(), column, sums };
                sets.last_mut().expect("a set").push(run);
                column += len;
                depth = depth.max(column);
            }
        }
        let width: usize = blocks.iter().map(|block| block.stride).sum();
        let [least, most] = PIECES;
        let fit = (TOGETHER / (4 * POINTS * (depth + width))).clamp(least, most);
        let of_image = winograd::pieces(images.out_size).max(1);
        let group = grad.cut.map_or(1, |cut| cut.group);
        let together = (fit / of_image).max(1).next_multiple_of(group);
        // Evenly: a few pieces that are left would cost as much as many.
        let (images, all) = (together, together * of_image);
        let together = all.div_ceil((all / fit).max(1));
        Self {
            blocks,
            grid,
            channels,
            images,
            together,
            inputs: Aligned::zeroed(POINTS * (together * depth + LINE)),
            outputs: Aligned::zeroed(POINTS * (together * width + LINE)),
            pairs: (0..together).map(|piece| ((piece * depth) as u32, piece as u32)).collect(),
            zeros: Aligned::zeroed(channels[0].max(channels[1])),
            sets,
        }
    }

    /// The images to add at a time, or fewer.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Adds the products of so many images.
    #[inline(always)]
    pub fn add<S: Simd>(&mut self, simd: S, images: usize, input: &[f32], grad_output: &[f32]) {
        let [source_pixels, target_pixels] = [self.grid.source_size, self.grid.target_size].map(|[h, w]| h * w);
        assert!(input.len() == images * source_pixels * self.channels[0], "length of the input");
        assert!(grad_output.len() == images * target_pixels * self.channels[1], "length of the grad-output");
        let all = images * winograd::pieces(self.grid.target_size);
        for first in (0..all).step_by(self.together) {
            let some = first..all.min(first + self.together);
            self.transform_outputs(simd, some.clone(), grad_output);
            for set in 0..self.sets.len() {
                self.transform_inputs(simd, some.clone(), set, input);
                self.multiply(simd, set, some.len());
            }
        }
    }

    /// B of some pieces of the input, of all inputs of a set.
    #[inline(always)]
    fn transform_inputs<S: Simd>(&mut self, simd: S, some: Range<usize>, set: usize, input: &[f32]) {
        let (point_len, channels) = (self.inputs.len() / POINTS, self.channels[0]);
        for (piece, &(place, _)) in some.zip(&self.pairs) {
            let window = self.grid.window(piece);
            let mut pixels = [self.zeros.as_ptr(); POINTS];
            for (at, pixel) in pixels.iter_mut().enumerate() {
                if let Some(number) = window.pixel([at / IN, at % IN]) {
                    *pixel = input[number * channels..][..channels].as_ptr();
                }
            }
            for run in &self.sets[set] {
                let out = self.inputs[place as usize + run.column..].as_mut_ptr();
                // SAFETY: every pixel has all channels; a piece has room for a run's whole vectors at each point.
                unsafe { transform_source(simd, &pixels, run.inputs.clone(), out, point_len) };
            }
        }
    }

    /// A of some pieces of the grad-output, block by block.
    #[inline(always)]
    fn transform_outputs<S: Simd>(&mut self, simd: S, some: Range<usize>, grad_output: &[f32]) {
        let (point_len, channels) = (self.outputs.len() / POINTS, self.channels[1]);
        let row = self.grid.target_size[1];
        for (number, piece) in some.enumerate() {
            let window = self.grid.window(piece);
            let mut pixels = [[self.zeros.as_ptr(); OUT]; OUT];
            for y in 0..window.size[0] {
                for x in 0..window.size[1] {
                    pixels[y][x] = grad_output[(window.target + y * row + x) * channels..].as_ptr();
                }
            }
            let mut first = 0;
            for block in self.blocks {
                let out = self.outputs[first + number * block.stride..].as_mut_ptr();
                first += self.together * block.stride;
                for lane in (0..block.outputs.len()).step_by(S::LANES) {
                    let (from, left) = (block.outputs.start + lane, block.outputs.len() - lane);
                    // SAFETY: every pixel has the block's outputs; a piece has room for the block's vectors at each point.
                    unsafe {
                        let mut rows = [[simd.splat(0.0); OUT]; IN];
                        for x in 0..OUT {
                            let load = |y: usize| simd.load_lanes(pixels[y][x].add(from), left.min(S::LANES));
                            let column = target_points(simd, std::array::from_fn(load));
                            for y in 0..IN {
                                rows[y][x] = column[y];
                            }
                        }
                        for (y, &row) in rows.iter().enumerate() {
                            for (x, &value) in target_points(simd, row).iter().enumerate() {
                                simd.store(out.add((y * IN + x) * point_len + lane), value);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds the products of a set, of all points of the pieces that are transformed.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, simd: S, set: usize, count: usize) {
        let [in_len, out_len] = [&self.inputs, &self.outputs].map(|values| values.len() / POINTS);
        let tiles = |run: &Run| run.blocks.len() * run.inputs.len().div_ceil(ROWS);
        let tiles: usize = self.sets[set].iter().map(tiles).sum();
        let points = self.inputs.chunks_exact(in_len).zip(self.outputs.chunks_exact(out_len));
        for (point, (input, output)) in points.enumerate() {
            // The next point's values, while this one's are multiplied.
            let next =
                |values: &[f32]| Prefetch::new(values.as_ptr().wrapping_add(values.len()), values.len(), tiles * count);
            let mut near = [next(input), next(output)];
            for run in &mut self.sets[set] {
                let before: usize = self.blocks[..run.blocks.start].iter().map(|block| block.stride).sum();
                let mut panels = &output[before * self.together..];
                let sums_len = run.sums.len() / POINTS;
                let mut rest = &mut run.sums[point * sums_len..][..sums_len];
                for block in &self.blocks[run.blocks.clone()] {
                    let (of_block, others) = rest.split_at_mut(run.inputs.len() * block.stride);
                    for channels in even_ranges(&(0..run.inputs.len()), ROWS) {
                        let x = [input[run.column + channels.start..].as_ptr(); 2];
                        let (pairs, out) = (&self.pairs[..count], &mut of_block[channels.start * block.stride..]);
                        let tile = Tile { pairs, x, panel: panels.as_ptr(), out, near: &mut near };
                        // SAFETY: pairs name inputs of a point, which has the run's, and rows of a block's panel.
                        unsafe { tile.compute(simd, block, channels.len()) };
                    }
                    panels = &panels[self.together * block.stride..];
                    rest = others;
                }
            }
        }
    }

    /// Gᵀ of the sums, added to the gradients of packed weights, which begin at place `first`.
    #[inline(always)]
    pub fn add_to<S: Simd>(&self, simd: S, center: Option<usize>, first: usize, out: &mut [f32]) {
        for Run { inputs, blocks, sums, .. } in self.sets.iter().flatten() {
            let point_len = sums.len() / POINTS;
            let mut before = 0;
            for block in &self.blocks[blocks.clone()] {
                let range = block.range();
                let places: [usize; 9] = std::array::from_fn(|tap| {
                    // The centre tap of HetConv has a place for all inputs, the others for the range.
                    let start = if Some(tap) == center { block.center.start } else { range.start };
                    block.taps[tap] - first + (inputs.start - start) * block.stride
                });
                for at in (0..inputs.len() * block.stride).step_by(S::LANES) {
                    let load = |point: usize| sums[point * point_len + before + at..][..S::LANES].as_ptr();
                    let mut rows = [[simd.splat(0.0); IN]; 3];
                    for x in 0..IN {
                        // SAFETY: a whole vector is left, as was checked.
                        let column = weight_taps(simd, std::array::from_fn(|y| unsafe { simd.load(load(y * IN + x)) }));
                        for y in 0..3 {
                            rows[y][x] = column[y];
                        }
                    }
                    for (y, &row) in rows.iter().enumerate() {
                        for (x, &value) in weight_taps(simd, row).iter().enumerate() {
                            let out = out[places[3 * y + x] + at..][..S::LANES].as_mut_ptr();
                            // SAFETY: as above.
                            unsafe { simd.store(out, simd.add(simd.load(out), value)) };
                        }
                    }
                }
                before += inputs.len() * block.stride;
            }
        }
    }
}
