//! Forward and grad-input of 3×3 convolutions at stride 1 by Winograd's F(4×4, 3×3): 36 products an input channel and 4×4
//! target pixels, where the direct pass has 144.
//!
//! A 6×6 piece of the source is transformed once for each class of channels, the 36 points of several pieces are multiplied
//! with a block's transformed weights, and the products are transformed back into 4×4 target pixels. For HetConv the
//! transformed weights cover the filters' own classes, their centre taps included; the other centre taps never enter the
//! transformed domain, where they would cost 2.25 times as much: the results start a [`Tile`] that adds them.
//!
//! Results differ from the direct pass by rounding: some 10⁻⁶ of their rms. A value that is not finite spreads over its
//! whole piece.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;
use std::ops::Range;

use hetconv_core::Conv2dGeometry;
use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, ConvWeights};
use crate::isa::Isa;
use crate::moments::{ColumnSums, Moments, SumsOfParts};
use crate::pack::{Block, Classes, Direction, LINE, Layout, pack};
use crate::parallel::{Target, groups_of_blocks, images_per_part};
use crate::simd::{Simd, Task};
use crate::tile::{MAX_ROWS, MAX_STRIDE, Tile, Turned};
use crate::walk::Walk;

/// Target pixels of a piece along one axis.
const OUT: usize = 4;
/// Source pixels of a piece along one axis.
const IN: usize = OUT + 2;
/// Points of the transformed domain.
const POINTS: usize = IN * IN;

/// A layer's weights in the transformed domain.
#[derive(Debug)]
pub(crate) struct Weights {
    layout: Layout,
    /// The direct weights, of which the centre taps of other classes are read.
    packed: Aligned,
    /// `[block, point, input of the block's range, stride]`.
    transformed: Aligned,
    /// Where each block starts in `transformed`.
    starts: Vec<usize>,
}

/// Values from one point of a block to the next; a line more than there are, so that points do not share a set of the cache.
fn point_len(block: &Block) -> usize {
    block.range().len() * block.stride + LINE
}

/// Whether a convolution can be computed this way: 3×3 taps at stride 1.
pub(crate) fn fits(geometry: &Conv2dGeometry) -> bool {
    (geometry.kernel, geometry.stride, geometry.dilation) == ([3; 2], [1; 2], [1; 2])
}

/// Products per target pixel and vector of a block, of `inputs` in all.
pub(crate) fn products(block: &Block, inputs: usize) -> f64 {
    let range = block.range().len();
    let outside = if block.center.is_empty() { 0 } else { inputs - range };
    (range * POINTS) as f64 / (OUT * OUT) as f64 + outside as f64
}

/// Cost of an image of `target_size`, in whole-vector products.
pub(crate) fn cost(layout: &Layout, inputs: usize, target_size: [usize; 2], isa: Isa) -> f64 {
    /// What it costs to transform a vector of a piece: there, and back.
    const TRANSFORMS: [f64; 2] = [220.0, 140.0];
    let pieces = target_size.map(|size| size.div_ceil(OUT)).iter().product::<usize>() as f64;
    let mut sum = 0.0;
    let mut transformed = None;
    for block in &layout.blocks {
        let range = block.range();
        if transformed.as_ref() != Some(&range) {
            sum += TRANSFORMS[0] * range.len().div_ceil(isa.lanes()) as f64;
        }
        transformed = Some(range);
        sum += block.vectors as f64 * ((OUT * OUT) as f64 * products(block, inputs) + TRANSFORMS[1]);
    }
    pieces * sum
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
        let mut starts = Vec::with_capacity(layout.blocks.len());
        let mut len = 0;
        for block in &layout.blocks {
            starts.push(len);
            len += POINTS * point_len(block);
        }
        let mut transformed = Aligned::zeroed(len);
        let mut rest = &mut transformed[..];
        let mut work = Vec::with_capacity(layout.blocks.len());
        for block in &layout.blocks {
            let (part, others) = rest.split_at_mut(POINTS * point_len(block));
            work.push((block, part));
            rest = others;
        }
        let center = layout.center;
        work.into_par_iter().for_each(|(block, out)| {
            isa.run(TransformWeights { block, center, flip: direction == Direction::GradInput, packed: &packed, out });
        });
        Self { layout, packed, transformed, starts }
    }
}

