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

mod pieces;
mod product;
mod transforms;
mod weights;

use std::mem::MaybeUninit;
use std::ops::Range;

use hetconv_core::{Activation, Conv2dGeometry};

use crate::cache::{self, LINE};
use crate::isa::Isa;
use crate::kernel::{Pass, Share};
use crate::moments::Moments;
use crate::pack::{Block, Layout};
use crate::parallel::{Band, even_ranges};
use crate::prefetch::Ahead;
use crate::simd::{Simd, Task};
use crate::tile::{Epilogue, MAX_ROWS, MAX_STRIDE, Start, Tile, TileSums};

pub(crate) use pieces::{Grid, transform_source};
use product::Product;
use transforms::target_pixels;
pub(crate) use transforms::{target_points, weight_taps};
pub(crate) use weights::{Weights, weights_len};

/// Target pixels of a piece along one axis.
pub(crate) const OUT: usize = 4;
/// Source pixels of a piece along one axis.
pub(crate) const IN: usize = OUT + 2;
/// Points of the transformed domain.
pub(crate) const POINTS: usize = IN * IN;

/// Whether a convolution can be computed this way: 3×3 taps at stride 1.
pub(crate) fn fits(geometry: &Conv2dGeometry) -> bool {
    (geometry.kernel, geometry.stride, geometry.dilation) == ([3; 2], [1; 2], [1; 2])
}

/// Products per target pixel and vector of a block.
pub(crate) fn products(block: &Block) -> f64 {
    (block.range().len() * POINTS) as f64 / (OUT * OUT) as f64 + block.outside() as f64
}

/// Pieces of an image of `target_size`.
pub(crate) fn pieces(target_size: [usize; 2]) -> usize {
    target_size.map(|size| size.div_ceil(OUT)).iter().product()
}

/// Cost of an image of `target_size`, in whole-vector products.
pub(crate) fn cost(layout: &Layout, target_size: [usize; 2], isa: Isa) -> f64 {
    /// What it costs to transform a vector of a piece: there, and back.
    const TRANSFORMS: [f64; 2] = [500.0, 600.0];
    let pieces = pieces(target_size) as f64;
    let mut sum = 0.0;
    let mut transformed = None;
    for block in &layout.blocks {
        let range = block.range();
        if transformed.as_ref() != Some(&range) {
            sum += TRANSFORMS[0] * range.len().div_ceil(isa.lanes()) as f64;
        }
        transformed = Some(range);
        sum += block.vectors as f64 * ((OUT * OUT) as f64 * products(block) + TRANSFORMS[1]);
    }
    pieces * sum
}

/// A prepared convolution; see the module's text.
#[derive(Clone, Copy)]
pub(crate) struct Winograd<'a> {
    pub weights: &'a Weights,
    /// One number per output position.
    pub bias: &'a [f32],
    pub activation: Option<Activation>,
    pub source_size: [usize; 2],
    pub target_size: [usize; 2],
    /// Source pixels that the first target pixel's window begins before the source, vertically and horizontally.
    pub before: [isize; 2],
    pub source_channels: usize,
    pub target_channels: usize,
}

impl Winograd<'_> {
    /// Values of a source image.
    pub fn source_len(&self) -> usize {
        self.source_size[0] * self.source_size[1] * self.source_channels
    }

    /// Values of a target image.
    pub fn target_len(&self) -> usize {
        self.target_size[0] * self.target_size[1] * self.target_channels
    }

    /// MACs of an image: those of the transformed domain, of pieces that hang over included, and those of the tiles.
    pub fn macs(&self) -> usize {
        let pixels = self.target_size[0] * self.target_size[1];
        let of_block = |block: &Block| {
            (self.pieces() * POINTS * block.range().len() + pixels * block.outside()) * block.outputs.len()
        };
        self.weights.layout.blocks.iter().map(of_block).sum()
    }

    fn grid(&self) -> Grid {
        let Self { source_size, target_size, before, .. } = *self;
        Grid { source_size, target_size, before }
    }

    /// Pieces of an image.
    pub fn pieces(&self) -> usize {
        pieces(self.target_size)
    }

    /// Values that a part of these blocks and of so many pieces, or fewer, needs for its own.
    pub fn scratch_len(&self, blocks: Range<usize>, pieces: usize) -> usize {
        let room = Room::new(self, blocks, pieces);
        Room { together: room.most.min(pieces.max(1).next_multiple_of(MAX_ROWS)), ..room }.len()
    }
}