/// G·g·Gᵀ of one block's weights.
struct TransformWeights<'a> {
    block: &'a Block,
    center: Option<usize>,
    /// Whether taps are read from the last to the first.
    flip: bool,
    packed: &'a [f32],
    out: &'a mut [f32],
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
        for at in (0..range.len() * block.stride).step_by(S::LANES) {
            // SAFETY: rows of weights are whole vectors, so one is left at `at` in every tap and every point.
            unsafe {
                let column = |x: usize| {
                    let tap = |y: usize| simd.load(taps[3 * y + x].as_ptr().add(at));
                    weight_points(simd, [tap(0), tap(1), tap(2)])
                };
                let columns = [column(0), column(1), column(2)];
                for y in 0..IN {
                    let row = weight_points(simd, [columns[0][y], columns[1][y], columns[2][y]]);
                    for (x, &value) in row.iter().enumerate() {
                        simd.store(out.as_mut_ptr().add((y * IN + x) * point_len + at), value);
                    }
                }
            }
        }
    }
}

/// G·g.
#[inline(always)]
fn weight_points<S: Simd>(simd: S, g: [S::V; 3]) -> [S::V; IN] {
    let times = |factor: f32, value| simd.mul(simd.splat(factor), value);
    let outer = times(-1.0 / 6.0, simd.add(g[0], g[2]));
    let middle = times(1.0 / 6.0, g[1]);
    let far = simd.mul_add(simd.splat(1.0 / 6.0), g[2], times(1.0 / 24.0, g[0]));
    let half = times(1.0 / 12.0, g[1]);
    [
        times(0.25, g[0]),
        simd.sub(outer, middle),
        simd.add(outer, middle),
        simd.add(far, half),
        simd.sub(far, half),
        g[2],
    ]
}

/// Bᵀ·d.
#[inline(always)]
fn source_points<S: Simd>(simd: S, d: [S::V; IN]) -> [S::V; IN] {
    let times_add = |factor: f32, a, b| simd.mul_add(simd.splat(factor), a, b);
    let (even, odd) = (times_add(-4.0, d[2], d[4]), times_add(-4.0, d[1], d[3]));
    let (near, far) = (simd.sub(d[4], d[2]), simd.sub(d[3], d[1]));
    [
        times_add(4.0, d[0], times_add(-5.0, d[2], d[4])),
        simd.add(even, odd),
        simd.sub(even, odd),
        times_add(2.0, far, near),
        times_add(-2.0, far, near),
        times_add(4.0, d[1], times_add(-5.0, d[3], d[5])),
    ]
}

/// Aᵀ·m.
#[inline(always)]
fn target_pixels<S: Simd>(simd: S, m: [S::V; IN]) -> [S::V; OUT] {
    let (near, near_odd) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
    let (far, far_odd) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
    [
        simd.add(simd.add(m[0], near), far),
        simd.mul_add(simd.splat(2.0), far_odd, near_odd),
        simd.mul_add(simd.splat(4.0), far, near),
        simd.add(simd.mul_add(simd.splat(8.0), far_odd, near_odd), m[5]),
    ]
}

/// A prepared convolution; see the module's text.
pub(crate) struct Winograd<'a> {
    pub weights: &'a Weights,
    /// One number per output position.
    pub bias: Vec<f32>,
    pub source_size: [usize; 2],
    pub target_size: [usize; 2],
    /// Source pixels that the first target pixel's window begins before the source, vertically and horizontally.
    pub before: [isize; 2],
    pub source_channels: usize,
    pub target_channels: usize,
}

impl Winograd<'_> {
    /// Computes `target` `[batch, target size, target channels]` from `source`, and, if wanted, the sum and the sum of
    /// squares of each channel.
    pub fn run(
        &self,
        isa: Isa,
        batch: usize,
        source: &[f32],
        target: &mut [MaybeUninit<f32>],
        moments: bool,
    ) -> Option<ColumnSums> {
        let source_len = self.source_size[0] * self.source_size[1] * self.source_channels;
        let target_len = self.target_size[0] * self.target_size[1] * self.target_channels;
        assert!(source.len() == batch * source_len && target.len() == batch * target_len);
        assert!(self.bias.len() == self.target_channels);
        if target.is_empty() {
            return moments.then(|| ColumnSums::zero(self.target_channels));
        }
        let images = images_per_part(batch, 4 * source_len.max(target_len), 1).max(FEW_PIECES.div_ceil(self.pieces()));
        let image_parts = batch.div_ceil(images);
        let groups = groups_of_blocks(self.weights.layout.blocks.len(), image_parts);
        let mut sums = moments.then(|| SumsOfParts::new(image_parts * groups.len(), self.target_channels));
        let mut of_parts = sums.iter_mut().flat_map(SumsOfParts::parts);
        let mut parts = Vec::with_capacity(image_parts * groups.len());
        let whole = Target(target.as_mut_ptr().cast());
        for first in (0..batch).step_by(images) {
            for blocks in &groups {
                parts.push((first, blocks.clone(), of_parts.next()));
            }
        }
        parts.into_par_iter().for_each(|(first, blocks, moments)| {
            let images = images.min(batch - first);
            let source = &source[first * source_len..][..images * source_len];
            // SAFETY: the target has `batch` images.
            let target = unsafe { whole.add(first * target_len) };
            isa.run(Part { winograd: self, images, blocks, source, target, moments });
        });
        sums.map(SumsOfParts::total)
    }

    /// Pieces along both axes.
    fn grid(&self) -> [usize; 2] {
        self.target_size.map(|size| size.div_ceil(OUT))
    }

    /// Pieces of an image.
    fn pieces(&self) -> usize {
        self.grid().iter().product()
    }
}

/// A part has at least that many pieces: they share each read of the transformed weights.
const FEW_PIECES: usize = 24;

/// How many of `all` pieces, `bytes` each, are transformed together: with their products they stay in a core's second-level
/// cache.
fn pieces_together(all: usize, bytes: usize) -> usize {
    const CACHE: usize = 512 << 10;
    let most = (CACHE / bytes).clamp(FEW_PIECES, 96).next_multiple_of(MAX_ROWS);
    all.div_ceil(all.div_ceil(most)).next_multiple_of(MAX_ROWS)
}

/// Some images and blocks, for one thread.
struct Part<'a> {
    winograd: &'a Winograd<'a>,
    images: usize,
    blocks: Range<usize>,
    source: &'a [f32],
    /// The first image's target.
    target: Target,
    /// Sums and sums of squares, `[2, target channels]`.
    moments: Option<&'a mut [f64]>,
}

/// Where a piece is.
#[derive(Clone, Copy)]
struct Place {
    /// First value of the window's first source pixel, which may lie outside the image.
    source: *const f32,
    /// Which rows and columns of the window lie inside: a bit for each.
    inside: [u32; 2],
    /// First value of the first target pixel.
    target: *mut f32,
    /// Rows and columns of target pixels.
    size: [usize; 2],
}

/// Some pieces, one after another.
struct Pieces {
    places: Vec<Place>,
    /// Transformed source, `[piece, point, input]`.
    points: Aligned,
    /// Inputs of a point: those of the widest range.
    depth: usize,
    /// Products, `[piece, point, stride]`.
    products: Aligned,
    /// Values of a pixel outside of the image.
    zeros: Vec<f32>,
}