/// A part has at least that many pieces: they share each read of the transformed weights.
pub(crate) const FEW_PIECES: usize = 24;

/// How a part's scratch is used.
struct Room {
    /// Pieces that are transformed together, and the most that could be.
    together: usize,
    most: usize,
    /// Inputs of a point: those of the widest range.
    depth: usize,
    /// Products of a point: those of the blocks that read the same range.
    width: usize,
    source_channels: usize,
}

impl Room {
    /// With their products, pieces stay in a core's second-level cache, if the weights that they share do as well;
    /// otherwise more of them share each read of the weights.
    fn new(winograd: &Winograd<'_>, blocks: Range<usize>, pieces: usize) -> Self {
        const CACHE: usize = cache::HALF_SECOND_BYTES;
        let weights = winograd.weights;
        let (mut depth, mut width) = (0, 0);
        let mut left = blocks;
        while !left.is_empty() {
            let alike = weights.alike(left.clone());
            left.start = alike.end;
            let of_alike = &weights.layout.blocks[alike];
            depth = depth.max(of_alike[0].range().len().next_multiple_of(LINE));
            let stride: usize = of_alike.iter().map(|block| block.stride).sum();
            width = width.max(stride.next_multiple_of(LINE));
        }
        let bytes = 4 * POINTS * (depth + width).max(1);
        let most = if 4 * POINTS * depth * width > CACHE { MANY_PIECES } else { CACHE / bytes };
        let most = most.clamp(FEW_PIECES, MANY_PIECES).next_multiple_of(MAX_ROWS);
        let together = pieces.div_ceil(pieces.div_ceil(most).max(1)).max(1).next_multiple_of(MAX_ROWS);
        Self { together, most, depth, width, source_channels: winograd.source_channels }
    }

    /// Values of a piece's points; a line more than there are, so that pieces do not share a set of the cache.
    fn points_len(&self) -> usize {
        POINTS * self.depth + LINE
    }

    /// Values of a piece's products; see [`Room::points_len`].
    fn products_len(&self) -> usize {
        POINTS * self.width + LINE
    }

    fn len(&self) -> usize {
        self.together * (self.points_len() + self.products_len()) + self.source_channels
    }
}

/// Pieces that are transformed together at most.
pub(crate) const MANY_PIECES: usize = 96;
const _: () = assert!(MANY_PIECES.is_multiple_of(MAX_ROWS));

/// Some pieces and blocks of some images, for one thread.
pub(crate) struct Part<'a> {
    pub kernel: &'a Winograd<'a>,
    pub pass: Pass<'a>,
    pub share: Share<'a>,
    /// As long as [`Winograd::scratch_len`] says.
    pub scratch: &'a mut [f32],
}

/// Where a piece is.
struct Place {
    /// The pixels of its window; zeros outside of the image.
    pixels: [*const f32; POINTS],
    /// Number of the first target pixel.
    target: usize,
    /// Rows and columns of target pixels.
    size: [usize; 2],
}

impl Place {
    /// Number of target pixels.
    fn targets(&self) -> usize {
        self.size[0] * self.size[1]
    }
}