impl Pieces {
    /// Values of a piece's points; a line more than there are, so that pieces do not share a set of the cache.
    fn points_len(&self) -> usize {
        POINTS * self.depth + LINE
    }
}

/// Values of a piece's products; see [`Pieces::points_len`].
fn products_len(stride: usize) -> usize {
    POINTS * stride + LINE
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Winograd { weights, source_channels, .. } = self.winograd;
        let blocks = &weights.layout.blocks[self.blocks.clone()];
        let depth = blocks.iter().map(|block| block.range().len()).max().unwrap_or(0).next_multiple_of(S::LANES);
        let stride = blocks.iter().map(|block| block.stride).max().unwrap_or(0);
        let all = self.images * self.winograd.pieces();
        let together = pieces_together(all, 4 * POINTS * (depth + stride));
        let mut pieces = Pieces {
            places: Vec::with_capacity(together),
            points: Aligned::zeroed(together * (POINTS * depth + LINE)),
            depth,
            products: Aligned::zeroed(together * products_len(stride)),
            zeros: vec![0.0; *source_channels],
        };
        for first in (0..all).step_by(together) {
            pieces.places.clear();
            pieces.places.extend((first..all.min(first + together)).map(|piece| self.place(piece)));
            let mut transformed = None;
            for index in self.blocks.clone() {
                let block = &weights.layout.blocks[index];
                let range = block.range();
                if transformed.as_ref() != Some(&range) {
                    self.transform(simd, &range, &mut pieces);
                    transformed = Some(range);
                }
                match block.vectors {
                    2 => self.block::<S, 2>(simd, index, &mut pieces),
                    _ => self.block::<S, 1>(simd, index, &mut pieces),
                }
            }
        }
    }
}

impl Part<'_> {
    fn place(&self, piece: usize) -> Place {
        let Winograd { source_size, target_size, before, source_channels, target_channels, .. } = *self.winograd;
        let [rows, columns] = self.winograd.grid();
        let (image, within) = (piece / (rows * columns), piece % (rows * columns));
        let first = [within / columns * OUT, within % columns * OUT];
        let source = [0, 1].map(|axis| first[axis] as isize - before[axis]);
        let inside = |axis: usize| {
            let is_inside = |&at: &usize| (0..source_size[axis] as isize).contains(&(source[axis] + at as isize));
            (0..IN).filter(is_inside).fold(0, |bits, at| bits | 1 << at)
        };
        let pixel = (image * source_size[0]) as isize + source[0];
        let pixel = pixel * source_size[1] as isize + source[1];
        let target = (image * target_size[0] + first[0]) * target_size[1] + first[1];
        Place {
            source: self.source.as_ptr().wrapping_offset(pixel * source_channels as isize),
            inside: [inside(0), inside(1)],
            target: self.target.0.wrapping_add(target * target_channels),
            size: [0, 1].map(|axis| (target_size[axis] - first[axis]).min(OUT)),
        }
    }

    /// A pixel of a piece's window: its own values, or zeros outside of the image.
    #[inline(always)]
    fn pixel(&self, place: &Place, y: usize, x: usize, zeros: &[f32]) -> *const f32 {
        let Winograd { source_size, source_channels, .. } = *self.winograd;
        let is_inside = (place.inside[0] >> y) & (place.inside[1] >> x) & 1 == 1;
        let pixel = place.source.wrapping_add((y * source_size[1] + x) * source_channels);
        if is_inside { pixel } else { zeros.as_ptr() }
    }

    /// Transforms a range of the source's channels.
    #[inline(always)]
    fn transform<S: Simd>(&self, simd: S, range: &Range<usize>, pieces: &mut Pieces) {
        let (depth, points_len) = (pieces.depth, pieces.points_len());
        for (place, out) in pieces.places.iter().zip(pieces.points.chunks_exact_mut(points_len)) {
            let pixels: [*const f32; POINTS] =
                std::array::from_fn(|pixel| self.pixel(place, pixel / IN, pixel % IN, &pieces.zeros));
            for channel in (0..range.len()).step_by(S::LANES) {
                let left = range.len() - channel;
                // SAFETY: every pixel has `range.end` values or more, `left` of them from here on; `out` has `depth`
                // values a point, whole vectors.
                unsafe {
                    let load = |pixel: usize| {
                        let from = pixels[pixel].add(range.start + channel);
                        if left >= S::LANES { simd.load(from) } else { simd.load_first(from, left) }
                    };
                    let mut rows = [[simd.splat(0.0); IN]; IN];
                    for x in 0..IN {
                        let column = source_points(simd, std::array::from_fn(|y| load(y * IN + x)));
                        for y in 0..IN {
                            rows[y][x] = column[y];
                        }
                    }
                    for (y, &row) in rows.iter().enumerate() {
                        for (x, &value) in source_points(simd, row).iter().enumerate() {
                            simd.store(out.as_mut_ptr().add((y * IN + x) * depth + channel), value);
                        }
                    }
                }
            }
        }
    }

    /// Multiplies the transformed source with a block's weights and writes the block's outputs.
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, index: usize, pieces: &mut Pieces) {
        let Winograd { weights, bias, target_size: [_, width], source_channels, target_channels, .. } = self.winograd;
        let (width, target_channels) = (*width, *target_channels);
        let block = &weights.layout.blocks[index];
        assert!(block.stride == V * S::LANES);
        let range = block.range();
        let most_rows = MAX_ROWS.min(S::SUMS / V);
        let (points_len, products_len) = (pieces.points_len(), products_len(block.stride));
        let of_point = block.range().len() * block.stride;
        for point in 0..POINTS {
            let from = weights.starts[index] + point * point_len(block);
            let of_point = &weights.transformed[from..from + of_point];
            for first in (0..pieces.places.len()).step_by(most_rows) {
                let points = &pieces.points[first * points_len + point * pieces.depth..];
                let products = &mut pieces.products[first * products_len + point * block.stride..];
                let product = Product { weights: of_point, points, points_len, products, products_len };
                // SAFETY: each piece has `depth` values a point, the range's among them, and `stride` products.
                unsafe { product.compute::<S, V>(simd, most_rows.min(pieces.places.len() - first)) };
            }
        }
        // What is left for the direct domain: centre taps of channels outside the range.
        let mut walk = Walk::default();
        if let Some(center) = weights.layout.center {
            for part in [0..range.start, range.end..*source_channels] {
                walk.read(block.stride, 0, &part, block.taps[center] + part.start * block.stride);
            }
        }
        let mut moments = Moments::new();
        let mut turned = Turned::new();
        let mut results = [[0.0f32; MAX_STRIDE]; OUT * OUT];
        for (place, products) in pieces.places.iter().zip(pieces.products.chunks_exact(products_len)) {
            let target = place.target.wrapping_add(block.outputs.start);
            for y in 0..place.size[0] {
                for x in 0..place.size[1] {
                    for vector in 0..V {
                        let target = target.wrapping_add((y * width + x) * target_channels + vector * S::LANES);
                        simd.prefetch_to_write(target);
                    }
                }
            }
            for lane in (0..block.stride).step_by(S::LANES) {
                // SAFETY: there are `stride` products a point, and `MAX_STRIDE` results a pixel, which is no less.
                unsafe {
                    let mut rows = [[simd.splat(0.0); IN]; OUT];
                    for x in 0..IN {
                        let load = |y: usize| simd.load(products.as_ptr().add((y * IN + x) * block.stride + lane));
                        let column = target_pixels(simd, std::array::from_fn(load));
                        for y in 0..OUT {
                            rows[y][x] = column[y];
                        }
                    }
                    for (y, &row) in rows.iter().enumerate() {
                        for (x, &value) in target_pixels(simd, row).iter().enumerate() {
                            simd.store(results[y * OUT + x].as_mut_ptr().add(lane), value);
                        }
                    }
                }
            }
            let mut starts = [results[0].as_ptr(); MAX_ROWS];
            let mut tile = Tile {
                walk: &walk,
                block,
                packed: weights.packed.as_ptr(),
                bias: &bias[block.outputs.clone()],
                rows: 0,
                sources: [pieces.zeros.as_ptr(); MAX_ROWS],
                targets: [target; MAX_ROWS],
                starts: None,
            };
            let mut left = place.size[0] * place.size[1];
            let rows = left.div_ceil(left.div_ceil(most_rows));
            for y in 0..place.size[0] {
                for x in 0..place.size[1] {
                    // The centre of the window is one pixel further.
                    tile.sources[tile.rows] = self.pixel(place, y + 1, x + 1, &pieces.zeros);
                    tile.targets[tile.rows] = target.wrapping_add((y * width + x) * target_channels);
                    starts[tile.rows] = results[y * OUT + x].as_ptr();
                    tile.rows += 1;
                    if tile.rows < rows.min(left) {
                        continue;
                    }
                    tile.starts = Some(starts);
                    let moments = self.moments.is_some().then_some(&mut moments);
                    // SAFETY: sources are whole pixels, targets the block's outputs of pixels that no other part writes.
                    unsafe { tile.compute(simd, &mut turned, moments) };
                    left -= tile.rows;
                    tile.rows = 0;
                }
            }
        }
        if let Some(sums) = &mut self.moments {
            moments.add_to(sums, &block.outputs);
        }
    }
}