/// Some pieces, one after another.
struct Pieces<'a> {
    /// Found once for all classes of channels.
    places: &'a [Place],
    room: &'a Room,
    /// Transformed source, `[piece, point, input]`.
    points: &'a mut [f32],
    /// Products, `[piece, point, output of the blocks that read alike]`.
    products: &'a mut [f32],
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let weights = self.kernel.weights;
        let all = self.share.band.of(self.pass.images * self.kernel.pieces());
        let room = Room::new(self.kernel, self.share.blocks.clone(), all.len());
        assert!(self.scratch.len() >= room.len(), "scratch");
        let scratch = std::mem::take(&mut self.scratch);
        let (points, scratch) = scratch.split_at_mut(room.together * room.points_len());
        let (products, scratch) = scratch.split_at_mut(room.together * room.products_len());
        let zeros = &mut scratch[..room.source_channels];
        zeros.fill(0.0);
        let together = room.together;
        let mut found = [const { MaybeUninit::<Place>::uninit() }; MANY_PIECES];
        // Of how many of the next blocks the beginning is near: before this part, of one or none.
        let mut begun = usize::from(self.pass.begun);
        for first in all.clone().step_by(together) {
            let places = self.places(first..all.end.min(first + together), zeros, &mut found);
            let is_last = first + together >= all.end;
            let mut pieces = Pieces { places, room: &room, points: &mut *points, products: &mut *products };
            let mut left = self.share.blocks.clone();
            while !left.is_empty() {
                let alike = weights.alike(left.clone());
                left.start = alike.end;
                self.transform(simd, &weights.layout.blocks[alike.start].range(), &mut pieces);
                // What comes next is brought near while this is computed: the rest of a block while its points are
                // multiplied, and the beginning of one after it while its results are finished. Where nothing is read then,
                // it is what is multiplied next.
                let (blocks, following) = (self.share.blocks.clone(), self.pass.ahead);
                let after = |index: usize| match left.is_empty() {
                    true if is_last => {
                        let share = Band { index: index - alike.start, count: alike.len() };
                        &following[share.of(following.len())]
                    }
                    is_empty => {
                        let next = weights.alike(if is_empty { blocks.clone() } else { left.clone() });
                        let next = next.start + (index - alike.start)..next.end;
                        weights.first(&next)
                    }
                };
                for point in 0..POINTS {
                    let mut column = 0;
                    for index in alike.clone() {
                        let block = &weights.layout.blocks[index];
                        let ahead = match weights.has_centers(index) {
                            true => weights.later(index, point, index - alike.start < begun),
                            false if index + 1 < alike.end => weights.of_point(index + 1, point),
                            false if point + 1 < POINTS => weights.of_point(alike.start, point + 1),
                            false => after(alike.start),
                        };
                        match block.vectors {
                            2 => self.multiply::<S, 2>(simd, index, point, column, ahead, &mut pieces),
                            _ => self.multiply::<S, 1>(simd, index, point, column, ahead, &mut pieces),
                        }
                        column += block.stride;
                    }
                }
                let mut column = 0;
                for index in alike.clone() {
                    self.finish(simd, index, column, after(index), &pieces);
                    column += weights.layout.blocks[index].stride;
                }
                begun = alike.len();
            }
        }
    }
}