/// One point of some pieces times a block's weights.
struct Product<'a> {
    /// `[input, stride]`.
    weights: &'a [f32],
    /// From the first piece's point on.
    points: &'a [f32],
    points_len: usize,
    /// From the first piece's point on.
    products: &'a mut [f32],
    products_len: usize,
}

impl Product<'_> {
    /// # Safety
    /// `rows` pieces have as many values at their point as there are inputs, and `V` vectors of products.
    #[inline(always)]
    unsafe fn compute<S: Simd, const V: usize>(self, simd: S, rows: usize) {
        // SAFETY: the caller's.
        unsafe {
            match rows {
                1 => self.rows::<S, 1, V>(simd),
                2 => self.rows::<S, 2, V>(simd),
                3 => self.rows::<S, 3, V>(simd),
                4 => self.rows::<S, 4, V>(simd),
                5 => self.rows::<S, 5, V>(simd),
                6 => self.rows::<S, 6, V>(simd),
                7 => self.rows::<S, 7, V>(simd),
                8 => self.rows::<S, 8, V>(simd),
                9 => self.rows::<S, 9, V>(simd),
                10 => self.rows::<S, 10, V>(simd),
                11 => self.rows::<S, 11, V>(simd),
                _ => self.rows::<S, 12, V>(simd),
            }
        }
    }

    /// # Safety
    /// As [`Product::compute`], of `R` rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize, const V: usize>(self, simd: S) {
        let mut sums = [[simd.splat(0.0); V]; R];
        // SAFETY: the caller's.
        unsafe {
            let points: [*const f32; R] = std::array::from_fn(|r| self.points.as_ptr().add(r * self.points_len));
            for (input, weights) in self.weights.chunks_exact(V * S::LANES).enumerate() {
                let weights: [S::V; V] = std::array::from_fn(|v| simd.load(weights.as_ptr().add(v * S::LANES)));
                for r in 0..R {
                    let value = simd.splat(*points[r].add(input));
                    for v in 0..V {
                        sums[r][v] = simd.mul_add(value, weights[v], sums[r][v]);
                    }
                }
            }
            for (r, row) in sums.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    simd.store(self.products.as_mut_ptr().add(r * self.products_len + v * S::LANES), sum);
                }
            }
        }
    }
}