impl Part<'_> {
    /// Where these pieces are; what lies outside of an image is read from `zeros`.
    #[inline(always)]
    fn places<'p>(
        &self,
        pieces: Range<usize>,
        zeros: &[f32],
        found: &'p mut [MaybeUninit<Place>; MANY_PIECES],
    ) -> &'p [Place] {
        let (grid, source) = (self.kernel.grid(), self.pass.source.as_ptr());
        let (len, found) = (pieces.len(), &mut found[..pieces.len()]);
        for (piece, place) in pieces.zip(&mut *found) {
            let window = grid.window(piece);
            let of_number = |number: usize| source.wrapping_add(number * self.kernel.source_channels);
            let pixel = |at: usize| window.pixel([at / IN, at % IN]).map_or(zeros.as_ptr(), of_number);
            place.write(Place { pixels: std::array::from_fn(pixel), target: window.target, size: window.size });
        }
        // SAFETY: as many were written as there are in the slice.
        unsafe { std::slice::from_raw_parts(found.as_ptr().cast(), len) }
    }

    /// Transforms a range of the source's channels.
    #[inline(always)]
    fn transform<S: Simd>(&self, simd: S, range: &Range<usize>, pieces: &mut Pieces<'_>) {
        let (depth, points_len) = (pieces.room.depth, pieces.room.points_len());
        for (place, out) in pieces.places.iter().zip(pieces.points.chunks_exact_mut(points_len)) {
            // SAFETY: every pixel has `range.end` values or more; `out` has `depth` values a point, whole vectors.
            unsafe { transform_source(simd, &place.pixels, range.clone(), out.as_mut_ptr(), depth) };
        }
    }

    /// Multiplies a point of the transformed source with a block's weights.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn multiply<S: Simd, const V: usize>(
        &self,
        simd: S,
        index: usize,
        point: usize,
        column: usize,
        ahead: &[f32],
        pieces: &mut Pieces<'_>,
    ) {
        let weights = self.kernel.weights;
        let block = &weights.layout.blocks[index];
        assert!(block.stride == V * S::LANES);
        let most_rows = MAX_ROWS.min(S::SUMS / V);
        let Room { depth, width, .. } = *pieces.room;
        let (points_len, products_len) = (pieces.room.points_len(), pieces.room.products_len());
        let of_point = weights.of_point(index, point);
        let mut ahead = Ahead::new(ahead, pieces.places.len() * of_point.len() / S::LANES);
        for rows in even_ranges(&(0..pieces.places.len()), most_rows) {
            let points = &pieces.points[rows.start * points_len + point * depth..];
            let products = &mut pieces.products[rows.start * products_len + point * width + column..];
            Product { weights: of_point, ahead: &mut ahead, points, points_len, products, products_len }
                .compute::<S, V>(simd, rows.len());
        }
    }

    /// Transforms a block's products back and writes its outputs.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, index: usize, column: usize, ahead: &[f32], pieces: &Pieces<'_>) {
        let Winograd { weights, bias, activation, target_size: [_, row], target_channels, .. } = *self.kernel;
        let block = &weights.layout.blocks[index];
        let most_rows = Tile::most_rows::<S>(block);
        let (width, products_len) = (pieces.room.width, pieces.room.products_len());
        let epilogue = Epilogue::new(self.pass.residual, self.pass.target, activation);
        let tiles: usize = pieces.places.iter().map(|place| place.targets().div_ceil(most_rows)).sum();
        let mut ahead = Ahead::new(ahead, tiles * weights.walks[index].steps);
        let mut moments = Moments::new();
        let mut turned = TileSums::new();
        let mut results = TileSums::<{ OUT * OUT }>::new();
        for (place, products) in pieces.places.iter().zip(pieces.products.chunks_exact(products_len)) {
            // No more anyway; that the compiler knows it spares looks at bounds.
            let columns = place.size[1].min(OUT);
            let target = self.pass.target.0.wrapping_add(place.target * target_channels + block.outputs.start);
            // The piece's own pixels, one after another: what a row has too much is overwritten by the next one.
            let mut sources = [place.pixels[0]; OUT * OUT];
            let mut targets = [target; OUT * OUT];
            for y in 0..OUT {
                for x in 0..OUT {
                    // The centre of the window is one pixel further.
                    sources[y * columns + x] = place.pixels[(y + 1) * IN + x + 1];
                    targets[y * columns + x] = target.wrapping_add((y * row + x) * target_channels);
                }
            }
            epilogue.prefetch(simd, &targets[..place.targets()], block.vectors);
            for lane in (0..block.stride).step_by(S::LANES) {
                // SAFETY: there are `width` products a point, this block's from `column` on, and `MAX_STRIDE` results a
                // pixel, which is no less than the block has.
                unsafe {
                    let mut rows = [[simd.splat(0.0); IN]; OUT];
                    for x in 0..IN {
                        let load = |y: usize| simd.load(products.as_ptr().add((y * IN + x) * width + column + lane));
                        let column = target_pixels(simd, std::array::from_fn(load));
                        for y in 0..OUT {
                            rows[y][x] = column[y];
                        }
                    }
                    for (y, &row) in rows.iter().enumerate() {
                        for (x, &value) in target_pixels(simd, row).iter().enumerate() {
                            simd.store(results.0[y * columns + x].as_mut_ptr().add(lane), value);
                        }
                    }
                }
            }
            let mut tile = Tile {
                walk: &weights.walks[index],
                block,
                packed: weights.packed.as_ptr(),
                bias: &bias[block.outputs.clone()],
                rows: 0,
                sources: [place.pixels[0]; MAX_ROWS],
                targets: [target; MAX_ROWS],
                start: Start::Zero,
                epilogue,
                ahead,
            };
            for pixels in even_ranges(&(0..place.targets()), most_rows) {
                tile.rows = pixels.len();
                tile.sources[..pixels.len()].copy_from_slice(&sources[pixels.clone()]);
                tile.targets[..pixels.len()].copy_from_slice(&targets[pixels.clone()]);
                tile.start = Start::Rows(results.0.as_flattened()[pixels.start * MAX_STRIDE..].as_ptr());
                let moments = self.share.moments.is_some().then_some(&mut moments);
                // SAFETY: sources are whole pixels, targets the block's outputs of pixels that no other part writes.
                unsafe { tile.compute(simd, &mut turned, moments) };
            }
            ahead = tile.ahead;
        }
        if let Some(sums) = &mut self.share.moments {
            moments.add_to(sums, &block.outputs);
        }
    }
}
